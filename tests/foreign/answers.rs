//! What the original programs wrote, and the answers that they gave.

use super::*;

#[test]
fn mms_gives_the_known_answers() {
    let kat = json("mms/kat.json");
    let bytes = |name: &str| {
        <[u8; 16]>::try_from(BASE64.decode_to_vec(kat[name].as_str().unwrap()).unwrap()).unwrap()
    };
    let (key, iv) = (Key::short(&bytes("internal_key_b64")), bytes("iv_b64"));
    let cases = kat["files"].as_array().unwrap();
    for case in cases {
        let len = case["n"].as_u64().unwrap();
        let stored = seal(
            Box::new(mms::SegmentSeal {
                key: key.clone(),
                iv,
            }),
            &pattern(len),
        );
        assert_eq!(stored.len() as u64, case["enc_len"], "{len}");
        assert_eq!(mms::cipher_len(len), case["enc_len"], "{len}");
        assert_eq!(sha256(&stored), case["enc_sha256"], "{len}");
    }
    assert_eq!(cases.len(), 15);
    for case in kat["passwords"].as_array().unwrap() {
        // The key file of each password opens with it, and gives the same internal key: an index sealed with that.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), case["keyfile"].as_str().unwrap()).unwrap();
        let line = kat["record_line"].as_str().unwrap();
        fs::write(
            dir.path().join("i"),
            format!("{{\"version\":2,\"registers\":1,\"id\":1}}\n{line}\n"),
        )
        .unwrap();
        let password = case["password"].as_str().unwrap().as_bytes();
        let library = Mirror::new(Box::new(
            Mms::open(dir.path(), password, &Default::default(), true).unwrap(),
        ))
        .unwrap();
        let path = kat["record"]["path"].as_str().unwrap();
        let attr = library.getattr(find(&*library, path).unwrap()).unwrap();
        assert_eq!(attr.plain_size, kat["record"]["filesize"]);
        let wrong = Mms::open(dir.path(), b"wrong", &Default::default(), true)
            .err()
            .unwrap();
        assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
    }
}

#[test]
fn medusa_gives_the_known_answers() {
    let kat = json("medusa/kat.json");
    let key = FernetKey::parse(kat["key_secret_base64"].as_str().unwrap().as_bytes()).unwrap();
    let iv: Vec<u8> = (0..16).collect();
    assert_eq!(hex(&iv), kat["iv_hex"]);
    let pinned = Some((kat["timestamp"].as_u64().unwrap(), iv.try_into().unwrap()));
    let cases = kat["cases"].as_array().unwrap();
    for case in cases {
        let plain = pattern(case["n"].as_u64().unwrap());
        let cache = Arc::new(BlockCache::new(4 << 20));
        let stored = seal(
            Box::new(FrameSeal {
                key: key.clone(),
                pinned,
                cache,
            }),
            &plain,
        );
        assert_eq!(sha256(&stored), case["enc_sha256"]);
        assert_eq!(frames::cipher_len(plain.len() as u64), stored.len() as u64);
    }
    assert_eq!(cases.len(), 11);
}

#[test]
fn images_gives_the_known_answers() {
    let kat = json("imagestore/kat.json");
    let iv: Vec<u8> = (0x10..0x20).collect();
    assert_eq!(hex(&iv), kat["iv_hex"]);
    let iv: [u8; 16] = iv.try_into().unwrap();
    let cases = kat["cases"].as_array().unwrap();
    for case in cases {
        let key = images::key_of(case["key"].as_str().unwrap().as_bytes());
        let stored = seal(
            Box::new(images::ImageSeal::new(key, iv)),
            &pattern(case["n"].as_u64().unwrap()),
        );
        assert_eq!(sha256(&stored), case["enc_sha256"]);
        assert_eq!(stored.len() as u64, case["enc_len"]);
    }
    assert_eq!(cases.len(), 24);
}

