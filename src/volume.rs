//! The interface of everything that can be mounted.
//!
//! It has plain types, independent of FUSE, so that a volume is complete and can be tested without a kernel. The kernel
//! checks access against mode bits and access lists (`default_permissions`); a volume only stores and inherits them.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::error::{Kind, Result};

/// An inode number as in `st_ino`: below 2^53, and below 2^32 as long as there are enough. The root is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// The root directory.
pub const ROOT: Ino = Ino(1);

/// The longest name, in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (PATH_MAX without the closing zero).
pub const TARGET_LEN_MAX: usize = 4095;
/// The largest file, in bytes: the maximum of `loff_t`.
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
    /// Nanoseconds, added to the seconds.
    pub nsec: u32,
}

impl Time {
    /// The current time of the system's clock.
    pub fn now() -> Self {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self {
            sec: t.tv_sec,
            nsec: t.tv_nsec as u32,
        }
    }
}

/// The type of a file.
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

/// A change that was not made by a request of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Attributes, contents or names of an inode.
    Inode(Ino),
    /// What a name in a directory refers to, or that it was added or removed.
    Name(Ino, OsString),
}

/// A function that is called for each change.
pub type OnChange = Box<dyn Fn(&Changed) + Send>;

/// The attributes of an inode, as in stat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub ino: Ino,
    /// Distinguishes it from earlier inodes with this number; 0 if numbers are never reused.
    pub generation: u32,
    /// The type of the file.
    pub kind: FileKind,
    /// Permission bits, including the set-id and sticky bits: at most 0o7777.
    pub perm: u16,
    /// Number of links. A directory has 2, and one more for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node (in the encoding of FUSE), else 0.
    pub rdev: u32,
    /// Bytes of plaintext; for a symbolic link, the length of its target.
    pub plain_size: u64,
    /// Number of units of 512 bytes with data.
    pub blocks_512: u64,
    /// Time of last access; set only at creation and by utimensat(2).
    pub atime: Time,
    /// Time of the last change of the contents.
    pub mtime: Time,
    /// Time of the last change of contents or attributes.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

/// The user who creates something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Permission bits that a new inode must not have, unless the directory has a default access list.
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

/// A change of attributes. `None` leaves an attribute unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits, at most 0o7777.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes: truncates the file, or extends it with a hole.
    pub plain_size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
}

/// A name in a directory.
#[derive(Debug)]
pub struct Dirent<'a> {
    /// The inode that it refers to.
    pub ino: Ino,
    /// The type of that inode.
    pub kind: FileKind,
    /// The name.
    pub name: &'a OsStr,
    /// A later readdir with this cookie continues after this entry. It does not change when other entries are added or
    /// removed.
    pub cookie: u64,
    /// The attributes, if [`Volume::readdir`] is called with `plus`.
    pub attr: Option<Attr>,
}

/// The answer of statfs(2), with sizes in units of `block_bytes`.
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
    /// Inodes in use and free.
    pub files: u64,
    /// Inodes that can still be created.
    pub files_free: u64,
}

/// What rename does with an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Refuse (RENAME_NOREPLACE).
    NoReplace,
    /// Swap the two (RENAME_EXCHANGE).
    Exchange,
    /// Leave a character device 0, 0 under the old name, which overlayfs uses to mark a removed name (RENAME_WHITEOUT).
    Whiteout {
        /// Refuse an existing target instead of replacing it.
        no_replace: bool,
        /// The owner of the device.
        caller: Caller,
    },
}

/// A request of fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// Allocate space; extends the file unless `keep_size` is set.
    Allocate {
        /// Do not change the length.
        keep_size: bool,
    },
    /// Make a hole, without changing the length.
    PunchHole,
    /// Fill with zeros; extends the file unless `keep_size` is set.
    ZeroRange {
        /// Do not change the length.
        keep_size: bool,
    },
}

/// What lseek(2) looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte that is in a hole; the end of the file counts as one.
    Hole,
}

/// Whether setxattr(2) may create or replace an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// Create only: EEXIST if it exists.
    Create,
    /// Replace only: ENODATA if it does not exist.
    Replace,
    /// Both flags, which always fails: with EEXIST or ENODATA.
    CreateAndReplace,
}

/// Which set-id bits a file loses when its contents or its owner change. A set-group-id bit without permission for the group
/// to execute gives no privileges, and is treated separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetId {
    /// None.
    Keep,
    /// Those that give privileges.
    Drop,
    /// Those that give privileges; and the other kind of set-group-id bit, unless the file belongs to this group.
    DropUnlessOf(u32),
}

/// How long the store has not answered its oldest call; zero if there is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Silence {
    /// Of all calls.
    pub any: Duration,
    /// Of calls that write.
    pub writes: Duration,
}

/// Called once, with the result of an operation that may take long.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// A filesystem that can be mounted.
///
/// All methods may be called from several threads. A method that returns an [`Attr`] of a child (`lookup`, `mknod`, `mkdir`,
/// `symlink`, `link`, `create`, and each entry taken from `readdir` with `plus` other than `.` and `..`) gives the kernel one
/// reference to it, which [`Volume::forget`] returns. An inode without a name exists until its references are returned and
/// its handles are closed.
///
/// A read-only volume without extended attributes needs only the methods without a default. The others return an error
/// (EROFS or EOPNOTSUPP) or nothing by default.
pub trait Volume: Send + Sync {
    /// Finds `name` in `parent`. `.` is the directory itself, `..` its parent.
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr>;
    /// Returns `count` references of the kernel to `ino`.
    fn forget(&self, ino: Ino, count: u64);
    /// The attributes of an inode.
    fn getattr(&self, ino: Ino) -> Result<Attr>;
    /// A path of an inode from the root, without a leading slash, for the log; `None` if it has no name.
    fn path_of(&self, _ino: Ino) -> Option<Vec<u8>> {
        None
    }
    /// The target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;

