//! The command line: what was typed ([`Cli`]), one file per subcommand, and how the program ends.
//!
//! Secrets come from a prompt, a file, a command or systemd (`secret`). They are never an argument, and are never
//! printed or logged.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};
use log::Level;

use crate::crypto::harden_process;
use crate::error::{ExitStatus, Kind, Result};
use crate::logged::{self, printable};

mod convert;
mod docs;
mod foreign;
mod info;
mod init;
mod key;
mod mount;
mod output;
mod passwd;
mod prompt;
mod recovery;
mod secret;
mod umount;
mod unlock;
mod verify;

/// What the man page and `--help` say after the commands.
const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  any other error
  2  wrong usage
  3  wrong, empty or unreadable password, key file or recovery code
  4  no library there, another program's, or one of a later version
  5  something stored is damaged, missing or rolled back
  6  in use: already mounted, or the mount point is busy
  7  the kernel or fusermount3 refused
  8  the mount point or target is missing, not empty, exists already or is not mounted
  9  reading or writing failed

Environment:
  HUSHFS_LOG             log level: error, warn (default), info, debug or trace
  CREDENTIALS_DIRECTORY  the password is read from hushfs.password in there (systemd)
  XDG_STATE_HOME         where per-machine state is kept [default: ~/.local/state]

The password or key is read from --password-file, --password-command or --key-file if
given; otherwise from a systemd credential, the terminal, or a line of standard input.";

/// An encrypted library, mounted as a normal folder.
#[derive(Parser, Debug)]
#[command(name = "hushfs", version, about, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Create a library and show its recovery code
    Init(init::InitArgs),
    /// Mount a library
    Mount(mount::MountArgs),
    /// Mount a library as mount(8) asks for it
    #[command(name = MOUNT_HELPER, hide = true)]
    MountHelper(mount::HelperArgs),
    /// Unmount a library, and wait until everything is written
    #[command(visible_alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Change the password (no file is re-encrypted)
    Passwd(passwd::PasswdArgs),
    /// List, add and remove passwords and key files; show the recovery code
    Key(key::KeyArgs),
    /// Show information about a library (more with a password or key)
    ///
    /// "collects: no" means that deleting frees no space, because another device has written to the library or part of
    /// the index is missing. A device is one user on one machine.
    Info(info::InfoArgs),
    /// Look at everything in a library, and name what is damaged
    Verify(verify::VerifyArgs),
    /// Copy a plain folder or another program's library into a new library
    Convert(convert::ConvertArgs),
    /// Make man pages and completions
    #[command(hide = true)]
    Docs(docs::DocsArgs),
    /// Print the version
    #[command(hide = true)]
    Version,
}

/// Runs the program.
pub fn main() -> ExitCode {
    harden_process();
    ignore_file_size_signal();
    start_log();
    let typed = arguments(std::env::args_os().collect());
    let is_helper = typed.get(1).is_some_and(|verb| verb == MOUNT_HELPER);
    let done = match Cli::try_parse_from(&typed) {
        Ok(cli) => run(&cli.command),
        Err(e) if e.use_stderr() => {
            let _ = with_tip(without_values(e), &typed).print();
            Err(Kind::Ended(ExitStatus::Usage, "".into()).into())
        }
        Err(help) => help.print().map_err(output::failed),
    };
    let Err(e) = done else {
        return ExitCode::SUCCESS;
    };
    let code = output::report(&e);
    ExitCode::from(match is_helper {
        true => e.mount_8_code(),
        false => code,
    })
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Init(args) => init::run(args),
        Command::Mount(args) => mount::run(args),
        Command::MountHelper(args) => mount::run_for_mount_8(args),
        Command::Umount(args) => umount::run(args),
        Command::Passwd(args) => passwd::run(args),
        Command::Key(args) => key::run(args),
        Command::Info(args) => info::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Docs(args) => docs::run(args),
        Command::Version => output::print_line(concat!("hushfs ", env!("CARGO_PKG_VERSION"))),
    }
}

/// The subcommand as which the program runs when it is called as `mount.hushfs`.
const MOUNT_HELPER: &str = "mount.hushfs";

