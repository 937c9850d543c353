//! Mounting: builds everything top-down, and takes it down again.
//!
//! We mount ourselves and hand fuser the open device: fuser 0.18, left to unmount, takes away whatever is at the
//! mount point once our own mount is gone, a stranger's included.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crypto::{MasterKey, random_id};
use crate::error::{Error, Kind, Result};
use crate::index::{Tree, check_rollback, replay};
use crate::logged;
use crate::object::DeviceId;
use crate::state::Place;
use crate::store::{Access, DirStore, Watched};
use crate::vault::{self, Vault};
use crate::volume::{Time, Volume};

mod attach;
mod background;
mod farewell;
mod point;
mod session;
mod unmount;

pub use attach::Options;
pub use background::keeps_log;
pub use point::{check, check_apart, clear_dead, library_at};
pub use session::serve;
pub use unmount::{unmount, unmount_by_force};

/// How many files may be open at once, where the system lets us: each open pack is one.
const OPEN_FILES: u64 = 65_536;

/// All that a mount of a library of ours needs.
pub struct Plan {
    /// The directory of the library.
    pub library: PathBuf,
    /// Where it shall appear.
    pub mountpoint: PathBuf,
    /// How the kernel treats it.
    pub options: Options,
    /// Its key.
    pub master: Arc<MasterKey>,
    /// This device's id in it.
    pub device: DeviceId,
    /// Where what was seen of it is remembered.
    pub place: Option<Place>,
    /// Serve in this process, rather than in one of its own.
    pub foreground: bool,
    /// Mount it also where another device has it mounted on this machine.
    pub force: bool,
    /// Bytes of decrypted blocks to keep.
    pub cache_bytes: usize,
    /// An index older than this machine has seen is accepted.
    pub accept_rollback: bool,
}

/// Mounts a library. In the foreground it returns when the mount has ended; else as soon as the mount answers. `announce`
/// is called once the mount answers, with the library's folder and the mount point.
///
/// In the background everything happens in a child process; if that fails, it has said why. So there must be no other
/// thread yet.
pub fn run(plan: Plan, announce: impl FnOnce(&Path, &Path)) -> Result<()> {
    let (library, mountpoint) = (plan.library.clone(), plan.mountpoint.clone());
    let (options, foreground) = (plan.options.clone(), plan.foreground);
    let open = |library: &Path| {
        if !foreground {
            plan.master.lock();
        }
        let vault: Arc<dyn Volume> = open(plan, library)?;
        Ok(vault)
    };
    run_volume(&library, &mountpoint, &options, foreground, open, announce)
}

