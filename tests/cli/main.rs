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

use tempfile::TempDir;

mod codes;
mod keys;
mod mount;
mod output;
mod secrets;
mod terminal;

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

impl Ended {
    fn of(output: Output) -> Self {
        let ended = Self {
            code: output.status.code().expect("it exits, and is not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ended.stdout.contains(MARK) && !ended.stderr.contains(MARK));
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(ended.code < 10, "{}", ended.stderr);
        ended
    }
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
        let made = bench.run("init --password-file pw --new-recovery-file code lib");
        assert_eq!(made.code, 0, "{}", made.stderr);
        let code = bench.code();
        (bench, code)
    }

    /// The recovery code in the file `code`, which is removed.
    fn code(&self) -> String {
        let text = fs::read_to_string(self.path("code")).unwrap();
        fs::remove_file(self.path("code")).unwrap();
        let code = text.strip_suffix('\n').unwrap();
        assert!(code.len() == 14 * 5 - 1 && code.split('-').count() == 14);
        code.to_string()
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
        let mut child = self
            .command(words)
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
        Ended::of(child.wait_with_output().unwrap())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hushfs"));
        command
            .args(words)
            .current_dir(self.dir.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("HUSHFS_LOG", "trace")
            .env_remove("CREDENTIALS_DIRECTORY");
        command
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
    fs::create_dir_all(bench.path("cut/new/0123456789abcdef0123456789abcdef.key")).unwrap();
    assert_eq!(bench.run("init --password-file pw cut").code, 0);
}

#[test]
fn of_two_that_make_a_library_at_once_one_fails() {
    let bench = Bench::new();
    // The other one comes, and is done, while this one still asks for its password.
    let other = format!(
        "{} init --password-file pw2 lib >made && cat pw",
        env!("CARGO_BIN_EXE_hushfs")
    );
    for made in [&[][..], &["lib"], &["lib", "lib/key", "lib/new"]] {
        for folder in made {
            fs::create_dir(bench.path(folder)).unwrap();
        }
        let words = ["init", "--password-command", &other, "lib"];
        let late = bench.run_with(&words, "", &[]);
        assert_eq!(late.code, 8, "{}", late.stderr);
        assert!(late.stderr.contains("meanwhile"), "{}", late.stderr);
        assert_eq!(bench.slots().len(), 1);
        assert_eq!(fs::read_dir(bench.path("lib/new")).unwrap().count(), 0);
        assert!(bench.opens("--password-file pw2") && !bench.opens("--password-file pw"));
        // What this machine remembers is the library that is there.
        let verify = bench.run("verify --password-file pw2 lib");
        assert_eq!(verify.code, 0, "{}", verify.stderr);
        fs::remove_dir_all(bench.path("lib")).unwrap();
    }
}

#[test]
fn a_folder_that_is_no_library_is_reported() {
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
    assert_eq!(bench.fails("umount mnt"), 8);
}

#[test]
fn an_error_says_what_to_do() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("mnt")).unwrap();
    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/file"), "").unwrap();
    let missing = "missing: not found (check the path; `hushfs init` creates a library)";
    for (words, code, said) in [
        ("info missing", 4, missing),
        ("mount --password-file pw missing mnt", 4, missing),
        (
            "mount --format mms --password-file pw missing mnt",
            4,
            missing,
        ),
        (
            "verify --format images --password-file pw missing",
            4,
            missing,
        ),
        (
            "key add --password-file pw --new-key-file kf lib",
            3,
            "key file kf: not found (--generate creates it)",
        ),
        (
            "info --password-file nopw lib",
            3,
            "password file nopw: not found",
        ),
        (
            "info --password-file mnt lib",
            3,
            "password file mnt: Is a directory",
        ),
        (
            "info --key-file nokey lib",
            3,
            "lib: no key file opens this library",
        ),
        ("umount mnt", 8, "no library is mounted here"),
        ("umount missing", 8, "findmnt"),
        ("init --password-file pw pw2", 8, "pw2: not a directory"),
        (
            "convert missing new",
            4,
            "missing: not found (this is what is to be converted",
        ),
        (
            "convert --plain mnt full",
            8,
            "full: is not empty (a library needs",
        ),
        (
            "info --password-file pw2 lib",
            3,
            "lib: wrong password, or not this library's (try again;",
        ),
    ] {
        let ended = bench.run(words);
        assert_eq!(ended.code, code, "{words}: {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("hushfs: ") && last.contains(said),
            "{words}: {last}"
        );
    }
}

#[test]
fn info_says_whether_room_comes_back() {
    let bench = Bench::new();
    fs::create_dir(bench.path("src")).unwrap();
    let made = bench.run("convert --plain --new-password-file pw src lib");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let info = ["info", "--password-file", "pw", "lib"];
    let own = bench.run_with(&info, "", &[]).stdout;
    assert!(own.contains("\ncollects: yes\n"), "{own}");
    // To another user, or one who lost the state directory, its writer is another device.
    let state = bench.path("other");
    let other = bench
        .run_with(&info, "", &[("XDG_STATE_HOME", &state)])
        .stdout;
    assert!(other.contains("\ncollects: no\n"), "{other}");
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
    for (point, said) in [
        ("missing", "--create creates it"),
        ("pw", "is not a folder"),
        ("full", "-o nonempty"),
    ] {
        fs::create_dir_all(bench.path("full/lost+found")).unwrap();
        let ended = bench.run(&format!("mount --password-file pw lib {point}"));
        assert_eq!(ended.code, 8, "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
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
    let made = |page: &str| fs::read_to_string(bench.path("man").join(page)).unwrap();
    let page = made("man1/hushfs-mount.1");
    assert!(page.contains("cache\\-size"), "{page}");
    let sections = page.lines().filter_map(|line| line.strip_prefix(".SH "));
    let sections: Vec<_> = sections.collect();
    for section in ["OPTIONS", "\"EXIT STATUS\"", "EXAMPLES", "\"SEE ALSO\""] {
        assert!(sections.contains(&section), "{sections:?}");
    }
    let page = made("man1/hushfs.1");
    for text in [".SH COMMANDS", ".SH ENVIRONMENT", "HUSHFS_LOG", ".SH FILES"] {
        assert!(page.contains(text), "{page}");
    }
    assert!(bench.path("man/man1/hushfs-key-add.1").exists());
    for page in [
        "man5/hushfs-foreign.5",
        "man5/hushfs-format.5",
        "man7/hushfs-foreign.7",
        "man7/hushfs-security.7",
        "man7/hushfs-stores.7",
    ] {
        let name = page.rsplit('/').next().unwrap();
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(name);
        assert_eq!(made(page), fs::read_to_string(ours).unwrap());
    }
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
