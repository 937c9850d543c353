//! Buckets of Medusa.

use super::*;

#[test]
fn ini_files_are_read_as_medusa_reads_them() {
    let (table, keys) = (table("ini", "expected.json"), table("ini", "keys.json"));
    let mut wrong = Vec::new();
    for (file, expected) in &table {
        let found = hushfs::foreign::medusa::key_in_ini(&fs::read(case("ini").join(file)).unwrap());
        let key = found
            .ok()
            .flatten()
            .and_then(|text| FernetKey::parse(&text));
        // A key shows in what it seals.
        let sealed = |key: &FernetKey| {
            let mut out = Vec::new();
            key.seal(0, &[0; 16], b"text", &mut out);
            out
        };
        let right = keys.get(expected.as_str().unwrap());
        let right = right.map(|key| FernetKey::parse(key.as_str().unwrap().as_bytes()).unwrap());
        if key.as_ref().map(sealed) != right.as_ref().map(sealed) {
            wrong.push(format!("{file}: {expected}"));
        }
    }
    assert_eq!(table.len(), 34);
    hold("ini", table.len(), &wrong);
}

fn bucket(name: &str) -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    copy(&case("medusa").join(name), dir.path());
    (dir, table("medusa", "expected.json")[name].clone())
}

fn same_files(volume: &Mirror, files: &Value) {
    for (path, digest) in files.as_object().unwrap() {
        assert_eq!(
            sha256(&read(volume, path).unwrap()),
            digest.as_str().unwrap(),
            "{path}"
        );
    }
}

#[test]
fn a_backup_that_nothing_may_be_added_to_stays_as_it_is() {
    for name in ["under-way", "fernet-and-aws"] {
        let (dir, expected) = bucket(name);
        let volume = Mirror::new(open_medusa(dir.path(), false).unwrap()).unwrap();
        same_files(&volume, &expected["files"]);
        let before = stored(dir.path());
        let refused = write(&*volume, expected["write"].as_str().unwrap(), b"x").unwrap_err();
        assert_eq!(refused.errno(), libc::EPERM, "{name}: {refused}");
        volume.close().unwrap();
        assert!(
            stored(dir.path()) == before,
            "{name}: something has changed"
        );
        write(&*volume, expected["write_allowed"].as_str().unwrap(), b"x").unwrap();
        volume.close().unwrap();
        drop(volume);
        let volume = Mirror::new(open_medusa(dir.path(), true).unwrap()).unwrap();
        same_files(&volume, &expected["files"]);
        assert_eq!(
            read(&*volume, expected["write_allowed"].as_str().unwrap()).unwrap(),
            b"x"
        );
        if name == "fernet-and-aws" {
            let aws =
                "10.0.0.2/full2/data/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90/nb-1-big-Data.db";
            let refused = read(&*volume, aws).unwrap_err();
            assert!(
                refused.errno() == libc::EIO && refused.to_string().contains("AWS"),
                "{refused}"
            );
        }
    }
}

#[test]
fn the_folder_above_a_bucket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("backups");
    copy(&case("medusa").join("under-way"), &bucket);
    let refused = open_medusa(dir.path(), true).err().unwrap().to_string();
    let expected = format!("(give {})", bucket.display());
    assert!(refused.contains(&expected), "{refused}");
    open_medusa(&bucket, true).unwrap();
}

