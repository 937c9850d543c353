//! Conversions between fuser's types and those of [`crate::volume`], and the replies that several operations share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow,
};

use super::requester::Requester;
use crate::error::{Kind, Result};
use crate::volume::{
    Attr, Caller, Fallocate, FileKind, Handle, NAME_LEN_MAX, RenameMode, SetTime, Statfs, Time,
    Whence, XATTR_LEN_MAX, XattrMode,
};

/// How long the kernel may keep names, their absence, and attributes.
pub(super) const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// `st_blksize`: the buffer size that programs use.
const PREFERRED_IO_BYTES: u32 = 1 << 16;

pub(super) fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    let nanoseconds = Duration::from_nanos(time.nsec.into());
    base.and_then(|t| t.checked_add(nanoseconds))
        .unwrap_or(UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else {
        return SetTime::Now;
    };
    SetTime::At(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            sec: after.as_secs() as i64,
            nsec: after.subsec_nanos(),
        },
        // For times before 1970, fuser 0.18 subtracts the nanoseconds instead of adding them. Repeating that error gives
        // back what the kernel sent.
        Err(before) => {
            let before = before.duration();
            Time {
                sec: 0i64.wrapping_sub_unsigned(before.as_secs()),
                nsec: before.subsec_nanos(),
            }
        }
    })
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_kind(mode: u32) -> Result<FileKind> {
    Ok(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::Regular,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return Err(Kind::InvalidArgument.into()),
    })
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.plain_size,
        blocks: attr.blocks_512,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

/// Attributes for the kernel.
pub(super) struct ShownAttr {
    pub attr: FileAttr,
    pub generation: Generation,
    /// How long the kernel may cache them.
    pub ttl: Duration,
}

/// An answer with inode 0 makes the kernel cache that a name does not exist. It does not cache a plain ENOENT.
pub(super) const NEGATIVE: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

pub(super) fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        umask: (umask & 0o777) as u16,
    }
}

/// How the kernel treats an open file. FOPEN_DIRECT_IO is not set for every write-only handle: with it, a program that
/// reads through the page cache while another one appends briefly sees zeros at the end (Linux 6.18).
pub(super) fn fopen_flags(flags: i32) -> FopenFlags {
    // A read-only handle has nothing to flush when it is closed. This halves the cost of closing it.
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
    } else {
        FopenFlags::FOPEN_KEEP_CACHE
    }
}

pub(super) fn fallocate_mode(mode: i32) -> Result<Fallocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH_KEEP: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Ok(match mode {
        0 => Fallocate::Allocate { keep_size: false },
        KEEP => Fallocate::Allocate { keep_size: true },
        PUNCH_KEEP => Fallocate::PunchHole,
        ZERO => Fallocate::ZeroRange { keep_size: false },
        ZERO_KEEP => Fallocate::ZeroRange { keep_size: true },
        _ => return Err(Kind::NotSupported.into()),
    })
}

pub(super) fn rename_mode(flags: RenameFlags, caller: Caller) -> Result<RenameMode> {
    const WHITEOUT: u32 = libc::RENAME_WHITEOUT;
    const NEW_WHITEOUT: u32 = WHITEOUT | libc::RENAME_NOREPLACE;
    Ok(match flags.bits() {
        0 => RenameMode::Replace,
        libc::RENAME_NOREPLACE => RenameMode::NoReplace,
        libc::RENAME_EXCHANGE => RenameMode::Exchange,
        flags @ (WHITEOUT | NEW_WHITEOUT) => RenameMode::Whiteout {
            no_replace: flags == NEW_WHITEOUT,
            caller,
        },
        _ => return Err(Kind::InvalidArgument.into()),
    })
}

pub(super) fn xattr_mode(flags: i32) -> Result<XattrMode> {
    const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    Ok(match flags {
        0 => XattrMode::Any,
        libc::XATTR_CREATE => XattrMode::Create,
        libc::XATTR_REPLACE => XattrMode::Replace,
        BOTH => XattrMode::CreateAndReplace,
        _ => return Err(Kind::InvalidArgument.into()),
    })
}

/// A reply that is the result of one call.
pub(super) trait Answer<T>: Sized {
    fn give(self, value: T);
    fn fail(self, errno: Errno);

    fn answer(self, result: Result<T, Errno>) {
        match result {
            Ok(value) => self.give(value),
            Err(errno) => self.fail(errno),
        }
    }
}

/// Replies with an error, unless the kernel has already received an answer.
pub(super) fn refuse<T>(reply: Option<impl Answer<T>>, errno: Errno) {
    if let Some(reply) = reply {
        reply.fail(errno);
    }
}

macro_rules! answer {
    ($reply:ty, $value:ty, |$this:ident, $given:pat_param| $give:expr) => {
        impl Answer<$value> for $reply {
            fn give(self, $given: $value) {
                let $this = self;
                $give
            }
            fn fail(self, errno: Errno) {
                self.error(errno)
            }
        }
    };
}

