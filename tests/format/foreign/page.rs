//! What the page says: its tables, its examples, its sections.

use std::collections::BTreeSet;
use std::sync::LazyLock;

/// The source of the page, as it is now.
fn page() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/hushfs-foreign.5");
        std::fs::read_to_string(path).unwrap()
    });
    &PAGE
}

/// The text that a line of the source shows.
fn shown(line: &str) -> String {
    let mut text = line.replace("\\-", "-").replace("\\&", "");
    for (escape, letter) in [
        ("\\(aq", "'"),
        ("\\(dq", "\""),
        ("\\(ha", "^"),
        ("\\e", "\\"),
    ] {
        text = text.replace(escape, letter);
    }
    text
}

/// The rows of a table; columns are two or more blanks apart.
pub fn table(name: &str) -> Vec<Vec<String>> {
    let start = format!(".\\\" table {name}");
    let mut lines = page().lines().skip_while(|line| *line != start);
    assert!(lines.next().is_some(), "no table {name}");
    let lines = lines.take_while(|line| !line.starts_with(".\\\" end"));
    let rows = lines.filter(|line| !line.starts_with('.')).map(|line| {
        let line = shown(line);
        let cells = line.split("  ").map(str::trim);
        cells
            .filter(|cell| !cell.is_empty())
            .map(Into::into)
            .collect()
    });
    rows.collect()
}

/// A column of a table.
pub fn column(name: &str, at: usize) -> Vec<String> {
    table(name).into_iter().map(|row| row[at].clone()).collect()
}

/// The row of a table that begins with `key`.
pub fn row(name: &str, key: &str) -> Vec<String> {
    let mut rows = table(name).into_iter();
    let found = rows.find(|row| row[0] == key);
    found.unwrap_or_else(|| panic!("the table {name} has no {key}"))
}

/// A number of a table, with commas for readers.
pub fn number(name: &str, key: &str) -> usize {
    row(name, key)[1].replace(',', "").parse().unwrap()
}

/// Where a part is, by a table of offsets and lengths in which `what` begins its description.
pub fn place(name: &str, what: &str) -> (String, String) {
    let mut rows = table(name).into_iter();
    let found = rows.find(|row| row[2].starts_with(what));
    let row = found.unwrap_or_else(|| panic!("the table {name} has no {what}"));
    (row[0].clone(), row[1].clone())
}

/// The same, of a part whose offset and length are numbers.
pub fn range(name: &str, what: &str) -> std::ops::Range<usize> {
    let (at, len) = place(name, what);
    let (at, len): (usize, usize) = (at.parse().unwrap(), len.parse().unwrap());
    at..at + len
}

/// A text of the examples that stands in the page as `name = value`, or in indented lines below its name.
pub fn constant(name: &str) -> String {
    let mut lines = page().lines();
    let start = format!("{name} =");
    let first = lines.find_map(|line| line.strip_prefix(&start));
    let first = first.unwrap_or_else(|| panic!("the page does not say {name}"));
    match first.strip_prefix(' ') {
        Some(value) => shown(value),
        None => {
            let parts = lines.map_while(|line| line.strip_prefix("  "));
            shown(&parts.collect::<String>())
        }
    }
}

/// The same, of bytes in hexadecimal.
pub fn bytes(name: &str) -> Vec<u8> {
    crate::page::unhex(&constant(name))
}

/// Holds the page to a formula that the decoder computes.
pub fn assert_formula(line: &str) {
    let is_there = page().lines().any(|other| shown(other) == line);
    assert!(is_there, "the page does not say {line}");
}

/// The names of sections and of subsections.
pub fn sections() -> BTreeSet<String> {
    let heads = page()
        .lines()
        .filter_map(|line| line.strip_prefix(".SH ").or(line.strip_prefix(".SS ")));
    heads.map(shown).collect()
}

/// Whether a name of an object is of a form such as `a/<any>_<ms>.x`: of one that the page lists.
pub fn fits(form: &str, name: &str) -> bool {
    let Some(start) = form.find('<') else {
        return form == name;
    };
    let Some(name) = name.strip_prefix(&form[..start]) else {
        return false;
    };
    let (kind, rest) = form[start + 1..].split_once('>').unwrap();
    let is_part = |part: &str| match kind {
        "ms" | "time" => !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()),
        "number" => part
            .parse::<u16>()
            .is_ok_and(|n| n < 10_000 && n.to_string() == part),
        "md5" => part.len() == 32 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
        "ext" => {
            part.is_empty()
                || part.starts_with('.') && part.len() > 1 && !part[1..].contains(['.', '/'])
        }
        "folder" if form.contains("<table>") => {
            !part.contains('/') && (part.starts_with('.') || part.ends_with("nodes"))
        }
        _ => !part.is_empty() && !part.contains('/'),
    };
    let ends = (0..=name.len()).filter(|end| name.is_char_boundary(*end));
    ends.into_iter()
        .any(|end| is_part(&name[..end]) && fits(rest, &name[end..]))
}
