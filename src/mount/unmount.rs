//! Unmounting, from another process.

use std::path::Path;

use rustix::process::Signal;

use super::attach::{self, Detach};
use super::farewell::{self, Asked, Connection, PATIENCE, SHORT_PATIENCE};
use super::point;
use crate::error::{Error, Kind, Result};

/// Ends the mount at `path`, or the newest one of the library there, and waits until everything is written and the
/// process behind it has released the library. Fails with [`InUse`](crate::Kind::InUse) if the mount is in use, and
/// with the mount's own error if that could not write something. If the store or the process does not answer for a
/// minute, it stays mounted.
pub fn unmount(path: &Path) -> Result<()> {
    let entry = point::mounted(path)?;
    // Connect first: after unmounting nothing answers any more. If there is no process, unmount regardless.
    let farewell = match farewell::connect(&entry.point, PATIENCE) {
        Asked::Connected(farewell) => Some(farewell),
        Asked::Nobody => None,
        Asked::Silent => {
            return Err(
                Error::new(Kind::NoAnswer("its process".into()), entry.point.display()).hint(
                    "it stays mounted: is the process stopped? `umount --force` detaches it at once",
                ),
            );
        }
    };
    // Detect write failures now, while the mount can still be kept.
    if let Some(farewell) = farewell.as_ref().filter(|f| !f.write_out(PATIENCE, false)) {
        let unwritten = match farewell.unwritten() {
            None => String::new(),
            Some(text) if text.is_empty() => {
                " The store has been given everything, and has not said yet that all of it is kept."
                    .into()
            }
            Some(text) => format!(" Not written: {text}."),
        };
        return Err(
            Error::new(Kind::NoAnswer("its store".into()), entry.point.display()).hint(
                format_args!("it stays mounted.{unwritten} `umount --force` detaches it at once"),
            ),
        );
    }
    attach::detach(&entry.point, Detach::Now)?;
    farewell.map_or(Ok(()), |f| f.wait(&entry.point))
}

/// Detaches the mount at `path`, even if it is in use or its store does not answer, and ends the process behind it. If
/// the store or the process does not answer, returns an error that says what is lost.
pub fn unmount_by_force(path: &Path) -> Result<()> {
    let entry = point::mounted(path)?;
    let asked = farewell::connect(&entry.point, SHORT_PATIENCE);
    let is_written = match &asked {
        Asked::Connected(farewell) => farewell.write_out(SHORT_PATIENCE, true),
        _ => false,
    };
    let unwritten = match &asked {
        Asked::Connected(farewell) if !is_written => farewell.unwritten(),
        _ => None,
    };
    attach::detach(&entry.point, Detach::Lazily)?;
    match asked {
        Asked::Connected(farewell) if is_written => {
            // This cuts off programs that still use it.
            farewell.signal(Signal::TERM);
            farewell.wait(&entry.point)
        }
        Asked::Connected(farewell) => given_up(&farewell, unwritten, &entry.point),
        Asked::Nobody => Ok(()),
        Asked::Silent => Err(
            Error::new(Kind::NoAnswer("its process".into()), entry.point.display()).hint(
                "it is detached. What was closed or synced is kept. What else was not written is if the process goes on, \
                 and is lost if it is killed",
            ),
        ),
    }
}

/// Kills the process of a mount whose store does not answer: it would wait for the store, and keep the library locked.
fn given_up(farewell: &Connection, unwritten: Option<String>, point: &Path) -> Result<()> {
    farewell.signal(Signal::KILL);
    farewell.wait_for_exit();
    let lost = match unwritten {
        Some(text) if text.is_empty() => {
            "nothing is lost: the next mount takes over what was not published".into()
        }
        Some(text) => format!("lost: {text}"),
        None => "what was not written is lost".into(),
    };
    Err(
        Error::new(Kind::NoAnswer("its store".into()), point.display())
            .hint(format_args!("it is detached; {lost}")),
    )
}
