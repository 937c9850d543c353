//! `hushfs info`: what is known of a library, without its key and with it.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::foreign::library_of_ours;
use super::key::{kind_name, utc};
use super::output::{counted, print, print_line};
use super::printable;
use super::secret::OpenArgs;
use crate::crypto::FORMAT_VERSION;
use crate::error::{Error, Kind, Result};
use crate::index::Replayed;
use crate::index::record::Head;
use crate::library::{Location, Slots, Unlocked, recall_to_read};
use crate::object::{Area, DeviceId};
use crate::store::{DirStore, Growth, Objects};

/// What was typed.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// The value of a fact.
pub enum Value {
    Text(String),
    Number(u64),
    Flag(bool),
    List(Vec<Facts>),
}

/// Named facts, printed in this order. Code that knows more of a library (from its index, for example) adds to them.
pub type Facts = Vec<(&'static str, Value)>;

/// Prints what is known.
pub fn run(args: &InfoArgs) -> Result<()> {
    let library = library_of_ours(&args.dir)?;
    let slots = library.slots()?;
    if slots.good.is_empty() && slots.bad.is_empty() && !library.has_contents() {
        return Err(Error::new(Kind::NotLibrary, args.dir.display()));
    }
    let mut facts = stored(&library, &slots)?;
    if let Some(unlocked) = args.open.unlock_if_asked(&library, true)? {
        facts.extend(with_key(&library, &slots, &unlocked)?);
    }
    if args.json {
        print_line(json(&facts))
    } else {
        print(text(&facts, 0))
    }
}

/// Returns what the folder shows to anyone.
fn stored(library: &Location, slots: &Slots) -> Result<Facts> {
    let mut facts: Facts = vec![
        ("library", Value::Text(library.dir.display().to_string())),
        ("format", Value::Number(FORMAT_VERSION.into())),
    ];
    let areas = [
        (Area::Key, "slots", "slot_bytes"),
        (Area::Index, "segments", "segment_bytes"),
        (Area::Data, "packs", "pack_bytes"),
    ];
    for (area, count, bytes) in areas {
        let objects = library.objects(area)?;
        let lens = objects.iter().map(|(_, len)| *len);
        let sum = lens.fold(0, u64::saturating_add);
        facts.push((count, Value::Number(objects.len() as u64)));
        facts.push((bytes, Value::Number(sum)));
    }
    let bad = slots.bad.iter().map(|(id, e)| {
        vec![
            ("slot", Value::Text(id.to_string())),
            ("error", Value::Text(e.to_string())),
        ]
    });
    let good = slots.good.iter().map(|slot| {
        vec![
            ("slot", Value::Text(slot.id.to_string())),
            ("kind", Value::Text(kind_name(slot.kind).to_string())),
            ("made", Value::Text(utc(slot.created))),
        ]
    });
    facts.push(("keys", Value::List(good.chain(bad).collect())));
    let growing = library.growth()?;
    facts.push((
        "growing",
        Value::List(growing.iter().map(growing_facts).collect()),
    ));
    Ok(facts)
}

fn growing_facts(growing: &Growth) -> Facts {
    vec![
        ("device", Value::Text(growing.device.to_string())),
        ("files", Value::Number(growing.files)),
        ("bytes", Value::Number(growing.cipher_bytes)),
        ("mounted", Value::Flag(growing.is_mounted)),
    ]
}

/// Returns what the key adds.
fn with_key(library: &Location, slots: &Slots, unlocked: &Unlocked) -> Result<Facts> {
    let fingerprint = unlocked.master.fingerprint();
    let verified = slots
        .good
        .iter()
        .filter(|slot| slot.verify(&unlocked.master).is_ok())
        .count();
    let mut facts: Facts = vec![
        ("fingerprint", Value::Text(fingerprint.to_string())),
        ("slots_verified", Value::Number(verified as u64)),
    ];
    let own = match recall_to_read(&library.dir, &unlocked.master, false) {
        Ok(recalled) => recalled,
        // Another library is remembered here.
        Err(e) if matches!(e.kind(), Kind::RolledBack(_)) => {
            facts.push(("remembered", Value::Flag(false)));
            recall_to_read(&library.dir, &unlocked.master, true)?
        }
        Err(e) => return Err(e),
    };
    if own.place.is_some() {
        facts.push(("remembered", Value::Flag(true)));
        facts.push(("device", Value::Text(own.device.to_string())));
    }
    if let Some(original) = &own.copy_of {
        facts.push(("copy_of", Value::Text(original.display().to_string())));
    }
    facts.extend(with_index(library, unlocked, own.device)?);
    Ok(facts)
}

/// Returns what the published index says, as seen by the device `own`.
fn with_index(library: &Location, unlocked: &Unlocked, own: DeviceId) -> Result<Facts> {
    let (store, replayed) = library.index(&unlocked.master)?;
    let packs = replayed.tree.packs();
    let live = packs.iter().map(|p| p.live_plain_bytes).sum();
    let device = |head: &Head| {
        vec![
            ("id", Value::Text(head.device.to_string())),
            ("newest_segment", Value::Number(head.number)),
        ]
    };
    let mut missing = replayed.gaps.clone();
    if replayed.heads.is_empty() && !store.list(Area::Data)?.is_empty() {
        missing.push("all of the index: it has not arrived yet".into());
    }
    let gaps = missing
        .iter()
        .map(|gap| vec![("gap", Value::Text(gap.clone()))]);
    let passed_over = replayed
        .ignored
        .iter()
        .map(|ignored| vec![("file", Value::Text(ignored.text()))]);
    let writable = unlocked.writable && replayed.unwritable.is_none();
    let why_not = why_not_collected(&store, &replayed, !missing.is_empty(), own)?;
    let collects = writable && why_not.is_none();
    let mut facts = vec![
        ("writable", Value::Flag(writable)),
        ("collects", Value::Flag(collects)),
    ];
    if let Some(why) = why_not {
        facts.push(("collects_not_because", Value::Text(why)));
    }
    facts.extend([
        ("inodes", Value::Number(replayed.tree.inode_count())),
        ("plain_bytes", Value::Number(live)),
        (
            "devices",
            Value::List(replayed.heads.values().map(device).collect()),
        ),
        ("missing", Value::List(gaps.collect())),
        ("passed_over", Value::List(passed_over.collect())),
    ]);
    Ok(facts)
}

/// Returns why deleting frees no space, by the same rules as a mount; `None` if it does.
fn why_not_collected(
    store: &DirStore,
    replayed: &Replayed,
    has_gaps: bool,
    own: DeviceId,
) -> Result<Option<String>> {
    let others = replayed.heads.keys().filter(|d| **d != own).count();
    let mut neighbours = store.neighbours()?.into_iter();
    let has_neighbours = neighbours.any(|n| n.device != own && (n.is_mounted || n.has_files));
    Ok(if has_gaps {
        Some("what of the index is missing may need it".into())
    } else if others > 0 {
        Some(format!(
            "{} other than this machine (or user) wrote to the library, and what is still needed there is not known: \
             deleting frees no space",
            counted(others as u64, "device")
        ))
    } else if has_neighbours {
        Some("another device has it mounted, or left something in new/ that may need it".into())
    } else {
        None
    })
}

/// Formats facts for people: one per line.
fn text(facts: &Facts, indent: usize) -> String {
    let mut out = String::new();
    for (name, value) in facts {
        let name = name.replace('_', " ");
        let _ = match value {
            Value::Text(value) => {
                writeln!(out, "{:indent$}{name}: {}", "", printable(value))
            }
            Value::Number(value) => writeln!(out, "{:indent$}{name}: {value}", ""),
            Value::Flag(true) => writeln!(out, "{:indent$}{name}: yes", ""),
            Value::Flag(false) => writeln!(out, "{:indent$}{name}: no", ""),
            Value::List(list) => {
                for facts in list {
                    let _ = writeln!(out, "{:indent$}{name}:", "");
                    out += &text(facts, indent + 4);
                }
                Ok(())
            }
        };
    }
    out
}

/// Formats facts for programs: one object on one line (RFC 8259).
fn json(facts: &Facts) -> String {
    let fields = facts.iter().map(|(name, value)| {
        let value = match value {
            Value::Text(value) => json_string(value),
            Value::Number(value) => value.to_string(),
            Value::Flag(value) => value.to_string(),
            Value::List(list) => {
                let items: Vec<_> = list.iter().map(json).collect();
                format!("[{}]", items.join(","))
            }
        };
        format!("{}:{value}", json_string(name))
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

fn json_string(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_print_for_people_and_programs() {
        let facts: Facts = vec![
            ("a_text", Value::Text("q\"\\\n\u{7f}é".to_string())),
            ("number", Value::Number(u64::MAX)),
            ("flag", Value::Flag(false)),
            (
                "list",
                Value::List(vec![vec![("in", Value::Number(1))], vec![]]),
            ),
        ];
        assert_eq!(
            json(&facts),
            "{\"a_text\":\"q\\\"\\\\\\u000a\u{7f}é\",\"number\":18446744073709551615,\
             \"flag\":false,\"list\":[{\"in\":1},{}]}"
        );
        let text = text(&facts, 0);
        assert!(
            text.contains("flag: no\nlist:\n    in: 1\nlist:\n"),
            "{text}"
        );
    }
}
