//! How secrets are asked for, and what is said of wrong ones.

use std::fs;
use std::path::Path;

use super::Bench;

const WRONG: &str = "wrong password, or not this library's";

#[test]
fn a_wrong_password_is_asked_for_three_times() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("mnt")).unwrap();
    for words in [
        "passwd lib",
        "mount lib mnt",
        "key add lib",
        "key recovery lib",
        "verify lib",
    ] {
        let mut terminal = bench.at_terminal(words);
        for _ in 0..3 {
            terminal.answer("Password: ", "xyzzy two\n").expect(WRONG);
        }
        let (code, shown) = terminal.end();
        assert_eq!(code, 3, "{shown}");
        assert_eq!(shown.matches(WRONG).count(), 3, "{shown}");
    }
    let mut terminal = bench.at_terminal("verify lib");
    terminal
        .answer("Password: ", "\n")
        .expect("the password is empty");
    terminal.answer("Password: ", "xyzzy two\n").expect(WRONG);
    terminal.answer("Password: ", "xyzzy one\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    // Without a terminal, once.
    let once = bench.run_with(&["verify", "lib"], "xyzzy two\nxyzzy one\n", &[]);
    assert_eq!((once.code, once.stderr.matches(WRONG).count()), (3, 1));
}

#[test]
fn a_mistyped_recovery_code_is_asked_for_again() {
    let (bench, code) = Bench::with_library();
    let mut terminal = bench.at_terminal("info --recovery lib");
    terminal
        .answer("Recovery code: ", "ABCD\n")
        .expect("this is not a recovery code");
    terminal.answer("Recovery code: ", &format!("{code}\n"));
    let (ended, shown) = terminal.end();
    assert_eq!(ended, 0, "{shown}");
    assert!(
        shown.contains("fingerprint: ") && !shown.contains(&code),
        "{shown}"
    );
}

