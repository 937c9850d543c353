//! Image stores.

use hushfs::foreign::images;

use super::*;

#[test]
fn env_files_are_read_as_the_app_reads_them() {
    let (table, mut wrong) = (table("env", "expected.json"), Vec::new());
    for (file, expected) in &table {
        let key = images::key_in_env(&fs::read(case("env").join(file)).unwrap());
        let key = key.map(|key| String::from_utf8(key.to_vec()).unwrap());
        if key.as_deref() != expected.as_str() {
            wrong.push(format!("{file}: {key:?}, and the app has {expected}"));
        }
    }
    assert_eq!(table.len(), 61);
    hold("env", table.len(), &wrong);
}

/// The type that is written down of an encrypted picture.
fn declared(path: &Path) -> Value {
    let meta: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    meta["mimeType"].clone()
}

#[test]
fn pictures_have_the_type_that_a_browser_declares() {
    let (table, mut wrong) = (table("svg", "expected.json"), Vec::new());
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("loras")).unwrap();
    let volume = Mirror::new(open_images(dir.path(), false).unwrap()).unwrap();
    let (loras, _) = parent(&*volume, "loras/x");
    for (file, expected) in &table {
        let bytes = fs::read(case("svg").join(file)).unwrap();
        write(&*volume, &format!("loras/{file}"), &bytes).unwrap();
        let mut found = vec![declared(&dir.path().join(format!("loras/{file}.enc.meta")))];
        for temporary in [
            format!(".{file}.Xy12ab"),
            format!("{file}.part"),
            format!(".{file}"),
            "sedQx1".into(),
        ] {
            write(&*volume, &format!("loras/{temporary}"), &bytes).unwrap();
            let (from, to) = (OsStr::new(&temporary), OsStr::new(file));
            volume
                .rename(loras, from, loras, to, RenameMode::Replace)
                .unwrap();
            found.push(declared(&dir.path().join(format!("loras/{file}.enc.meta"))));
        }
        if found.iter().any(|found| found != expected) {
            wrong.push(format!("{file}: {found:?}, and right is {expected}"));
        }
    }
    hold("svg", table.len(), &wrong);
}

fn image_store() -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    copy(&case("images/dam"), dir.path());
    (dir, Value::Object(table("images", "expected.json")))
}

