//! Taking a mount away, from another process.

use std::path::Path;

use rustix::process::Signal;

use super::attach::{self, Detach};
use super::farewell::{self, Asked, Connection, PATIENCE, SHORT_PATIENCE};
use super::point;
use crate::error::{Error, Kind, Result};

/// Ends the mount at `path`, or the newest of the library there, and waits until all is written and the process behind it
/// has let the library go. A mount that is in use is [`InUse`](crate::Kind::InUse); what the mount could not write is this
/// function's error, too. Where the store, or the process, does not answer for a minute, it stays mounted.
pub fn unmount(path: &Path) -> Result<()> {
    let entry = point::mounted(path)?;
    // Connect first: afterwards nothing answers any more. Nobody there is no reason not to unmount.
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
    // What cannot be written must not be met only when it is too late to go on.
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

/// Takes the mount at `path` from sight, whoever uses it and whether or not its store answers, and ends the process
/// behind it. What is lost by that is the error.
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
            // Programs that still use it are cut off.
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

/// The store does not answer: the process would wait for it, and keep the library locked.
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
