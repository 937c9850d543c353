//! What keeps secrets inside this process.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::error::io_text;

/// No core dump, no debugger of the same user, nobody else's look into `/proc/<pid>/mem`: PR_SET_DUMPABLE 0 and
/// RLIMIT_CORE 0. Called first thing in `main`. A system that refuses goes on: the memory of keys is kept out of core
/// dumps on its own, too.
pub fn harden_process() {
    if let Err(e) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::info!(
            "the process can be dumped: prctl(PR_SET_DUMPABLE): {}",
            io_text(&e.into())
        );
    }
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Core, none) {
        log::info!(
            "core dumps are possible: setrlimit(RLIMIT_CORE): {}",
            io_text(&e.into())
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core() {
        harden_process();
        let dumpable = rustix::process::dumpable_behavior();
        assert_eq!(dumpable, Ok(DumpableBehavior::NotDumpable));
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }
}
