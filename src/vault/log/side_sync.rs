//! The thread that syncs the open segment while its caller syncs the packs.
//!
//! It lives as long as the library is open: on a fast disk, starting a thread for each fsync costs about as much as the
//! fsync itself. It does not know what the files contain.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use crate::error::{Kind, Result};
use crate::store::Growing;
use crate::vault::thread::Workers;

/// A file to sync, and the channel for the result.
type Job = (Arc<dyn Growing>, Sender<Result<()>>);

/// The thread, started on first use.
#[derive(Default)]
pub struct SideSync {
    /// Contains `None` if the thread could not be started; the caller then syncs both itself.
    worker: OnceLock<Option<Workers<Job>>>,
}

impl SideSync {
    /// Syncs `file` while `meanwhile` runs. If both fail, returns the error of `meanwhile`.
    pub fn sync(
        &self,
        file: &Arc<dyn Growing>,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (result, answer) = channel();
        let start = || Workers::start("segment-sync", 1, 1, work).ok();
        let worker = self.worker.get_or_init(start).as_ref();
        let is_given = worker.is_some_and(|worker| worker.offer((file.clone(), result)));
        let done = meanwhile();
        let synced = if is_given {
            answer.recv().unwrap_or_else(|_| Err(Kind::Poisoned.into()))
        } else {
            file.sync()
        };
        done.and(synced)
    }
}

fn work((file, result): Job) {
    // The caller may have given up.
    let _ = result.send(file.sync());
}
