//! The type of a new file, as a browser that uploads it would declare it: by its content, or, for a text, by its name.

use std::borrow::Cow;
use std::path::Path;

use super::names::extname;

/// The type of a file whose type is not known.
pub const UNKNOWN: &str = "application/octet-stream";

/// The type of a file of this name that begins with `head`.
///
/// The type of a text is decided by its name: a text that only looks like HTML would otherwise be shown as HTML. SVG is also
/// detected by its content, because a browser shows a drawing only with this type.
pub fn of(path: &Path, head: &[u8]) -> &'static str {
    if is_svg(head) {
        return "image/svg+xml";
    }
    let by_name = by_name(path);
    match infer::get(head) {
        // One format with two types: the name decides which.
        Some(kind) if kind.mime_type() == "image/heif" && is_heif(by_name) => by_name,
        Some(kind) if kind.mime_type() == "image/heif" && is_heic(head) => "image/heic",
        Some(kind) if by_name == "image/apng" && kind.mime_type() == "image/png" => by_name,
        Some(kind) if kind.mime_type() == "image/vnd.microsoft.icon" => "image/x-icon",
        // A compressed drawing.
        Some(kind) if kind.mime_type() == "application/gzip" && by_name != UNKNOWN => by_name,
        Some(kind) if kind.matcher_type() != infer::MatcherType::Text => kind.mime_type(),
        _ => by_name,
    }
}

/// The type that browsers declare by the extension of a name.
fn by_name(path: &Path) -> &'static str {
    let extension = extname(path.file_name().unwrap_or_default()).to_lowercase();
    match &*extension {
        ".jpg" | ".jpeg" | ".jpe" | ".jfif" | ".pjpeg" | ".pjp" => "image/jpeg",
        ".png" => "image/png",
        ".apng" => "image/apng",
        ".gif" => "image/gif",
        ".webp" => "image/webp",
        ".avif" => "image/avif",
        ".heic" => "image/heic",
        ".heif" => "image/heif",
        ".svg" | ".svgz" => "image/svg+xml",
        ".bmp" => "image/bmp",
        ".ico" => "image/x-icon",
        ".tif" | ".tiff" => "image/tiff",
        ".json" => "application/json",
        ".txt" | ".text" => "text/plain",
        ".html" | ".htm" => "text/html",
        ".xhtml" | ".xht" => "application/xhtml+xml",
        ".xml" => "text/xml",
        ".css" => "text/css",
        ".csv" => "text/csv",
        ".js" | ".mjs" => "text/javascript",
        ".md" => "text/markdown",
        ".pdf" => "application/pdf",
        ".zip" => "application/zip",
        ".mp4" | ".m4v" => "video/mp4",
        ".webm" => "video/webm",
        ".mp3" => "audio/mpeg",
        _ => UNKNOWN,
    }
}

fn is_heif(mime: &str) -> bool {
    matches!(mime, "image/heic" | "image/heif")
}

/// Whether a file is HEIC, by the brand of its container.
fn is_heic(head: &[u8]) -> bool {
    let brand = head.get(8..12).unwrap_or_default();
    matches!(
        brand,
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx"
    )
}

/// Whether a text is an SVG drawing: its first element is `svg`, after any prologue, comments and document type.
fn is_svg(head: &[u8]) -> bool {
    let text = text_of(head);
    let mut left = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = if left.starts_with("<!--") {
            left.find("-->").map(|at| at + 3)
        } else if left.starts_with("<?") {
            left.find("?>").map(|at| at + 2)
        } else if let Some(name) = doctype_name(left) {
            // Documents of other types may contain drawings. The document type may be longer than what was read.
            match (name, doctype_len(left)) {
                ("svg", Some(len)) => Some(len),
                (name, _) => return name == "svg",
            }
        } else {
            break;
        };
        match end {
            Some(end) => left = left[end..].trim_start(),
            None => return false,
        }
    }
    let Some(element) = left.strip_prefix('<') else {
        return false;
    };
    let end = element.find(|c: char| c.is_whitespace() || matches!(c, '>' | '/'));
    let name = &element[..end.unwrap_or(element.len())];
    name.rsplit_once(':').map_or(name, |(_, local)| local) == "svg"
}

