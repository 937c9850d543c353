//! What programs ask of files below a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hushfs::mount;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
};

use super::{Mount, cannot_mount, errno};

#[test]
fn files_are_written_read_cut_and_copied() {
    if cannot_mount() {
        return;
    }
    let mut m = Mount::new();
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    fs::write(m.path("a"), &big).unwrap();
    assert!(fs::read(m.path("a")).unwrap() == big);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(m.path("a"))
        .unwrap();
    let mut piece = vec![0; 4096];
    direct.read_exact_at(&mut piece, 8192).unwrap();
    assert_eq!(piece, big[8192..12288]);

    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("a"))
        .unwrap();
    file.set_len(10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
    file.seek(io::SeekFrom::End(0)).unwrap();
    file.write_all(b"tail").unwrap();
    assert_eq!(
        fs::read(m.path("a")).unwrap(),
        [&big[..10], b"tail"].concat()
    );
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100);
    rustix::fs::fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        12,
    )
    .unwrap();
    assert_eq!(
        fs::read(m.path("a")).unwrap()[..14],
        [&[0; 12], &b"il"[..]].concat()
    );
    assert_eq!(
        rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096).unwrap_err(),
        rustix::io::Errno::OPNOTSUPP
    );
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(5)).unwrap(), 100);
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Data(100)).unwrap_err(),
        rustix::io::Errno::NXIO
    );

    let copy = File::create(m.path("copy")).unwrap();
    assert_eq!(
        rustix::fs::copy_file_range(&file, Some(&mut 10), &copy, None, 4).unwrap(),
        4
    );
    assert_eq!(fs::read(m.path("copy")).unwrap(), b"\0\0il");
    assert_eq!(m.calls("copy_file_range"), 1);
    // Cut by open(2) itself, with pages of the old contents in the kernel's cache.
    File::create(m.path("copy")).unwrap();
    assert_eq!(fs::read(m.path("copy")).unwrap(), b"");

    drop((file, copy, direct));
    mount::unmount(&m.point).unwrap();
    m.ended_cleanly();
}

#[test]
fn a_tree_is_made_listed_renamed_and_removed() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    fs::create_dir(m.path("d")).unwrap();
    for i in 0..3000 {
        File::create(m.path(&format!("d/{i:04}"))).unwrap();
    }
    let names: Vec<_> = fs::read_dir(m.path("d"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3000);
    assert!(names.windows(2).all(|w| w[0] < w[1]));
    fs::remove_dir(m.path("d")).unwrap_err();
    fs::remove_dir_all(m.path("d")).unwrap();
    assert_eq!(errno(fs::metadata(m.path("d"))), libc::ENOENT);

    fs::write(m.path("a"), "a").unwrap();
    fs::write(m.path("b"), "b").unwrap();
    let rename = |flags| rustix::fs::renameat_with(CWD, m.path("a"), CWD, m.path("b"), flags);
    assert_eq!(
        rename(RenameFlags::NOREPLACE).unwrap_err(),
        rustix::io::Errno::EXIST
    );
    assert_eq!(
        rename(RenameFlags::WHITEOUT).unwrap_err(),
        rustix::io::Errno::INVAL
    );
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"b");
    fs::rename(m.path("a"), m.path("b")).unwrap();
    assert_eq!(fs::read(m.path("b")).unwrap(), b"b");
    fs::hard_link(m.path("b"), m.path("c")).unwrap();
    assert_eq!(fs::metadata(m.path("c")).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("../some/where", m.path("l")).unwrap();
    assert_eq!(
        fs::read_link(m.path("l")).unwrap(),
        Path::new("../some/where")
    );
    assert_eq!(fs::symlink_metadata(m.path("l")).unwrap().len(), 13);

    // A file without a name is there while it is open.
    let mut open = File::open(m.path("b")).unwrap();
    fs::remove_file(m.path("b")).unwrap();
    fs::remove_file(m.path("c")).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "b");
}

