//! Damage, wrong secrets, and folders of strangers.

use super::*;

#[test]
fn a_changed_byte_never_panics_and_medusa_always_notices() {
    for (name, open) in LIBRARIES {
        let source = vectors().join(name);
        let mut files = Vec::new();
        let mut pending = vec![source.clone()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path)
                } else {
                    files.push(path.strip_prefix(&source).unwrap().to_path_buf())
                }
            }
        }
        let dir = library(name);
        for file in &files {
            let path = dir.path().join(file);
            let whole = fs::read(&path).unwrap();
            if whole.is_empty() {
                continue;
            }
            for (at, cut) in [
                (0, false),
                (whole.len() / 2, false),
                (whole.len() - 1, false),
                (whole.len() / 2, true),
                (0, true),
            ] {
                let mut bad = whole.clone();
                if cut {
                    bad.truncate(at)
                } else {
                    bad[at] ^= 0x40
                }
                fs::write(&path, &bad).unwrap();
                // The first read of a broken index or key may fail; nothing may panic, or hang.
                if let Ok(format) = open(dir.path(), true) {
                    let found = problems(&*format);
                    let volume = Mirror::new(format).unwrap();
                    let is_data =
                        name.starts_with("medusa") && file.iter().any(|part| part == "data");
                    if is_data {
                        let shown = file.to_str().unwrap();
                        assert!(
                            read(&*volume, shown).is_err(),
                            "{shown} at {at}, cut: {cut}"
                        );
                        assert!(
                            found.iter().any(|p| p.starts_with(shown)),
                            "{shown}: {found:?}"
                        );
                    }
                }
            }
            fs::write(&path, &whole).unwrap();
        }
    }
}

#[test]
fn frames_in_another_order_are_noticed_by_who_reads_them_all() {
    let dir = library("medusa/store/backups");
    let volume = Mirror::new(open_medusa(dir.path(), false).unwrap()).unwrap();
    let path = new_path("medusa", "many frames");
    write(&*volume, &path, &noise(1, 3 << 20)).unwrap();
    volume.close().unwrap();
    drop(volume);
    let stored = dir.path().join(&path);
    let whole = fs::read(&stored).unwrap();
    let frame = whole.len() / 3;
    let swapped = [
        &whole[frame..2 * frame],
        &whole[..frame],
        &whole[2 * frame..],
    ]
    .concat();
    fs::write(&stored, swapped).unwrap();
    let format = open_medusa(dir.path(), true).unwrap();
    assert!(problems(&*format).iter().any(|p| p.contains("many frames")));
    assert_eq!(
        read(&*Mirror::new(format).unwrap(), &path)
            .unwrap_err()
            .errno(),
        libc::EIO
    );
    fs::write(&stored, whole).unwrap();
    let volume = Mirror::new(open_medusa(dir.path(), true).unwrap()).unwrap();
    assert_eq!(read(&*volume, &path).unwrap(), noise(1, 3 << 20));
}

#[test]
fn wrong_secrets_and_strangers_are_named() {
    let dir = library("medusa/store/backups");
    let wrong = Medusa::open(dir.path(), &[b'A'; 44], 0, true)
        .err()
        .unwrap();
    assert!(
        matches!(wrong.kind(), Kind::Secret(_)),
        "no padding: {wrong}"
    );
    let key = BASE64.encode_to_string([7; 32]);
    let wrong = Medusa::open(dir.path(), key.as_bytes(), 0, true)
        .err()
        .unwrap();
    assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
    // Every object of the later format.
    let mut pending = vec![dir.path().join("node1.example.internal")];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.to_str().unwrap().contains("/data/") {
                fs::write(path, [2, 5, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            }
        }
    }
    let later = Medusa::open(dir.path(), MEDUSA_KEY.as_bytes(), 0, true)
        .err()
        .unwrap();
    assert!(later.to_string().contains("AWS Encryption SDK"), "{later}");
    let dir = library("imagestore");
    let wrong = Images::open(dir.path(), b"another", true).err().unwrap();
    assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
}

#[test]
fn a_backup_with_a_file_in_clear_is_said_to_be_plain() {
    let dir = library("medusa/store/backups");
    let clear = b"not a frame".repeat(100);
    let manifest = "node1.example.internal/full-2026/meta/manifest.json";
    let mut sections: Value =
        serde_json::from_slice(&fs::read(dir.path().join(manifest)).unwrap()).unwrap();
    // As the original says it of a file that it did not encrypt.
    let object = &mut sections[0]["objects"][0];
    let path = object["path"].as_str().unwrap().to_owned();
    let digest = <md5::Md5 as md5::Digest>::digest(&clear);
    *object = serde_json::json!({ "path": path, "MD5": hex(&digest), "size": clear.len() });
    let text = serde_json::to_vec(&sections).unwrap();
    fs::write(dir.path().join(manifest), &text).unwrap();
    let copy = "index/backup_index/full-2026/manifest_node1.example.internal.json";
    assert!(dir.path().join(copy).exists());
    fs::write(dir.path().join(copy), &text).unwrap();
    fs::write(dir.path().join(&path), &clear).unwrap();
    let volume = Mirror::new(open_medusa(dir.path(), true).unwrap()).unwrap();
    assert_eq!(read(&*volume, &path).unwrap(), clear);
    let notes = verify(volume.format()).notes;
    let plain = |n: &String| n.starts_with("full-2026") && n.contains("not encrypted");
    assert!(notes.iter().any(plain), "{notes:?}");
    assert_eq!(new_problems(volume.format()), Vec::<String>::new());
}

#[test]
fn formats_are_detected_or_asked_for() {
    for (name, kind) in [
        ("mms/run1-bucket", FormatKind::Mms),
        ("medusa/store/backups", FormatKind::Medusa),
        ("imagestore", FormatKind::Images),
    ] {
        assert_eq!(detect(&vectors().join(name), false).unwrap(), kind);
    }
    let dir = library("mms/run1-bucket");
    copy(&vectors().join("imagestore/dam"), &dir.path().join("dam"));
    let several = detect(dir.path(), false).unwrap_err().to_string();
    assert!(several.contains("--format=mms or images"), "{several}");
    let none = tempfile::tempdir().unwrap();
    assert!(matches!(
        detect(none.path(), false).unwrap_err().kind(),
        Kind::NotLibrary
    ));
    // Two that the password opens are as good as one; two indexes are not.
    fs::copy(dir.path().join("key"), dir.path().join("key2")).unwrap();
    let open = || open_mms(dir.path(), true);
    assert!(open().is_ok());
    let index = dir.path().join("music.index");
    fs::copy(index, dir.path().join("other.index")).unwrap();
    let indexes = open().err().unwrap().to_string();
    assert!(indexes.contains("music.index, other.index"), "{indexes}");
}

#[test]
fn an_index_that_is_not_whole_is_only_read() {
    let dir = library("mms/run1-bucket");
    let path = dir.path().join("music.index");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    assert_eq!(
        write(&*volume, "music/a.mp3", b"x").unwrap_err().errno(),
        libc::EROFS
    );
    assert_eq!(read(&*volume, "music/edge/b15.wav").unwrap().len(), 15);
    let found = problems(volume.format());
    assert!(found.iter().any(|p| p.contains("cut short")), "{found:?}");
}
