//! Checks every object and every segment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::super::Reader;
use super::doubled::{self, is_doubled};
use super::index::Record;
use super::{Mms, prefix};
use crate::error::Result;
use crate::report::Report;

/// Bytes of plaintext per read.
const READ_LEN: u64 = 1 << 20;

/// Checks sizes and the padding of every segment, and reports records without objects, objects without records, numbers that
/// are used twice, and files that were encrypted twice because the index was once lost.
pub fn run(mms: &Mms, report: &mut Report<'_>) -> Result<()> {
    let index = mms.index.lock();
    let records: Vec<Record> = index.records().cloned().collect();
    drop(index);
    for (name, why) in mms.not_shown()? {
        report.problem(name, why);
    }
    report.total(records.iter().map(|record| record.plain_size).sum());
    let mut ids: HashMap<u64, &str> = HashMap::new();
    for record in &records {
        if let Some(other) = ids.insert(record.id, &record.path) {
            let text = format!(
                "has number {}, like {other} (the server also does that)",
                record.id
            );
            report.note(&record.path, text);
        }
    }
    for record in &records {
        check(mms, record, report);
    }
    Ok(())
}

fn check(mms: &Mms, record: &Record, report: &mut Report<'_>) {
    report.count_file();
    if mms.object_name(&record.path) != *record.object {
        report.note(
            &record.path,
            format_args!(
                "its object does not have the name that the server would give it: {}",
                record.object
            ),
        );
    }
    if mms.root.join(&*record.path).is_file() && *record.path != *record.object {
        report.note(
            &record.path,
            "its unencrypted original is also in the library",
        );
    }
    let reader = match open(mms, record, report) {
        Ok(reader) => reader,
        Err(e) => {
            report.problem(&record.path, e);
            return report.advance(record.plain_size);
        }
    };
    let plain_size = reader.plain_size();
    let mut buffer = vec![0; READ_LEN.min(plain_size) as usize];
    let mut at = 0;
    while at < plain_size {
        let len = READ_LEN.min(plain_size - at) as usize;
        if let Err(e) = reader.read_exact_at(at, &mut buffer[..len]) {
            report.problem(&record.path, e);
            break;
        }
        at += len as u64;
        report.advance(len as u64);
    }
    report.advance(record.plain_size.saturating_sub(at));
}

/// Opens a file as a mount would show it, and reports if it was encrypted twice.
fn open(mms: &Mms, record: &Record, report: &mut Report<'_>) -> Result<Arc<dyn Reader>> {
    if !is_doubled(&record.path) {
        return mms.open_object(record);
    }
    let opened = doubled::open(mms, record.clone());
    let twice = "encrypted twice: the server once lost its index, and encrypted the object as if it were a song";
    match opened.as_ref().map(|(_, lacking)| lacking) {
        Ok(None) => {
            let text = format!("{twice}. The song itself is shown");
            report.note(&record.path, text);
        }
        Ok(Some(lacking)) => {
            let text = format!("{twice}. The song itself cannot be read: {lacking}");
            report.problem(&record.path, text);
        }
        // If the object itself is damaged, reading it reports that.
        Err(_) => report.problem(&record.path, twice),
    }
    opened.map(|(reader, _)| reader)
}

impl Mms {
    /// Everything in the library that is not shown: names and reasons.
    pub(super) fn not_shown(&self) -> Result<Vec<(String, String)>> {
        let index = self.index.lock();
        let named: HashSet<&str> = index.objects().collect();
        let mut found = Vec::new();
        let odd = index
            .odd
            .iter()
            .map(|odd| (self.layout.index.clone(), odd.why.to_string()));
        let faults = index
            .faults
            .iter()
            .map(|fault| (self.layout.index.clone(), fault.clone()));
        found.extend(faults.chain(odd));
        let other = "the index of another library in this bucket: --mms-index shows that one";
        let others = self.layout.others.iter();
        found.extend(others.map(|name| (name.clone(), other.to_string())));
        let orphan = if self.layout.others.is_empty() {
            "an object that the index does not name: it cannot be read (of every 1008 bytes 16 are lost)"
        } else {
            "an object that this index does not name: it is of another library in this bucket, or cannot be read"
        };
        crate::foreign::walk(&self.root, &mut |path, is_dir| {
            let text = path.to_str().unwrap_or_default();
            let is_known = || named.contains(text) || index.get(text).is_some();
            if !is_dir && prefix::is_object(path) && !is_known() {
                found.push((text.into(), orphan.into()));
            }
        })?;
        Ok(found)
    }
}
