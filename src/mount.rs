//! Mounting: builds everything top-down, and takes it down again.
//!
//! We mount ourselves and hand fuser the open device: fuser 0.18, left to unmount, takes away whatever is at the
//! mount point once our own mount is gone, a stranger's included.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crypto::{MasterKey, random_id};
use crate::error::{Kind, Result};
use crate::index::{Tree, check_rollback, replay};
use crate::state::Place;
use crate::store::{Access, DeviceId, DirStore};
use crate::vault::{self, Vault};
use crate::volume::{Time, Volume};

mod attach;
mod background;
mod farewell;
mod point;
mod session;

pub use attach::Options;
pub use point::{check, clear_dead};
pub use session::serve;

/// How many files may be open at once, where the system lets us: each open pack is one.
const OPEN_FILES: u64 = 65_536;

/// All that a mount needs.
pub struct Plan {
    /// The directory of the library.
    pub library: PathBuf,
    /// Where it shall appear.
    pub mountpoint: PathBuf,
    /// Its key.
    pub master: MasterKey,
    /// This device's id in it.
    pub device: DeviceId,
    /// Where what was seen of it is remembered.
    pub place: Option<Place>,
    /// Serve in this process, rather than in one of its own.
    pub foreground: bool,
    /// Nothing is written.
    pub read_only: bool,
    /// Other users may use the mount, too.
    pub allow_other: bool,
    /// Bytes of decrypted blocks to keep.
    pub cache_bytes: usize,
    /// An index older than this machine has seen is accepted.
    pub accept_rollback: bool,
    /// Set-user-id bits mean nothing below the mount point.
    pub nosuid: bool,
    /// Device nodes cannot be opened below the mount point.
    pub nodev: bool,
    /// Nothing can be executed below the mount point.
    pub noexec: bool,
}

/// Mounts a library. In the foreground it returns when the mount has ended; else as soon as the mount answers.
///
/// In the background everything happens in a child process. If that fails it has said why, and this process
/// exits with its exit code: the function does not return. So there must be no other thread yet.
pub fn run(plan: Plan) -> Result<()> {
    let library = point::resolve(&plan.library)?;
    let mountpoint = plan.mountpoint.clone();
    let options = Options {
        read_only: plan.read_only,
        allow_other: plan.allow_other,
        nosuid: plan.nosuid,
        nodev: plan.nodev,
        noexec: plan.noexec,
    };
    let foreground = plan.foreground;
    run_volume(&library, &mountpoint, &options, foreground, |library| {
        if !foreground {
            plan.master.lock();
        }
        let vault: Arc<dyn Volume> = open(plan, library)?;
        Ok(vault)
    })
}

/// Mounts what `open` opens, in the process that will serve it, given the resolved path of its library: as [`run`]
/// does for a vault.
pub fn run_volume(
    library: &Path,
    mountpoint: &Path,
    options: &Options,
    foreground: bool,
    open: impl FnOnce(&Path) -> Result<Arc<dyn Volume>>,
) -> Result<()> {
    let library = point::resolve(library)?;
    let mountpoint = point::check(mountpoint, &library)?;
    raise_open_files();
    share_one_heap();
    let ready = if foreground {
        None
    } else {
        match background::fork()? {
            background::Side::Parent(child) => {
                // This copy of the key is not needed any more.
                drop(open);
                return child.wait();
            }
            background::Side::Child(ready) => Some(ready),
        }
    };
    let volume = open(&library)?;
    serve(volume, &mountpoint, options, || {
        if let Some(ready) = ready {
            ready.tell();
        }
    })
}

fn open(plan: Plan, library: &Path) -> Result<Arc<Vault>> {
    let master = Arc::new(plan.master);
    let open_as = |device, accept_rollback| {
        let access = match plan.read_only {
            true => Access::ReadOnly,
            false => Access::Write(device),
        };
        let store = DirStore::open(library, access)?;
        let options = vault::Options {
            read_only: plan.read_only,
            cache_bytes: plan.cache_bytes,
            accept_rollback,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let place = plan.place.clone();
        Vault::open(Arc::new(store), master.clone(), device, place, &options)
    };
    match open_as(plan.device, false) {
        Err(e) if plan.accept_rollback => {
            let mut device = plan.device;
            if matches!(e.kind(), Kind::RolledBack(_))
                && !plan.read_only
                && lacks_own(library, &master, plan.place.as_ref(), device)?
            {
                // What is missing may still come: what is written now must not bear the same numbers.
                device = random_id()?;
                log::warn!(
                    "segments of this machine are missing or replaced, so it writes as device {device} from now on: what lies in \
                     new/{} does not show, and until there is a new library, no room is given back",
                    plan.device
                );
            }
            open_as(device, true)
        }
        opened => opened,
    }
}

/// Whether the index is without segments of `device` that this machine has seen, or made, or has others in their place.
fn lacks_own(
    library: &Path,
    master: &MasterKey,
    place: Option<&Place>,
    device: DeviceId,
) -> Result<bool> {
    let remembered = place.map(Place::load).transpose()?.flatten();
    let heads = remembered.map_or_else(Vec::new, |r| r.heads);
    let Some(own) = heads.iter().find(|head| head.device == device) else {
        return Ok(false);
    };
    let store = DirStore::open(library, Access::ReadOnly)?;
    let there = replay(&store, master, true, || Tree::new(0, 0, Time::now()))?;
    Ok(check_rollback(&[*own], &there.heads).is_err())
}

/// Ends the mount at `mountpoint`, and waits until all is written and the process behind it has let the library
/// go. A mount that is in use is [`InUse`](crate::Kind::InUse); what the mount could not write is this
/// function's error, too.
pub fn unmount(mountpoint: &Path) -> Result<()> {
    let entry = point::mounted(mountpoint)?;
    // Connect first: afterwards nothing answers any more. Nobody there is no reason not to unmount.
    let farewell = farewell::connect(&entry.point);
    attach::detach(&entry.point, attach::Detach::Now)?;
    farewell.map_or(Ok(()), |f| f.wait(&entry.point))
}

/// Failure is no harm: packs are then opened and closed more often.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Has all threads allocate from one heap. The C library would give each its own: what one thread fills and another
/// frees stays with the first, and random writes took 190 MiB in place of 80. Failure is no harm but that.
fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; no other thread is there yet, as `run` asks.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
