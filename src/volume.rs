//! The trait that everything mountable implements.
//!
//! Plain types only: no FUSE here, so that a volume is complete and testable without a kernel. Permission
//! checks against mode bits and ACLs are the kernel's (`default_permissions`); a volume stores and inherits them.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::error::{Kind, Result};

/// An inode number as programs see it in `st_ino`: below 2^53, and below 2^32 as long as that is enough. The root is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// The root directory.
pub const ROOT: Ino = Ino(1);

/// The longest name, in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (PATH_MAX without the closing zero).
pub const TARGET_LEN_MAX: usize = 4095;
/// The largest file, in bytes: `loff_t` ends here.
pub const FILE_LEN_MAX: u64 = i64::MAX as u64;
/// The longest value of an extended attribute, in bytes (the kernel's XATTR_SIZE_MAX).
pub const XATTR_LEN_MAX: usize = 65_536;

/// An open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// Seconds and nanoseconds since 1970, as in `struct timespec`; `nsec` is below 1,000,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds on top.
    pub nsec: u32,
}

impl Time {
    /// The system's clock.
    pub fn now() -> Self {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self {
            sec: t.tv_sec,
            nsec: t.tv_nsec as u32,
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// A regular file.
    Regular = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A socket.
    Socket = 4,
    /// A character device.
    CharDevice = 5,
    /// A block device.
    BlockDevice = 6,
}

/// What is not as it was, and not by a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Attributes, contents or names of an inode.
    Inode(Ino),
    /// What stands under a name in a directory, or that nothing does.
    Name(Ino, OsString),
}

/// Who hears of changes.
pub type OnChange = Box<dyn Fn(&Changed) + Send>;

/// What stat(2) says of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Tells it from what had this number before; 0 where numbers are not used again.
    pub generation: u32,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-id and sticky: at most 0o7777.
    pub perm: u16,
    /// Links; a directory has 2 and one more for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node (in the encoding of FUSE), else 0.
    pub rdev: u32,
    /// Length in bytes of plaintext; of a link, its target's.
    pub plain_size: u64,
    /// Units of 512 bytes that hold data.
    pub blocks_512: u64,
    /// Last access: set at creation and by utimensat(2) only.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

/// Who asks, for what is newly made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Bits that a new inode shall not have, unless a default ACL says which it shall.
    pub umask: u16,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// This time.
    At(Time),
}

/// What setattr changes; `None` leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits, at most 0o7777.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: cuts, or adds a hole.
    pub plain_size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
}

/// A name in a directory.
#[derive(Debug)]
pub struct Dirent<'a> {
    /// What it names.
    pub ino: Ino,
    /// What that is.
    pub kind: FileKind,
    /// Its name.
    pub name: &'a OsStr,
    /// Where a later readdir goes on behind this entry. Does not move while other entries come and go.
    pub cookie: u64,
    /// What stat(2) would say; filled where [`Volume::readdir`] is asked with `plus`.
    pub attr: Option<Attr>,
}

/// What statfs(2) says; sizes in units of `block_bytes`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Statfs {
    /// Bytes in a unit.
    pub block_bytes: u32,
    /// All units.
    pub blocks: u64,
    /// Free units.
    pub blocks_free: u64,
    /// Free units for ordinary users.
    pub blocks_available: u64,
    /// Inodes there are and could be.
    pub files: u64,
    /// Inodes that could still be made.
    pub files_free: u64,
}

/// What rename does with a target that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Refuse (RENAME_NOREPLACE).
    NoReplace,
    /// Swap the two (RENAME_EXCHANGE).
    Exchange,
    /// Leave in the old place what overlayfs takes for a name that was removed: a character device 0, 0 (RENAME_WHITEOUT).
    Whiteout {
        /// A target that is there is refused, not replaced.
        no_replace: bool,
        /// Whose it will be.
        caller: Caller,
    },
}

/// What fallocate(2) is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// Make room; grow the file where `keep_size` is not set.
    Allocate {
        /// Leave the length as it is.
        keep_size: bool,
    },
    /// Make a hole, length unchanged.
    PunchHole,
    /// Make zeros; grow the file where `keep_size` is not set.
    ZeroRange {
        /// Leave the length as it is.
        keep_size: bool,
    },
}

/// What lseek(2) looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte that is in a hole; the end of the file is one.
    Hole,
}

/// Whether setxattr(2) may make or must replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Either.
    Any,
    /// Fail with EEXIST where it is there.
    Create,
    /// Fail with ENODATA where it is not.
    Replace,
    /// Both at once, which always fails: with EEXIST or ENODATA.
    CreateAndReplace,
}

