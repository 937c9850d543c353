//! The program on stores that lack something, and under which somebody meddles with the library's folder.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, and means functions marked so"
)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

mod crooked;
mod lacking;
mod meddled;

use crooked::{Faults, Mounted};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A library, and where it is mounted.
struct Bench {
    dir: TempDir,
    /// What it is mounted by, and what that says.
    daemon: Option<Child>,
    /// Where the library lies; the last to go.
    store: Option<Mounted>,
}

struct Ended {
    code: i32,
    stderr: String,
}

impl Bench {
    /// In a folder of the machine's own filesystem.
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
            daemon: None,
            store: None,
        };
        fs::create_dir(bench.path("mnt")).unwrap();
        fs::create_dir(bench.path("store")).unwrap();
        fs::write(bench.path("pw"), "one\n").unwrap();
        bench
    }

    /// On a store with faults.
    fn on(faults: Faults) -> Self {
        let mut bench = Self::new();
        bench.store = Some(Mounted::new(bench.path("store"), faults));
        bench
    }

    fn with_library() -> Self {
        let bench = Self::new();
        bench.succeeds("init --password-file pw store/lib");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hushfs"));
        command
            .args(words.split(' '))
            .current_dir(self.dir.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env_remove("HUSHFS_LOG")
            .env_remove("CREDENTIALS_DIRECTORY");
        command
    }

    fn run(&self, words: &str) -> Ended {
        let ended = self.command(words).output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ended {
            code: ended.status.code().unwrap(),
            stderr,
        }
    }

    fn succeeds(&self, words: &str) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code, 0, "{words}: {}", ended.stderr);
        ended.stderr
    }

    /// Mounts, and waits until it answers.
    fn mount(&mut self) {
        let log = File::create(self.path("log")).unwrap();
        let daemon = self
            .command("mount --foreground --password-file pw store/lib mnt")
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let started = Instant::now();
        while !self.is_mounted() {
            let ended = self.daemon.as_mut().and_then(|d| d.try_wait().unwrap());
            assert!(ended.is_none(), "{}", self.log());
            assert!(started.elapsed() < PATIENCE, "not mounted in time");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.path("mnt");
        let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.any(|p| Some(p) == point.to_str())
    }

    /// What the daemon has logged.
    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// Writes a file through the mount and syncs it.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.path("mnt").join(name);
        fs::write(&path, text)?;
        File::open(path)?.sync_all()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("mnt").join(name)).unwrap()
    }

    /// Unmounts; answers how.
    fn umount(&mut self) -> Ended {
        let ended = self.run("umount mnt");
        if !self.is_mounted()
            && let Some(mut daemon) = self.daemon.take()
        {
            daemon.wait().unwrap();
        }
        ended
    }

    fn umounts(&mut self) {
        let ended = self.umount();
        assert_eq!(ended.code, 0, "{}\n{}", ended.stderr, self.log());
    }

    /// Kills the daemon: nothing gets to the library after what was synced.
    fn kill(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return self.detach();
        };
        let _ = rustix::process::kill_process(Pid::from_child(&daemon), Signal::KILL);
        let started = Instant::now();
        while daemon.try_wait().unwrap().is_none() && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
        let is_dead = daemon.try_wait().unwrap().is_some();
        if !is_dead {
            // It waits for itself; without its connection it goes.
            self.cut();
        }
        self.detach();
        let _ = daemon.wait();
        assert!(is_dead || thread::panicking(), "it could not be killed");
    }

    /// Ends the connection of the mount to the kernel: whoever waits for an answer is told that there is none.
    fn cut(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.path("mnt");
        for line in table.lines() {
            let words: Vec<_> = line.split(' ').collect();
            if Some(words[4]) == point.to_str() {
                let minor = words[2].rsplit(':').next().unwrap();
                let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
            }
        }
    }

    fn detach(&self) {
        let _ = rustix::mount::unmount(self.path("mnt"), UnmountFlags::DETACH);
    }

    /// This device's folder.
    fn new_folder(&self) -> PathBuf {
        let mut folders = fs::read_dir(self.path("store/lib/new")).unwrap();
        folders.next().unwrap().unwrap().path()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kill();
    }
}

/// True where tests cannot mount: not root, or no FUSE.
fn cannot_mount() -> bool {
    let cannot = !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists();
    if cannot {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    cannot
}
