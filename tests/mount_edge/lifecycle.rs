//! How mounts begin and end.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hushfs::{Kind, mount};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use super::{Mount, cannot_mount, errno, is_mounted};

#[test]
fn a_plain_umount_ends_it_and_leaves_others_alone() {
    if cannot_mount() {
        return;
    }
    // A stranger's mount below ours, which fuser 0.18 by itself would take away, too.
    let point = tempfile::tempdir().unwrap().keep();
    rustix::mount::mount("none", &point, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(point.join("stranger"), "here").unwrap();
    let mut m = Mount::at(point, "", &[]);
    assert!(!m.path("stranger").exists());
    rustix::mount::unmount(&m.point, UnmountFlags::empty()).unwrap();
    assert_eq!(m.ended().code(), Some(0));
    assert_eq!(m.closed(), "1");
    assert_eq!(fs::read(m.path("stranger")).unwrap(), b"here");
}

#[test]
fn a_mount_on_top_is_left_alone() {
    if cannot_mount() {
        return;
    }
    let mut m = Mount::new();
    rustix::mount::mount("none", &m.point, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(m.path("stranger"), "here").unwrap();
    m.signal(Signal::TERM);
    // Cut off after the grace, for it cannot be unmounted.
    assert_eq!(m.ended().code(), Some(0));
    assert_eq!(m.closed(), "1");
    let read = fs::read(m.path("stranger"));
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let read =
        read.unwrap_or_else(|e| panic!("{}: {e}; mounted:\n{}", m.point.display(), mounts()));
    assert_eq!(read, b"here");
}

#[test]
fn signals_end_it() {
    if cannot_mount() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut m = Mount::with("close-slow", &[]);
        fs::write(m.path("f"), "x").unwrap();
        m.signal(signal);
        // A second one changes nothing.
        thread::sleep(Duration::from_millis(300));
        m.signal(signal);
        m.ended_cleanly();
    }
}

#[test]
fn a_signal_ends_it_with_files_open() {
    if cannot_mount() {
        return;
    }
    let mut m = Mount::new();
    let mut file = File::create(m.path("f")).unwrap();
    file.write_all(b"x").unwrap();
    let started = Instant::now();
    m.signal(Signal::TERM);
    m.ended_cleanly();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(matches!(
        errno(file.write_all(b"y")),
        libc::ENOTCONN | libc::ECONNABORTED
    ));
}

#[test]
fn unmounting_waits_and_tells() {
    if cannot_mount() {
        return;
    }
    let mut m = Mount::with("close-slow", &[]);
    mount::unmount(&m.point).unwrap();
    assert_eq!(m.closed(), "1");
    assert!(m.child.try_wait().unwrap().is_some());
    m.ended_cleanly();

    let mut m = Mount::with("close-fails", &[]);
    let error = mount::unmount(&m.point).unwrap_err();
    assert_eq!(error.exit_status() as i32, 9, "{error}");
    assert!(
        error.to_string().contains("new/00ff: no space left"),
        "{error}"
    );
    assert_eq!(m.ended().code(), Some(9));
    assert!(m.error().contains("no space left"));

    let m = Mount::new();
    let file = File::create(m.path("f")).unwrap();
    let error = mount::unmount(&m.point).unwrap_err();
    assert!(matches!(error.kind(), Kind::InUse), "{error}");
    drop(file);
    mount::unmount(&m.point).unwrap();
    let error = mount::unmount(&m.point).unwrap_err().to_string();
    assert!(error.contains("no library is mounted here"), "{error}");
}

#[test]
fn mount_points_in_use_are_refused() {
    if cannot_mount() {
        return;
    }
    let library = tempfile::tempdir().unwrap();
    let mut m = Mount::new();
    let error = mount::check(&m.point, library.path(), false).unwrap_err();
    assert!(matches!(error.kind(), Kind::InUse), "{error}");
    // Its process dies: nobody serves it, and that is said, and it can still be unmounted.
    m.signal(Signal::KILL);
    m.ended();
    let error = mount::check(&m.point, library.path(), false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("died") && error.contains("umount"),
        "{error}"
    );
    mount::unmount(&m.point).unwrap();
    assert!(!is_mounted(&m.point));
    mount::check(&m.point, library.path(), false).unwrap();
}

#[test]
fn ordinary_users_mount_through_fusermount3() {
    let setpriv = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let there = |name: &str| Command::new(name).arg("--version").output().is_ok();
    if cannot_mount() || !there("fusermount3") || !there("setpriv") {
        return;
    }
    let umount = |m: &Mount| {
        Command::new(setpriv[0])
            .args(&setpriv[1..])
            .args(["fusermount3", "-u", "--"])
            .arg(&m.point)
            .status()
    };
    if fs::metadata("/dev/fuse").unwrap().mode() & 0o006 != 0o006 {
        return eprintln!("skipped: ordinary users may not open /dev/fuse");
    }
    let mut m = Mount::with("", &setpriv);
    assert!(is_mounted(&m.point), "{}", m.error());
    // Not root's, without allow_other.
    assert_eq!(errno(fs::metadata(&m.point)), libc::EACCES);
    assert!(umount(&m).unwrap().success());
    m.ended_cleanly();

    let mut m = Mount::with("", &setpriv);
    m.signal(Signal::TERM);
    m.ended_cleanly();

    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        let mut m = Mount::with("allow_other", &setpriv);
        assert_eq!(m.ended().code(), Some(7));
        assert!(m.error().contains("/etc/fuse.conf"), "{}", m.error());
        assert_eq!(m.closed(), "1");
    }
}