/// What becomes of the set-id bits of a file that is changed, or changes hands. A set-group-id bit of what the group
/// may not run is a mere mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetId {
    /// They stay.
    Keep,
    /// They go, but for the mark.
    Drop,
    /// They go; the mark, too, unless the file is of this group.
    DropUnlessOf(u32),
}

/// How long a store has owed an answer, in its oldest call. Zero where it owes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Silence {
    /// To any call.
    pub any: Duration,
    /// To one that writes.
    pub writes: Duration,
}

/// Told, once, how an operation that had to wait ended.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// A filesystem that can be mounted.
///
/// Every method may be called from several threads at once. A method that returns an [`Attr`] of a child
/// (`lookup`, `mknod`, `mkdir`, `symlink`, `link`, `create`, and each entry taken from `readdir` with `plus`
/// other than `.` and `..`) gives the kernel one reference to it, which [`Volume::forget`] gives back; an inode
/// without a name lives until its references and its handles are gone.
///
/// What a volume has no use for keeps its default: EOPNOTSUPP, or the answer of a read-only filesystem without
/// extended attributes.
pub trait Volume: Send + Sync {
    /// Finds `name` in `parent`; `.` is the directory itself, `..` the one above.
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr>;
    /// Gives back `count` references of the kernel to `ino`.
    fn forget(&self, ino: Ino, count: u64);
    /// What stat(2) says.
    fn getattr(&self, ino: Ino) -> Result<Attr>;
    /// A path of an inode from the root, without a leading slash, for the log; `None` where it has no name.
    fn path_of(&self, _ino: Ino) -> Option<Vec<u8>> {
        None
    }
    /// The target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;

