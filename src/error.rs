//! One error type, one errno table, one table of exit codes.
//!
//! An [`Error`] consists of what went wrong ([`Kind`]), the file or object concerned (`subject`), and what the user can do
//! (`hint`), if anything. Kinds on the hot path (a missing name, for example) carry no text, so that creating an error
//! allocates nothing.

use std::fmt;
use std::io;
use std::path::Path;

/// The result type of the whole crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, the file or object concerned, and what to do.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    subject: Option<Box<str>>,
    hint: Option<Box<str>>,
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Kind {
    // POSIX errors of a mounted filesystem.
    /// There is no such file or directory.
    NotFound,
    /// The name is taken.
    Exists,
    /// A path component is not a directory.
    NotDirectory,
    /// The operation is not for directories.
    IsDirectory,
    /// The directory still has entries.
    NotEmpty,
    /// A name is longer than 255 bytes, or a link target than 4095.
    NameTooLong,
    /// An invalid argument.
    InvalidArgument,
    /// Not allowed for anyone.
    NotPermitted,
    /// Not allowed for this caller.
    AccessDenied,
    /// The mount is read-only.
    ReadOnly,
    /// The store is full.
    NoSpace,
    /// No such extended attribute.
    NoAttribute,
    /// The caller's buffer is too small for the answer.
    BufferTooSmall,
    /// A value is too large.
    TooBig,
    /// A file would become too large.
    FileTooLarge,
    /// This filesystem does not support that.
    NotSupported,
    /// A link across filesystems.
    CrossDevice,
    /// The inode no longer exists.
    Stale,
    /// No data or hole at or after this offset.
    NoSuchOffset,

    // Errors of a store.
    /// A system call failed.
    Io(io::Error),
    /// Stored data is not what was written: it was damaged or changed. The text is the check that failed.
    Damaged(Box<str>),
    /// An object that the index refers to is not in the store.
    Missing,
    /// The library, or a part of it, was replaced while it is mounted. The text is what happened.
    Displaced(Box<str>),
    /// The store did not answer in time.
    TimedOut,
    /// The program in the text did not answer in time.
    NoAnswer(Box<str>),
    /// An earlier write failed, so that nothing more may be written.
    Poisoned,

    // Errors of the user.
    /// The password, key file or recovery code opens no slot of this library.
    WrongKey,
    /// A password, key file or recovery code cannot be used. The text is the reason.
    Secret(Box<str>),
    /// No password, key file or recovery code was given.
    NoSecret,
    /// The folder of the library, or of what is to be converted, does not exist.
    NoFolder,
    /// The directory is not a library.
    NotLibrary,
    /// A library of another program, which the command does not support. The text is the format.
    Foreign(Box<str>),
    /// Written by a later version, or with a feature that this version does not support.
    Unsupported(Box<str>),
    /// In a format of another program that is not supported.
    OtherForm(Box<str>),
    /// The library, or the mount point, is in use.
    InUse,
    /// Another machine, or another mount, writes under this device's id.
    DeviceTaken(Box<str>),
    /// The command cannot be carried out as typed.
    Usage(Box<str>),
    /// The user answered no.
    Declined,
    /// Mounting or unmounting failed.
    Mount(Box<str>),
    /// The mount point is not usable, or nothing is mounted there. The text is the reason.
    MountPoint(Box<str>),
    /// The process of a mount ended with this status. The text is its error, or empty if it has printed that itself.
    Ended(ExitStatus, Box<str>),
    /// The index is older than one that this machine has seen.
    RolledBack(Box<str>),
}

/// The exit codes of the program. A number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done.
    Success = 0,
    /// Any other error.
    Failure = 1,
    /// Wrong usage (clap has the same number).
    Usage = 2,
    /// A wrong, empty or unreadable password, key file or recovery code.
    WrongKey = 3,
    /// No library, a library of another program, or one of a later version.
    NotLibrary = 4,
    /// Stored data is damaged, missing or rolled back.
    Damaged = 5,
    /// In use: already mounted, or the mount point is busy.
    InUse = 6,
    /// The kernel or fusermount3 refused.
    Mount = 7,
    /// The mount point or target is missing, not empty, exists already or is not mounted.
    Exists = 8,
    /// Reading or writing failed.
    Io = 9,
}

