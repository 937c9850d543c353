//! Libraries of Minio Music Server.

use hushfs::foreign::mms;
use hushfs::foreign::mms::index::Index;

use super::*;

fn open_library(
    name: &str,
    options: &mms::Options,
    password: &str,
    read_only: bool,
) -> Result<(tempfile::TempDir, Arc<Mirror>)> {
    let dir = tempfile::tempdir().unwrap();
    copy(&case("mms-lib").join(name), dir.path());
    let format = Mms::open(dir.path(), password.as_bytes(), options, read_only)?;
    Ok((dir, Mirror::new(Box::new(format))?))
}

fn with_path(path: &str) -> mms::Options {
    mms::Options {
        path: Some(path.into()),
        ..Default::default()
    }
}

/// The internal key of a library, by `man/hushfs-foreign.5` and not by what reads it otherwise.
fn internal_key(root: &Path, password: &str) -> Key {
    let file: Value = serde_json::from_slice(&fs::read(root.join("key")).unwrap()).unwrap();
    let decoded = |name: &str| BASE64.decode_to_vec(file[name].as_str().unwrap()).unwrap();
    let hash = Sha256::digest(password.as_bytes());
    let mut data = decoded("data");
    let iv = decoded("iv").try_into().unwrap();
    let len = Key::short(hash[..16].try_into().unwrap())
        .decrypt_padded(&iv, &mut data)
        .unwrap();
    let key = BASE64.decode_to_vec(&data[..len]).unwrap();
    Key::short(&key.try_into().unwrap())
}