/// The kernel's line of what is mounted there: id, device, type and source.
fn line_of(point: &std::path::Path) -> Option<[String; 4]> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = table.lines().map(words);
    let line = lines.rfind(|line| Some(line[4].as_str()) == point.to_str())?;
    let behind = line.iter().position(|word| word == "-")?;
    Some([&line[0], &line[2], &line[behind + 1], &line[behind + 2]].map(Clone::clone))
}

#[test]
fn an_ending_mount_leaves_alone_what_has_its_numbers() {
    if cannot_mount() {
        return;
    }
    // Others mount, too: so it may take several tries until a mount gets the numbers that were just free.
    for _ in 0..30 {
        let mut m = Mount::new();
        let stranger = tempfile::tempdir().unwrap();
        let ours = line_of(&m.point).unwrap();
        m.signal(Signal::STOP);
        rustix::mount::unmount(&m.point, UnmountFlags::empty()).unwrap();
        rustix::mount::mount("none", stranger.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        let theirs = line_of(stranger.path()).unwrap();
        m.signal(Signal::CONT);
        m.ended_cleanly();
        let is_there = is_mounted(stranger.path());
        let _ = rustix::mount::unmount(stranger.path(), UnmountFlags::DETACH);
        assert!(is_there, "{theirs:?} was taken away by {ours:?}");
        if ours[..2] == theirs[..2] {
            return;
        }
    }
    eprintln!("no mount got the numbers of the one before");
}

#[test]
fn a_stopped_process_does_not_keep_its_mount() {
    if cannot_mount() {
        return;
    }
    let mut m = Mount::new();
    m.signal(Signal::STOP);
    let started = Instant::now();
    let error = mount::unmount_by_force(&m.point).unwrap_err();
    assert_eq!(error.exit_status() as i32, 9, "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(!is_mounted(&m.point));
    m.signal(Signal::CONT);
    m.ended_cleanly();
}

#[test]
fn the_table_says_what_was_asked_for() {
    if cannot_mount() {
        return;
    }
    let setpriv = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let may = fs::metadata("/dev/fuse").unwrap().mode() & 0o006 == 0o006;
    let there = |name: &str| Command::new(name).arg("--version").output().is_ok();
    let helped = may && there("fusermount3") && there("setpriv");
    for prefix in [&[][..], &setpriv]
        .into_iter()
        .take(1 + usize::from(helped))
    {
        let mut m = Mount::with("named", prefix);
        let [_, _, fs_type, source] = line_of(&m.point).unwrap_or_else(|| panic!("{}", m.error()));
        assert_eq!(fs_type, "fuse.other");
        let source = source
            .replace("\\040", " ")
            .replace("\\134", "\\")
            .replace("\\043", "#");
        assert_eq!(source, super::NAME);
        m.signal(Signal::TERM);
        m.ended_cleanly();
    }
    let mut m = Mount::with("named", &[]);
    mount::unmount(&m.point).unwrap();
    m.ended_cleanly();
}
