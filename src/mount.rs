//! Mounting: gives a volume a mount point and a process that serves it, and takes the mount down again.
//!
//! hushfs mounts by itself and passes fuser the open device. If fuser 0.18 does the unmounting, it unmounts whatever is
//! at the mount point once our own mount is gone, even a mount that is not ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::logged;
use crate::volume::Volume;

mod attach;
mod background;
mod farewell;
mod point;
mod session;
mod unmount;

pub use attach::Options;
pub use background::keeps_log;
pub use point::{check, check_apart, clear_dead, library_at, mount_of};
pub use session::serve;
pub use unmount::{unmount, unmount_by_force};

/// Number of files that may be open simultaneously, if the system allows it: each open pack is one.
const OPEN_FILES: u64 = 65_536;

/// What is mounted where, and how.
pub struct Plan {
    /// The directory of the library.
    pub library: PathBuf,
    /// Where the mount appears.
    pub mountpoint: PathBuf,
    /// How the kernel treats it.
    pub options: Options,
    /// Serve in this process instead of a background process.
    pub foreground: bool,
}

/// Mounts the volume that `open` returns, in the process that will serve it. In the foreground, returns when the mount
/// has ended; otherwise as soon as the mount answers. Calls `announce` once the mount answers, with the library's
/// folder and the mount point.
///
/// In the background a child process does everything, and prints why if it fails. Because of the fork, there must be no
/// other thread yet.
pub fn run(
    plan: Plan,
    open: impl FnOnce() -> Result<Arc<dyn Volume>>,
    announce: impl FnOnce(&Path, &Path),
) -> Result<()> {
    let mut options = plan.options;
    let library = point::resolve(&plan.library)?;
    let mountpoint = point::check(&plan.mountpoint, &library, options.nonempty)?;
    raise_open_files();
    share_one_heap();
    let mut ready = None;
    if !plan.foreground {
        match background::fork()? {
            background::Side::Parent(child) => {
                // The parent's copy of the key is no longer needed.
                drop(open);
                child.wait()?;
                announce(&library, &mountpoint);
                return Ok(());
            }
            background::Side::Child(child) => ready = Some(child),
        }
    }
    let served = open().and_then(|volume| {
        options.store = Some(library.display().to_string());
        let source = library.clone().into_os_string();
        options.source.get_or_insert(source);
        serve(volume, &mountpoint, &options, || {
            match ready.take() {
                Some(ready) => ready.tell(),
                None => announce(&library, &mountpoint),
            }
            logged::only_to_file();
        })
    });
    if let (Err(e), Some(ready)) = (&served, ready) {
        ready.fail(e.exit_status());
    }
    served
}

/// Raises the limit on open files. Failure is harmless: packs are then opened and closed more often.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Makes all threads allocate from one heap. glibc would give each its own: memory that one thread allocates and
/// another frees stays with the first, and random writes took 190 MiB instead of 80. Failure costs only that.
fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; there is no other thread yet, as `run` requires.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