#[test]
fn attributes_go_both_ways() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    let file = File::create(m.path("f")).unwrap();
    for (sec, nsec) in [
        (-2, 750_000_000),
        (-1, 1),
        (i64::from(i32::MAX) + 5, 999_999_999),
        (0, 0),
    ] {
        let time = Timespec {
            tv_sec: sec,
            tv_nsec: nsec,
        };
        rustix::fs::futimens(
            &file,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
        )
        .unwrap();
        // Forget what the kernel was told by us, and hear it from the volume.
        let stat = rustix::fs::statx(
            CWD,
            m.path("f"),
            AtFlags::STATX_FORCE_SYNC,
            rustix::fs::StatxFlags::BASIC_STATS,
        );
        let stat = stat.unwrap();
        assert_eq!(
            (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            (sec, nsec as u32)
        );
        assert_eq!(
            (stat.stx_atime.tv_sec, stat.stx_atime.tv_nsec),
            (sec, nsec as u32)
        );
    }
    // Set-user-id bits and device nodes can be made, whatever nosuid and nodev say of using them.
    fs::set_permissions(m.path("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o4755);
    std::os::unix::fs::chown(m.path("f"), Some(7), Some(8)).unwrap();
    assert_eq!(
        (
            file.metadata().unwrap().uid(),
            file.metadata().unwrap().gid()
        ),
        (7, 8)
    );
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        CWD,
        m.path("null"),
        rustix::fs::FileType::CharacterDevice,
        0o600.into(),
        device,
    )
    .unwrap();
    let meta = fs::metadata(m.path("null")).unwrap();
    assert!(meta.file_type().is_char_device());
    assert_eq!(meta.rdev(), device);
    assert_eq!(errno(File::open(m.path("null"))), libc::EACCES);
    rustix::fs::mknodat(
        CWD,
        m.path("pipe"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert!(fs::metadata(m.path("pipe")).unwrap().file_type().is_fifo());

    let stat = rustix::fs::statvfs(&m.point).unwrap();
    assert_eq!(
        (stat.f_bsize, stat.f_blocks, stat.f_bfree, stat.f_bavail),
        (4096, 1000, 500, 400)
    );
    assert_eq!((stat.f_files, stat.f_ffree, stat.f_namemax), (100, 50, 255));
    assert_eq!(
        errno(fs::write(m.path(&"x".repeat(256)), "")),
        libc::ENAMETOOLONG
    );
}

#[test]
fn extended_attributes_keep_the_size_protocol() {
    if cannot_mount() {
        return;
    }
    use rustix::io::Errno;
    let m = Mount::new();
    let f = m.path("f");
    File::create(&f).unwrap();
    let set = |value: &[u8], flags| rustix::fs::setxattr(&f, "user.x", value, flags);
    assert_eq!(set(b"1", XattrFlags::REPLACE).unwrap_err(), Errno::NODATA);
    set(b"12345", XattrFlags::CREATE).unwrap();
    assert_eq!(set(b"1", XattrFlags::CREATE).unwrap_err(), Errno::EXIST);
    assert_eq!(
        set(&[0; 65_537], XattrFlags::empty()).unwrap_err(),
        Errno::TOOBIG
    );
    assert_eq!(rustix::fs::getxattr_query(&f, "user.x").unwrap(), 5);
    assert_eq!(
        rustix::fs::getxattr(&f, "user.x", &mut [0u8; 4]).unwrap_err(),
        Errno::RANGE
    );
    let mut value = [0u8; 9];
    assert_eq!(rustix::fs::getxattr(&f, "user.x", &mut value).unwrap(), 5);
    assert_eq!(&value[..5], b"12345");
    assert_eq!(
        rustix::fs::getxattr(&f, "user.y", &mut value).unwrap_err(),
        Errno::NODATA
    );
    let mut list = [0u8; 64];
    assert_eq!(rustix::fs::listxattr(&f, &mut list).unwrap(), 7);
    assert_eq!(
        rustix::fs::listxattr(&f, &mut [0u8; 3]).unwrap_err(),
        Errno::RANGE
    );
    rustix::fs::removexattr(&f, "user.x").unwrap();
    assert_eq!(
        rustix::fs::removexattr(&f, "user.x").unwrap_err(),
        Errno::NODATA
    );
    set(&[7; 65_536], XattrFlags::empty()).unwrap();
    assert_eq!(rustix::fs::getxattr_query(&f, "user.x").unwrap(), 65_536);
}

#[test]
fn missing_names_are_looked_up_once() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    let before = m.calls("lookup");
    for _ in 0..5 {
        assert_eq!(errno(fs::metadata(m.path("none"))), libc::ENOENT);
    }
    assert_eq!(m.calls("lookup"), before + 1);
    fs::write(m.path("none"), "now").unwrap();
    assert_eq!(fs::read(m.path("none")).unwrap(), b"now");
    fs::remove_file(m.path("none")).unwrap();
    assert_eq!(errno(fs::metadata(m.path("none"))), libc::ENOENT);

    // What was read once is not read again, and neither opening nor closing asks much.
    fs::write(m.path("f"), vec![1; 100_000]).unwrap();
    fs::read(m.path("f")).unwrap();
    let (reads, flushes) = (m.calls("read"), m.calls("flush"));
    fs::read(m.path("f")).unwrap();
    assert_eq!(m.calls("read"), reads);
    assert_eq!(m.calls("flush"), flushes);
}

#[test]
fn writes_with_o_dsync_are_synced_each_time() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    let open = |create: bool, flags: i32| {
        OpenOptions::new()
            .write(true)
            .create_new(create)
            .custom_flags(flags)
            .open(m.path("log"))
            .unwrap()
    };
    // The first goes past the page cache, the second beside it, the third, when these are closed, through it.
    let creator = open(true, libc::O_DSYNC);
    let beside = open(false, libc::O_SYNC);
    let unsynced = open(false, 0);
    for (calls, file) in [(1, &creator), (2, &beside)] {
        file.write_all_at(b"line", 0).unwrap();
        assert_eq!(m.calls("fsync"), calls);
    }
    unsynced.write_all_at(b"line", 0).unwrap();
    assert_eq!(m.calls("fsync"), 2);
    drop((creator, beside, unsynced));
    open(false, libc::O_DSYNC).write_all_at(b"line", 0).unwrap();
    assert_eq!(m.calls("fsync"), 3);
}

#[test]
fn an_fsync_that_waits_keeps_nobody_waiting() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    let file = File::create(m.path("f")).unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        // More of them than there are threads that take requests.
        for _ in 0..12 {
            scope.spawn(|| file.sync_all().unwrap());
        }
        thread::sleep(Duration::from_millis(100));
        fs::write(m.path("other"), "x").unwrap();
        assert!(started.elapsed() < Duration::from_millis(450));
    });
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert_eq!(m.calls("fsync"), 12);
    // Errors are told, each time.
    for _ in 0..2 {
        assert_eq!(errno(File::open(&m.point).unwrap().sync_all()), libc::EIO);
    }
}