/// Mounts what `open` opens, in the process that will serve it, given the resolved path of its library: as [`run`]
/// does for a vault.
pub fn run_volume(
    library: &Path,
    mountpoint: &Path,
    options: &Options,
    foreground: bool,
    open: impl FnOnce(&Path) -> Result<Arc<dyn Volume>>,
    announce: impl FnOnce(&Path, &Path),
) -> Result<()> {
    let library = point::resolve(library)?;
    let mountpoint = point::check(mountpoint, &library, options.nonempty)?;
    raise_open_files();
    share_one_heap();
    let mut ready = None;
    if !foreground {
        match background::fork()? {
            background::Side::Parent(child) => {
                // This copy of the key is not needed any more.
                drop(open);
                child.wait()?;
                announce(&library, &mountpoint);
                return Ok(());
            }
            background::Side::Child(child) => ready = Some(child),
        }
    }
    let served = open(&library).and_then(|volume| {
        let mut options = options.clone();
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

fn open(mut plan: Plan, library: &Path) -> Result<Arc<Vault>> {
    let master = Arc::clone(&plan.master);
    // Who only reads is shown all that is there at once: what is missing would not be an error.
    let mut accept_rollback = plan.accept_rollback && plan.options.read_only;
    let mut is_renewed = false;
    loop {
        let e = match open_as(&plan, library, &master, accept_rollback) {
            Err(e) => e,
            opened => return opened,
        };
        match e.kind() {
            // Once: what is random is not taken again.
            Kind::DeviceTaken(_) if !is_renewed => {
                is_renewed = true;
                renew_device(&mut plan, &e)?;
            }
            kind if plan.accept_rollback && !accept_rollback => {
                if matches!(kind, Kind::RolledBack(_))
                    && lacks_own(library, &master, plan.place.as_ref(), plan.device)?
                {
                    // What is missing may still come: what is written now must not bear the same numbers.
                    let old = std::mem::replace(&mut plan.device, random_id()?);
                    log::warn!(
                        "segments of this machine are missing or replaced, so it writes as device {} from now on: what \
                         lies in new/{old} does not show, and until there is a new library, no room is given back",
                        plan.device
                    );
                }
                accept_rollback = true;
            }
            _ => return Err(e),
        }
    }
}

fn open_as(
    plan: &Plan,
    library: &Path,
    master: &Arc<MasterKey>,
    accept_rollback: bool,
) -> Result<Arc<Vault>> {
    let access = match plan.options.read_only {
        true => Access::ReadOwn(plan.device),
        false => Access::Write(plan.device),
    };
    let store = DirStore::open(library, access).map_err(|e| match point::mount_of(library) {
        Some(point) if matches!(e.kind(), Kind::InUse) => e.hint(format_args!(
            "it is already mounted at {}: unmount it first",
            point.display()
        )),
        _ => e,
    })?;
    // With the lock of this device: of two that come at once, one at least sees the other.
    check_alone(plan, &store, library)?;
    let options = vault::Options {
        read_only: plan.options.read_only,
        cache_bytes: plan.cache_bytes,
        accept_rollback,
        published_only: false,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    let place = plan.place.clone();
    Vault::open(
        Arc::new(Watched::new(Arc::new(store))),
        master.clone(),
        plan.device,
        place,
        &options,
    )
    .map_err(|e| match e.kind() {
        Kind::RolledBack(_) => e.about(library.display()),
        _ => e,
    })
}

/// Refuses a library that another device has mounted on this machine, unless that is meant.
fn check_alone(plan: &Plan, store: &DirStore, library: &Path) -> Result<()> {
    let neighbours = store.neighbours()?;
    let mut mounted = neighbours
        .iter()
        .filter(|n| n.is_mounted && n.device != plan.device);
    let Some(other) = mounted.next() else {
        return Ok(());
    };
    let text = format!(
        "device {}, another user or container perhaps, has it mounted on this machine",
        other.device
    );
    if plan.options.read_only || plan.force {
        let when = match plan.options.read_only {
            true => "some seconds after it wrote that to the library",
            false => "after the next mount",
        };
        log::warn!(
            "{}: {text}; what it changes shows here {when}",
            library.display()
        );
        return Ok(());
    }
    Err(Error::new(Kind::InUse, library.display()).hint(format_args!(
        "{text}: unmount it there, or mount it with --read-only; --force mounts it beside, and what both change is merged \
         by the next mount"
    )))
}

/// Lets this machine write as another device from now on, and take over what it left as the old one where that is dead.
fn renew_device(plan: &mut Plan, why: &Error) -> Result<()> {
    let old = std::mem::replace(&mut plan.device, random_id()?);
    log::warn!(
        "{why}. So this machine writes as device {} from now on: nothing of either is lost, and what is deleted gives no \
         room back from now on",
        plan.device
    );
    let Some(place) = &plan.place else {
        return Ok(());
    };
    let Some(mut remembered) = place.load()? else {
        return Ok(());
    };
    (remembered.device, remembered.former) = (plan.device, Some(old));
    remembered.wrote.clear();
    place.save(&remembered)
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
    Ok(check_rollback(&[*own], there.heads.values()).is_err())
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