#[test]
fn songs_have_the_tags_that_the_server_finds() {
    let (expected, accepted) = (
        table("mms-tags", "expected.json"),
        table("mms-tags", "accepted.json"),
    );
    let dir = tempfile::tempdir().unwrap();
    mms::init(dir.path(), &Default::default(), b"pw").unwrap();
    let format = Mms::open(dir.path(), b"pw", &Default::default(), false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    for file in expected.keys() {
        let bytes = fs::read(case("mms-tags").join(file)).unwrap();
        write(&*volume, &format!("music/{file}"), &bytes).unwrap();
    }
    volume.close().unwrap();
    let (key, path) = (
        internal_key(dir.path(), "pw"),
        dir.path().join("music.index"),
    );
    let index = Index::read(&path, &key).unwrap();
    let mut wrong = Vec::new();
    for (file, expected) in &expected {
        let record = index.json(&path, &key, &format!("music/{file}")).unwrap();
        for member in ["title", "artist", "album", "year", "track_no", "duration"] {
            let of = |map: &Value| match &map[member] {
                Value::String(text) if text.is_empty() => Value::Null,
                other => other.clone(),
            };
            let (ours, right) = (of(&Value::Object(record.clone())), of(expected));
            let close = ours
                .as_f64()
                .zip(right.as_f64())
                .is_some_and(|(a, b)| (a - b).abs() < 0.2);
            let others = accepted
                .get(file)
                .and_then(|members| members[member].as_array());
            let accepted = others.is_some_and(|others| others.contains(&ours));
            let equal = ours == right || member == "duration" && close;
            if !equal && !accepted {
                wrong.push(format!(
                    "{file}: {member} {ours}, and the server has {right}"
                ));
            }
        }
    }
    assert!(expected.len() > 170);
    hold("mms-tags", expected.len(), &wrong);
}

#[test]
fn a_path_that_nothing_tells_has_to_be_given_and_is_kept() {
    for made_by in ["the server", "hushfs"] {
        let dir = tempfile::tempdir().unwrap();
        let path = with_path("media/music/");
        if made_by == "the server" {
            copy(&case("mms-lib/nested-prefix-empty"), dir.path());
            fs::create_dir_all(dir.path().join("media/music")).unwrap();
            let unknown = Mms::open(
                dir.path(),
                "pässwörd".as_bytes(),
                &Default::default(),
                false,
            );
            let unknown = unknown.err().unwrap().to_string();
            assert!(unknown.contains("--mms-path"), "{unknown}");
            // To look at it, nothing has to be known.
            Mms::open(dir.path(), "pässwörd".as_bytes(), &Default::default(), true).unwrap();
            let given = Mms::open(dir.path(), "pässwörd".as_bytes(), &path, false).unwrap();
            Mirror::new(Box::new(given)).unwrap().close().unwrap();
        } else {
            mms::init(dir.path(), &path, "pässwörd".as_bytes()).unwrap();
        }
        // Now it is known; and again when all songs are gone.
        for _ in 0..2 {
            let format = Mms::open(
                dir.path(),
                "pässwörd".as_bytes(),
                &Default::default(),
                false,
            );
            let volume = Mirror::new(Box::new(format.unwrap())).unwrap();
            write(&*volume, "media/music/new.mp3", b"la la").unwrap();
            let objects: Vec<_> = fs::read_dir(dir.path().join("media/music"))
                .unwrap()
                .collect();
            assert_eq!(objects.len(), 1, "{made_by}");
            let name = objects[0].as_ref().unwrap().file_name();
            let digest = hex(&<md5::Md5 as md5::Digest>::digest(b"media/music/new.mp3"));
            assert_eq!(name.to_str().unwrap(), format!("{digest}.encrypt"));
            let (folder, name) = parent(&*volume, "media/music/new.mp3");
            volume.unlink(folder, OsStr::new(&name)).unwrap();
            volume.close().unwrap();
        }
    }
}

#[test]
fn the_path_is_kept_when_the_last_song_goes() {
    let dir = library("mms/run1-bucket");
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    assert!(!dir.path().join(".hushfs-mms-path").exists());
    remove_all(&*volume, ROOT);
    volume.close().unwrap();
    drop(volume);
    assert_eq!(
        fs::read_to_string(dir.path().join(".hushfs-mms-path")).unwrap(),
        "music/\n"
    );
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    assert!(find(&*volume, ".hushfs-mms-path").is_err());
    volume
        .mkdir(
            find(&*volume, "music").unwrap(),
            OsStr::new("a"),
            0o755,
            CALLER,
        )
        .unwrap();
    write(&*volume, "music/a/b.mp3", b"la").unwrap();
    volume.close().unwrap();
    assert!(new_problems(volume.format()).is_empty());
}

/// Removes the files below a folder.
fn remove_all(volume: &dyn Volume, folder: Ino) {
    for name in names(volume, folder) {
        let name = OsStr::new(&name);
        let found = volume.lookup(folder, name).unwrap();
        match found.kind {
            hushfs::volume::FileKind::Directory => remove_all(volume, found.ino),
            _ => volume.unlink(folder, name).unwrap(),
        }
    }
}

#[test]
fn a_path_that_contradicts_the_objects_is_refused_for_writing() {
    for (name, right, wrong) in [
        ("key-and-key2", "music/", "data/"),
        ("key-and-key2", "music", "/"),
        ("pathmusic-no-slash", "music", "music/"),
    ] {
        let open =
            |path: &str, read_only| open_library(name, &with_path(path), "pässwörd", read_only);
        assert!(open(right, false).is_ok(), "{name} {right}");
        let refused = open(wrong, false).err().unwrap();
        assert!(matches!(refused.kind(), Kind::Usage(_)), "{refused}");
        assert!(refused.to_string().contains("--read-only"), "{refused}");
        let (_dir, volume) = open(wrong, true).unwrap();
        assert!(find(&*volume, "music").is_ok());
    }
}

#[test]
fn a_path_without_a_slash_is_found() {
    let expected = &table("mms-lib", "expected.json")["pathmusic-no-slash"];
    let (dir, volume) =
        open_library("pathmusic-no-slash", &Default::default(), "pässwörd", false).unwrap();
    for (path, digest) in expected["songs"].as_object().unwrap() {
        assert_eq!(
            sha256(&read(&*volume, path).unwrap()),
            digest.as_str().unwrap()
        );
    }
    let top: Vec<String> = names(&*volume, ROOT);
    assert_eq!(top, ["music"]);
    write(&*volume, "music/new.mp3", b"la").unwrap();
    let digest = hex(&<md5::Md5 as md5::Digest>::digest(b"music/new.mp3"));
    assert!(dir.path().join(format!("music{digest}.encrypt")).is_file());
    volume.close().unwrap();
    assert!(problems(volume.format()).is_empty());
}

fn names(volume: &dyn Volume, folder: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let mut take = |entry: hushfs::volume::Dirent<'_>| {
        names.push(entry.name.to_string_lossy().into_owned());
        true
    };
    volume.readdir(folder, 0, false, &mut take).unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

#[test]
fn a_lost_vector_is_told_and_nothing_is_removed() {
    let expected = &table("mms-lib", "expected.json")["nested-prefix-after-server-run"];
    let (dir, volume) = open_library(
        "nested-prefix-after-server-run",
        &Default::default(),
        "pässwörd",
        true,
    )
    .unwrap();
    let object = expected["object"].as_str().unwrap();
    let found = problems(volume.format());
    assert!(
        found
            .iter()
            .any(|p| p.contains(object) && p.contains("does not name")),
        "{found:?}"
    );
    assert!(volume.left_out().iter().any(|(name, _)| name == object));
    assert!(dir.path().join(object).is_file());
}

#[test]
fn several_keys_and_indexes_are_told_apart() {
    let table = table("mms-lib", "expected.json");
    let songs = |volume: &Mirror, name: &str| {
        for (path, digest) in table[name]["songs"].as_object().unwrap() {
            assert_eq!(
                sha256(&read(volume, path).unwrap()),
                digest.as_str().unwrap(),
                "{path}"
            );
        }
    };
    for password in ["pässwörd", "xxx"] {
        let (_dir, volume) =
            open_library("key-and-key2", &Default::default(), password, false).unwrap();
        songs(&volume, "key-and-key2");
        assert_eq!(names(&*volume, ROOT), ["music"], "neither key is shown");
        assert!(problems(volume.format()).is_empty());
    }
    let wrong = open_library("key-and-key2", &Default::default(), "yyy", false)
        .err()
        .unwrap();
    assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
    // A change of the password changes the key file that it opens.
    let (dir, volume) = open_library("key-and-key2", &Default::default(), "xxx", true).unwrap();
    drop(volume);
    let new = || Ok(zeroize::Zeroizing::new(b"zzz".to_vec()));
    mms::passwd(dir.path(), &Default::default(), b"xxx", new).unwrap();
    for (password, opens) in [("pässwörd", true), ("zzz", true), ("xxx", false)] {
        let opened = Mms::open(dir.path(), password.as_bytes(), &Default::default(), true);
        assert_eq!(opened.is_ok(), opens, "{password}");
    }
    let (dir, volume) =
        open_library("v1-and-v2-index", &Default::default(), "pässwörd", false).unwrap();
    songs(&volume, "v1-and-v2-index");
    let before = fs::read(dir.path().join("music.index")).unwrap();
    write(&*volume, "music/new.mp3", b"la").unwrap();
    volume.close().unwrap();
    assert_eq!(fs::read(dir.path().join("music.index")).unwrap(), before);
    assert_eq!(names(&*volume, ROOT), ["music"]);
}

#[test]
fn another_library_in_the_bucket_is_left_alone() {
    let (dir, volume) =
        open_library("key-and-key2", &Default::default(), "pässwörd", true).unwrap();
    drop(volume);
    // A second library under another path, with the same key.
    fs::write(
        dir.path().join("data.index"),
        b"{\"version\":2,\"registers\":0,\"id\":1}\n",
    )
    .unwrap();
    let unclear = Mms::open(dir.path(), "pässwörd".as_bytes(), &Default::default(), true)
        .err()
        .unwrap();
    assert!(unclear.to_string().contains("--mms-index"), "{unclear}");
    let options = |index: &str, path: Option<&str>| mms::Options {
        index: Some(index.into()),
        path: path.map(Into::into),
        allow_plain: true,
        ..Default::default()
    };
    let open = |options| Mms::open(dir.path(), "pässwörd".as_bytes(), &options, false);
    fs::create_dir(dir.path().join("data")).unwrap();
    let other = Mirror::new(Box::new(
        open(options("data.index", Some("data/"))).unwrap(),
    ))
    .unwrap();
    write(&*other, "data/x.mp3", b"other").unwrap();
    other.close().unwrap();
    drop(other);
    let volume = Mirror::new(Box::new(open(options("music.index", None)).unwrap())).unwrap();
    assert_eq!(names(&*volume, ROOT), ["data", "music"]);
    assert!(
        names(&*volume, find(&*volume, "data").unwrap()).is_empty(),
        "no object is shown"
    );
    for own in ["key", "key2", "data.index", "music.index"] {
        assert_eq!(
            write(&*volume, own, b"x").unwrap_err().errno(),
            libc::EPERM,
            "{own}"
        );
    }
    let left: Vec<&str> = volume
        .left_out()
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left[0] == "data.index" && left[1].starts_with("data/"),
        "{left:?}"
    );
}

