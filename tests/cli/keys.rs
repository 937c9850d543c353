//! What opens a library: secrets, slots, the recovery code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::Bench;

#[test]
fn a_wrong_password_opens_nothing_and_passwd_changes_it() {
    let (bench, _) = Bench::with_library();
    assert!(bench.opens("--password-file pw"));
    assert_eq!(bench.fails("info --password-file pw2 lib"), 3);
    let wrong = "passwd --password-file pw2 --new-password-file pw lib";
    assert_eq!(bench.fails(wrong), 3);
    let before = bench.slots();
    let changed = bench.run("passwd --password-file pw --new-password-file pw2 lib");
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    assert_eq!(bench.slots().len(), 1);
    assert_ne!(bench.slots(), before);
    assert!(bench.opens("--password-file pw2"));
    assert!(!bench.opens("--password-file pw"));
}

#[test]
fn secrets_come_from_files_commands_systemd_and_lines() {
    let (bench, _) = Bench::with_library();
    let run = |words: &[&str], stdin: &str| bench.run_with(words, stdin, &[]).code;
    let by_command = |command| run(&["info", "--password-command", command, "lib"], "");
    assert_eq!(by_command("cat pw"), 0);
    assert_eq!(by_command("cat pw; exit 1"), 3);
    assert_eq!(by_command("true"), 3);
    // Neither the program nor what it starts may leave a core.
    assert_eq!(by_command("test $(ulimit -Hc) = 0 && cat pw"), 0);
    assert_eq!(run(&["passwd", "lib"], "xyzzy one\nxyzzy two\n"), 0);
    assert_eq!(run(&["passwd", "lib"], "xyzzy two\nxyzzy one"), 0);
    assert_eq!(run(&["passwd", "lib"], "xyzzy one\n"), 3);
    assert_eq!(run(&["passwd", "lib"], ""), 3);

    fs::create_dir(bench.path("creds")).unwrap();
    fs::copy(bench.path("pw"), bench.path("creds/hushfs.password")).unwrap();
    let creds = bench.path("creds");
    let environment = [("CREDENTIALS_DIRECTORY", creds.as_path())];
    let info = bench.run_with(&["info", "lib"], "", &environment);
    assert!(info.stdout.contains("fingerprint"), "{}", info.stderr);
    // What is typed goes before.
    let words = ["info", "--password-file", "pw2", "lib"];
    assert_eq!(bench.run_with(&words, "", &environment).code, 3);
}

#[test]
fn a_secret_on_the_command_line_is_refused_and_not_repeated() {
    let (bench, _) = Bench::with_library();
    for words in [
        "info --password=xyzzy lib",
        "info --recovery=xyzzy lib",
        "info lib --recovery xyzzy",
        "info lib --password xyzzy",
        "mount -o password=xyzzy lib mnt",
        // Two secrets, or half of what was meant.
        "info --password-file pw --key-file pw lib",
        "info --recovery --key-file pw lib",
        "mount --password-file pw -o key-file=pw lib mnt",
        "key add --generate lib",
    ] {
        assert_eq!(bench.run(words).code, 2, "{words}");
    }
}

#[test]
fn a_secret_that_everybody_can_read_is_said() {
    let (bench, _) = Bench::with_library();
    let quiet = bench.run("info --password-file pw lib");
    assert!(!quiet.stderr.contains("everybody"));
    fs::set_permissions(bench.path("pw"), fs::Permissions::from_mode(0o644)).unwrap();
    let loud = bench.run("info --password-file pw lib").stderr;
    assert!(loud.contains("hushfs: warning: pw: everybody"), "{loud}");
}

