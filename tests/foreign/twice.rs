//! What Minio Music Server encrypted twice.

use super::*;

/// A library of Minio Music Server whose index was lost: its objects were taken for songs, under fresh vectors.
struct LostIndex {
    dir: tempfile::TempDir,
    key: Key,
    lines: Vec<Vec<u8>>,
}

impl LostIndex {
    fn new() -> Self {
        let kat = json("mms/kat.json");
        let internal = BASE64.decode_to_vec(kat["internal_key_b64"].as_str().unwrap());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("music")).unwrap();
        let key_file = kat["passwords"][0]["keyfile"].as_str().unwrap();
        fs::write(dir.path().join("key"), key_file).unwrap();
        Self {
            dir,
            key: Key::short(&internal.unwrap().try_into().unwrap()),
            lines: Vec::new(),
        }
    }

    fn sealed(&self, iv: u8, plain: &[u8]) -> Vec<u8> {
        let (key, iv) = (self.key.clone(), [iv; 16]);
        seal(Box::new(mms::SegmentSeal { key, iv }), plain)
    }

    fn object_of(path: &str) -> String {
        let digest = <md5::Md5 as md5::Digest>::digest(path.as_bytes());
        format!("music/{}.encrypt", hex(&digest))
    }

    fn put(&self, object: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(object), bytes).unwrap();
    }

    /// As the server does it with a file at `path`; gives its object's name and bytes.
    fn encrypt(&mut self, path: &str, iv: u8, plain: &[u8]) -> (String, Vec<u8>) {
        let (object, bytes) = (Self::object_of(path), self.sealed(iv, plain));
        self.put(&object, &bytes);
        let record = serde_json::json!({
            "id": 0, "path": path, "filesize": plain.len(), "extension": path.rsplit('.').next(),
            "iv": BASE64.encode_to_string([iv; 16]), "nameEnc": object,
        });
        let line = mms::index::seal_record(record.as_object().unwrap(), &self.key).unwrap();
        self.lines.push(line);
        (object, bytes)
    }

    fn open(&self, read_only: bool) -> Arc<Mirror> {
        let count = self.lines.len();
        let mut index = format!("{{\"version\":2,\"registers\":{count},\"id\":1}}\n").into_bytes();
        for line in &self.lines {
            index.extend_from_slice(line);
            index.push(b'\n');
        }
        self.put("music.index", &index);
        let options = mms::Options::default();
        let format = Mms::open(self.dir.path(), b"XXXXXXX", &options, read_only).unwrap();
        Mirror::new(Box::new(format)).unwrap()
    }
}

#[test]
fn an_object_that_was_encrypted_twice_is_named_and_read() {
    // The server took the object of a song for a song, and the vector of that went with the index.
    let mut library = LostIndex::new();
    let once = library.sealed(1, &noise(5, 5000));
    let path = format!("music/{}.encrypt", "5".repeat(32));
    library.put(&path, &once);
    let (object, _) = library.encrypt(&path, 2, &once);
    let volume = library.open(true);
    let found = problems(volume.format());
    assert!(
        found.len() == 1 && found[0].contains("encrypted twice"),
        "{found:?}"
    );
    assert_eq!(read(&*volume, &path).unwrap(), once);
    // What is missing has the size that the index says, and reading it is an error.
    fs::remove_file(library.dir.path().join(object)).unwrap();
    let volume = library.open(true);
    let attr = volume.getattr(find(&*volume, &path).unwrap()).unwrap();
    assert_eq!(attr.plain_size, once.len() as u64);
    assert_eq!(read(&*volume, &path).unwrap_err().errno(), libc::EIO);
}

#[test]
fn a_doubly_encrypted_object_is_read_if_its_vector_is_known() {
    for len in [0, 1, 15, 1007, 1008, 1009, 300_000] {
        // The original was there, too, and was encrypted first: its object is what was then encrypted once more. The
        // index was lost again, and so once more.
        let song = noise(len as u64, len);
        let mut library = LostIndex::new();
        let (path, once) = library.encrypt("music/a.mp3", 3, &song);
        let (path_2, twice) = library.encrypt(&path, 4, &once);
        library.encrypt(&path_2, 5, &twice);
        let volume = library.open(false);
        for path in ["music/a.mp3", &path, &path_2] {
            let ino = find(&*volume, path).unwrap();
            assert_eq!(volume.getattr(ino).unwrap().plain_size, len as u64);
            assert_eq!(read(&*volume, path).unwrap(), song, "{path} of {len}");
            let handle = volume.open(ino, libc::O_RDONLY).unwrap();
            for at in [1, 16, 1000, 1007, 1008, 100_001, 299_999] {
                let mut out = [0; 2500];
                let count = volume.read(ino, handle, at, &mut out).unwrap();
                let expected = song.get(at as usize..).unwrap_or_default();
                assert_eq!(out[..count], expected[..expected.len().min(2500)], "{at}");
            }
            volume.release(ino, handle);
        }
        assert_eq!(problems(volume.format()), Vec::<String>::new());
        // Under another name it could not be read through: programs copy it instead.
        let (music, name) = parent(&*volume, &path);
        let to = OsStr::new("b.mp3");
        let moved = volume.rename(music, OsStr::new(&name), music, to, RenameMode::Replace);
        assert_eq!(moved.unwrap_err().errno(), libc::EXDEV);
    }
}

#[test]
fn a_doubly_encrypted_object_is_not_read_with_another_vector() {
    // The old object came first, and the original was encrypted after that: same lengths, another vector.
    let song = noise(6, 5000);
    let mut library = LostIndex::new();
    let once = library.sealed(1, &song);
    let (path, _) = library.encrypt("music/a.mp3", 3, &song);
    library.encrypt(&path, 4, &once);
    let volume = library.open(true);
    assert_eq!(read(&*volume, "music/a.mp3").unwrap(), song);
    assert_eq!(read(&*volume, &path).unwrap(), once);
    let found = problems(volume.format());
    assert!(
        found.len() == 1 && found[0].contains("encrypted twice"),
        "{found:?}"
    );
    // The song is of another length since, or its object is gone.
    let (object, _) = library.encrypt("music/other.mp3", 5, &song[..4000]);
    library.encrypt(&object, 6, &once);
    assert_eq!(read(&*library.open(true), &object).unwrap(), once);
    fs::remove_file(library.dir.path().join(&path)).unwrap();
    assert_eq!(read(&*library.open(true), &path).unwrap(), once);
}

#[test]
fn a_number_that_two_records_have_is_noted() {
    let mut library = LostIndex::new();
    library.encrypt("music/a.mp3", 1, &noise(1, 3000));
    library.encrypt("music/b.mp3", 2, &noise(2, 3000));
    let found = verify(library.open(true).format());
    assert_eq!(found.problems, Vec::<String>::new());
    let numbers = found.notes.iter().filter(|n| n.contains("has number 0"));
    assert_eq!(numbers.count(), 1, "{:?}", found.notes);
}
