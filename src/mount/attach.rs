//! The system calls that mount and unmount: mount(2) as root, else through fusermount3.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::error::{Error, Kind, Result, io_text};
use crate::fuse::{READ_LEN_MAX, ShownAs};

/// Type of our mounts in the kernel's table, unless another subtype is given.
pub(super) const FS_TYPE: &str = "fuse.hushfs";

/// How long a request waits for a store that does not answer, by default.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

const HELPER: &str = "fusermount3";

/// How the kernel treats the mount, and how its table describes it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The kernel refuses writes.
    pub read_only: bool,
    /// Users other than the one who mounts may use it, as far as modes and ACLs allow.
    pub allow_other: bool,
    /// Set-user-id bits are ignored.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Source in the table. By default the library's folder, by which mount(8), umount(8), findmnt(8) and df(1)
    /// identify the mount.
    pub source: Option<OsString>,
    /// Type in the table, after `fuse.`; by default `hushfs`.
    pub subtype: Option<OsString>,
    /// Name of the store in the log.
    pub store: Option<String>,
    /// How long a request waits for the store before it fails with EIO; by default 30 s.
    pub timeout: Option<Duration>,
    /// The mount point need not be empty; the mount hides what is in it.
    pub nonempty: bool,
    /// How owners and permission bits are shown.
    pub shown_as: ShownAs,
}

impl Options {
    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOSUID, self.nosuid);
        flags.set(MountFlags::NODEV, self.nodev);
        flags.set(MountFlags::NOEXEC, self.noexec);
        flags
    }

    /// Returns the type as listed in the table.
    pub(super) fn fs_type(&self) -> OsString {
        let Some(subtype) = &self.subtype else {
            return FS_TYPE.into();
        };
        let mut fs_type = OsString::from("fuse.");
        fs_type.push(subtype);
        fs_type
    }

    /// Returns the source as listed in the table.
    fn source(&self) -> &OsStr {
        self.source.as_deref().unwrap_or(OsStr::new("hushfs"))
    }

    /// Returns the options of the filesystem type. The kernel always checks modes and ACLs.
    fn kernel(&self) -> String {
        let other = if self.allow_other { ",allow_other" } else { "" };
        format!("default_permissions,max_read={READ_LEN_MAX}{other}")
    }

    /// Returns all options in the form that fusermount3 takes. For ordinary users it always adds nosuid and nodev.
    fn helper(&self) -> OsString {
        let subtype = self.subtype.as_deref().unwrap_or(OsStr::new("hushfs"));
        let mut text = OsString::from("fsname=");
        text.push(escaped(self.source()));
        text.push(",subtype=");
        text.push(escaped(subtype));
        text.push(",");
        text.push(self.kernel());
        for (set, on, off) in [
            (self.read_only, ",ro", ",rw"),
            (self.nosuid, ",nosuid", ",suid"),
            (self.nodev, ",nodev", ",dev"),
            (self.noexec, ",noexec", ",exec"),
        ] {
            text.push(if set { on } else { off });
        }
        text
    }
}

/// Escapes the value of an option for fusermount3, which splits its options at commas.
fn escaped(value: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// Mounts at `point`, and returns the device on which the kernel's requests arrive.
pub(super) fn attach(point: &Path, options: &Options) -> Result<OwnedFd> {
    if rustix::process::geteuid().is_root()
        && let Some(device) = direct(point, options)?
    {
        return Ok(device);
    }
    helped(point, options)
}

/// Mounts with mount(2). Returns `None` if this process may not, as root in a container may not.
fn direct(point: &Path, options: &Options) -> Result<Option<OwnedFd>> {
    let device = match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(device) => device,
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => return Ok(None),
        Err(e) => {
            return Err(
                Error::io(e.into(), "/dev/fuse").hint("the kernel needs FUSE: modprobe fuse")
            );
        }
    };
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let fd = device.as_raw_fd();
    let data = format!(
        "fd={fd},rootmode=40000,user_id={uid},group_id={gid},{}",
        options.kernel()
    );
    let data = CString::new(data).expect("numbers and fixed words hold no zero byte");
    let (source, fs_type) = (options.source(), options.fs_type());
    match rustix::mount::mount(source, point, fs_type, options.flags(), data.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(rustix::io::Errno::PERM) => Ok(None),
        Err(e) => Err(refused(point, io_text(&io::Error::from(e)))),
    }
}