#[test]
fn keys_are_added_and_listed() {
    let (bench, _) = Bench::with_library();
    let generate = "key add --password-file pw --new-key-file kf --generate --label usb lib";
    assert_eq!(bench.run(generate).code, 0);
    let meta = fs::metadata(bench.path("kf")).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (32, 0o600));
    // A key file that is there is never written over.
    assert_eq!(bench.fails(generate), 8);
    assert!(bench.opens("--key-file kf"));
    bench.secret("short", "xyzzy");
    assert_eq!(bench.fails("info --key-file short lib"), 3);
    let short = "key add --password-file pw --new-key-file short lib";
    assert_eq!(bench.fails(short), 3);
    let password = "key add --key-file kf --new-password-file pw2 lib";
    assert_eq!(bench.run(password).code, 0);
    assert!(bench.opens("--password-file pw") && bench.opens("--password-file pw2"));

    let open = bench.run("key list lib").stdout;
    let checked = bench.run("key list --password-file pw2 lib").stdout;
    assert_eq!(open.lines().count(), 4, "{open}");
    for slot in bench.slots() {
        assert!(open.contains(&slot) && checked.contains(&slot));
    }
    assert!(!open.contains("usb") && checked.contains("usb"));
}

#[test]
fn keys_are_removed_but_for_the_last() {
    let (bench, _) = Bench::with_library();
    let first = bench.slots().remove(0);
    let add = "key add --password-file pw --new-password-file pw2 lib";
    assert_eq!(bench.run(add).code, 0);
    assert_eq!(bench.fails("key remove lib zz"), 2);
    let remove = format!("key remove --password-file pw lib {}", &first[..20]);
    assert_eq!(bench.run(&remove).code, 0);
    assert!(!bench.opens("--password-file pw") && bench.opens("--password-file pw2"));
    let last = bench.slots();
    assert_eq!(last.len(), 1);
    assert_eq!(bench.fails(&format!("key remove lib {}", last[0])), 2);
    assert_eq!(bench.slots(), last);
    let force = format!("key remove --force lib {}", last[0]);
    assert_eq!(bench.run(&force).code, 0);
    assert_eq!(bench.fails("info --password-file pw2 lib"), 4);
}

#[test]
fn a_slot_of_another_library_does_not_count_as_another_way_in() {
    let (bench, _) = Bench::with_library();
    let own = bench.slots().remove(0);
    let (other, _) = Bench::with_library();
    let changed = other.run("passwd --password-file pw --new-password-file pw2 lib");
    assert_eq!(changed.code, 0);
    let foreign = other.slots().remove(0);
    fs::copy(
        other.path("lib/key").join(&foreign),
        bench.path("lib/key").join(&foreign),
    )
    .unwrap();
    let remove = format!("key remove --password-file pw lib {own}");
    assert_eq!(bench.fails(&remove), 2);
    let list = bench.run("key list --password-file pw lib").stdout;
    assert!(
        list.contains("not written with this library's key"),
        "{list}"
    );
    // The foreign slot's password opens a key that is not this library's.
    fs::create_dir(bench.path("mnt")).unwrap();
    assert_eq!(bench.fails("mount --password-file pw2 lib mnt"), 3);
}

#[test]
fn the_recovery_code_opens_without_any_slot() {
    let (bench, code) = Bench::with_library();
    let (_other, foreign) = Bench::with_library();
    bench.secret("code", &code.to_lowercase().replace('-', " "));
    bench.secret("foreign", &foreign);
    assert!(bench.opens("--recovery --password-file code"));
    assert!(!bench.opens("--recovery --password-file foreign"));
    fs::remove_dir_all(bench.path("lib/key")).unwrap();
    assert_eq!(bench.fails("info --password-file pw lib"), 4);
    assert!(bench.opens("--recovery --password-file code"));
    // This machine remembers which library was here, and that is enough to know.
    assert!(!bench.opens("--recovery --password-file foreign"));
    let first = if code.starts_with('0') { "1" } else { "0" };
    let mistyped = format!("{first}{}", &code[1..]);
    let ended = bench.run_with(&["info", "--recovery", "lib"], &mistyped, &[]);
    assert_eq!(ended.code, 3);
    assert!(!ended.stderr.contains(&code[5..9]), "{}", ended.stderr);
    let words = ["passwd", "--recovery", "--new-password-file", "pw2", "lib"];
    let ended = bench.run_with(&words, &code, &[]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(bench.opens("--password-file pw2"));
}

#[test]
fn a_key_that_has_not_arrived_is_waited_for() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("src")).unwrap();
    fs::write(bench.path("src/file"), "content").unwrap();
    let made =
        bench.run("convert --plain --new-password-file pw --new-recovery-file code src copy");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let (key, away) = (bench.path("copy/key"), bench.path("away"));
    fs::rename(&key, &away).unwrap();
    let says = |what: &str| {
        for words in [
            "info --password-file pw copy",
            "verify --password-file pw copy",
        ] {
            let ended = bench.run(words);
            assert_eq!(ended.code, 5, "{}", ended.stderr);
            for part in [what, "has not arrived", "wait for the sync", "--recovery"] {
                assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
            }
        }
    };
    says("the folder `key` is missing");
    std::os::unix::fs::symlink("nowhere", &key).unwrap();
    says("is a symbolic link");
    fs::remove_file(&key).unwrap();
    fs::write(&key, "junk").unwrap();
    says("`key` is a file");
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    says("the folder `key` is empty");
    let name = fs::read_dir(&away)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name();
    fs::write(key.join("a.txt"), "").unwrap();
    std::os::unix::fs::symlink(away.join(&name), key.join(&name)).unwrap();
    says("is a symbolic link");
    fs::remove_file(key.join(&name)).unwrap();
    fs::create_dir(key.join(&name)).unwrap();
    says("is not a regular file");
}