answer!(ReplyEmpty, (), |reply, ()| reply.ok());
answer!(ReplyEntry, ShownAttr, |reply, shown| reply.entry_with_ttls(
    &shown.ttl,
    &TTL,
    &shown.attr,
    shown.generation
));
answer!(ReplyAttr, ShownAttr, |reply, shown| reply
    .attr(&shown.ttl, &shown.attr));
answer!(ReplyCreate, (ShownAttr, Handle, FopenFlags), |reply,
                                                       (
    shown,
    handle,
    flags,
)| {
    let handle = FileHandle(handle.0);
    reply.created(&shown.ttl, &shown.attr, shown.generation, handle, flags)
});
answer!(ReplyData, Vec<u8>, |reply, data| reply.data(&data));
answer!(ReplyWrite, u32, |reply, count| reply.written(count));
answer!(ReplyLseek, u64, |reply, offset| reply.offset(offset as i64));
answer!(ReplyOpen, (Handle, FopenFlags), |reply, (handle, flags)| {
    reply.opened(FileHandle(handle.0), flags)
});
answer!(ReplyStatfs, Statfs, |reply, s| reply.statfs(
    s.blocks,
    s.blocks_free,
    s.blocks_available,
    s.files,
    s.files_free,
    s.block_bytes,
    NAME_LEN_MAX as u32,
    s.block_bytes,
));

/// The names of attributes that the requesting user may see. As on Linux's own filesystems, only root sees `trusted.`.
pub(super) fn shown_names(req: &Request, names: Vec<u8>) -> Vec<u8> {
    let is_roots = |name: &[u8]| name.starts_with(b"trusted.");
    if !names.split(|byte| *byte == 0).any(is_roots) || !Requester::of(req).is_ordinary() {
        return names;
    }
    let shown = names
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| !is_roots(name));
    shown.collect::<Vec<_>>().concat()
}

/// The protocol of getxattr(2) and listxattr(2): with a size of 0, the length is returned.
pub(super) fn answer_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if value.len() > XATTR_LEN_MAX => reply.error(Errno::E2BIG),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(e),
    }
}

/// What lseek(2) finds in a file without holes.
pub(super) fn all_data(plain_size: u64, plain_offset: u64, whence: Whence) -> Result<u64> {
    match whence {
        _ if plain_offset >= plain_size => Err(Kind::NoSuchOffset.into()),
        Whence::Data => Ok(plain_offset),
        Whence::Hole => Ok(plain_size),
    }
}

/// What lseek(2) looks for. The kernel handles the other values of `whence` itself.
pub(super) fn seek_whence(whence: i32) -> Result<Whence> {
    match whence {
        libc::SEEK_DATA => Ok(Whence::Data),
        libc::SEEK_HOLE => Ok(Whence::Hole),
        _ => Err(Kind::InvalidArgument.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_both_ways() {
        for time in [
            Time { sec: 0, nsec: 1 },
            Time {
                sec: -1,
                nsec: 999_999_999,
            },
            Time { sec: -2, nsec: 0 },
            Time {
                sec: i64::MAX,
                nsec: 999_999_999,
            },
            Time {
                sec: i64::MIN,
                nsec: 0,
            },
        ] {
            // As fuser's replies do it.
            let (sec, nsec) = match system_time(time).duration_since(UNIX_EPOCH) {
                Ok(d) => (d.as_secs() as i64, d.subsec_nanos()),
                Err(e) if e.duration().subsec_nanos() == 0 => {
                    (0i64.wrapping_sub_unsigned(e.duration().as_secs()), 0)
                }
                Err(e) => (
                    -(e.duration().as_secs() as i64) - 1,
                    1_000_000_000 - e.duration().subsec_nanos(),
                ),
            };
            assert_eq!(Time { sec, nsec }, time);
        }
        // As fuser's requests do it: -1.25 s comes as (-2, 750 ms) and is made into 2.75 s before 1970.
        let SetTime::At(time) = set_time(TimeOrNow::SpecificTime(
            UNIX_EPOCH - Duration::new(2, 750_000_000),
        )) else {
            panic!("a time is a time");
        };
        assert_eq!(
            time,
            Time {
                sec: -2,
                nsec: 750_000_000
            }
        );
    }

    #[test]
    fn flags_that_are_not_known_are_refused() {
        assert!(matches!(
            fallocate_mode(libc::FALLOC_FL_COLLAPSE_RANGE)
                .unwrap_err()
                .kind(),
            Kind::NotSupported
        ));
        assert!(matches!(
            fallocate_mode(libc::FALLOC_FL_PUNCH_HOLE)
                .unwrap_err()
                .kind(),
            Kind::NotSupported
        ));
        assert_eq!(fallocate_mode(3).unwrap(), Fallocate::PunchHole);
        let caller = Caller {
            uid: 1,
            gid: 2,
            umask: 0,
        };
        for other in [RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_WHITEOUT] {
            assert!(rename_mode(RenameFlags::RENAME_EXCHANGE | other, caller).is_err());
        }
        assert!(rename_mode(RenameFlags::from_bits_retain(8), caller).is_err());
        assert!(xattr_mode(4).is_err());
        assert!(file_kind(libc::S_IFDIR).is_err());
    }
}