#[test]
fn a_panic_makes_it_read_only() {
    if cannot_mount() {
        return;
    }
    let mut m = Mount::new();
    fs::write(m.path("f"), "kept").unwrap();
    assert_eq!(errno(fs::metadata(m.path("fault"))), libc::EIO);
    fs::write(m.path("g"), "still written").unwrap();
    // More often than there are threads.
    for _ in 0..20 {
        assert_eq!(errno(fs::metadata(m.path("panic"))), libc::EIO);
    }
    assert_eq!(fs::read(m.path("f")).unwrap(), b"kept");
    assert_eq!(errno(fs::write(m.path("f"), "lost")), libc::EROFS);
    assert_eq!(errno(fs::write(m.path("h"), "lost")), libc::EROFS);
    assert_eq!(errno(fs::create_dir(m.path("h"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(m.path("f"))), libc::EROFS);
    assert_eq!(
        errno(fs::set_permissions(
            m.path("f"),
            fs::Permissions::from_mode(0o600)
        )),
        libc::EROFS
    );
    mount::unmount(&m.point).unwrap();
    m.ended_cleanly();
}

#[test]
fn unsupported_operations_are_refused() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    let tmpfile = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(&m.point);
    assert_eq!(errno(tmpfile), libc::EOPNOTSUPP);
    let file = File::create(m.path("f")).unwrap();
    assert_eq!(
        rustix::fs::ioctl_getflags(&file).unwrap_err(),
        rustix::io::Errno::NOTTY
    );
    // Locks are the kernel's own.
    file.lock().unwrap();
    let other = File::open(m.path("f")).unwrap();
    assert!(matches!(
        other.try_lock(),
        Err(fs::TryLockError::WouldBlock)
    ));
    file.unlock().unwrap();
    other.try_lock().unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_program_that_runs_is_not_cut() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    let program = m.path("sleep");
    fs::copy("/bin/sleep", &program).unwrap();
    let len = fs::metadata(&program).unwrap().len();
    let mut child = Command::new(&program).arg("10").spawn().unwrap();
    let busy = |options: &mut OpenOptions| errno(options.open(&program));
    assert_eq!(busy(OpenOptions::new().write(true)), libc::ETXTBSY);
    // SAFETY: the path ends in a zero byte.
    let fd = unsafe { libc::open(c_path(&program).as_ptr(), libc::O_RDONLY | libc::O_TRUNC) };
    assert_eq!(
        (fd, io::Error::last_os_error().raw_os_error()),
        (-1, Some(libc::ETXTBSY))
    );
    assert_eq!(fs::metadata(&program).unwrap().len(), len);
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_str().unwrap()).unwrap()
}

#[test]
fn file_handles_survive_being_forgotten() {
    if cannot_mount() {
        return;
    }
    let m = Mount::new();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), "x").unwrap();
    // What NFS servers do: name_to_handle_at, later open_by_handle_at.
    let mut handle = [0u32; 34];
    handle[0] = 128;
    let name = c_path(&m.path("d/f"));
    let mut id = 0;
    // SAFETY: the buffer is a file_handle with 128 bytes behind its two words, and the name ends in a zero byte.
    let result = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            name.as_ptr(),
            handle.as_mut_ptr().cast(),
            &mut id,
            0,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let root = File::open(&m.point).unwrap();
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: the handle is the one that name_to_handle_at has filled in.
    let fd = unsafe {
        libc::open_by_handle_at(root.as_raw_fd(), handle.as_mut_ptr().cast(), libc::O_RDONLY)
    };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}