impl ExitStatus {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::WrongKey,
        Self::NotLibrary,
        Self::Damaged,
        Self::InUse,
        Self::Mount,
        Self::Exists,
        Self::Io,
    ];

    /// The status of an exit code; `None` if there is none with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl Error {
    /// An error about `subject`: a path, an object, a name.
    pub fn new(kind: Kind, subject: impl fmt::Display) -> Self {
        Self {
            kind,
            subject: Some(subject.to_string().into()),
            hint: None,
        }
    }

    /// An I/O error at `path`.
    pub fn io(source: io::Error, path: impl AsRef<Path>) -> Self {
        Self::new(Kind::Io(source), path.as_ref().display())
    }

    /// Damage in `subject`; `check` is what is wrong.
    pub fn damaged(subject: impl fmt::Display, check: impl fmt::Display) -> Self {
        Self::new(Kind::Damaged(check.to_string().into()), subject)
    }

    /// A password or key that cannot be used; `subject` is where it comes from.
    pub fn secret(subject: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Kind::Secret(why.to_string().into()), subject)
    }

    /// A command that cannot be carried out as typed.
    pub fn usage(text: impl fmt::Display) -> Self {
        Self::from(Kind::Usage(text.to_string().into()))
    }

    /// Adds a hint: what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string().into());
        self
    }

    /// Removes the hint.
    #[must_use]
    pub fn without_hint(mut self) -> Self {
        self.hint = None;
        self
    }

    /// Sets the subject, unless there is one.
    #[must_use]
    pub fn about(mut self, subject: impl fmt::Display) -> Self {
        self.subject
            .get_or_insert_with(|| subject.to_string().into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The file or object concerned, if known.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// The errno(3) for a program that uses the mount.
    pub fn errno(&self) -> i32 {
        match &self.kind {
            Kind::NotFound => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::NotDirectory => libc::ENOTDIR,
            Kind::IsDirectory => libc::EISDIR,
            Kind::NotEmpty => libc::ENOTEMPTY,
            Kind::NameTooLong => libc::ENAMETOOLONG,
            Kind::InvalidArgument | Kind::Usage(_) => libc::EINVAL,
            Kind::NotPermitted => libc::EPERM,
            Kind::AccessDenied => libc::EACCES,
            Kind::ReadOnly | Kind::Poisoned => libc::EROFS,
            Kind::NoSpace => libc::ENOSPC,
            Kind::NoAttribute => libc::ENODATA,
            Kind::BufferTooSmall => libc::ERANGE,
            Kind::TooBig => libc::E2BIG,
            Kind::FileTooLarge => libc::EFBIG,
            Kind::NotSupported => libc::EOPNOTSUPP,
            Kind::CrossDevice => libc::EXDEV,
            Kind::Stale => libc::ESTALE,
            Kind::NoSuchOffset => libc::ENXIO,
            // Programs react to a full disk, so it keeps its own errno. Other errors of the store (permissions, stale
            // handles) would be misunderstood as errors of the file in the mount.
            Kind::Io(e) => match e.raw_os_error() {
                Some(code @ (libc::ENOSPC | libc::EDQUOT)) => code,
                _ => libc::EIO,
            },
            Kind::InUse | Kind::DeviceTaken(_) => libc::EBUSY,
            Kind::TimedOut
            | Kind::NoAnswer(_)
            | Kind::Damaged(_)
            | Kind::Missing
            | Kind::Displaced(_)
            | Kind::WrongKey
            | Kind::Secret(_)
            | Kind::NoSecret
            | Kind::NoFolder
            | Kind::NotLibrary
            | Kind::Foreign(_)
            | Kind::Unsupported(_)
            | Kind::OtherForm(_)
            | Kind::Declined
            | Kind::Mount(_)
            | Kind::MountPoint(_)
            | Kind::Ended(..)
            | Kind::RolledBack(_) => libc::EIO,
        }
    }

    /// The exit code of the program that ends with this error.
    pub fn exit_status(&self) -> ExitStatus {
        match &self.kind {
            Kind::Usage(_) => ExitStatus::Usage,
            Kind::WrongKey | Kind::Secret(_) | Kind::NoSecret => ExitStatus::WrongKey,
            Kind::NoFolder
            | Kind::NotLibrary
            | Kind::Foreign(_)
            | Kind::Unsupported(_)
            | Kind::OtherForm(_) => ExitStatus::NotLibrary,
            Kind::Damaged(_) | Kind::Missing | Kind::Displaced(_) | Kind::RolledBack(_) => {
                ExitStatus::Damaged
            }
            Kind::InUse | Kind::DeviceTaken(_) => ExitStatus::InUse,
            Kind::Mount(_) => ExitStatus::Mount,
            Kind::Ended(status, _) => *status,
            Kind::NotFound
            | Kind::NotDirectory
            | Kind::Exists
            | Kind::NotEmpty
            | Kind::MountPoint(_) => ExitStatus::Exists,
            Kind::Io(_) | Kind::NoSpace | Kind::TimedOut | Kind::NoAnswer(_) | Kind::Poisoned => {
                ExitStatus::Io
            }
            _ => ExitStatus::Failure,
        }
    }

    /// The exit code for mount(8), which calls the program as `mount.hushfs`.
    pub fn mount_8_code(&self) -> u8 {
        match self.exit_status() {
            ExitStatus::Success => 0,
            ExitStatus::Usage => 1,
            ExitStatus::Io => 2,
            _ => 32,
        }
    }

    /// Whether it should be logged: it is a fault of the store, rather than of the request.
    pub fn is_fault(&self) -> bool {
        self.errno() == libc::EIO || matches!(self.kind, Kind::Poisoned)
    }

    /// Whether the store is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.errno(), libc::ENOSPC | libc::EDQUOT)
    }
}