/// The name of the document type that begins here.
fn doctype_name(text: &str) -> Option<&str> {
    let (start, left) = text.split_at_checked(9)?;
    let left = left.trim_start();
    let end = left
        .find(|c: char| c.is_whitespace() || matches!(c, '>' | '['))
        .unwrap_or(left.len());
    start
        .eq_ignore_ascii_case("<!doctype")
        .then_some(&left[..end])
}

/// The length of a document type, including its part in brackets.
fn doctype_len(text: &str) -> Option<usize> {
    let inner = text.find('[').filter(|at| text[..*at].find('>').is_none());
    let from = match inner {
        Some(_) => text.find(']')?,
        None => 0,
    };
    Some(from + text[from..].find('>')? + 1)
}

/// A text in one of the encodings that begin with a byte order mark, or in UTF-8.
fn text_of(head: &[u8]) -> Cow<'_, str> {
    let units = |pair: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(|two| pair(*two)).collect();
        Cow::Owned(String::from_utf16_lossy(&units))
    };
    match head {
        [0xff, 0xfe, rest @ ..] => units(u16::from_le_bytes, rest),
        [0xfe, 0xff, rest @ ..] => units(u16::from_be_bytes, rest),
        [b'<', 0, ..] => units(u16::from_le_bytes, head),
        [0, b'<', ..] => units(u16::from_be_bytes, head),
        _ => String::from_utf8_lossy(head),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_is_told_by_its_first_element() {
        let utf16: Vec<u8> = "\u{feff}<?xml?><svg/>"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        for svg in [
            &b"<svg/>"[..],
            b"<svg>",
            b"<svg",
            b"\n\t <svg xmlns='x'>",
            b"\xef\xbb\xbf<svg\n>",
            b"<?xml version='1.0'?><!-- a --> <!-- b --><svg:svg>",
            b"<!DOCTYPE svg [ <!ENTITY a \"<b>\"> ]><svg>",
            b"<!doctype svg><svg>",
            b"<?xml-stylesheet href='a>b'?><svg>",
            &utf16,
        ] {
            assert!(is_svg(svg), "{}", String::from_utf8_lossy(svg));
            assert_eq!(of(Path::new("x.tmp"), svg), "image/svg+xml");
        }
        for other in [
            &b""[..],
            b"<svgx>",
            b"<html><svg>",
            b"<!doctype html><svg>",
            b"svg",
            b"<!-- <svg> -->",
            b"<!DOCTYPE html>",
            b"<?xml",
            b"{\"a\": \"<svg>\"}",
        ] {
            assert!(!is_svg(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn texts_are_told_by_their_names() {
        for (name, head, mime) in [
            (
                "a.svg",
                &b"<!-- a comment that does not end"[..],
                "image/svg+xml",
            ),
            ("a.txt", b"<html>", "text/plain"),
            ("a.json", b"{}", "application/json"),
            ("a.png", b"", "image/png"),
            ("a.PNG", b"x", "image/png"),
            ("a.ico", b"\0\0\x01\0", "image/x-icon"),
            ("a.apng", b"\x89PNG\r\n\x1a\n", "image/apng"),
            ("a.svgz", b"\x1f\x8b\x08", "image/svg+xml"),
            ("a.heif", b"\0\0\0\x18ftypheic", "image/heif"),
            ("a", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
            ("a.jpg", b"\x89PNG\r\n\x1a\n", "image/png"),
            ("a", b"#!/bin/sh", UNKNOWN),
        ] {
            assert_eq!(of(Path::new(name), head), mime, "{name}");
        }
    }
}
