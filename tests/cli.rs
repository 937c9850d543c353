//! The program as people and scripts run it. Nothing is mounted here.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, and means functions marked so"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Every secret of these tests has this in it, so that none can show anywhere unnoticed.
const MARK: &str = "xyzzy";

struct Bench {
    dir: TempDir,
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.secret("pw", "xyzzy one\n");
        bench.secret("pw2", "xyzzy two\n");
        bench
    }

    /// With a library made with `pw`; answers its recovery code, too.
    fn with_library() -> (Self, String) {
        let bench = Self::new();
        let made = bench.run("init --password-file pw lib");
        assert_eq!(made.code, 0, "{}", made.stderr);
        let lines = made.stdout.lines().map(str::trim);
        let codes: Vec<_> = lines
            .filter(|line| line.len() == 14 * 5 - 1 && line.split('-').count() == 14)
            .collect();
        assert_eq!(codes.len(), 1, "{}", made.stdout);
        let code = codes[0].to_string();
        (bench, code)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn secret(&self, name: &str, text: &str) {
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn run(&self, words: &str) -> Ended {
        self.run_with(&words.split(' ').collect::<Vec<_>>(), "", &[])
    }

    fn run_with(&self, words: &[&str], stdin: &str, environment: &[(&str, &Path)]) -> Ended {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hushfs"))
            .args(words)
            .current_dir(self.dir.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("HUSHFS_LOG", "trace")
            .env_remove("CREDENTIALS_DIRECTORY")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that wants nothing may be gone before it is told anything.
        let mut input = child.stdin.take().unwrap();
        let _ = input.write_all(stdin.as_bytes());
        drop(input);
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        let ended = Ended {
            code: status.code().expect("it exits, and is not killed"),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        };
        assert!(!ended.stdout.contains(MARK) && !ended.stderr.contains(MARK));
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(ended.code < 10, "{}", ended.stderr);
        ended
    }

    /// The exit code, where an error must be told in one line.
    fn fails(&self, words: &str) -> i32 {
        let ended = self.run(words);
        assert_ne!(ended.code, 0, "{words}");
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("hushfs: "), "{words}: {}", ended.stderr);
        ended.code
    }

    fn opens(&self, how: &str) -> bool {
        let ended = self.run(&format!("info {how} lib"));
        assert!(matches!(ended.code, 0 | 3), "{}", ended.stderr);
        ended.code == 0
    }

    fn slots(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("lib/key")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn init_makes_a_library_for_its_owner_alone() {
    let (bench, _) = Bench::with_library();
    let folders = [
        "lib",
        "lib/key",
        "lib/index",
        "lib/data",
        "lib/new",
        "state/hushfs",
    ];
    for folder in folders {
        let meta = fs::metadata(bench.path(folder)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o700, "{folder}");
    }
    assert_eq!(bench.slots().len(), 1);
    assert_eq!(fs::read_dir(bench.path("lib/new")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(bench.path("state/hushfs")).unwrap().count(), 1);
}

#[test]
fn init_refuses_what_is_not_empty() {
    let (bench, _) = Bench::with_library();
    assert_eq!(bench.fails("init --password-file pw lib"), 8);
    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/file"), "").unwrap();
    assert_eq!(bench.fails("init --password-file pw full"), 8);
    assert_eq!(fs::read_dir(bench.path("full")).unwrap().count(), 1);
    // What an init leaves that was cut short is no hindrance to the next.
    fs::create_dir_all(bench.path("cut/key")).unwrap();
    fs::create_dir_all(bench.path("cut/new")).unwrap();
    assert_eq!(bench.run("init --password-file pw cut").code, 0);
}

#[test]
fn what_is_no_library_is_told_so() {
    let bench = Bench::new();
    fs::create_dir(bench.path("empty")).unwrap();
    fs::create_dir_all(bench.path("odd/key")).unwrap();
    fs::write(bench.path("odd/key/notes.txt"), "").unwrap();
    fs::create_dir(bench.path("mnt")).unwrap();
    for dir in ["empty", "odd", "missing", "pw"] {
        for verb in ["info", "key list", "passwd", "key add"] {
            let words = format!("{verb} --password-file pw {dir}");
            assert_eq!(bench.fails(&words), 4, "{words}");
        }
        let words = format!("mount --password-file pw {dir} mnt");
        assert_eq!(bench.fails(&words), 4, "{words}");
        assert_eq!(bench.fails(&format!("info {dir}")), 4);
    }
    assert_eq!(bench.fails("umount mnt"), 7);
}

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
    assert_eq!(by_command("cat pw; exit 1"), 2);
    assert_eq!(by_command("true"), 2);
    // Neither the program nor what it starts may leave a core.
    assert_eq!(by_command("test $(ulimit -Hc) = 0 && cat pw"), 0);
    assert_eq!(run(&["passwd", "lib"], "xyzzy one\nxyzzy two\n"), 0);
    assert_eq!(run(&["passwd", "lib"], "xyzzy two\nxyzzy one"), 0);
    assert_eq!(run(&["passwd", "lib"], "xyzzy one\n"), 2);
    assert_eq!(run(&["passwd", "lib"], ""), 2);

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
    assert_eq!(bench.fails("info --key-file short lib"), 2);
    let short = "key add --password-file pw --new-key-file short lib";
    assert_eq!(bench.fails(short), 2);
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
    // With the foreign slot's password it is another library than this machine remembers.
    fs::create_dir(bench.path("mnt")).unwrap();
    assert_eq!(bench.fails("mount --password-file pw2 lib mnt"), 5);
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
    assert_eq!(ended.code, 2);
    assert!(!ended.stderr.contains(&code[5..9]), "{}", ended.stderr);
    let words = ["passwd", "--recovery", "--new-password-file", "pw2", "lib"];
    let ended = bench.run_with(&words, &code, &[]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(bench.opens("--password-file pw2"));
}

#[test]
fn a_damaged_slot_is_named_quickly() {
    let (bench, _) = Bench::with_library();
    let name = bench.slots().remove(0);
    let path = bench.path("lib/key").join(&name);
    let good = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let start = Instant::now();
        let ended = bench.run("info --password-file pw lib");
        assert_eq!(ended.code, 4, "{}", ended.stderr);
        assert!(ended.stderr.contains(&name), "{}", ended.stderr);
        // Argon2 is not even begun; the rest is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(5));
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        refused(&bad);
        refused(&good[..at]);
    }
    refused(&[&good[..], &[0]].concat());
    refused(&vec![0; 1 << 20]);
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
        assert_eq!(ended.code, 4, "{}", ended.stderr);
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
fn create_makes_no_library_where_one_is_known() {
    let (bench, _) = Bench::with_library();
    fs::remove_dir_all(bench.path("lib")).unwrap();
    let words = "mount --create --password-file pw lib mnt";
    assert_eq!(bench.fails(words), 4);
    fs::create_dir(bench.path("lib")).unwrap();
    assert_eq!(bench.fails(words), 4);
    assert_eq!(fs::read_dir(bench.path("lib")).unwrap().count(), 0);
    assert!(!bench.path("mnt").exists());
}

#[test]
fn library_and_mount_point_are_apart() {
    let (bench, _) = Bench::with_library();
    for point in ["lib", "lib/data", "."] {
        let words = format!("mount --password-file pw lib {point}");
        assert_eq!(bench.fails(&words), 2, "{words}");
    }
    assert_eq!(bench.fails("mount --password-file pw lib missing"), 1);
}

#[test]
fn info_in_json_is_json() {
    let (bench, _) = Bench::with_library();
    let odd = "l\"i\\q\u{1}";
    fs::rename(bench.path("lib"), bench.path(odd)).unwrap();
    for words in [
        &["info", "--json", odd][..],
        &["info", "--json", "--password-file", "pw", odd],
    ] {
        let ended = bench.run_with(words, "", &[]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let rest = json_value(ended.stdout.trim_end());
        assert_eq!(rest, Some(""), "{}", ended.stdout);
        assert!(ended.stdout.contains("\"slots\":1,\"slot_bytes\":320,"));
    }
}

#[test]
fn man_pages_and_completions_are_made() {
    let bench = Bench::new();
    assert_eq!(bench.run("docs man man").code, 0);
    assert_eq!(bench.run("docs completions completions").code, 0);
    let page = fs::read_to_string(bench.path("man/hushfs-mount.1")).unwrap();
    assert!(page.contains("cache\\-size"), "{page}");
    assert!(bench.path("man/hushfs-key-add.1").exists());
    assert!(bench.path("completions/_hushfs").exists());
}

/// What follows the JSON value at the beginning of `text` (RFC 8259, without signs and fractions).
fn json_value(text: &str) -> Option<&str> {
    match text.chars().next()? {
        '{' => json_items(&text[1..], '}', true),
        '[' => json_items(&text[1..], ']', false),
        '"' => json_string(&text[1..]),
        '0'..='9' => Some(text.trim_start_matches(|c: char| c.is_ascii_digit())),
        _ => ["true", "false", "null"]
            .iter()
            .find_map(|word| text.strip_prefix(word)),
    }
}

fn json_items(mut text: &str, close: char, named: bool) -> Option<&str> {
    if let Some(rest) = text.strip_prefix(close) {
        return Some(rest);
    }
    loop {
        if named {
            text = json_string(text.strip_prefix('"')?)?.strip_prefix(':')?;
        }
        text = json_value(text)?;
        match text.strip_prefix(',') {
            Some(rest) => text = rest,
            None => return text.strip_prefix(close),
        }
    }
}

fn json_string(text: &str) -> Option<&str> {
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some(&text[at + 1..]),
            (at, '\\') => match chars.next()?.1 {
                'u' => {
                    u16::from_str_radix(text.get(at + 2..at + 6)?, 16).ok()?;
                }
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => {}
                _ => return None,
            },
            (_, c) if c < ' ' => return None,
            _ => {}
        }
    }
}