/// Makes a call as `/sbin/mount.hushfs` or `/sbin/mount.fuse.hushfs` (links to this program, which mount(8) calls for
/// fstab(5)) a call of `hushfs mount` with some more options.
fn arguments(mut typed: Vec<OsString>) -> Vec<OsString> {
    let name = typed
        .first()
        .and_then(|program| Path::new(program).file_name());
    if name.is_some_and(|name| name == MOUNT_HELPER || name == "mount.fuse.hushfs") {
        typed.insert(1, MOUNT_HELPER.into());
    }
    typed
}

/// Suggests `--foreground` for `-f`, with which other programs stay in the foreground.
fn with_tip(mut error: clap::Error, typed: &[OsString]) -> clap::Error {
    let is_mount = typed.get(1).is_some_and(|verb| verb == "mount");
    let unknown = ContextValue::String("-f".to_string());
    if is_mount && error.get(ContextKind::InvalidArg) == Some(&unknown) {
        let tip = ContextValue::String("--foreground".to_string());
        error.insert(ContextKind::SuggestedArg, tip);
    }
    error
}

/// Hides a value where none is expected: it may be a secret that was given in the wrong place, and error messages end
/// up in logs.
fn without_values(mut error: clap::Error) -> clap::Error {
    if matches!(
        error.kind(),
        ErrorKind::TooManyValues | ErrorKind::UnknownArgument
    ) {
        for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue] {
            if let Some(ContextValue::String(word)) = error.get(kind)
                && !word.starts_with('-')
            {
                error.insert(kind, ContextValue::String("...".to_string()));
            }
        }
    }
    error
}

/// Makes a write beyond an inherited limit (`ulimit -f`) fail, instead of ending the program in the middle of its work.
fn ignore_file_size_signal() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Whether a record is fuser's error about an answer that is no longer wanted, because a signal or `umount -f` ended
/// the request.
fn is_unwanted_answer(record: &log::Record<'_>) -> bool {
    let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
    record.level() == Level::Error
        && record.target().starts_with("fuser::")
        && record.args().to_string() == format!("Failed to send FUSE reply: {gone}")
}

/// Starts the log. Errors and warnings have the form of messages; lower levels include the module.
fn start_log() {
    let env = env_logger::Env::new().filter_or("HUSHFS_LOG", "warn");
    env_logger::Builder::from_env(env)
        .format(|out, record| match (record.level(), record.args()) {
            _ if is_unwanted_answer(record) => Ok(()),
            (Level::Error, text) => logged::write(out, format_args!("hushfs: {text}")),
            (Level::Warn, text) => logged::write(out, format_args!("hushfs: warning: {text}")),
            (level, text) => {
                let target = record.target();
                logged::write(out, format_args!("hushfs: {level} {target}: {text}"))
            }
        })
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_exit_codes_are_those_of_the_table() {
        for (number, status) in ExitStatus::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, number);
            assert!(AFTER_HELP.contains(&format!("\n  {number}  ")));
        }
        // The README has the same table.
        let readme = include_str!("../README.md");
        let codes = AFTER_HELP
            .lines()
            .skip(1)
            .map_while(|line| line.strip_prefix("  "));
        for (number, text) in codes.filter_map(|line| line.split_once("  ")) {
            let row = format!("\n| {number} | {text} |\n");
            assert!(readme.contains(&row), "{row}");
        }
    }

    #[test]
    fn one_message_of_fuser_is_left_out() {
        let left_out = |level, target, text: &str| {
            is_unwanted_answer(
                &log::Record::builder()
                    .level(level)
                    .target(target)
                    .args(format_args!("{text}"))
                    .build(),
            )
        };
        let text = "Failed to send FUSE reply: No such file or directory (os error 2)";
        assert!(left_out(Level::Error, "fuser::reply", text));
        assert!(!left_out(Level::Warn, "fuser::reply", text));
        assert!(!left_out(Level::Error, "hushfs::fuse", text));
        let other = "Failed to send FUSE reply: Invalid argument (os error 22)";
        assert!(!left_out(Level::Error, "fuser::reply", other));
    }

    #[test]
    fn mount_8_may_call_it() {
        let typed = |words: &[&str]| arguments(words.iter().map(OsString::from).collect());
        assert_eq!(
            typed(&["/sbin/mount.hushfs", "a"]),
            ["/sbin/mount.hushfs", "mount.hushfs", "a"]
        );
        assert_eq!(
            typed(&["mount.fuse.hushfs", "a"]),
            ["mount.fuse.hushfs", "mount.hushfs", "a"]
        );
        assert_eq!(typed(&["hushfs", "info"]), ["hushfs", "info"]);
    }
}
