//! `hushfs umount`: ends a mount, and waits until its process has written everything.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;

/// What was typed.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Mount point, or the library's folder
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Detach it immediately, even if the store does not answer or programs use it, and report what is lost
    #[arg(long)]
    force: bool,
}

/// Unmounts, and returns when the library is closed.
pub fn run(args: &UmountArgs) -> Result<()> {
    match args.force {
        true => crate::mount::unmount_by_force(&args.mountpoint),
        false => crate::mount::unmount(&args.mountpoint),
    }
}