#[test]
fn the_folder_of_one_prefix_is_a_bucket() {
    for tenant in ["tenantA", "tenantB"] {
        let (dir, expected) = bucket("two-prefixes");
        let root = dir.path().join(tenant);
        let volume = Mirror::new(open_medusa(&root, false).unwrap()).unwrap();
        same_files(&volume, &expected["files"][tenant]);
        assert!(problems(volume.format()).is_empty());
        let path = expected["write"].as_str().unwrap();
        write(&*volume, path, b"new").unwrap();
        let (folder, name) = parent(&*volume, path);
        volume
            .rename(
                folder,
                OsStr::new(&name),
                folder,
                OsStr::new("nb-8-big-Data.db"),
                RenameMode::Replace,
            )
            .unwrap();
        volume.close().unwrap();
        drop(volume);
        let bytes = fs::read(root.join(expected["manifest"].as_str().unwrap())).unwrap();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        let paths: Vec<&str> = manifest
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|section| section["objects"].as_array().unwrap())
            .map(|object| object["path"].as_str().unwrap())
            .collect();
        assert!(
            paths
                .iter()
                .all(|path| path.starts_with(&format!("{tenant}/10.0.0.2/"))),
            "{paths:?}"
        );
        assert!(paths.iter().any(|path| path.ends_with("nb-8-big-Data.db")));
        let medusa = Medusa::open(&root, MEDUSA_KEY.as_bytes(), 1 << 20, true).unwrap();
        let backups = Mirror::new(Box::new(BackupsView::new(medusa))).unwrap();
        let shown = "10.0.0.2/full1/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90";
        assert_eq!(
            read(&*backups, &format!("{shown}/nb-8-big-Data.db")).unwrap(),
            b"new"
        );
        for (path, digest) in expected["files"][tenant].as_object().unwrap() {
            let shown = path.replace("/data/", "/");
            assert_eq!(
                sha256(&read(&*backups, &shown).unwrap()),
                digest.as_str().unwrap(),
                "{shown}"
            );
        }
        assert!(problems(backups.format()).is_empty());
    }
}

#[test]
fn backups_may_be_called_data_or_index_and_tables_have_one_folder() {
    for name in ["data", "index"] {
        let (dir, _) = bucket("under-way");
        let top = dir.path();
        fs::rename(top.join("10.0.0.2/full1"), top.join("10.0.0.2").join(name)).unwrap();
        fs::rename(
            top.join("index/backup_index/full1"),
            top.join("index/backup_index").join(name),
        )
        .unwrap();
        for file in [
            format!("10.0.0.2/{name}/meta/manifest.json"),
            format!("index/backup_index/{name}/manifest_10.0.0.2.json"),
        ] {
            let text = fs::read_to_string(top.join(&file)).unwrap();
            fs::write(
                top.join(&file),
                text.replace("10.0.0.2/full1/", &format!("10.0.0.2/{name}/")),
            )
            .unwrap();
        }
        let volume = Mirror::new(open_medusa(top, false).unwrap()).unwrap();
        let table = format!("10.0.0.2/{name}/data/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90");
        write(&*volume, &format!("{table}/new.db"), b"new").unwrap();
        // A restore puts all files of a table into one folder.
        let folder = find(&*volume, &table).unwrap();
        for below in ["sub", ".idx"] {
            volume
                .mkdir(folder, OsStr::new(below), 0o755, CALLER)
                .unwrap();
        }
        let refused = write(&*volume, &format!("{table}/sub/new.db"), b"x").unwrap_err();
        assert_eq!(refused.errno(), libc::EPERM);
        write(&*volume, &format!("{table}/.idx/new.db"), b"x").unwrap();
        write(&*volume, &format!("{table}/sub/other.db"), b"x").unwrap();
        assert!(write(&*volume, &format!("{table}/other.db"), b"x").is_err());
        volume.close().unwrap();
        let mut found = problems(volume.format());
        found.retain(|problem| !problem.contains("full2"));
        assert_eq!(found, Vec::<String>::new(), "{name}");
        let medusa = Medusa::open(top, MEDUSA_KEY.as_bytes(), 1 << 20, true).unwrap();
        let backups = Mirror::new(Box::new(BackupsView::new(medusa))).unwrap();
        let shown = format!("10.0.0.2/{name}/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90/new.db");
        assert_eq!(read(&*backups, &shown).unwrap(), b"new");
        drop(volume);
        // As an older program may have left it.
        let manifest = top.join(format!("10.0.0.2/{name}/meta/manifest.json"));
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("/sub/other.db", "/sub/new.db")).unwrap();
        let medusa = Medusa::open(top, MEDUSA_KEY.as_bytes(), 1 << 20, true).unwrap();
        let found = problems(&medusa);
        assert!(
            found.iter().any(|p| p.contains("sub/new.db in its place")),
            "{found:?}"
        );
    }
}