fn refused(point: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Mount(format!("cannot be mounted: {why}").into()),
        point.display(),
    )
}

/// Mounts through the set-user-id program fusermount3, which sends the device over a socket.
fn helped(point: &Path, options: &Options) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| refused(point, io_text(&e)))?;
    let child = helper()
        .arg("-o")
        .arg(options.helper())
        .arg("--")
        .arg(point)
        // Passed as standard input: the only descriptor that a child can be given without a race with other forks.
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(helper_missing)?;
    let device = receive(&ours);
    // The helper was not asked to stay for auto_unmount, so it exits once it has sent the device or an error.
    drop(ours);
    let output = child
        .wait_with_output()
        .map_err(|e| refused(point, io_text(&e)))?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Ok(_) => Err(explain(point, &output)),
        Err(e) => Err(refused(point, io_text(&e))),
    }
}

/// Receives the device; `None` if the helper exits without sending it. The command is dropped once spawned, and with it
/// our copy of the helper's end of the socket, so the death of the helper ends the stream.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [const { std::mem::MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [io::IoSliceMut::new(&mut byte)],
            &mut control,
            flags,
        )
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

fn helper() -> Command {
    let mut command = Command::new(HELPER);
    // Its messages are parsed, so they must be in a fixed language.
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn helper_missing(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => Error::new(Kind::Mount("is not installed".into()), HELPER)
            .hint("ordinary users need it to mount: install the package fuse3"),
        _ => Error::io(e, HELPER),
    }
}

fn explain(point: &Path, output: &Output) -> Error {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().trim_start_matches("fusermount3: ");
    let error = refused(
        point,
        if text.is_empty() {
            "fusermount3 gave no reason"
        } else {
            text
        },
    );
    if text.contains("user_allow_other") {
        return error.hint("root has to add the line user_allow_other to /etc/fuse.conf");
    }
    if text.contains("/dev/fuse: Permission denied") {
        return error.hint("root has to let users open it: chmod 666 /dev/fuse");
    }
    error
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detach {
    /// Only if nothing uses it.
    Now,
    /// Immediately, even if it is in use; the mount ends when nothing uses it any more.
    Lazily,
}

/// Detaches the mount whose root directory is `root`, wherever it is mounted now; `point` is where it was seen. A mount
/// that has taken its place meanwhile is left alone, unless the set-user-id program has to do it.
pub(super) fn detach_held(root: impl AsFd, point: &Path) -> Result<()> {
    // This link leads to the directory itself, without another lookup of its path.
    let root = format!("/proc/self/fd/{}", root.as_fd().as_raw_fd());
    match rustix::mount::unmount(root, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        // Another process has just unmounted it.
        Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(_) => detach(point, Detach::Lazily),
    }
}

/// Unmounts what is at `point`.
pub(super) fn detach(point: &Path, how: Detach) -> Result<()> {
    let flags = match how {
        Detach::Now => UnmountFlags::NOFOLLOW,
        Detach::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    let failed = |why: &dyn std::fmt::Display| {
        Error::new(
            Kind::Mount(format!("cannot be unmounted: {why}").into()),
            point.display(),
        )
    };
    match rustix::mount::unmount(point, flags) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::PERM) => {}
        Err(rustix::io::Errno::BUSY) => return Err(in_use(point)),
        Err(e) => return Err(failed(&io_text(&io::Error::from(e)))),
    }
    let mut command = helper();
    command.arg("-u");
    if how == Detach::Lazily {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(point)
        .output()
        .map_err(helper_missing)?;
    let text = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if text.contains("busy") => Err(in_use(point)),
        false => Err(failed(&text.trim().trim_start_matches("fusermount3: "))),
    }
}

fn in_use(point: &Path) -> Error {
    Error::new(Kind::InUse, point.display())
        .hint("a program has a file or folder open there: fuser -vm names it")
}
