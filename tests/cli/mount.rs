//! `hushfs mount` up to the mount itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::{Bench, Ended};

/// As mount(8) calls it: how it ended, and what it printed on standard error.
fn for_mount_8(bench: &Bench, words: &str) -> (i32, String) {
    let program = bench.path("mount.hushfs");
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hushfs"), &program).unwrap();
    }
    let output = Command::new(program)
        .args(words.split(' '))
        .current_dir(bench.dir.path())
        .env("XDG_STATE_HOME", bench.path("state"))
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), stderr)
}

fn said(bench: &Bench, words: &str, code: i32) -> String {
    let ended = bench.run(words);
    assert_eq!(ended.code, code, "{words}: {}", ended.stderr);
    ended.stderr
}

#[test]
fn options_of_mount_8_are_for_mount_8() {
    let bench = Bench::new();
    for option in ["-f", "-n", "-s", "-v", "-t hushfs"] {
        let stderr = said(&bench, &format!("mount {option} lib mnt"), 2);
        let tip = stderr.contains("'--foreground'");
        assert_eq!(tip, option == "-f", "{stderr}");
    }
    let stderr = said(&bench, "umount -f mnt", 2);
    assert!(!stderr.contains("--foreground"), "{stderr}");
    let fake = "lib mnt -f -n -v -t hushfs -o fsname=x,user=joe,X-mount.mkdir";
    assert_eq!(for_mount_8(&bench, fake), (0, String::new()));
}

#[test]
fn mount_8_knows_the_exit_codes() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("mnt")).unwrap();
    for (words, code) in [
        ("lib mnt -f -o fsname", 1),
        ("lib", 1),
        ("lib mnt -o password-file=pw2", 32),
        ("lib missing -o password-file=pw", 32),
        ("missing mnt -o password-file=pw", 32),
        ("lib mnt -o log-file=missing/log", 2),
    ] {
        let (ended, stderr) = for_mount_8(&bench, words);
        assert_eq!(ended, code, "{words}: {stderr}");
        assert!(!stderr.is_empty(), "{words}");
    }
}

#[test]
fn help_and_version_are_verbs_too() {
    let bench = Bench::new();
    let help = bench.run("help mount");
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("--read-only"), "{}", help.stdout);
    assert!(!bench.run("help").stdout.contains("mount.hushfs"));
    let version = bench.run("version");
    assert_eq!(version.code, 0);
    assert_eq!(version.stdout, bench.run("--version").stdout);
}

#[test]
fn usage_errors_suggest_what_was_meant() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("mnt")).unwrap();
    for words in ["mount mnt lib", "mount --create --password-file pw mnt lib"] {
        let stderr = said(&bench, words, 4);
        let expected = "mnt: is not a hushfs library (lib is one: swap the two arguments)";
        assert!(stderr.contains(expected), "{stderr}");
    }
    for bucket in ["s3://bucket/lib", "remote:lib"] {
        let words = format!("mount --create --password-file pw {bucket} mnt");
        let stderr = said(&bench, &words, 4);
        assert!(stderr.contains("rclone mount"), "{stderr}");
        assert!(!bench.path("s3:").exists() && !bench.path("remote:lib").exists());
    }
}

#[test]
fn options_for_other_libraries_are_refused() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("mnt")).unwrap();
    for option in [
        "--view backups",
        "--medusa-ini missing",
        "--env-file missing",
        "--encrypt-all",
        "--mms-key missing",
        "--mms-index missing",
        "--mms-path missing",
        "--allow-plain",
        "-o allow-plain",
        "-o view=bucket",
    ] {
        let words = format!("mount {option} --password-file pw lib mnt");
        let stderr = said(&bench, &words, 2);
        assert!(
            stderr.contains("this is a hushfs library"),
            "{option}: {stderr}"
        );
    }
    // What is no library at all is told so.
    said(
        &bench,
        "mount --view backups --password-file pw mnt empty",
        8,
    );
    fs::create_dir(bench.path("empty")).unwrap();
    said(
        &bench,
        "mount --view backups --password-file pw mnt empty",
        4,
    );
}

#[test]
fn a_log_file_is_for_its_owner_and_out_of_the_way() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("mnt")).unwrap();
    for (file, code) in [
        ("missing/log", 9),
        ("lib/log", 2),
        ("mnt/log", 2),
        ("mnt", 2),
    ] {
        let words = format!("mount --log-file {file} --password-file pw lib mnt");
        let stderr = said(&bench, &words, code);
        assert!(stderr.contains(&format!("log file {file}: ")), "{stderr}");
    }
    // A mount that fails leaves why.
    fs::write(bench.path("log"), "before\n").unwrap();
    for (file, words) in [
        ("log", "mount --log-file log --password-file pw2 lib mnt"),
        ("new", "mount -o log-file=new --password-file pw2 lib mnt"),
    ] {
        let ended: Ended = bench.run(words);
        assert_eq!(ended.code, 3, "{}", ended.stderr);
        let told = ended.stderr.lines().last().unwrap();
        let log = fs::read_to_string(bench.path(file)).unwrap();
        let (time, line) = log.lines().last().unwrap().split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{log}");
        assert_eq!(line, told);
        assert_eq!(log.starts_with("before\n"), file == "log");
    }
    let mode = fs::metadata(bench.path("new"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}