#[test]
fn names_that_a_folder_cannot_show_are_named() {
    let expected = &table("mms-lib", "expected.json")["names-not-shown"];
    let (dir, volume) =
        open_library("names-not-shown", &Default::default(), "pässwörd", false).unwrap();
    for (path, digest) in expected["songs"].as_object().unwrap() {
        assert_eq!(
            sha256(&read(&*volume, path).unwrap()),
            digest.as_str().unwrap()
        );
    }
    let found = problems(volume.format());
    for name in expected["not_shown"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(found.iter().any(|p| p.contains(name)), "{name}: {found:?}");
        assert!(volume.left_out().iter().any(|(_, why)| why.contains(name)));
    }
    assert!(
        !found.iter().any(|p| p.contains("does not name")),
        "{found:?}"
    );
    // Their records stay, whatever else changes.
    write(&*volume, "music/new.mp3", b"la").unwrap();
    volume.close().unwrap();
    drop(volume);
    let format = Mms::open(
        dir.path(),
        "pässwörd".as_bytes(),
        &Default::default(),
        false,
    )
    .unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    assert_eq!(volume.left_out().len(), 2);
    // And one is taken back once it can be shown.
    let (music, _) = parent(&*volume, "music/x");
    volume.unlink(music, OsStr::new("d.mp3")).unwrap();
    volume
        .mkdir(music, OsStr::new("d.mp3"), 0o755, CALLER)
        .unwrap();
    write(&*volume, "music/d.mp3/b.mp3", b"anew").unwrap();
    volume.close().unwrap();
    drop(volume);
    let format = Mms::open(dir.path(), "pässwörd".as_bytes(), &Default::default(), true).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    assert_eq!(read(&*volume, "music/d.mp3/b.mp3").unwrap(), b"anew");
    assert_eq!(volume.left_out().len(), 1);
}

