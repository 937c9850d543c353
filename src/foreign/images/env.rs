//! `IMAGE_ENCRYPTION_KEY` in a `.env` file, parsed as the app does with `@next/env` 16.1: dotenv 16.3, and then an expansion
//! of `$NAME`. No crate parses these files in the same way, and each of their oddities can change the key.

use zeroize::Zeroizing;

/// The variable.
const NAME: &str = "IMAGE_ENCRYPTION_KEY";
/// Most steps to expand one value. The app rejects a file whose expansion never ends.
const STEPS_MAX: usize = 5_000;
/// The longest value during an expansion, in characters.
const VALUE_LEN_MAX: usize = 1 << 16;

/// The key in a `.env` file; `None` if it is not set or empty: the app then uses its default.
///
/// The environment of the app is not known here; its variables count as not set.
pub fn key_in_env(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = Zeroizing::new(String::from_utf8_lossy(text).into_owned());
    let mut variables = parse(&text);
    // If one value cannot be expanded, the app sets no variable.
    for at in 0..variables.len() {
        let value = variables[at].1.clone();
        variables[at].1 = expanded(&value, &variables)?.replace("\\$", "$");
    }
    let key = variables.into_iter().find(|(name, _)| name == NAME);
    let key = key.map(|(_, value)| Zeroizing::new(value.into_bytes()));
    key.filter(|key| !key.is_empty())
}

/// Names and values: each name once, at its first position, with its last value.
fn parse(text: &str) -> Vec<(String, String)> {
    let text: Vec<char> = text
        .replace("\r\n", "\n")
        .replace('\r', "\n")
        .chars()
        .collect();
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let is_start = at == 0 || is_line_end(text[at - 1]);
        let begin = if is_start { skip_blanks(&text, at) } else { at };
        let Some(found) = is_start.then(|| assignment(&text, begin)).flatten() else {
            at = begin.max(at + 1);
            continue;
        };
        let value = unquoted(&found.value);
        match variables.iter_mut().find(|(name, _)| *name == found.name) {
            Some((_, old)) => *old = value,
            None => variables.push((found.name, value)),
        }
        at = found.end.max(at + 1);
    }
    variables
}

/// An assignment.
struct Assignment {
    name: String,
    /// The value as written, including quotes.
    value: String,
    /// Where the assignment ends.
    end: usize,
}

fn assignment(text: &[char], start: usize) -> Option<Assignment> {
    // `export` may also be a name.
    let exported = text[start..]
        .starts_with(&['e', 'x', 'p', 'o', 'r', 't'])
        .then_some(start + 6);
    let after = exported.map(|end| (end, skip_blanks(text, end)));
    let behind_export = after.filter(|(end, next)| next > end).map(|(_, next)| next);
    let starts = behind_export.into_iter().chain([start]);
    let is_name = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    for start in starts {
        let end = start + text[start..].iter().take_while(|c| is_name(c)).count();
        let Some(value_at) = separator(text, end).filter(|_| end > start) else {
            continue;
        };
        let (value, end_of_all) = value(text, value_at)?;
        let name = text[start..end].iter().collect();
        return Some(Assignment {
            name,
            value,
            end: end_of_all,
        });
    }
    None
}

/// Where the value begins: after `=`, before which there may be blanks and line ends, or after `:` and a blank.
fn separator(text: &[char], end: usize) -> Option<usize> {
    let equals = skip_blanks(text, end);
    if text.get(equals) == Some(&'=') {
        return Some(equals + 1);
    }
    let colon = text.get(end) == Some(&':') && text.get(end + 1).copied().is_some_and(is_blank);
    colon.then_some(end + 2)
}

/// The value that begins at `at`, and where the assignment ends. It is a text in quotes, if only a comment follows in the
/// same line; otherwise everything up to a `#` or the end of the line.
fn value(text: &[char], at: usize) -> Option<(String, usize)> {
    let taken = |from: usize, to: usize| text[from..to].iter().collect();
    for quote in ['\'', '"', '`'] {
        let open = skip_blanks(text, at);
        if text.get(open) != Some(&quote) {
            continue;
        }
        // The first quote that is not escaped is tried before the escaped ones, the last of these first.
        let mut closing = Vec::new();
        for end in open + 1..text.len() {
            if text[end] == quote {
                closing.push(end);
                if text[end - 1] != '\\' || end == open + 1 {
                    break;
                }
            }
        }
        let closed = closing
            .into_iter()
            .rev()
            .find_map(|end| Some((end, rest(text, end + 1)?)));
        if let Some((end, end_of_all)) = closed {
            return Some((taken(at, end + 1), end_of_all));
        }
    }
    let end = at
        + text[at..]
            .iter()
            .take_while(|c| !matches!(c, '#' | '\n'))
            .count();
    Some((taken(at, end), rest(text, end)?))
}

/// The end of an assignment whose value ends at `at`: the end of the line, or of a later one, if there are only blanks and a
/// comment in between.
fn rest(text: &[char], at: usize) -> Option<usize> {
    let blanks = skip_blanks(text, at);
    (at..=blanks).rev().find_map(|at| match text.get(at) {
        Some('#') => Some(at + text[at..].iter().take_while(|c| !is_line_end(**c)).count()),
        Some(c) => is_line_end(*c).then_some(at),
        None => Some(at),
    })
}

