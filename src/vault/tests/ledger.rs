//! What was done to contents on several devices, and which of them have to be there in the end.

use std::collections::BTreeSet;

use super::crashes::Act::{self, *};
use super::fleet::*;

/// What was done to contents, which are unlike all others.
#[derive(Debug, PartialEq)]
pub enum Deed {
    /// They are there, or where they are now.
    Placed,
    /// The name went. That yields to who placed them beside it.
    Removed,
    /// Others came in their stead.
    Replaced,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Certainty {
    Done,
    Durable,
    /// A crash came before it was durable.
    Maybe,
}

pub struct Event {
    contents: Vec<u8>,
    deed: Deed,
    path: String,
    device: usize,
    at: usize,
    /// Since when the device is mounted: so it knows nothing that others did later.
    mounted_at: usize,
    certainty: Certainty,
}

/// Everything that was done, in its order.
#[derive(Default)]
pub struct Ledger {
    pub events: Vec<Event>,
    pub count: usize,
}

impl Ledger {
    /// What an operation is about to take away: it may be gone from now on, whatever is answered.
    pub fn take(&mut self, act: Act, before: &Shown, device: usize, mounted_at: usize) {
        let mut note = |deed, path: &str| {
            if let Some(Some(contents)) = before.get(path) {
                let contents = contents.clone();
                self.note(contents, deed, path, device, mounted_at);
            }
        };
        match act {
            Put(path) => note(Deed::Replaced, path),
            Remove(path) => note(Deed::Removed, path),
            Rename(from, to) if from != to => note(Deed::Removed, to),
            _ => {}
        }
    }

    pub fn note(
        &mut self,
        contents: Vec<u8>,
        deed: Deed,
        path: &str,
        device: usize,
        mounted_at: usize,
    ) {
        self.count += 1;
        self.events.push(Event {
            contents,
            deed,
            path: path.to_owned(),
            device,
            at: self.count,
            mounted_at,
            certainty: Certainty::Done,
        });
    }

    /// All that a device did is durable.
    pub fn promise(&mut self, device: usize) {
        self.turn(device, Certainty::Durable);
    }

    /// What is not durable may be done or not.
    pub fn crash(&mut self, device: usize) {
        self.turn(device, Certainty::Maybe);
    }

    fn turn(&mut self, device: usize, certainty: Certainty) {
        let own = self.events.iter_mut().filter(|e| e.device == device);
        for event in own.filter(|e| e.certainty == Certainty::Done) {
            event.certainty = certainty;
        }
    }

    pub fn check(&self, shown: &Shown) {
        let there: BTreeSet<&Vec<u8>> = shown.values().flatten().collect();
        let all: BTreeSet<&Vec<u8>> = self.events.iter().map(|e| &e.contents).collect();
        for contents in all {
            let events: Vec<&Event> = self
                .events
                .iter()
                .filter(|e| e.contents == *contents)
                .collect();
            let text = String::from_utf8_lossy(&contents[..contents.len().min(40)]);
            if is_promised(&events) {
                assert!(
                    there.contains(contents),
                    "{text:?} is lost: {:?}",
                    shown.keys()
                );
            }
            // Nobody but its owner touches it.
            let is_gone = |e: &&Event| {
                let is_own = e.path.starts_with("/mine");
                is_own && e.deed == Deed::Removed && e.certainty == Certainty::Durable
            };
            if events.iter().any(is_gone) {
                assert!(!there.contains(contents), "{text:?} is back");
            }
        }
    }
}

/// Whether contents to which this was done have to be there.
fn is_promised(events: &[&Event]) -> bool {
    let is_placed = |e: &&&Event| e.deed == Deed::Placed && e.certainty == Certainty::Durable;
    let placed = || events.iter().filter(is_placed);
    let is_rescued = |removal: &Event| {
        placed().any(|e| {
            e.device != removal.device && e.at > removal.mounted_at && removal.at > e.mounted_at
        })
    };
    placed().next().is_some()
        && events.iter().all(|e| match e.deed {
            Deed::Placed => true,
            Deed::Removed => is_rescued(e),
            Deed::Replaced => false,
        })
}