    /// Opens a file with the flags of open(2). O_TRUNC cuts it.
    fn open(&self, ino: Ino, flags: i32) -> Result<Handle>;
    /// Closes a handle of a file for good.
    fn release(&self, ino: Ino, handle: Handle);
    /// Fills `out` from `plain_offset`; fewer bytes only where the file ends.
    fn read(&self, ino: Ino, handle: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize>;
    /// The next data or hole at or after `plain_offset`. ENXIO at or after the end.
    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64>;
    /// The next data at or after `plain_offset`; none where only a hole, or nothing, is left.
    fn next_data(&self, ino: Ino, plain_offset: u64) -> Result<Option<u64>> {
        match self.lseek(ino, plain_offset, Whence::Data) {
            Err(e) if matches!(e.kind(), Kind::NoSuchOffset) => Ok(None),
            data => data.map(Some),
        }
    }

    /// Opens a directory.
    fn opendir(&self, ino: Ino) -> Result<Handle> {
        let attr = self.getattr(ino)?;
        if attr.kind == FileKind::Directory {
            Ok(Handle(0))
        } else {
            Err(Kind::NotDirectory.into())
        }
    }
    /// Closes a handle of a directory.
    fn releasedir(&self, _ino: Ino, _handle: Handle) {}
    /// Hands the entries behind `cookie` (0: from the start) to `take` until it says false; `.` and `..` come first.
    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()>;

    /// Has changes of the volume told that come from elsewhere, in place of requests. Called once or never. `tell` may wait for answers to requests, so it must not be called from within one.
    fn follow(&self, _tell: OnChange) -> Result<()> {
        Ok(())
    }

    /// What statfs(2) says.
    fn statfs(&self) -> Result<Statfs>;

    /// The value of an extended attribute.
    fn getxattr(&self, _ino: Ino, _name: &OsStr) -> Result<Vec<u8>> {
        Err(Kind::NotSupported.into())
    }
    /// The names of the extended attributes, each with a closing zero byte.
    fn listxattr(&self, _ino: Ino) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Changes attributes, and answers the new ones; a change of nothing moves ctime. Set-id bits are as they are told
    /// to be: see [`drop_privileges`](Self::drop_privileges).
    fn setattr(&self, _ino: Ino, _change: &SetAttr) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Makes a file that is not a directory. `perm` is as asked for, before the umask.
    fn mknod(
        &self,
        _parent: Ino,
        _name: &OsStr,
        _kind: FileKind,
        _perm: u16,
        _rdev: u32,
        _caller: Caller,
    ) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Makes a regular file and opens it with the flags of open(2).
    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        perm: u16,
        _flags: i32,
        caller: Caller,
    ) -> Result<(Attr, Handle)> {
        let attr = self.mknod(parent, name, FileKind::Regular, perm, 0, caller)?;
        // O_EXCL and O_CREAT are done with; O_TRUNC on a new file changes nothing.
        match self.open(attr.ino, libc::O_RDWR) {
            Ok(handle) => Ok((attr, handle)),
            Err(e) => {
                self.forget(attr.ino, 1);
                Err(e)
            }
        }
    }
    /// Makes a directory.
    fn mkdir(&self, _parent: Ino, _name: &OsStr, _perm: u16, _caller: Caller) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Makes a symbolic link to `target`.
    fn symlink(
        &self,
        _parent: Ino,
        _name: &OsStr,
        _target: &[u8],
        _caller: Caller,
    ) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Gives `ino` another name.
    fn link(&self, _ino: Ino, _parent: Ino, _name: &OsStr) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Removes the name of something that is not a directory.
    fn unlink(&self, _parent: Ino, _name: &OsStr) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }
    /// Removes an empty directory.
    fn rmdir(&self, _parent: Ino, _name: &OsStr) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }
    /// Moves a name.
    fn rename(
        &self,
        _parent: Ino,
        _name: &OsStr,
        _new_parent: Ino,
        _new_name: &OsStr,
        _mode: RenameMode,
    ) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }
    /// Writes all of `data` at `plain_offset`.
    fn write(&self, _ino: Ino, _handle: Handle, _plain_offset: u64, _data: &[u8]) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }
    /// Writes what programs stored into a map of the file, some time ago: an mtime that was set just now stays.
    fn write_back(&self, ino: Ino, handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.write(ino, handle, plain_offset, data)
    }
    /// Whether a file, not a directory, has set-id bits or capabilities.
    fn has_privileges(&self, _ino: Ino) -> Result<bool> {
        Ok(false)
    }
    /// What the kernel leaves to the volume before the contents or the owner of a file change: file capabilities go,
    /// and set-id bits as `set_id` says. True where something went.
    fn drop_privileges(&self, _ino: Ino, _set_id: SetId) -> Result<bool> {
        Ok(false)
    }
    /// What close(2) waits for: everything written is out of this process, and errors of earlier writes are told.
    fn flush(&self, _ino: Ino, _handle: Handle) -> Result<()> {
        Ok(())
    }
    /// Makes a file or directory durable; `done` may be called later and from another thread. Errors of earlier writes
    /// that the handle was not told of are told; a handle that is not open, as directories may have, is told none.
    fn fsync(&self, _ino: Ino, _handle: Handle, done: Done) {
        done(Ok(()));
    }
    /// fallocate(2).
    fn fallocate(
        &self,
        _ino: Ino,
        _plain_offset: u64,
        _plain_len: u64,
        _mode: Fallocate,
    ) -> Result<()> {
        Err(Kind::NotSupported.into())
    }
    /// Copies a range, sharing storage where it can; answers the bytes copied, fewer only where the source ends.
    fn copy_file_range(
        &self,
        _from: Ino,
        _from_offset: u64,
        _to: Ino,
        _to_offset: u64,
        _len: u64,
    ) -> Result<u64> {
        Err(Kind::NotSupported.into())
    }
    /// Sets an extended attribute.
    fn setxattr(&self, _ino: Ino, _name: &OsStr, _value: &[u8], _mode: XattrMode) -> Result<()> {
        Err(Kind::NotSupported.into())
    }
    /// Removes an extended attribute.
    fn removexattr(&self, _ino: Ino, _name: &OsStr) -> Result<()> {
        Err(Kind::NotSupported.into())
    }

    /// Writes out all that there is now, and makes it durable.
    fn write_all(&self) -> Result<()> {
        Ok(())
    }
    /// Paths of files with what is not written out of each, in bytes. Does not wait for the store.
    fn unwritten(&self) -> Vec<(Vec<u8>, u64)> {
        Vec::new()
    }
    /// How long the store has been waited for; `None` where that is not known.
    fn silence(&self) -> Option<Silence> {
        None
    }
    /// How often the store has answered up to now, where that is counted: while it grows, there is hope.
    fn answers(&self) -> u64 {
        0
    }

    /// Ends the volume: everything is written, made durable and published. Called once, when no more requests come.
    fn close(&self) -> Result<()> {
        Ok(())
    }
    /// Called after [`Volume::close`] where the process ends next: memory that takes long to free may be left to the
    /// system, which takes it back at once.
    fn leave_memory(&self) {}
}
