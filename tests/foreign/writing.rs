//! What is written, and what is refused.

use super::*;

#[test]
fn written_files_are_there_after_reopening() {
    for (name, open) in LIBRARIES {
        let dir = library(name);
        let mut expected: HashMap<String, Vec<u8>> = HashMap::new();
        let volume = Mirror::new(open(dir.path(), false).unwrap()).unwrap();
        for len in [
            0,
            1,
            15,
            16,
            1007,
            1008,
            1009,
            258_048,
            1 << 20,
            (1 << 20) + 1,
            3_000_000,
            20_000_000,
        ] {
            let path = new_path(name, &format!("of {len}"));
            let bytes = noise(len as u64, len);
            write(&*volume, &path, &bytes).unwrap();
            expected.insert(path, bytes);
        }
        // Backwards, over itself, and far behind the end: never in the order in which it is stored.
        let path = new_path(name, "random");
        let mut model = vec![0; 30_000_000];
        let pieces: Vec<(usize, Vec<u8>)> = [
            (29_000_000, 1_000_000),
            (0, 12_000_000),
            (5, 100),
            (11_000_000, 9_000_000),
            (3, 1),
        ]
        .map(|(at, len)| (at, noise(at as u64, len)))
        .into();
        for (at, piece) in &pieces {
            model[*at..at + piece.len()].copy_from_slice(piece);
        }
        let pieces: Vec<(u64, &[u8])> = pieces.iter().map(|(at, p)| (*at as u64, &p[..])).collect();
        write_pieces(&*volume, &path, &pieces).unwrap();
        expected.insert(path.clone(), model);
        // A part of an older file, and a cut.
        let part = new_path(name, "of 3000000");
        write_pieces(&*volume, &part, &[(100, b"changed")]).unwrap();
        expected.get_mut(&part).unwrap()[100..107].copy_from_slice(b"changed");
        // Rename over another, and removal.
        let (dir_ino, gone) = parent(&*volume, &new_path(name, "of 1"));
        let (_, over) = parent(&*volume, &new_path(name, "of 15"));
        volume
            .rename(
                dir_ino,
                OsStr::new(&gone),
                dir_ino,
                OsStr::new(&over),
                RenameMode::Replace,
            )
            .unwrap();
        let moved = expected.remove(&new_path(name, "of 1")).unwrap();
        expected.insert(new_path(name, "of 15"), moved);
        let (_, removed) = parent(&*volume, &new_path(name, "of 1007"));
        volume.unlink(dir_ino, OsStr::new(&removed)).unwrap();
        expected.remove(&new_path(name, "of 1007"));
        for (path, bytes) in &expected {
            assert!(
                read(&*volume, path).unwrap() == *bytes,
                "{path} before closing"
            );
        }
        volume.close().unwrap();
        drop(volume);
        assert!(!dir.path().join(".hushfs-tmp").exists(), "nothing is left");
        let volume = Mirror::new(open(dir.path(), true).unwrap()).unwrap();
        for (path, bytes) in &expected {
            assert!(
                read(&*volume, path).unwrap() == *bytes,
                "{path} after opening again"
            );
        }
        for gone in ["of 1", "of 1007"] {
            assert!(find(&*volume, &new_path(name, gone)).is_err());
        }
        assert_eq!(
            new_problems(volume.format()),
            Vec::<String>::new(),
            "{name}"
        );
    }
}

#[test]
fn files_that_would_lie_in_clear_are_refused() {
    let dir = library("mms/run1-bucket");
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    assert_eq!(
        write(&*volume, "music/cover.jpg", b"x")
            .unwrap_err()
            .errno(),
        libc::EPERM
    );
    assert_eq!(
        write(&*volume, "song.mp3", b"x").unwrap_err().errno(),
        libc::EPERM,
        "outside of the music"
    );
    // As rsync does it: a name that means nothing, until the file is whole.
    write(&*volume, "music/.song.mp3.Xy12ab", b"la la la").unwrap();
    assert!(!dir.path().join("music/.song.mp3.Xy12ab").exists());
    let (music, _) = parent(&*volume, "music/x");
    volume
        .rename(
            music,
            OsStr::new(".song.mp3.Xy12ab"),
            music,
            OsStr::new("song.mp3"),
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(read(&*volume, "music/song.mp3").unwrap(), b"la la la");
    volume.close().unwrap();
    drop(volume);
    let options = mms::Options {
        allow_plain: true,
        ..Default::default()
    };
    let format = Mms::open(dir.path(), MMS_PASSWORD.as_bytes(), &options, false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    write(&*volume, "music/cover.jpg", b"picture").unwrap();
    assert_eq!(
        fs::read(dir.path().join("music/cover.jpg")).unwrap(),
        b"picture"
    );
    assert_eq!(read(&*volume, "music/song.mp3").unwrap(), b"la la la");
}

#[test]
fn an_encrypted_and_an_unencrypted_picture_of_one_name_are_both_shown() {
    let dir = library("imagestore");
    let sealed = "dam/checkpoints/checkpoint_1795199454566_6301.png";
    let clear = fs::read(dir.path().join("plain/pic.gif")).unwrap();
    fs::write(dir.path().join(sealed), &clear).unwrap();
    let volume = Mirror::new(open_images(dir.path(), false).unwrap()).unwrap();
    assert_eq!(read(&*volume, sealed).unwrap(), clear);
    let other = read(
        &*volume,
        "dam/checkpoints/checkpoint_1795199454566_6301 (encrypted).png",
    )
    .unwrap();
    assert!(!other.is_empty() && other != clear);
    // Writing to the one does not take the other's place.
    write(&*volume, sealed, b"new").unwrap();
    assert!(read(&*volume, sealed).unwrap().starts_with(b"new"));
    let marked = "dam/checkpoints/checkpoint_1795199454566_6301 (encrypted).png";
    assert_eq!(read(&*volume, marked).unwrap(), other);
    // Nor does encrypting it.
    drop(volume);
    let format = Images::open(dir.path(), IMAGES_KEY.as_bytes(), false).unwrap();
    let volume = Mirror::new(Box::new(format.encrypting_all(true))).unwrap();
    assert!(write(&*volume, sealed, b"new").is_err());
}

#[test]
fn a_password_change_leaves_the_rest_alone() {
    let dir = library("mms/run1-bucket");
    let index = fs::read(dir.path().join("music.index")).unwrap();
    let new = || Ok(zeroize::Zeroizing::new(b"new".to_vec()));
    let wrong = mms::passwd(dir.path(), &Default::default(), b"wrong", new).unwrap_err();
    assert!(matches!(wrong.kind(), Kind::WrongKey));
    mms::passwd(
        dir.path(),
        &Default::default(),
        MMS_PASSWORD.as_bytes(),
        new,
    )
    .unwrap();
    assert_eq!(fs::read(dir.path().join("music.index")).unwrap(), index);
    assert_eq!(fs::metadata(dir.path().join("key")).unwrap().len(), 87);
    assert!(open_mms(dir.path(), true).is_err());
    let format = Mms::open(dir.path(), b"new", &Default::default(), true).unwrap();
    assert_eq!(
        read(
            &*Mirror::new(Box::new(format)).unwrap(),
            "music/edge/b15.wav"
        )
        .unwrap()
        .len(),
        15
    );
}
