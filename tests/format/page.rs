//! What stands in the page: the worked example, and words of it.

pub const PAGE: &str = include_str!("../../man/hushfs-format.5");

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(digits: &str) -> Vec<u8> {
    assert!(digits.len().is_multiple_of(2), "{digits}");
    let pair = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// An object of the worked example: lines of `offset hex`, behind a comment with its name and length. What is left
/// out is padding.
pub fn example(name: &str) -> Vec<u8> {
    let start = format!(".\\\" example {name} ");
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(&start));
    let first = lines.next().unwrap_or_else(|| panic!("no example {name}"));
    let mut bytes = vec![0; first[start.len()..].parse().unwrap()];
    for line in lines.take_while(|line| !line.starts_with(".\\\" end")) {
        let Some((offset, digits)) = line.split_once("  ") else {
            continue;
        };
        let at = usize::from_str_radix(offset, 16).unwrap();
        let part = unhex(digits);
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    bytes
}

/// A word of the example that stands in the page as `name = value`.
pub fn constant(name: &str) -> String {
    let start = format!("{name} = ");
    let line = PAGE.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("the page does not say {name}"))
        .replace("\\-", "-")
}

pub fn assert_shown(item: &str) {
    let page: String = PAGE.split_whitespace().collect();
    assert!(page.contains(item), "the page does not show {item}");
}