#[test]
fn files_of_the_music_server_are_read() {
    let dir = library("mms/run1-bucket");
    let volume = Mirror::new(open_mms(dir.path(), true).unwrap()).unwrap();
    let expected = json("mms/expected.json");
    let mut count = 0;
    for record in expected[0]["records_in_index_order"].as_array().unwrap() {
        let path = record["path"].as_str().unwrap();
        let attr = volume.getattr(find(&*volume, path).unwrap()).unwrap();
        assert_eq!(attr.plain_size, record["filesize"], "{path}");
        if LEFT_OUT.iter().any(|out| path.ends_with(out)) {
            let missing = read(&*volume, path).unwrap_err();
            assert_eq!(
                missing.errno(),
                libc::EIO,
                "listed, and an error to read: {missing}"
            );
            continue;
        }
        assert_eq!(
            sha256(&read(&*volume, path).unwrap()),
            record["plain_sha256"],
            "{path}"
        );
        count += 1;
    }
    assert_eq!(count, 16);
    assert!(find(&*volume, "key").is_err() && find(&*volume, "music.index").is_err());
}

#[test]
fn files_of_medusa_are_read() {
    let dir = library("medusa/store/backups");
    let node = "node1.example.internal";
    let bucket = Mirror::new(open_medusa(dir.path(), true).unwrap()).unwrap();
    let medusa = Medusa::open(dir.path(), MEDUSA_KEY.as_bytes(), 8 << 20, true).unwrap();
    let backups = Mirror::new(Box::new(BackupsView::new(medusa))).unwrap();
    let (mut read_files, mut lost) = (0, 0);
    for file in json("medusa/expected.json").as_array().unwrap() {
        let text = |name: &str| file[name].as_str().unwrap();
        let below = format!("{}/{}/{}", text("keyspace"), text("table"), text("file"));
        let shown = format!("{node}/{}/{below}", text("backup"));
        if LEFT_OUT.contains(&text("file")) && text("backup") == "full-2026" {
            assert_eq!(read(&*backups, &shown).unwrap_err().errno(), libc::EIO);
            continue;
        }
        if file["overwritten_by_diff2"] == true {
            assert_eq!(
                read(&*backups, &shown).unwrap_err().errno(),
                libc::EIO,
                "{shown}"
            );
            lost += 1;
            continue;
        }
        assert_eq!(
            sha256(&read(&*backups, &shown).unwrap()),
            text("sha256"),
            "{shown}"
        );
        let folder = if text("backup") == "full-2026" {
            format!("{node}/full-2026/data")
        } else {
            format!("{node}/data")
        };
        assert_eq!(
            sha256(&read(&*bucket, &format!("{folder}/{below}")).unwrap()),
            text("sha256")
        );
        let attr = bucket
            .getattr(find(&*bucket, &format!("{folder}/{below}")).unwrap())
            .unwrap();
        assert_eq!(attr.plain_size, file["size"]);
        read_files += 1;
    }
    assert_eq!((read_files, lost), (38, 1));
    let manifest = format!("{node}/diff-1/meta/manifest.json");
    assert_eq!(
        read(&*bucket, &manifest).unwrap(),
        fs::read(dir.path().join(&manifest)).unwrap()
    );
    let found = problems(bucket.format());
    assert!(
        found
            .iter()
            .any(|p| p.contains("overwritten by the backup diff-2: the backup diff-1 has lost it")),
        "{found:?}"
    );
    assert_eq!(new_problems(bucket.format()), Vec::<String>::new());
}

#[test]
fn files_of_the_image_store_are_read() {
    let dir = library("imagestore");
    let volume = Mirror::new(open_images(dir.path(), true).unwrap()).unwrap();
    let mut count = 0;
    for file in json("imagestore/expected.json")["files"]
        .as_array()
        .unwrap()
    {
        let path = file["file"].as_str().unwrap().strip_suffix(".enc").unwrap();
        if LEFT_OUT.iter().any(|out| path.ends_with(out)) {
            continue;
        }
        assert_eq!(
            sha256(&read(&*volume, path).unwrap()),
            file["sha256"],
            "{path}"
        );
        let ino = find(&*volume, path).unwrap();
        assert_eq!(volume.getattr(ino).unwrap().plain_size, file["size"]);
        let mime = volume.getxattr(ino, OsStr::new("user.mime_type")).unwrap();
        assert_eq!(mime, file["servedType"].as_str().unwrap().as_bytes());
        count += 1;
    }
    assert_eq!(count, 16);
}
