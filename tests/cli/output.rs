//! Standard output that takes nothing: a full disk, or a reader that has gone.

use std::fs::{self, File};
use std::process::Stdio;

use super::{Bench, Ended};

impl Bench {
    /// With this as standard output.
    fn run_into(&self, words: &str, stdout: impl Into<Stdio>) -> Ended {
        let words: Vec<_> = words.split(' ').collect();
        let mut command = self.command(&words);
        let command = command.env("HUSHFS_LOG", "warn").stdin(Stdio::null());
        Ended::of(command.stdout(stdout).output().unwrap())
    }

    fn run_full(&self, words: &str) -> Ended {
        self.run_into(words, File::create("/dev/full").unwrap())
    }

    fn run_unread(&self, words: &str) -> Ended {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.run_into(words, writer)
    }
}

#[test]
fn init_without_output_says_how_to_see_the_recovery_code() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mnt")).unwrap();
    for words in [
        "init --password-file pw lib",
        "mount --create --password-file pw lib mnt",
    ] {
        let full = bench.run_full(words);
        assert_eq!(full.code, 9, "{words}: {}", full.stderr);
        assert!(full.stderr.contains("standard output"), "{}", full.stderr);
        for ended in [full, bench.run_unread(&words.replace("lib", "lib2"))] {
            assert_eq!(ended.code, 9, "{words}");
            assert!(
                ended.stderr.contains("`hushfs key recovery "),
                "{}",
                ended.stderr
            );
        }
        for library in ["lib", "lib2"] {
            let info = format!("info --password-file pw {library}");
            assert_eq!(bench.run(&info).code, 0, "{words}");
            fs::remove_dir_all(bench.path(library)).unwrap();
        }
        fs::remove_dir_all(bench.path("state")).unwrap();
    }
}

#[test]
fn output_errors_are_reported() {
    let (bench, _) = Bench::with_library();
    fs::create_dir(bench.path("src")).unwrap();
    let convert = "convert --plain --new-password-file pw src copy";
    assert_eq!(bench.run(convert).code, 0);
    for words in [
        "info lib",
        "info --json lib",
        "key list lib",
        "key add --password-file pw --new-key-file kf --generate lib",
        "verify --password-file pw lib",
        convert,
        "passwd --password-file pw --new-password-file pw2 lib",
        "--version",
        "--help",
        "mount --help",
    ] {
        let full = bench.run_full(words);
        assert_eq!(full.code, 9, "{words}: {}", full.stderr);
        let told = "hushfs: standard output: No space left on device\n";
        assert_eq!(full.stderr, told, "{words}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_news() {
    let (bench, _) = Bench::with_library();
    for words in [
        "info lib",
        "key list lib",
        "verify --password-file pw lib",
        "--help",
    ] {
        let unread = bench.run_unread(words);
        assert_eq!((unread.code, unread.stderr.as_str()), (9, ""), "{words}");
    }
    // It ends at the first problem, and goes not on for nobody.
    fs::create_dir(bench.path("src")).unwrap();
    fs::write(bench.path("src/file"), "content").unwrap();
    assert_eq!(
        bench
            .run("convert --plain --new-password-file pw src copy")
            .code,
        0
    );
    fs::remove_dir_all(bench.path("copy/data")).unwrap();
    let verify = "verify --password-file pw copy";
    assert_eq!(bench.run(verify).code, 5);
    let unread = bench.run_unread(verify);
    assert_eq!(unread.code, 9, "{}", unread.stderr);
    assert!(!unread.stderr.contains("standard output"));
}

#[test]
fn an_error_that_cannot_be_printed_has_its_code() {
    let bench = Bench::new();
    for words in [&["info", "missing"][..], &["init"]] {
        let mut command = bench.command(words);
        let command = command.stdin(Stdio::null());
        let full = File::create("/dev/full").unwrap();
        let status = command.stderr(full).status().unwrap();
        let code = if words[0] == "info" { 4 } else { 2 };
        assert_eq!(status.code(), Some(code), "{words:?}");
    }
}