#[test]
fn unencrypted_files_stay_unencrypted() {
    let (dir, expected) = image_store();
    let key = expected["key"].as_str().unwrap();
    let format = Images::open(dir.path(), key.as_bytes(), false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    for group in ["clear", "encrypted"] {
        for (path, digest) in expected[group].as_object().unwrap() {
            assert_eq!(
                sha256(&read(&*volume, path).unwrap()),
                digest.as_str().unwrap()
            );
        }
    }
    let new = fs::read(case("images/new.png")).unwrap();
    let (styles, _) = parent(&*volume, "prompt-styles/x");
    let rename = |from: &str, to: &str| {
        volume.rename(
            styles,
            OsStr::new(from),
            styles,
            OsStr::new(to),
            RenameMode::Replace,
        )
    };
    let stored = |path: &str| fs::read(dir.path().join(path)).unwrap();
    // As `sed -i` does it, in place, and as editors do that keep the old one for a while.
    write(&*volume, "prompt-styles/sedAb12", b"{\"prompt\": \"rain\"}").unwrap();
    rename("sedAb12", "urban.json").unwrap();
    assert_eq!(
        stored("prompt-styles/urban.json"),
        b"{\"prompt\": \"rain\"}"
    );
    write_pieces(&*volume, "prompt-styles/urban.json", &[(12, b"SNOW")]).unwrap();
    assert_eq!(
        stored("prompt-styles/urban.json"),
        b"{\"prompt\": \"SNOW\"}"
    );
    rename("urban.json", "urban.json~").unwrap();
    write(&*volume, "prompt-styles/urban.json", b"{}").unwrap();
    volume.unlink(styles, OsStr::new("urban.json~")).unwrap();
    assert_eq!(stored("prompt-styles/urban.json"), b"{}");
    write(&*volume, "prompt-styles/urban.png", &new).unwrap();
    write(&*volume, "prompt-styles/.urban.png.Xy12ab", b"by rsync").unwrap();
    rename(".urban.png.Xy12ab", "urban.png").unwrap();
    assert_eq!(stored("prompt-styles/urban.png"), b"by rsync");
    rename("urban.png", "urban.png~").unwrap();
    write(&*volume, "prompt-styles/urban.png", b"by an editor").unwrap();
    assert_eq!(stored("prompt-styles/urban.png"), b"by an editor");
    volume.unlink(styles, OsStr::new("urban.png~")).unwrap();
    write(&*volume, "loras/old_plain.png", &new).unwrap();
    assert_eq!(stored("loras/old_plain.png"), new);
    write(&*volume, "prompt-styles/another.json", b"{}").unwrap();
    write(&*volume, "prompt-styles/tmp1", b"[]").unwrap();
    rename("tmp1", "third.json").unwrap();
    write(&*volume, "loras/fresh.png", &new).unwrap();
    volume.close().unwrap();
    let in_folder = |name: &str| {
        let entries = fs::read_dir(dir.path().join(name)).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        in_folder("prompt-styles"),
        ["another.json", "third.json", "urban.json", "urban.png"]
    );
    assert_eq!(
        in_folder("loras"),
        [
            "fresh.png.enc",
            "fresh.png.enc.meta",
            "lora_1770000000001_5.png.enc",
            "lora_1770000000001_5.png.enc.meta",
            "old_plain.png"
        ]
    );
    assert_eq!(read(&*volume, "loras/fresh.png").unwrap(), new);
}

#[test]
fn encrypted_files_stay_encrypted_and_all_are_on_request() {
    let (dir, expected) = image_store();
    let key = expected["key"].as_str().unwrap().as_bytes();
    let volume = Mirror::new(Box::new(Images::open(dir.path(), key, false).unwrap())).unwrap();
    let (loras, _) = parent(&*volume, "loras/x");
    let sealed = "lora_1770000000001_5.png";
    let plain = read(&*volume, "loras/old_plain.png").unwrap();
    volume
        .rename(
            loras,
            OsStr::new("old_plain.png"),
            loras,
            OsStr::new(sealed),
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(read(&*volume, &format!("loras/{sealed}")).unwrap(), plain);
    assert_eq!(
        names_in(dir.path(), "loras"),
        [format!("{sealed}.enc"), format!("{sealed}.enc.meta")]
    );
    volume.close().unwrap();
    drop(volume);
    let (dir, _) = image_store();
    let format = Images::open(dir.path(), key, false)
        .unwrap()
        .encrypting_all(true);
    let volume = Mirror::new(Box::new(format)).unwrap();
    write(&*volume, "loras/old_plain.png", b"new").unwrap();
    write(&*volume, "prompt-styles/urban.json", b"new").unwrap();
    volume.close().unwrap();
    assert!(dir.path().join("loras/old_plain.png.enc").is_file());
    assert_eq!(
        names_in(dir.path(), "prompt-styles"),
        ["urban.json.enc", "urban.json.enc.meta", "urban.png"]
    );
    assert!(
        read(&*volume, "loras/old_plain.png")
            .unwrap()
            .starts_with(b"new")
    );
}

#[test]
fn an_encrypted_file_is_never_stored_unencrypted() {
    let private = "lora_1770000000001_5.png";
    // Moved over a picture in clear, over the name of one that was removed, and copied there.
    for how in ["over it", "after it", "copied"] {
        let (dir, expected) = image_store();
        let key = expected["key"].as_str().unwrap().as_bytes();
        let volume = Mirror::new(Box::new(Images::open(dir.path(), key, false).unwrap())).unwrap();
        let (loras, _) = parent(&*volume, "loras/x");
        let (from, to) = (OsStr::new(private), OsStr::new("old_plain.png"));
        let secret = read(&*volume, &format!("loras/{private}")).unwrap();
        if how != "over it" {
            volume.unlink(loras, to).unwrap();
        }
        match how {
            "copied" => write(&*volume, "loras/old_plain.png", &secret).unwrap(),
            _ => volume
                .rename(loras, from, loras, to, RenameMode::Replace)
                .unwrap(),
        }
        assert_eq!(read(&*volume, "loras/old_plain.png").unwrap(), secret);
        volume.close().unwrap();
        let names = names_in(dir.path(), "loras");
        assert!(
            !names.iter().any(|name| name == "old_plain.png"),
            "{how}: {names:?}"
        );
        assert!(
            names.iter().any(|name| name == "old_plain.png.enc"),
            "{how}: {names:?}"
        );
        assert_eq!(problems(volume.format()), Vec::<String>::new());
    }
}

fn names_in(root: &Path, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root.join(folder)).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