#[test]
fn a_foreign_secret_is_asked_for_again() {
    let bench = Bench::new();
    let made = bench.run("init --format mms --password-file pw music");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let mut terminal = bench.at_terminal("verify music");
    for _ in 0..2 {
        terminal
            .answer("Password: ", "xyzzy two\n")
            .expect("wrong password");
    }
    terminal.answer("Password: ", "xyzzy one\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    // The background process of a mount cannot ask: the password is checked before.
    fs::create_dir(bench.path("mnt")).unwrap();
    let mut terminal = bench.at_terminal("mount music mnt");
    for _ in 0..3 {
        terminal
            .answer("Password: ", "xyzzy two\n")
            .expect("wrong password");
    }
    assert_eq!(terminal.end().0, 3);
    // Of a new one that is mistyped, the old one is not asked for again.
    let mut terminal = bench.at_terminal("passwd music");
    terminal.answer("Password: ", "xyzzy one\n");
    for _ in 0..3 {
        terminal.answer("New password: ", "xyzzy two\n");
        terminal
            .answer("Repeat it: ", "xyzzy three\n")
            .expect("the two passwords differ");
    }
    let (code, shown) = terminal.end();
    assert_eq!(
        (code, shown.matches("Password: ").count()),
        (3, 1),
        "{shown}"
    );
}

#[test]
fn a_new_password_that_is_mistyped_is_asked_for_again() {
    let bench = Bench::new();
    let differ = "the two passwords differ";
    let mut terminal = bench.at_terminal("init lib");
    terminal.answer("New password: ", "xyzzy one\n");
    terminal.answer("Repeat it: ", "xyzzy two\n").expect(differ);
    terminal.answer("New password: ", "xyzzy one\n");
    terminal.answer("Repeat it: ", "xyzzy one\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, 0, "{shown}");
    assert!(bench.opens("--password-file pw"));
    // After three times it ends, and nothing is made.
    let mut terminal = bench.at_terminal("init other");
    for _ in 0..3 {
        terminal.answer("New password: ", "xyzzy one\n");
        terminal.answer("Repeat it: ", "xyzzy two\n").expect(differ);
    }
    assert_eq!(terminal.end().0, 3);
    assert!(!bench.path("other").exists());
}

#[test]
fn the_end_of_input_ends_the_asking_on_a_line_of_its_own() {
    let (bench, _) = Bench::with_library();
    let mut terminal = bench.at_terminal("passwd lib");
    terminal.answer("Password: ", "\u{4}");
    let (code, shown) = terminal.end();
    assert_eq!(code, 3, "{shown}");
    assert_eq!(shown, "Password: \nhushfs: no password given\n");
    let mut terminal = bench.at_terminal("init other");
    terminal.answer("New password: ", "xyzzy one\n");
    terminal.answer("Repeat it: ", "\u{4}");
    let (code, shown) = terminal.end();
    assert_eq!(code, 3, "{shown}");
    assert!(
        shown.ends_with("Repeat it: \nhushfs: no password given\n"),
        "{shown}"
    );
}

#[test]
fn a_password_that_cannot_open_is_not_asked_for() {
    let (bench, _) = Bench::with_library();
    let add = "key add --password-file pw --new-key-file kf --generate lib";
    assert_eq!(bench.run(add).code, 0);
    let slot = bench.slot_of("keyfile", false);
    assert_eq!(
        bench
            .run(&format!("key remove --key-file kf lib {slot}"))
            .code,
        0
    );
    let (code, shown) = bench.at_terminal("passwd lib").end();
    assert_eq!(code, 3, "{shown}");
    assert!(
        shown.contains("only key files") && !shown.contains("Password"),
        "{shown}"
    );
    assert_eq!(bench.at_terminal("info lib").end().0, 0);
}

#[test]
fn info_and_key_list_ask_at_a_terminal_for_what_may_be_left_out() {
    let (bench, _) = Bench::with_library();
    let add = "key add --password-file pw --new-password-file pw2 --label spare lib";
    assert_eq!(bench.run(add).code, 0);
    for (words, more) in [("info lib", "fingerprint: "), ("key list lib", "spare")] {
        for (typed, knows) in [("xyzzy one\n", true), ("\n", false)] {
            let mut terminal = bench.at_terminal(words);
            terminal.answer("Password (leave it empty to go on without): ", typed);
            let (code, shown) = terminal.end();
            assert_eq!((code, shown.contains(more)), (0, knows), "{shown}");
        }
        let mut terminal = bench.at_terminal(words);
        for _ in 0..3 {
            terminal
                .answer("on without): ", "xyzzy none\n")
                .expect(WRONG);
        }
        assert_eq!(terminal.end().0, 3);
        // A script is not kept waiting, and its input is not a password.
        let script = bench.run_with(&words.split(' ').collect::<Vec<_>>(), "xyzzy one\n", &[]);
        assert_eq!((script.code, script.stdout.contains(more)), (0, false));
    }
}

impl Bench {
    /// The id of the first slot of this kind, or not of it.
    fn slot_of(&self, kind: &str, is_it: bool) -> String {
        let list = self.run("key list lib").stdout;
        let mut rows = list.lines().skip(1);
        let row = rows.find(|row| row.contains(kind) == is_it).unwrap();
        row.split(' ').next().unwrap().to_string()
    }
}

#[test]
fn key_remove_asks_back_and_says_what_still_opens_the_library() {
    let (bench, _) = Bench::with_library();
    let add = "key add --password-file pw --new-key-file kf --generate --label usb lib";
    assert_eq!(bench.run(add).code, 0);
    let (password, key_file) = (
        bench.slot_of("password", true),
        bench.slot_of("keyfile", true),
    );
    let words = format!("key remove lib {key_file}");
    for typed in ["n\n", "\n", "\u{4}"] {
        let mut terminal = bench.at_terminal(&words);
        terminal.answer("Password: ", "xyzzy one\n");
        terminal.expect(&format!("Remove slot {key_file} (key file, \"usb\")?"));
        let left = format!(
            "The library can be opened with: slot {password} (password), the recovery code."
        );
        terminal.expect(&left);
        terminal.answer("[y/N] ", typed);
        let (code, shown) = terminal.end();
        assert_eq!(code, 1, "{shown}");
        assert!(
            shown.ends_with("\nhushfs: lib: nothing was changed\n"),
            "{shown}"
        );
        assert_eq!(bench.slots().len(), 2);
    }
    let mut terminal = bench.at_terminal(&words);
    terminal
        .answer("Password: ", "xyzzy one\n")
        .answer("[y/N] ", "y\n");
    terminal.expect(&format!("Removed slot {key_file}."));
    terminal.expect("The library can be opened with: ");
    assert_eq!(terminal.end().0, 0);
    assert_eq!(bench.slots(), std::slice::from_ref(&password));
    // The last one goes without a question if that is said.
    let forced = format!("key remove --yes --force --password-file pw lib {password}");
    let (code, shown) = bench.at_terminal(&forced).end();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("with the recovery code only"), "{shown}");
}

#[test]
fn passwd_leaves_no_slot_that_the_old_password_opens() {
    use hushfs::crypto::{KdfParams, MasterKey, Secret, Slot};
    let (bench, code) = Bench::with_library();
    // As an earlier version added it.
    let master = MasterKey::from_recovery_code(&code).unwrap();
    let id = hushfs::object::ObjectId([0xcc; 16]);
    let secret = Secret::Password(b"xyzzy one".to_vec().into());
    let slot = Slot::seal(id.into(), &master, &secret, KdfParams::default(), "laptop").unwrap();
    fs::write(bench.path(&format!("lib/key/{id}")), slot).unwrap();
    let generate = "key add --password-file pw --new-key-file kf --generate --label usb lib";
    assert_eq!(bench.run(generate).code, 0);
    let key_file = bench.slot_of("keyfile", true);
    let changed = bench.run("passwd --password-file pw --new-password-file pw2 lib");
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    assert!(!bench.opens("--password-file pw") && bench.opens("--password-file pw2"));
    assert_eq!(bench.slots().len(), 2);
    for said in [
        "The password is changed.",
        &format!("slot {id} (password, \"laptop\")"),
        &format!("slot {key_file} (key file, \"usb\")"),
        "the recovery code",
    ] {
        assert!(changed.stdout.contains(said), "{said}: {}", changed.stdout);
    }
    // A new password that another slot has already needs no second one.
    let add = "key add --password-file pw2 --new-password-file pw lib";
    assert_eq!(bench.run(add).code, 0);
    let changed = bench.run("passwd --password-file pw2 --new-password-file pw lib");
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    assert!(bench.opens("--password-file pw") && !bench.opens("--password-file pw2"));
    assert_eq!(bench.slots().len(), 2);
    // The same password again is a new slot all the same.
    let before = bench.slots();
    assert_eq!(
        bench
            .run("passwd --password-file pw --new-password-file pw lib")
            .code,
        0
    );
    assert_eq!(bench.slots().len(), 2);
    assert_ne!(bench.slots(), before);
}

#[test]
fn key_add_refuses_what_opens_a_slot_already() {
    let (bench, _) = Bench::with_library();
    let generate = "key add --password-file pw --new-key-file kf --generate --label usb lib";
    assert_eq!(bench.run(generate).code, 0);
    let before = bench.slots();
    for (new, kind, name) in [
        (
            "--new-password-file pw",
            "password",
            "the new password: exists already",
        ),
        (
            "--new-key-file kf",
            "keyfile",
            "the new key file: exists already",
        ),
    ] {
        let again = bench.run(&format!("key add --password-file pw {new} lib"));
        assert_eq!(again.code, 8, "{}", again.stderr);
        let slot = format!("it opens slot {} ", bench.slot_of(kind, true));
        assert!(
            again.stderr.contains(name) && again.stderr.contains(&slot),
            "{}",
            again.stderr
        );
        assert_eq!(bench.slots(), before);
    }
}

#[test]
fn a_password_file_of_windows_opens_what_was_typed_and_the_other_way_round() {
    let (bench, _) = Bench::with_library();
    let text = "\u{feff}xyzzy one\r\nxyzzy more\r\n";
    bench.secret("crlf", text);
    fs::create_dir(bench.path("creds")).unwrap();
    bench.secret("creds/hushfs.password", text);
    let creds = bench.path("creds");
    assert!(bench.opens("--password-file crlf"));
    let run = |words: &[&str], environment: &[(&str, &Path)]| {
        let ended = bench.run_with(words, "", environment);
        (ended.code, ended.stdout.contains("fingerprint"))
    };
    let by_command = ["info", "--password-command", "cat crlf", "lib"];
    assert_eq!(run(&by_command, &[]), (0, true));
    let by_systemd = [("CREDENTIALS_DIRECTORY", creds.as_path())];
    assert_eq!(run(&["info", "lib"], &by_systemd), (0, true));
    // A wrong one says what was tried.
    bench.secret("wrong", "xyzzy two\r\n");
    let wrong = bench.run("info --password-file wrong lib");
    assert_eq!(wrong.code, 3);
    assert!(wrong.stderr.contains("carriage return"), "{}", wrong.stderr);
    // A new password is taken without, and says so; both files open it.
    for (new, said) in [("crlf", "byte order mark"), ("wrong", "carriage return")] {
        let made = bench.run(&format!("init --password-file {new} {new}.lib"));
        assert_eq!(made.code, 0, "{}", made.stderr);
        assert!(made.stderr.contains(said), "{}", made.stderr);
        let plain = if new == "crlf" { "pw" } else { "pw2" };
        for file in [new, plain] {
            let info = format!("info --password-file {file} {new}.lib");
            assert_eq!(bench.run(&info).code, 0, "{info}");
        }
    }
    // A recovery code out of such a file, too.
    let words = "key recovery --password-file pw --new-recovery-file code lib";
    assert_eq!(bench.run(words).code, 0);
    let code = fs::read_to_string(bench.path("code")).unwrap();
    bench.secret("code.crlf", &format!("\u{feff}{}\r\n", code.trim()));
    assert!(bench.opens("--recovery --password-file code.crlf"));
}

#[test]
fn a_password_that_ends_in_a_carriage_return_is_tried_as_it_is() {
    use hushfs::crypto::{KdfParams, MasterKey, Secret, Slot};
    let (bench, code) = Bench::with_library();
    let master = MasterKey::from_recovery_code(&code).unwrap();
    let id = hushfs::object::ObjectId([0xcc; 16]);
    let secret = Secret::Password(b"xyzzy two\r".to_vec().into());
    let slot = Slot::seal(id.into(), &master, &secret, KdfParams::default(), "").unwrap();
    fs::write(bench.path(&format!("lib/key/{id}")), slot).unwrap();
    bench.secret("odd", "xyzzy two\r\n");
    assert!(bench.opens("--password-file odd") && !bench.opens("--password-file pw2"));
}

#[test]
fn a_library_of_another_program_is_told_by_its_name() {
    let bench = Bench::new();
    let made = bench.run("init --format mms --password-file pw music");
    assert_eq!(made.code, 0, "{}", made.stderr);
    for words in [
        "info music",
        "info --json --password-file pw music",
        "key list music",
        "key add --password-file pw --new-password-file pw2 music",
        "key remove music 00",
        "key recovery --password-file pw --new-recovery-file code music",
    ] {
        let told = bench.run(words);
        assert_eq!(told.code, 4, "{words}: {}", told.stderr);
        let name = "music: is a library of Minio Music Server";
        assert!(told.stderr.contains(name), "{words}: {}", told.stderr);
    }
    // Nothing is made in it.
    fs::create_dir(bench.path("src")).unwrap();
    for words in [
        "init --password-file pw music",
        "convert --plain --new-password-file pw src music",
    ] {
        let refused = bench.run(words);
        assert_eq!(refused.code, 8, "{words}: {}", refused.stderr);
        assert!(
            refused.stderr.contains("music: is not empty ("),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn numbers_agree_with_their_nouns() {
    let bench = Bench::new();
    fs::create_dir(bench.path("src")).unwrap();
    fs::write(bench.path("src/file"), "content").unwrap();
    let made = bench.run("convert --plain --new-password-file pw src lib");
    assert!(made.stdout.contains("\n1 file is in "), "{}", made.stdout);
    let good = bench.run("verify --password-file pw lib").stdout;
    assert_eq!(good, "1 file, 0 problems\n");
    fs::write(
        bench.path("lib/key/00000000000000000000000000000000"),
        "junk",
    )
    .unwrap();
    let bad = bench.run("verify --password-file pw lib");
    assert!(
        bad.stdout.ends_with("1 file, 1 problem\n"),
        "{}",
        bad.stdout
    );
    assert!(
        bad.stderr.ends_with("1 problem, as listed\n"),
        "{}",
        bad.stderr
    );
}
