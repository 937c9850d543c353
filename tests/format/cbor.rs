//! CBOR as the page has it: definite lengths and shortest heads only; and the shapes of records.

use crate::page::hex;

/// What CBOR is used for; definite lengths and shortest heads only.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Int(i128),
    Bytes(Vec<u8>),
    Array(Vec<Item>),
    Bool(bool),
    Null,
}

impl Item {
    pub fn read(bytes: &mut &[u8]) -> Self {
        let (head, rest) = bytes.split_first().expect("an item");
        *bytes = rest;
        let (major, info) = (head >> 5, head & 31);
        let extra = match info {
            0..24 => 0,
            24..=27 => 1 << (info - 24),
            _ => panic!("a head of {head:#x}"),
        };
        let (argument, rest) = bytes.split_at(extra);
        *bytes = rest;
        let n = argument.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let n = if extra == 0 { u64::from(info) } else { n };
        let least = [0, 24, 1 << 8, 0, 1 << 16, 0, 0, 0, 1 << 32][extra];
        assert!(major == 7 || n >= least, "not the shortest head");
        match major {
            0 => Item::Int(i128::from(n)),
            1 => Item::Int(-1 - i128::from(n)),
            2 => {
                let (value, rest) = bytes.split_at(n as usize);
                *bytes = rest;
                Item::Bytes(value.to_vec())
            }
            4 => Item::Array((0..n).map(|_| Item::read(bytes)).collect()),
            7 if info == 20 || info == 21 => Item::Bool(info == 21),
            7 if info == 22 => Item::Null,
            _ => panic!("a head of {head:#x}"),
        }
    }

    pub fn whole(mut bytes: &[u8]) -> Self {
        let item = Self::read(&mut bytes);
        assert!(bytes.is_empty(), "bytes behind an item");
        item
    }

    pub fn int(&self) -> u64 {
        match self {
            Item::Int(n) => u64::try_from(*n).unwrap(),
            other => panic!("{other:?} is no number"),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Item::Bytes(b) => b,
            other => panic!("{other:?} are no bytes"),
        }
    }

    pub fn array(&self) -> &[Item] {
        match self {
            Item::Array(a) => a,
            other => panic!("{other:?} is no array"),
        }
    }

    /// Member `at` of a record; those at the end that are absent are left out.
    pub fn member(&self, at: usize) -> &Item {
        self.array().get(at).unwrap_or(&Item::Null)
    }
}

/// The diagnostic notation of CBOR, as the page writes it, without blanks.
pub fn diagnostic(item: &Item) -> String {
    match item {
        Item::Int(n) => n.to_string(),
        Item::Bytes(b) => format!("h\\(aq{}\\(aq", hex(b)),
        Item::Bool(b) => b.to_string(),
        Item::Null => "null".into(),
        Item::Array(items) => {
            let items: Vec<String> = items.iter().map(diagnostic).collect();
            format!("[{}]", items.join(","))
        }
    }
}

/// The shapes of the page's CDDL. `?` may be null or left out at the end.
pub fn check_shape(item: &Item, shape: &str) {
    let (optional, shape) = match shape.strip_prefix('?') {
        Some(shape) => (true, shape),
        None => (false, shape),
    };
    if optional && *item == Item::Null {
        return;
    }
    match shape {
        "u16" => assert!(item.int() < 1 << 16),
        "u32" => assert!(item.int() < 1 << 32),
        "u64" => drop(item.int()),
        "bool" => assert!(matches!(item, Item::Bool(_))),
        "id" => assert_eq!(item.bytes().len(), 16),
        "digest" => assert_eq!(item.bytes().len(), 32),
        "bytes" => drop(item.bytes()),
        "time" => {
            let [Item::Int(sec), nsec] = item.array() else {
                panic!("{item:?} is no time")
            };
            i64::try_from(*sec).unwrap();
            assert!(nsec.int() < 1_000_000_000);
        }
        "owner" => check_members(item, &["u32", "u32"]),
        "stamp" => check_members(item, &["u64", "id"]),
        "head" => check_members(item, &["id", "u64", "digest"]),
        "source" => check_members(item, &["u32", "u32", "u32", "u32"]),
        "splice" => check_members(item, &["u64", "u64", "?source"]),
        "base-ref" => check_members(item, &["id", "digest"]),
        "stamp-segment" => check_members(item, &["id", "id", "u64"]),
        "record" => check_record(item),
        list => {
            let inner = list.strip_prefix("*").unwrap_or_else(|| panic!("{list}"));
            item.array().iter().for_each(|i| check_shape(i, inner));
        }
    }
}

pub fn check_members(item: &Item, shapes: &[&str]) {
    assert!(item.array().len() <= shapes.len(), "{item:?}");
    assert_ne!(item.array().last(), Some(&Item::Null), "{item:?}");
    for (at, shape) in shapes.iter().enumerate() {
        check_shape(item.member(at), shape);
    }
}

pub fn check_record(item: &Item) {
    let [number, body] = item.array() else {
        panic!("{item:?} is no record")
    };
    let [body] = body.array() else {
        panic!("{item:?} has one body")
    };
    match number.int() {
        0 => check_members(body, &["id", "u16", "u16", "u32", "u32", "u32", "bytes"]),
        1 => check_members(body, &["id", "?id", "id", "bytes"]),
        2 => check_members(body, &["id", "?id", "stamp"]),
        3 => check_members(body, &["id", "?u16", "?owner", "?time"]),
        4 => check_members(body, &["id", "stamp", "u64", "?time", "*id", "*splice"]),
        5 => check_members(body, &["id", "stamp", "*id", "*splice"]),
        6 => check_members(body, &["id", "bytes", "?bytes"]),
        7 => check_members(body, &["id", "u32"]),
        8 => check_shape(body, "*id"),
        n => panic!("record {n}"),
    }
}

pub fn check_segment_shapes(segment: &crate::decoder::Segment) {
    check_members(
        &segment.opening,
        &[
            "id",
            "u64",
            "*head",
            "?base-ref",
            "*id",
            "*id",
            "?*stamp-segment",
            "?id",
        ],
    );
    for frame in &segment.frames {
        check_members(frame, &["u64", "time", "bool", "*record"]);
    }
}