/// The text of a system error, without the number that [`io::Error`] appends.
pub fn io_text(e: &io::Error) -> String {
    let mut text = e.to_string();
    if let Some(code) = e.raw_os_error()
        && let Some(len) = text
            .strip_suffix(&format!(" (os error {code})"))
            .map(str::len)
    {
        text.truncate(len);
    }
    text
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            subject: None,
            hint: None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::NotFound => "no such file or directory",
            Kind::Exists => "exists already",
            Kind::NotDirectory => "not a directory",
            Kind::IsDirectory => "is a directory",
            Kind::NotEmpty => "is not empty",
            Kind::NameTooLong => "name too long",
            Kind::InvalidArgument => "invalid argument",
            Kind::NotPermitted => "operation not permitted",
            Kind::AccessDenied => "permission denied",
            Kind::ReadOnly => "mounted read-only",
            Kind::NoSpace => "no space left",
            Kind::NoAttribute => "no such extended attribute",
            Kind::BufferTooSmall => "buffer too small",
            Kind::TooBig => "value too large",
            Kind::FileTooLarge => "file too large",
            Kind::NotSupported => "not supported",
            Kind::CrossDevice => "link across filesystems",
            Kind::Stale => "stale file handle",
            Kind::NoSuchOffset => "no data at or after this offset",
            Kind::Io(e) => return io_text(e).fmt(f),
            Kind::Damaged(check) => return write!(f, "damaged: {check}"),
            Kind::Missing => "is missing from the library",
            Kind::NoAnswer(who) => return write!(f, "{who} has not answered in time"),
            Kind::TimedOut => "the store did not answer in time",
            Kind::Poisoned => "an earlier write failed, so nothing more is written",
            Kind::WrongKey => "wrong password or key, or not this library's",
            Kind::NoSecret => "no password given",
            Kind::NoFolder => "not found",
            Kind::NotLibrary => "is not a hushfs library",
            Kind::Foreign(what) => return write!(f, "is {what}"),
            Kind::Declined => "nothing was changed",
            Kind::Unsupported(what) => return write!(f, "needs a later version of hushfs: {what}"),
            Kind::OtherForm(what) => return write!(f, "not read by hushfs: {what}"),
            Kind::InUse => "is in use",
            Kind::Usage(text)
            | Kind::Secret(text)
            | Kind::Mount(text)
            | Kind::MountPoint(text)
            | Kind::Ended(_, text)
            | Kind::Displaced(text)
            | Kind::DeviceTaken(text)
            | Kind::RolledBack(text) => text,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subject) = &self.subject {
            write!(f, "{subject}: ")?;
        }
        self.kind.fmt(f)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            Kind::Io(e) => Some(e),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_which_file_and_what_to_do() {
        let e = Error::damaged("data/00ff", "the block at 48 cannot be decrypted")
            .hint("restore it from a copy");
        assert_eq!(
            e.to_string(),
            "data/00ff: damaged: the block at 48 cannot be decrypted (restore it from a copy)"
        );
        assert_eq!(e.errno(), libc::EIO);
        assert_eq!(e.exit_status(), ExitStatus::Damaged);
    }

    #[test]
    fn system_errors_are_shown_without_their_number() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(Error::io(denied, "/x").to_string(), "/x: Permission denied");
        let other = io::Error::other("odd (os error 5)");
        assert_eq!(io_text(&other), "odd (os error 5)");
    }

    #[test]
    fn only_a_full_disk_keeps_its_errno() {
        let full = Error::io(io::Error::from_raw_os_error(libc::ENOSPC), "/x");
        let denied = Error::io(io::Error::from_raw_os_error(libc::EACCES), "/x");
        assert_eq!((full.errno(), denied.errno()), (libc::ENOSPC, libc::EIO));
        // No OS code at all must not turn into success or something a program acts on.
        assert_eq!(
            Error::io(io::Error::from(io::ErrorKind::NotFound), "/x").errno(),
            libc::EIO
        );
    }
}
