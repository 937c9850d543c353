//! `hushfs umount`: ends a mount, and waits until its process has written everything.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;

/// What was typed.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where the library is mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// Unmounts, and returns when the library is closed.
pub fn run(args: &UmountArgs) -> Result<()> {
    crate::mount::unmount(&args.mountpoint)
}
