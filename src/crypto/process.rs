//! Protection of secrets in the memory of this process.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::error::io_text;

/// Prevents core dumps, and other processes of the same user from attaching a debugger or reading `/proc/<pid>/mem`
/// (PR_SET_DUMPABLE 0, RLIMIT_CORE 0). Called first in `main`. If the system refuses, this is only logged: keys are
/// excluded from core dumps separately.
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
