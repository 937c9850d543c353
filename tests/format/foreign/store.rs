//! The prompt-nest image store.

use hushfs::foreign::images::{DEFAULT_KEY, Images};

use super::decoder::*;
use super::*;

const TEXT: &[u8] = b"0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// Every encrypted file: its plaintext and its description.
fn decode(root: &Path, text: &[u8]) -> Vec<(String, Vec<u8>, Json)> {
    let key = store_key(text);
    let sealed = files(root)
        .into_iter()
        .filter(|name| name.ends_with(".enc"));
    let opened = sealed.map(|name| {
        let stored = fs::read(root.join(&name)).unwrap();
        let plain = store_image(&key, &stored);
        assert_eq!(stored.len(), 16 + padded(plain.len()));
        let description = fs::read(root.join(format!("{name}.meta"))).unwrap();
        (name, plain, store_description(&description))
    });
    opened.collect()
}

#[test]
fn the_image_store_wrote_what_the_page_says() {
    let root = vectors().join("imagestore");
    let forms = page::column("image names", 0);
    let (images, description) = (&forms[..3], &forms[3]);
    for name in files(&root).iter().filter(|name| name.starts_with("dam/")) {
        let fits = match name.strip_suffix(".meta") {
            Some(_) => page::fits(description, name),
            None => images.iter().any(|form| page::fits(form, name)),
        };
        assert!(fits, "{name}");
    }
    let expected = json("imagestore/expected.json");
    let expected = expected["files"].as_array().unwrap();
    for image in expected {
        let name = image["file"].as_str().unwrap();
        let description = root.join(format!("{name}.meta"));
        let description = fs::read_to_string(description).unwrap();
        assert_eq!(store_description(description.as_bytes()).len(), 2);
        assert_eq!(description, image["meta"]);
    }
    let found = decode(&root, TEXT);
    for (name, plain, description) in &found {
        let image = expected.iter().find(|image| image["file"] == **name);
        let image = image.unwrap();
        assert_eq!(sha256(plain), image["sha256"], "{name}");
        assert_eq!(16 + padded(plain.len()), image["encSize"]);
        assert_eq!(description["mimeType"], image["uploadMime"]);
        let upload = image["uploadName"].as_str().unwrap();
        let extension = text(description, "originalExtension");
        assert!(upload.ends_with(extension) && name.ends_with(&format!("{extension}.enc")));
    }
    assert_eq!(found.len(), 16);
}

#[test]
fn the_page_gives_the_known_answers_of_the_image_store() {
    let kat = json("imagestore/kat.json");
    let vector = crate::page::unhex(kat["iv_hex"].as_str().unwrap());
    for case in kat["cases"].as_array().unwrap() {
        let key = store_key(case["key"].as_str().unwrap().as_bytes());
        assert_eq!(crate::page::hex(&key), case["key_sha256"]);
        let plain = pattern(case["n"].as_u64().unwrap() as usize);
        let stored = store_image_of(&key, &vector, &plain);
        assert_eq!(sha256(&stored), case["enc_sha256"], "{}", plain.len());
        assert_eq!(stored.len(), case["enc_len"]);
        assert_eq!(store_image(&key, &stored), plain);
    }
}

#[test]
fn the_store_example_is_as_the_page_says() {
    let (text, key) = (page::constant("store.text"), page::bytes("store.key"));
    assert_eq!(store_key(text.as_bytes()), key);
    assert_eq!(store_image(&key, &page::bytes("store.image")), [3]);

    // And hushfs opens it.
    let dir = tempfile::tempdir().unwrap();
    put(
        dir.path(),
        "dam/loras/lora_1_2.png.enc",
        &page::bytes("store.image"),
    );
    let description = page::constant("store.description");
    assert_eq!(store_description(description.as_bytes()).len(), 2);
    let description = description.replace("image/png", "text/plain");
    put(
        dir.path(),
        "dam/loras/lora_1_2.png.enc.meta",
        description.as_bytes(),
    );
    let opened = Images::open(dir.path(), text.as_bytes(), true);
    assert_eq!(read(&*mount(opened), "dam/loras/lora_1_2.png"), [3]);
}

#[test]
fn hushfs_writes_images_as_the_page_says() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("loras")).unwrap();
    put(dir.path(), "loras/old.png", b"unencrypted");
    let volume = mount(Images::open(dir.path(), TEXT, false));
    let png = fs::read(vectors().join("imagestore/plain/pic.png")).unwrap();
    write(&*volume, "loras/new.PNG", &png);
    write(&*volume, "loras/empty.gif", b"");
    write(&*volume, "loras/old.png", &png);
    drop(volume);
    let found = decode(dir.path(), TEXT);
    let told: Vec<(&str, &[u8], &str, &str)> = found
        .iter()
        .map(|(name, plain, description)| {
            let member = |name: &str| text(description, name);
            let (extension, mime) = (member("originalExtension"), member("mimeType"));
            (&**name, &plain[..], extension, mime)
        })
        .collect();
    let expected: [(&str, &[u8], &str, &str); 2] = [
        ("loras/empty.gif.enc", b"", ".gif", "image/gif"),
        ("loras/new.PNG.enc", &png, ".PNG", "image/png"),
    ];
    assert_eq!(told, expected);
    assert_eq!(fs::read(dir.path().join("loras/old.png")).unwrap(), png);
}

/// The key that is used where none is set, a description of one member, and types without any.
#[test]
fn hushfs_reads_images_as_the_page_says() {
    let default = page::row("store key", "text").remove(1);
    assert_eq!(default, DEFAULT_KEY);
    let png = fs::read(vectors().join("imagestore/plain/pic.png")).unwrap();
    let stored = store_image_of(&store_key(default.as_bytes()), &[5; 16], &png);
    let dir = tempfile::tempdir().unwrap();
    let mut types = page::table("image types");
    assert_eq!(types.len(), 6);
    for other in ["", ".bmp", ".PNGX", ".html"] {
        types.push(vec![other.into(), "application/octet-stream".into()]);
    }
    for row in &types {
        put(dir.path(), &format!("x{}.enc", row[0]), &stored);
    }
    put(dir.path(), "typed.png.enc", &stored);
    put(
        dir.path(),
        "typed.png.enc.meta",
        b"{\"mimeType\":\"image/x\"}",
    );
    let volume = mount(Images::open(dir.path(), b"", true));
    let mime = |name: &str| {
        let ino = find(&*volume, name);
        let mime = volume.getxattr(ino, OsStr::new("user.mime_type"));
        String::from_utf8(mime.unwrap()).unwrap()
    };
    for row in &types {
        let name = format!("x{}", row[0]);
        assert_eq!(mime(&name), row[1], "{name}");
        assert_eq!(read(&*volume, &name), png);
    }
    assert_eq!(mime("typed.png"), "image/x");
}
