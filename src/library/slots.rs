//! The slots of a library: objects in the area of keys.

use super::location::Location;
use crate::crypto::{KdfParams, MasterKey, SLOT_LEN, Secret, Slot, random_id};
use crate::error::{Error, Result};
use crate::object::{Area, SlotId};
use crate::store::{DirStore, Objects};

/// Maximum number of slots. No user needs this many, but a hostile store may have more.
const SLOTS_MAX: usize = 1000;

/// The slots of a library, in the order of their names.
pub struct Slots {
    /// Those that parse.
    pub good: Vec<Slot>,
    /// Those that do not parse, and why.
    pub bad: Vec<(SlotId, Error)>,
    /// Copies of a good slot under another name, with the id of the original.
    pub copies: Vec<(SlotId, SlotId)>,
}

impl Location {
    /// Creates a library with one slot in a vacant folder; durable on return. [`Kind::Exists`](crate::Kind::Exists) if
    /// another one was created there first.
    pub fn make(dir: &std::path::Path, master: &MasterKey, secret: &Secret) -> Result<()> {
        let (id, bytes) = seal(master, secret, "")?;
        DirStore::make(dir, id.object(), &bytes)
    }

    /// Whether there is anything that could be a slot.
    pub fn has_slots(&self) -> Result<bool> {
        Ok(!self.objects(Area::Key)?.is_empty())
    }

    /// Reads every slot.
    pub fn slots(&self) -> Result<Slots> {
        let mut slots = Slots {
            good: Vec::new(),
            bad: Vec::new(),
            copies: Vec::new(),
        };
        let listed = self.objects(Area::Key)?;
        if listed.len() > SLOTS_MAX {
            let folder = self.dir.join(Area::Key.name());
            let check = format_args!("it has more than {SLOTS_MAX} files");
            return Err(Error::damaged(folder.display(), check));
        }
        let mut moved = Vec::new();
        for (id, _) in listed {
            let id = SlotId(id);
            let bytes = match self.read_slot(id) {
                Ok(bytes) => bytes,
                Err(e) => {
                    slots.bad.push((id, e));
                    continue;
                }
            };
            match (Slot::parse(id, &bytes), Slot::named(&bytes)) {
                (Ok(slot), _) => slots.good.push(slot),
                (Err(e), Some(of)) => moved.push((id, of, e)),
                (Err(e), None) => slots.bad.push((id, e)),
            }
        }
        for (id, of, e) in moved {
            match slots.good.iter().any(|slot| slot.id == of) {
                true => slots.copies.push((id, of)),
                false => slots
                    .bad
                    .push((id, e.hint(format_args!("rename it to key/{of}")))),
            }
        }
        Ok(slots)
    }

    /// Returns the bytes of a slot, or one byte more than a slot has if the file is longer.
    fn read_slot(&self, id: SlotId) -> Result<Vec<u8>> {
        let object = self.store.open(Area::Key, id.object())?;
        let len = object.cipher_len()?.min(SLOT_LEN as u64 + 1);
        let mut bytes = vec![0; len as usize];
        object.read_at(&mut bytes, 0).map_err(|e| {
            e.hint("was it just made? On some stores that takes some seconds: try again")
        })?;
        Ok(bytes)
    }

    /// Adds a slot; durable on return.
    pub fn add_slot(&self, master: &MasterKey, secret: &Secret, label: &str) -> Result<SlotId> {
        let (id, bytes) = seal(master, secret, label)?;
        self.store.put(Area::Key, id.object(), &bytes)?;
        Ok(id)
    }

    /// Removes a slot; durable on return.
    pub fn remove_slot(&self, id: SlotId) -> Result<()> {
        self.store.remove(Area::Key, id.object())
    }
}

fn seal(master: &MasterKey, secret: &Secret, label: &str) -> Result<(SlotId, Vec<u8>)> {
    let id = SlotId(random_id()?);
    let bytes = Slot::seal(id, master, secret, KdfParams::default(), label)?;
    Ok((id, bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::error::Kind;

    fn library() -> (tempfile::TempDir, MasterKey) {
        let dir = tempfile::tempdir().unwrap();
        let master = MasterKey::generate().unwrap();
        Location::make(dir.path(), &master, &secret("first")).unwrap();
        (dir, master)
    }

    fn secret(text: &str) -> Secret {
        Secret::Password(text.as_bytes().to_vec().into())
    }

    #[test]
    fn a_slot_is_added_and_removed_and_nothing_else_is_left() {
        let (dir, master) = library();
        let location = Location::at(dir.path()).unwrap();
        let id = location.add_slot(&master, &secret("second"), "").unwrap();
        let names = |folder: &str| fs::read_dir(dir.path().join(folder)).unwrap().count();
        assert_eq!((names("key"), names("new")), (2, 0));
        let file = fs::metadata(dir.path().join(format!("key/{id}"))).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        assert_eq!(location.slots().unwrap().good.len(), 2);
        location.remove_slot(id).unwrap();
        assert_eq!(location.slots().unwrap().good.len(), 1);
        // A library that is being recovered, and a synced copy.
        fs::remove_dir_all(dir.path().join("key")).unwrap();
        fs::remove_dir(dir.path().join("new")).unwrap();
        let location = Location::at(dir.path()).unwrap();
        assert!(!location.has_slots().unwrap());
        location.add_slot(&master, &secret("third"), "").unwrap();
        assert_eq!(location.slots().unwrap().good.len(), 1);
    }

    #[test]
    fn a_library_is_made_once() {
        let (dir, master) = library();
        let again = Location::make(dir.path(), &master, &secret("other")).unwrap_err();
        assert!(matches!(again.kind(), Kind::Exists), "{again}");
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
        assert_eq!(
            Location::at(dir.path())
                .unwrap()
                .slots()
                .unwrap()
                .good
                .len(),
            1
        );
    }

    #[test]
    fn what_lies_among_the_slots_keeps_nobody_waiting() {
        let (dir, _) = library();
        let key = dir.path().join("key");
        let name = |digit: &str| key.join(digit.repeat(32));
        symlink("nowhere", name("b")).unwrap();
        fs::create_dir(name("d")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, name("f"), kind, mode, 0).unwrap();
        let sparse = fs::File::create(name("9")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let slots = Location::at(dir.path()).unwrap().slots().unwrap();
        assert_eq!(slots.good.len(), 1);
        let bad: Vec<String> = slots.bad.iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(bad, ["9".repeat(32)]);
    }

    #[test]
    fn what_is_no_folder_has_no_slots() {
        let (dir, _) = library();
        let key = dir.path().join("key");
        fs::rename(&key, dir.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &key).unwrap();
        let has_slots = || Location::at(dir.path()).unwrap().has_slots().unwrap();
        assert!(!has_slots());
        fs::remove_file(&key).unwrap();
        fs::write(&key, "junk").unwrap();
        assert!(!has_slots());
    }
}