#[test]
fn a_recovery_code_is_checked_against_what_is_stored() {
    let (bench, foreign) = Bench::with_library();
    fs::create_dir(bench.path("src")).unwrap();
    fs::write(bench.path("src/file"), "content").unwrap();
    let made =
        bench.run("convert --plain --new-password-file pw --new-recovery-file code src copy");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let code = bench.code();
    // Another machine, to which somebody copied what is left of the library.
    let forget = || fs::remove_dir_all(bench.path("state")).unwrap();
    fs::remove_dir_all(bench.path("copy/key")).unwrap();
    fs::remove_dir_all(bench.path("copy/new")).unwrap();
    forget();
    let words = ["passwd", "--recovery", "--new-password-file", "pw2", "copy"];
    let passwd = |code: &str| bench.run_with(&words, code, &[]);
    let refused = || {
        let wrong = passwd(&foreign);
        assert_eq!(wrong.code, 3, "{}", wrong.stderr);
        assert!(!bench.path("copy/key").exists());
    };
    refused();
    // The packs tell, too.
    fs::rename(bench.path("copy/index"), bench.path("index")).unwrap();
    refused();
    assert_eq!(passwd(&code).code, 0);
    fs::remove_dir_all(bench.path("copy/key")).unwrap();
    fs::remove_dir_all(bench.path("copy/index")).unwrap();
    fs::rename(bench.path("index"), bench.path("copy/index")).unwrap();
    let right = passwd(&code);
    assert_eq!(right.code, 0, "{}", right.stderr);
    assert!(!right.stderr.contains("unchecked"), "{}", right.stderr);
    assert_eq!(bench.run("verify --password-file pw2 copy").code, 0);

    // Where nothing is stored yet, nothing can tell.
    fs::remove_dir_all(bench.path("lib/key")).unwrap();
    let words = ["info", "--recovery", "lib"];
    let unchecked = bench.run_with(&words, &code, &[]);
    assert_eq!(unchecked.code, 0, "{}", unchecked.stderr);
    assert!(
        unchecked.stderr.contains("unchecked"),
        "{}",
        unchecked.stderr
    );
}

#[test]
fn a_damaged_slot_is_named_quickly() {
    let (bench, _) = Bench::with_library();
    let name = bench.slots().remove(0);
    let path = bench.path("lib/key").join(&name);
    let good = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], code: i32| {
        fs::write(&path, bytes).unwrap();
        let start = Instant::now();
        let ended = bench.run("info --password-file pw lib");
        assert_eq!(ended.code, code, "{}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(&name), "{}", ended.stderr);
        // Argon2 is not even begun; the rest is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(5));
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        // The version, the suite and the features that have to be known: of a later version, perhaps.
        let later = matches!(at, 8..16 | 24..28);
        refused(&bad, if later { 4 } else { 5 });
        refused(&good[..at], 5);
    }
    refused(&[&good[..], &[0]].concat(), 5);
    refused(&vec![0; 1 << 20], 5);
    fs::write(&path, &good).unwrap();
    assert!(bench.opens("--password-file pw"));
}

