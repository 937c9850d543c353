//! The FUSE edge and mounting, on the real kernel, with a filesystem in memory behind it.
//!
//! Each mount is served by a process of its own: this program, started again as the one test
//! `serve_in_child`. So signals, deaths and exit codes are real, and a guard can end all of it.

mod lifecycle;
mod memfs;
mod operations;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hushfs::mount::{self, Options};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use memfs::MemFs;

/// A source with all that could be read as something else.
const NAME: &str = "/a b,ro\\c#";

/// No test may take longer; then its mount is torn down, and what waits for it fails.
const WATCHDOG: Duration = Duration::from_secs(60);

/// The serving process. Does nothing unless started by [`Mount::with`].
#[test]
fn serve_in_child() {
    let Some(point) = std::env::var_os("HUSHFS_TEST_POINT").map(PathBuf::from) else {
        return;
    };
    let config = std::env::var("HUSHFS_TEST_CONFIG").unwrap();
    let has = |word: &str| config.split(' ').any(|w| w == word);
    let control = PathBuf::from(std::env::var_os("HUSHFS_TEST_CONTROL").unwrap());
    let mut fs = MemFs::new(
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    fs.close_marker = Some(control.join("closed"));
    fs.close_fails = has("close-fails");
    fs.close_takes = Duration::from_millis(if has("close-slow") { 1500 } else { 0 });
    let options = Options {
        allow_other: has("allow_other"),
        nosuid: true,
        nodev: true,
        read_only: has("ro"),
        source: has("named").then(|| NAME.into()),
        subtype: has("named").then(|| "other".into()),
        ..Options::default()
    };
    let ready = || fs::write(control.join("ready"), "").unwrap();
    let ended = mount::serve(std::sync::Arc::new(fs), &point, &options, ready);
    std::process::exit(match ended {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{e}");
            fs::write(control.join("error"), e.to_string()).unwrap();
            e.exit_status() as i32
        }
    });
}

/// A mount that is gone when it goes out of scope, however the test ended.
struct Mount {
    control: TempDir,
    point: PathBuf,
    child: Child,
    _watchdog: mpsc::Sender<()>,
}

impl Mount {
    fn new() -> Self {
        Self::with("", &[])
    }

    fn with(config: &str, prefix: &[&str]) -> Self {
        let point = tempfile::tempdir().unwrap().keep();
        Self::at(point, config, prefix)
    }

    /// Mounts, and waits until it answers or has failed.
    fn at(point: PathBuf, config: &str, prefix: &[&str]) -> Self {
        let control = tempfile::tempdir().unwrap();
        if !prefix.is_empty() {
            for dir in [control.path(), &point] {
                std::os::unix::fs::chown(dir, Some(65534), Some(65534)).unwrap();
            }
        }
        let mut words: Vec<_> = prefix.iter().map(PathBuf::from).collect();
        words.push(std::env::current_exe().unwrap());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["--exact", "serve_in_child", "--nocapture"])
            .env("HUSHFS_TEST_POINT", &point)
            .env("HUSHFS_TEST_CONTROL", control.path())
            .env("HUSHFS_TEST_CONFIG", config)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !control.path().join("ready").exists() && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < WATCHDOG, "not mounted in time");
            thread::sleep(Duration::from_millis(5));
        }
        let (alive, watched) = mpsc::channel::<()>();
        let (pid, path) = (Pid::from_child(&child), point.clone());
        thread::spawn(move || {
            if watched.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
            }
        });
        Self {
            control,
            point,
            child,
            _watchdog: alive,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// How often the volume was asked for `op`.
    fn calls(&self, op: &str) -> u64 {
        let mut value = [0; 32];
        let len =
            rustix::fs::getxattr(&self.point, format!("user.count.{op}"), &mut value).unwrap();
        std::str::from_utf8(&value[..len]).unwrap().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the serving process.
    fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < WATCHDOG, "the process goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a clean end: exit code 0, nothing mounted, the volume closed once.
    fn ended_cleanly(&mut self) {
        assert_eq!(self.ended().code(), Some(0));
        assert_eq!(self.closed(), "1");
        assert!(!is_mounted(&self.point));
    }

    fn closed(&self) -> String {
        fs::read_to_string(self.control.path().join("closed")).unwrap_or_default()
    }

    fn error(&self) -> String {
        fs::read_to_string(self.control.path().join("error")).unwrap_or_default()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while rustix::mount::unmount(&self.point, UnmountFlags::DETACH).is_ok() {}
        let _ = fs::remove_dir(&self.point);
    }
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == point.to_str())
}

/// True where tests cannot mount: not root, or no FUSE.
fn cannot_mount() -> bool {
    let cannot = !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists();
    if cannot {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    cannot
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}