#[test]
fn a_library_without_an_index_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(case("mms-lib/key-and-key2/key"), dir.path().join("key")).unwrap();
    let kind = detect(dir.path(), false).unwrap();
    assert_eq!(kind, FormatKind::Mms);
    let e = mms::check(dir.path(), &Default::default()).unwrap_err();
    assert!(
        matches!(e.kind(), Kind::NotLibrary) && e.to_string().contains("no index"),
        "{e}"
    );
}

/// A WAV file or an AIFF file of a second of silence, with an ID3v2.3 tag in which one frame is cut short.
fn with_an_odd_tag(is_wav: bool) -> Vec<u8> {
    let number = |n: usize| {
        if is_wav {
            (n as u32).to_le_bytes()
        } else {
            (n as u32).to_be_bytes()
        }
    };
    let frame = |id: &[u8], data: &[u8]| {
        let len = (data.len() as u32).to_be_bytes();
        [id, &len, &[0, 0], data].concat()
    };
    let frames = [
        frame(b"TIT2", b"\0Title"),
        frame(b"COMM", b"\x01en"),
        frame(b"TPE1", b"\0A/B"),
    ]
    .concat();
    let tag = [b"ID3\x03\0\0\0\0\0", &[frames.len() as u8][..], &frames].concat();
    let chunk = |id: &[u8], data: &[u8]| {
        let padding = &[0][..data.len() % 2];
        [id, &number(data.len()), data, padding].concat()
    };
    let silence = vec![0; 88_200];
    let body = if is_wav {
        let format = [1, 0, 1, 0, 0x44, 0xac, 0, 0, 0x88, 0x58, 1, 0, 2, 0, 16, 0];
        [
            b"WAVE".to_vec(),
            chunk(b"fmt ", &format),
            chunk(b"data", &silence),
            chunk(b"id3 ", &tag),
        ]
        .concat()
    } else {
        let format = [
            0, 1, 0, 0, 0xac, 0x44, 0, 16, 0x40, 0x0e, 0xac, 0x44, 0, 0, 0, 0, 0, 0,
        ];
        let sound = [&[0; 8][..], &silence].concat();
        [
            b"AIFF".to_vec(),
            chunk(b"COMM", &format),
            chunk(b"SSND", &sound),
            chunk(b"ID3 ", &tag),
        ]
        .concat()
    };
    chunk(if is_wav { b"RIFF" } else { b"FORM" }, &body)
}