#[test]
fn costs_without_bound_are_refused_quickly() {
    use sha2::{Digest, Sha256};
    let (bench, _) = Bench::with_library();
    let path = bench.path("lib/key").join(bench.slots().remove(0));
    let good = fs::read(&path).unwrap();
    // 4 TiB; 2^32 passes; 64 passes over 1 GiB; each with the checksum that fits.
    for (at, cost) in [(52, u32::MAX), (56, u32::MAX), (56, 64), (60, u32::MAX)] {
        let mut bad = good.clone();
        if cost == 64 {
            bad[52..56].copy_from_slice(&(1u32 << 20).to_le_bytes());
        }
        bad[at..at + 4].copy_from_slice(&cost.to_le_bytes());
        let checksum = Sha256::digest(&bad[..288]);
        bad[288..].copy_from_slice(&checksum);
        fs::write(&path, &bad).unwrap();
        let start = Instant::now();
        let ended = bench.run("info --password-file pw lib");
        assert_eq!(ended.code, 5, "{}", ended.stderr);
        assert!(ended.stderr.contains("asks for"), "{}", ended.stderr);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn bad_slots_beside_a_good_one_hinder_nobody() {
    let (bench, _) = Bench::with_library();
    let junk = "0".repeat(32);
    fs::write(bench.path("lib/key").join(&junk), "junk").unwrap();
    fs::create_dir(bench.path("lib/key").join("1".repeat(32))).unwrap();
    fs::write(bench.path("lib/key/a.sync-conflict"), "junk").unwrap();
    let ended = bench.run("info --password-file pw lib");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains(&junk), "{}", ended.stderr);
    assert!(!ended.stderr.contains("conflict"), "{}", ended.stderr);
    assert_eq!(bench.run("key remove lib 0000").code, 0);
}

#[test]
fn a_slot_that_costs_much_is_not_tried_unasked() {
    use hushfs::crypto::{KdfParams, MasterKey, Secret, Slot};
    let (bench, code) = Bench::with_library();
    let master = MasterKey::from_recovery_code(&code).unwrap();
    let costly = KdfParams {
        memory_kib: 257 * 1024,
        passes: 1,
        lanes: 4,
    };
    let id = hushfs::object::ObjectId([0xcc; 16]);
    let secret = Secret::Password(b"xyzzy two".to_vec().into());
    let slot = Slot::seal(id.into(), &master, &secret, costly, "").unwrap();
    fs::write(bench.path(&format!("lib/key/{id}")), slot).unwrap();
    // Those of the usual cost are tried first, and open as ever.
    assert!(bench.opens("--password-file pw"));
    let refused = bench.run("info --password-file pw2 lib");
    assert_eq!(refused.code, 3);
    let asks = "257 MiB of memory and 2 times the work";
    for told in [&format!("key/{id}"), asks, "--accept-cost"] {
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    assert!(bench.opens("--password-file pw2 --accept-cost"));
}

#[test]
fn a_copy_of_a_slot_is_passed_over_and_one_that_was_renamed_is_named() {
    let (bench, _) = Bench::with_library();
    let own = bench.path(&format!("lib/key/{}", bench.slots()[0]));
    let copy = bench.path("lib/key/cccccccccccccccccccccccccccccccc");
    fs::copy(&own, &copy).unwrap();
    assert!(bench.opens("--password-file pw"));
    let verify = bench.run("verify --password-file pw lib");
    assert_eq!(verify.code, 0, "{}", verify.stdout);
    assert!(
        verify.stderr.contains("is a copy of key/"),
        "{}",
        verify.stderr
    );
    fs::remove_file(&own).unwrap();
    let renamed = bench.run("info --password-file pw lib");
    assert!(
        renamed.stderr.contains("rename it to key/"),
        "{}",
        renamed.stderr
    );
}