    /// Opens a file with the flags of open(2). O_TRUNC truncates it.
    fn open(&self, ino: Ino, flags: i32) -> Result<Handle>;
    /// Closes a handle of a file.
    fn release(&self, ino: Ino, handle: Handle);
    /// Fills `out` from `plain_offset`, and returns the number of bytes, which is smaller only at the end of the file.
    fn read(&self, ino: Ino, handle: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize>;
    /// The next data or hole at or after `plain_offset`. ENXIO at or after the end.
    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64>;
    /// The next data at or after `plain_offset`; `None` if there is none.
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
    /// Calls `take` for each entry after `cookie` (0: from the start) until it returns false. `.` and `..` come first.
    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()>;

    /// From now on, `tell` is called for each change that was not made by a request, but by another device. Called once at
    /// most. `tell` may wait for requests to be answered, so it must not be called during a request.
    fn follow(&self, _tell: OnChange) -> Result<()> {
        Ok(())
    }

    /// Size and free space.
    fn statfs(&self) -> Result<Statfs>;

    /// The value of an extended attribute.
    fn getxattr(&self, _ino: Ino, _name: &OsStr) -> Result<Vec<u8>> {
        Err(Kind::NotSupported.into())
    }
    /// The names of the extended attributes, each followed by a zero byte.
    fn listxattr(&self, _ino: Ino) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Changes attributes, and returns the new ones. An empty change updates ctime. Set-id bits change only as requested: see
    /// [`drop_privileges`](Self::drop_privileges).
    fn setattr(&self, _ino: Ino, _change: &SetAttr) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Creates a file that is not a directory. The umask has not been applied to `perm`.
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
    /// Creates a regular file, and opens it with the flags of open(2).
    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        perm: u16,
        _flags: i32,
        caller: Caller,
    ) -> Result<(Attr, Handle)> {
        let attr = self.mknod(parent, name, FileKind::Regular, perm, 0, caller)?;
        // The remaining flags have no effect on a new file.
        match self.open(attr.ino, libc::O_RDWR) {
            Ok(handle) => Ok((attr, handle)),
            Err(e) => {
                self.forget(attr.ino, 1);
                Err(e)
            }
        }
    }
    /// Creates a directory.
    fn mkdir(&self, _parent: Ino, _name: &OsStr, _perm: u16, _caller: Caller) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Creates a symbolic link to `target`.
    fn symlink(
        &self,
        _parent: Ino,
        _name: &OsStr,
        _target: &[u8],
        _caller: Caller,
    ) -> Result<Attr> {
        Err(Kind::ReadOnly.into())
    }
    /// Adds another name to `ino`.
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
    /// Renames a file or directory.
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
    /// Writes pages that programs changed earlier through a memory map: an mtime that was set since is kept.
    fn write_back(&self, ino: Ino, handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.write(ino, handle, plain_offset, data)
    }
    /// Whether a file, not a directory, has set-id bits or capabilities.
    fn has_privileges(&self, _ino: Ino) -> Result<bool> {
        Ok(false)
    }
    /// Called before the contents or the owner of a file change: removes file capabilities, and set-id bits according to
    /// `set_id`. Returns whether it removed anything.
    fn drop_privileges(&self, _ino: Ino, _set_id: SetId) -> Result<bool> {
        Ok(false)
    }
    /// Called by close(2): passes everything that was written on to the store, and returns errors of earlier writes.
    fn flush(&self, _ino: Ino, _handle: Handle) -> Result<()> {
        Ok(())
    }
    /// Makes a file or directory durable. `done` may be called later, and from another thread. It gets errors of earlier
    /// writes that were not yet reported to this handle. A handle that is not open, as for directories, gets none.
    fn fsync(&self, _ino: Ino, _handle: Handle, done: Done) {
        done(Ok(()));
    }
    /// Allocates space, or makes holes or zeros, as fallocate(2).
    fn fallocate(
        &self,
        _ino: Ino,
        _plain_offset: u64,
        _plain_len: u64,
        _mode: Fallocate,
    ) -> Result<()> {
        Err(Kind::NotSupported.into())
    }
    /// Copies a range, and shares storage if possible. Returns the number of bytes, which is smaller than `len` only at the
    /// end of the source.
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

    /// Writes everything out, and makes it durable.
    fn write_all(&self) -> Result<()> {
        Ok(())
    }
    /// Paths of files with unwritten data, and the bytes of it. Does not wait for the store.
    fn unwritten(&self) -> Vec<(Vec<u8>, u64)> {
        Vec::new()
    }
    /// How long the store has not answered; `None` if that is not known.
    fn silence(&self) -> Option<Silence> {
        None
    }
    /// The number of calls that the store has answered so far, or 0 if they are not counted. While it grows, the store is
    /// working.
    fn answers(&self) -> u64 {
        0
    }

    /// Closes the volume: everything is written, made durable and published. Called once, after the last request.
    fn close(&self) -> Result<()> {
        Ok(())
    }
    /// Called after [`Volume::close`] if the process ends next: memory that would take long to free can be left to the
    /// kernel, which frees it quickly.
    fn leave_memory(&self) {}
}