/// A value without its quotes. In double quotes, `\n` and `\r` are line ends.
fn unquoted(value: &str) -> String {
    let value: Vec<char> = value.trim_matches(is_blank).chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < value.len() {
        let c = value[at];
        let is_start = at == 0 || is_line_end(value[at - 1]);
        let is_closing = |end: &usize| {
            value[*end] == c && value.get(*end + 1).is_none_or(|next| is_line_end(*next))
        };
        let is_open = is_start && matches!(c, '\'' | '"' | '`');
        match is_open
            .then(|| (at + 1..value.len()).rev().find(is_closing))
            .flatten()
        {
            Some(end) => {
                out.extend(&value[at + 1..end]);
                at = end + 1;
            }
            None => {
                out.push(c);
                at += 1;
            }
        }
    }
    if value.first() == Some(&'"') {
        out = out.replace("\\n", "\n").replace("\\r", "\r");
    }
    out
}

/// A value with `$NAME`, `${NAME}` and `${NAME:-default}` replaced, starting with the last; `None` if that never ends.
fn expanded(value: &str, variables: &[(String, String)]) -> Option<String> {
    let mut value = value.to_string();
    for _ in 0..STEPS_MAX {
        let Some(found) = last_reference(&value) else {
            return Some(value);
        };
        let known = || {
            variables
                .iter()
                .find(|(name, _)| *name == found.name)
                .map(|(_, value)| value.as_str())
        };
        let new = Some(found.default.as_str())
            .filter(|text| !text.is_empty())
            .or_else(known)
            .unwrap_or_default();
        value = replaced(&value, &found.whole, new);
        if value.len() > VALUE_LEN_MAX {
            return None;
        }
    }
    None
}

/// A reference to a variable.
struct Reference {
    whole: String,
    name: String,
    default: String,
}

/// The reference at the last `$` that is not escaped. If that is not a reference, earlier ones are not replaced either.
fn last_reference(value: &str) -> Option<Reference> {
    let escaped = |at: usize| value[..at].ends_with('\\');
    let at = value
        .rmatch_indices('$')
        .map(|(at, _)| at)
        .find(|at| !escaped(*at))?;
    let text = &value[at..];
    let after = text[1..].strip_prefix('{').unwrap_or(&text[1..]);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name_len = after.find(|c| !is_word(c)).unwrap_or(after.len());
    let (name, mut left) = after.split_at(name_len);
    if name.is_empty() {
        return None;
    }
    let mut default = "";
    if let Some(behind) = left.strip_prefix(":-") {
        (default, left) = behind.split_at(behind.find(['}', '\\']).unwrap_or(behind.len()));
    }
    let left = left.strip_prefix('}').unwrap_or(left);
    Some(Reference {
        whole: text[..text.len() - left.len()].into(),
        name: name.into(),
        default: default.into(),
    })
}

/// Replaces the first `old` in a text with `new`, in which `$$`, `$&`, `` $` `` and `$'` have the same meaning as in
/// JavaScript.
fn replaced(text: &str, old: &str, new: &str) -> String {
    let Some((before, after)) = text.split_once(old) else {
        return text.into();
    };
    let mut out = before.to_string();
    let mut left = new;
    while let Some((plain, special)) = left.split_once('$') {
        out.push_str(plain);
        let with = match special.chars().next() {
            Some('$') => "$",
            Some('&') => old,
            Some('`') => before,
            Some('\'') => after,
            _ => {
                out.push('$');
                left = special;
                continue;
            }
        };
        out.push_str(with);
        left = &special[1..];
    }
    out + left + after
}

fn skip_blanks(text: &[char], at: usize) -> usize {
    at + text[at..].iter().take_while(|c| is_blank(**c)).count()
}

/// Whether JavaScript counts a character as white space, which includes the byte order mark.
fn is_blank(c: char) -> bool {
    c.is_whitespace() && c != '\u{85}' || c == '\u{feff}'
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<String> {
        let key = key_in_env(text.as_bytes())?;
        Some(String::from_utf8(key.to_vec()).unwrap())
    }

    #[test]
    fn endless_expansions_end() {
        for text in ["K=$K", "A=$B$B\nB=$A$A", "A=$B\nB=$A"] {
            let text = format!("{}\nIMAGE_ENCRYPTION_KEY=x", text);
            assert_eq!(key(&text), None, "{text}");
        }
        assert_eq!(key("IMAGE_ENCRYPTION_KEY=a\nK=$K").as_deref(), None);
    }

    #[test]
    fn strange_letters_are_no_danger() {
        for text in [
            "$",
            "=",
            "é=$é",
            "IMAGE_ENCRYPTION_KEY='",
            "export ",
            "A:\u{feff}",
            "\"\\\"",
        ] {
            let _ = key(text);
        }
        assert_eq!(
            key("IMAGE_ENCRYPTION_KEY=é${x:-ü}ß").as_deref(),
            Some("éüß")
        );
    }
}