/// A bucket of the table that has a key of its own.
fn open_bucket(name: &str, below: &str, read_only: bool) -> (tempfile::TempDir, Result<Medusa>) {
    let (dir, expected) = bucket(name);
    let key = expected["key_secret_base64"].as_str().unwrap();
    let opened = Medusa::open(&dir.path().join(below), key.as_bytes(), 1 << 20, read_only);
    (dir, opened)
}

#[test]
fn prefixes_are_found_however_deep_they_are() {
    let refused = open_bucket("prefixes-of-two-depths", "", true)
        .1
        .err()
        .unwrap();
    assert!(matches!(refused.kind(), Kind::Usage(_)), "{refused}");
    let told = refused.to_string();
    assert!(
        told.contains("\"a\"") && told.contains("\"org/b\""),
        "{told}"
    );
    for (name, below, top) in [
        ("nested-prefix", "", "org/ten/"),
        ("nested-prefix", "org/ten", ""),
        ("nested-prefix", "org", "ten/"),
        ("prefixes-of-two-depths", "org", "b/"),
    ] {
        let (_dir, opened) = open_bucket(name, below, false);
        let volume = Mirror::new(Box::new(opened.unwrap())).unwrap();
        assert_eq!(
            problems(volume.format()),
            Vec::<String>::new(),
            "{name} {below}"
        );
        let table = format!("{top}n1/full1/data/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90");
        assert_eq!(
            read(&*volume, &format!("{table}/nb-1-big-Data.db"))
                .unwrap()
                .len(),
            4000
        );
        write(&*volume, &format!("{table}/new.db"), b"new").unwrap();
        volume.close().unwrap();
        assert_eq!(
            problems(volume.format()),
            Vec::<String>::new(),
            "{name} {below}"
        );
    }
}

#[test]
fn a_prefix_is_kept_when_no_manifest_tells_it() {
    let users = "n1/full1/data/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90";
    let (dir, opened) = open_bucket("nested-prefix", "org/ten", false);
    let volume = Mirror::new(Box::new(opened.unwrap())).unwrap();
    for file in [
        "nb-1-big-Data.db",
        "nb-1-big-TOC.txt",
        "nb-1-big-Digest.crc32",
        ".by_mail/nb-1-big-Data.db",
    ] {
        let (folder, name) = parent(&*volume, &format!("{users}/{file}"));
        volume.unlink(folder, OsStr::new(&name)).unwrap();
    }
    volume.close().unwrap();
    drop(volume);
    let (root, manifest) = (dir.path().join("org/ten"), "n1/full1/meta/manifest.json");
    assert!(
        !fs::read_to_string(root.join(manifest))
            .unwrap()
            .contains("path")
    );
    let key = table("medusa", "expected.json")["nested-prefix"]["key_secret_base64"].clone();
    let open = || {
        let medusa = Medusa::open(&root, key.as_str().unwrap().as_bytes(), 1 << 20, false);
        Mirror::new(Box::new(medusa.unwrap())).unwrap()
    };
    let volume = open();
    assert!(
        find(&*volume, ".hushfs-medusa-prefix").is_err(),
        "it is not shown"
    );
    write(&*volume, &format!("{users}/new.db"), b"new").unwrap();
    volume.close().unwrap();
    let text = fs::read_to_string(root.join(manifest)).unwrap();
    assert!(
        text.contains(&format!("\"org/ten/{users}/new.db\"")),
        "{text}"
    );
    drop(volume);
    // Where nothing ever told it, nothing is written.
    fs::remove_file(root.join(".hushfs-medusa-prefix")).unwrap();
    for path in [manifest, "index/backup_index/full1/manifest_n1.json"] {
        fs::write(root.join(path), b"[]").unwrap();
    }
    let volume = open();
    let refused = write(&*volume, &format!("{users}/other.db"), b"new").unwrap_err();
    assert_eq!(refused.errno(), libc::EPERM, "{refused}");
}

