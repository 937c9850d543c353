//! Where the recovery code is shown, and where not.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::Bench;

/// Whether there is something like a recovery code in a text.
fn has_code(text: &str) -> bool {
    text.split_whitespace()
        .any(|word| word.len() == 14 * 5 - 1 && word.split('-').count() == 14)
}

#[test]
fn a_terminal_shows_the_code_of_a_new_library() {
    let bench = Bench::new();
    fs::create_dir(bench.path("src")).unwrap();
    for words in [
        "init --password-file pw lib",
        "convert --plain --new-password-file pw src copy",
    ] {
        let (code, shown) = bench.at_terminal(words).end();
        assert_eq!(code, 0, "{shown}");
        assert!(has_code(&shown), "{shown}");
        let at = |text| shown.find(text).unwrap();
        assert!(
            at("The recovery code of ") < at("Created the library "),
            "{shown}"
        );
    }
    // The same code is shown again, to who has the password.
    let mut again = bench.at_terminal("key recovery lib");
    again.answer("Password: ", "xyzzy one\n");
    let (code, again) = again.end();
    assert_eq!(code, 0, "{again}");
    assert!(has_code(&again), "{again}");
    let mut wrong = bench.at_terminal("key recovery lib");
    for _ in 0..3 {
        wrong.answer("Password: ", "xyzzy two\n");
    }
    let (code, shown) = wrong.end();
    assert!(code == 3 && !has_code(&shown), "{shown}");
}

#[test]
fn a_code_is_never_shown_by_accident() {
    let bench = Bench::new();
    fs::create_dir(bench.path("src")).unwrap();
    for words in [
        "init --password-file pw lib",
        "convert --plain --new-password-file pw src copy",
    ] {
        let made = bench.run(words);
        assert_eq!(made.code, 0, "{}", made.stderr);
        assert!(
            !has_code(&made.stdout) && !has_code(&made.stderr),
            "{words}"
        );
        assert!(
            made.stderr.contains("`hushfs key recovery "),
            "{}",
            made.stderr
        );
    }
    // Also where only standard output is something else.
    let log = || Some(Stdio::from(File::create(bench.path("log")).unwrap()));
    let (code, shown) = bench
        .at_terminal_into("init --password-file pw lib2", log())
        .end();
    assert_eq!(code, 0, "{shown}");
    let log_text = fs::read_to_string(bench.path("log")).unwrap();
    assert!(
        !has_code(&log_text) && !has_code(&shown),
        "{shown}{log_text}"
    );
    // A closed standard output takes everything, and shows nothing.
    let closed = std::process::Command::new("sh")
        .args(["-c", "exec \"$0\" init --password-file pw lib3 >&-"])
        .arg(env!("CARGO_BIN_EXE_hushfs"))
        .current_dir(bench.path(""))
        .env("XDG_STATE_HOME", bench.path("state"))
        .output()
        .unwrap();
    let told = String::from_utf8(closed.stderr).unwrap();
    assert_eq!(closed.status.code(), Some(0), "{told}");
    assert!(told.contains("`hushfs key recovery lib3`"), "{told}");
    assert_eq!(
        bench.fails("mount --new-recovery-file code --password-file pw lib mnt"),
        2
    );
    let refused = bench.run("key recovery --password-file pw lib");
    assert_eq!((refused.code, refused.stdout.as_str()), (2, ""));
    assert!(
        refused.stderr.contains("only at a terminal"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_code_is_written_to_a_new_file() {
    let (bench, code) = Bench::with_library();
    let write = "key recovery --password-file pw --new-recovery-file code lib";
    let written = bench.run(write);
    assert_eq!(written.code, 0, "{}", written.stderr);
    let meta = fs::metadata(bench.path("code")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::read_to_string(bench.path("code")).unwrap(),
        format!("{code}\n")
    );
    assert!(bench.opens("--recovery --password-file code"));
    // Nothing is written over, and no library is made whose code has no place.
    assert_eq!(bench.fails(write), 8);
    for (file, code) in [("code", 8), ("missing/code", 9), ("new/code", 2)] {
        let words = format!("init --password-file pw --new-recovery-file {file} new");
        assert_eq!(bench.fails(&words), code, "{file}");
        assert!(!bench.path("new").exists(), "{file}");
    }
    // Of a library that is not made, no file stays.
    let failed = bench.run("init --password-command false --new-recovery-file code2 new");
    assert_eq!(failed.code, 3);
    let other = format!(
        "{} init --password-file pw2 new >made && cat pw",
        env!("CARGO_BIN_EXE_hushfs")
    );
    let words = [
        "init",
        "--password-command",
        &other,
        "--new-recovery-file",
        "code2",
        "new",
    ];
    let late = bench.run_with(&words, "", &[]);
    assert_eq!(late.code, 8, "{}", late.stderr);
    assert!(!bench.path("code2").exists());
}