#[test]
fn an_odd_frame_costs_other_types_nothing_either() {
    let dir = tempfile::tempdir().unwrap();
    mms::init(dir.path(), &Default::default(), b"pw").unwrap();
    let format = Mms::open(dir.path(), b"pw", &Default::default(), false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    for (name, is_wav) in [("a.wav", true), ("a.aiff", false)] {
        write(&*volume, &format!("music/{name}"), &with_an_odd_tag(is_wav)).unwrap();
        let (key, path) = (
            internal_key(dir.path(), "pw"),
            dir.path().join("music.index"),
        );
        let index = Index::read(&path, &key).unwrap();
        let record = index.json(&path, &key, &format!("music/{name}")).unwrap();
        assert_eq!(
            (&record["title"], &record["artist"]),
            (&"Title".into(), &"A".into()),
            "{name}"
        );
        assert_eq!(record["duration"], 1, "{name}");
    }
}

/// Opens one of the libraries whose options are in the table, in a folder of its own.
fn open_with_options(name: &str) -> (tempfile::TempDir, Arc<Mirror>, Value) {
    let expected = table("mms-lib", "expected.json")[name].clone();
    let given: Vec<&str> = expected["options"]
        .as_array()
        .unwrap()
        .iter()
        .map(|option| option.as_str().unwrap())
        .collect();
    let value = |name: &str| {
        let at = given.iter().position(|option| *option == name)?;
        Some(given[at + 1].to_string())
    };
    let options = mms::Options {
        key: value("--mms-key"),
        index: value("--mms-index"),
        ..Default::default()
    };
    let password = expected["password"].as_str().unwrap();
    let (dir, volume) = open_library(name, &options, password, false).unwrap();
    (dir, volume, expected)
}

fn move_to(volume: &Mirror, from: &str, to: &str) -> Result<()> {
    let ((from, name), (to, new_name)) = (parent(volume, from), parent(volume, to));
    volume.rename(
        from,
        OsStr::new(&name),
        to,
        OsStr::new(&new_name),
        RenameMode::Replace,
    )
}

#[test]
fn a_folder_that_holds_what_is_not_shown_stays() {
    for (name, moves) in [
        (
            "two-libraries",
            &[("data", "data2"), ("data", "music/data")][..],
        ),
        ("two-libraries-nested", &[("music/kids", "music/children")]),
        ("key-in-a-folder", &[("conf", "conf2")]),
        ("key-in-the-music", &[("music/conf", "music/x")]),
        ("widened-path", &[("music/rock", "music/x")]),
    ] {
        let (dir, volume, expected) = open_with_options(name);
        let before = stored(dir.path());
        for (from, to) in moves {
            let refused = move_to(&volume, from, to).unwrap_err();
            assert_eq!(refused.errno(), libc::EPERM, "{name}: {refused}");
        }
        assert!(stored(dir.path()) == before, "{name}: something has moved");
        for (path, digest) in expected["songs"].as_object().unwrap() {
            assert_eq!(
                sha256(&read(&*volume, path).unwrap()),
                digest.as_str().unwrap()
            );
        }
        write(&*volume, "music/c.mp3", b"la").unwrap();
        volume.close().unwrap();
        assert!(!dir.path().join(".hushfs-tmp/intent").exists(), "{name}");
    }
    // A folder that holds songs of this library alone has its new name.
    let (_dir, volume, _) = open_with_options("two-libraries");
    let (music, _) = parent(&*volume, "music/x");
    volume.mkdir(music, OsStr::new("a"), 0o755, CALLER).unwrap();
    write(&*volume, "music/a/b.mp3", b"la").unwrap();
    move_to(&volume, "music/a", "music/z").unwrap();
    assert_eq!(read(&*volume, "music/z/b.mp3").unwrap(), b"la");
}

#[test]
fn no_object_stays_that_no_record_names() {
    let (dir, volume, _) = open_with_options("widened-path");
    let jazz = read(&*volume, "music/jazz.mp3").unwrap();
    write(&*volume, "music/rock/0.mp3", &jazz).unwrap();
    write_pieces(&*volume, "music/rock/1.mp3", &[(3, b"x")]).unwrap();
    move_to(&volume, "music/jazz.mp3", "music/rock/3.mp3").unwrap();
    assert_eq!(read(&*volume, "music/rock/3.mp3").unwrap(), jazz);
    volume.close().unwrap();
    assert_eq!(problems(volume.format()), Vec::<String>::new());
    let objects = stored(dir.path())
        .into_keys()
        .filter(|path| path.extension() == Some(OsStr::new("encrypt")));
    assert_eq!(objects.count(), 4);
}

#[test]
fn a_kept_path_may_have_the_line_end_of_windows() {
    let dir = tempfile::tempdir().unwrap();
    mms::init(dir.path(), &with_path("media/music/"), b"pw").unwrap();
    fs::write(dir.path().join(".hushfs-mms-path"), b"media/music/\r\n").unwrap();
    let format = Mms::open(dir.path(), b"pw", &Default::default(), false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    write(&*volume, "media/music/new.mp3", b"la").unwrap();
    let digest = hex(&<md5::Md5 as md5::Digest>::digest(b"media/music/new.mp3"));
    assert!(
        dir.path()
            .join(format!("media/music/{digest}.encrypt"))
            .is_file()
    );
}

/// A FLAC file that is cut in its padding, and a WAV file of ADPCM, of whose sound the parser knows nothing.
fn of_unknown_sound() -> [(&'static str, Vec<u8>); 2] {
    let comment = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let comments = ["TITLE=Title", "ARTIST=Artist"].map(comment).concat();
    let tags = [&comment("")[..], &2u32.to_le_bytes(), &comments].concat();
    let block = |kind: u8, len: usize, data: &[u8]| {
        [&[kind], &(len as u32).to_be_bytes()[1..], data].concat()
    };
    let mut info = [0; 34];
    info[10..18].copy_from_slice(&[0x0a, 0xc4, 0x40, 0xf0, 0, 0, 0x40, 0]);
    let blocks = [
        block(0, info.len(), &info),
        block(4, tags.len(), &tags),
        block(0x81, 8192, &[0; 100]),
    ];
    let flac = [b"fLaC".to_vec(), blocks.concat()].concat();
    let chunk = |id: &[u8], data: &[u8]| [id, &(data.len() as u32).to_le_bytes(), data].concat();
    let adpcm = [
        0x11, 0, 1, 0, 0x44, 0xac, 0, 0, 0x93, 0x56, 0, 0, 0, 4, 4, 0, 2, 0, 0xf9, 7,
    ];
    let list = [
        b"INFO".to_vec(),
        chunk(b"INAM", b"Title\0"),
        chunk(b"IART", b"Artist\0\0"),
    ];
    let body = [
        b"WAVE".to_vec(),
        chunk(b"fmt ", &adpcm),
        chunk(b"fact", &44_100u32.to_le_bytes()),
        chunk(b"LIST", &list.concat()),
        chunk(b"data", &[0; 1024]),
    ];
    [
        ("music/cut.flac", flac),
        ("music/adpcm.wav", chunk(b"RIFF", &body.concat())),
    ]
}

#[test]
fn a_sound_that_is_not_understood_costs_no_tags() {
    let dir = tempfile::tempdir().unwrap();
    mms::init(dir.path(), &Default::default(), b"pw").unwrap();
    let format = Mms::open(dir.path(), b"pw", &Default::default(), false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    for (name, bytes) in of_unknown_sound() {
        write(&*volume, name, &bytes).unwrap();
        let (key, path) = (
            internal_key(dir.path(), "pw"),
            dir.path().join("music.index"),
        );
        let index = Index::read(&path, &key).unwrap();
        let record = index.json(&path, &key, name).unwrap();
        let texts = (record.get("title"), record.get("artist"));
        assert_eq!(
            texts,
            (Some(&"Title".into()), Some(&"Artist".into())),
            "{name}"
        );
    }
}