#[test]
fn one_broken_manifest_closes_its_backup_alone() {
    let users = "data/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90";
    let (dir, opened) = open_bucket("cut-manifest", "", false);
    let volume = Mirror::new(Box::new(opened.unwrap())).unwrap();
    let path = |backup: &str, file: &str| format!("n1/{backup}/{users}/{file}");
    for backup in ["full1", "full2"] {
        assert_eq!(
            read(&*volume, &path(backup, "nb-1-big-Data.db"))
                .unwrap()
                .len(),
            4000
        );
    }
    let before = stored(dir.path());
    let (folder, name) = parent(&*volume, &path("full1", "nb-1-big-Data.db"));
    let name = OsStr::new(&name);
    let refused = [
        write(&*volume, &path("full1", "nb-1-big-Data.db"), b"x"),
        write(&*volume, &path("full1", "new.db"), b"x"),
        volume.unlink(folder, name),
        volume.rename(
            folder,
            name,
            folder,
            OsStr::new("y.db"),
            RenameMode::Replace,
        ),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
    }
    volume.close().unwrap();
    assert!(stored(dir.path()) == before, "something has changed");
    write(&*volume, &path("full2", "new.db"), b"new").unwrap();
    volume.close().unwrap();
    let manifest = "n1/full1/meta/manifest.json";
    let found = problems(volume.format());
    assert!(found.len() == 1 && found[0].contains(manifest), "{found:?}");
    assert!(volume.left_out().iter().any(|(name, _)| name == manifest));
    drop(volume);
    let key = table("medusa", "expected.json")["cut-manifest"]["key_secret_base64"].clone();
    let medusa = Medusa::open(dir.path(), key.as_str().unwrap().as_bytes(), 1 << 20, true);
    let backups = Mirror::new(Box::new(BackupsView::new(medusa.unwrap()))).unwrap();
    let shown = "n1/full2/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90/new.db";
    assert_eq!(read(&*backups, shown).unwrap(), b"new");
    assert!(backups.left_out().iter().any(|(name, _)| name == manifest));
}

#[test]
fn a_folder_that_moves_stays_in_every_backup_that_names_its_files() {
    let dir = library("medusa/store/backups");
    let (pool, from, to) = (
        "node1.example.internal/data/media",
        "users-11112222333344445555666677778888",
        "moved-11112222333344445555666677778888",
    );
    let manifest = |backup: &str| {
        let path = format!("node1.example.internal/{backup}/meta/manifest.json");
        fs::read_to_string(dir.path().join(path)).unwrap()
    };
    let count =
        |backup: &str, folder: &str| manifest(backup).matches(&format!("{folder}/")).count();
    let backups = ["diff-1", "diff-2"];
    let before = backups.map(|backup| count(backup, from));
    assert!(before.iter().all(|count| *count > 1), "{before:?}");
    let volume = Mirror::new(open_medusa(dir.path(), false).unwrap()).unwrap();
    let folder = find(&*volume, pool).unwrap();
    volume
        .rename(
            folder,
            OsStr::new(from),
            folder,
            OsStr::new(to),
            RenameMode::Replace,
        )
        .unwrap();
    // One that a later backup has overwritten is named where it was.
    let lost = |backup: &str| count(backup, from);
    assert_eq!(lost("diff-2"), 0);
    for (backup, before) in backups.iter().zip(before) {
        assert_eq!(count(backup, to) + lost(backup), before, "{backup}");
    }
    assert!(lost("diff-1") <= 1);
    let found = new_problems(volume.format());
    assert!(
        found.iter().all(|p| p.contains("nb-1-big-Index.db")),
        "{found:?}"
    );
    volume.close().unwrap();
    // In another node, or out of the data, it is copied: each file is entered where it belongs.
    let top = find(&*volume, "node1.example.internal").unwrap();
    let e = volume
        .rename(
            folder,
            OsStr::new(to),
            top,
            OsStr::new("x"),
            RenameMode::Replace,
        )
        .unwrap_err();
    assert!(matches!(e.errno(), libc::EXDEV | libc::EPERM), "{e}");
}
