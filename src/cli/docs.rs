//! `hushfs docs`: man pages and completions, made from the same definitions as `--help`.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::Cli;
use crate::error::{Error, Result};

/// The pages that are written by hand.
const PAGES: [(&str, &str); 4] = [
    ("hushfs-format.5", include_str!("../../man/hushfs-format.5")),
    (
        "hushfs-foreign.7",
        include_str!("../../man/hushfs-foreign.7"),
    ),
    (
        "hushfs-security.7",
        include_str!("../../man/hushfs-security.7"),
    ),
    ("hushfs-stores.7", include_str!("../../man/hushfs-stores.7")),
];

/// What was typed.
#[derive(Args, Debug)]
pub struct DocsArgs {
    /// What to make
    what: What,
    /// The folder to put it in; made where it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum What {
    /// Man pages
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

/// Writes the files.
pub fn run(args: &DocsArgs) -> Result<()> {
    let at = |e| Error::io(e, &args.dir);
    fs::create_dir_all(&args.dir).map_err(at)?;
    match args.what {
        What::Man => {
            for (name, page) in PAGES {
                let path = args.dir.join(name);
                fs::write(&path, page).map_err(|e| Error::io(e, &path))?;
            }
            clap_mangen::generate_to(Cli::command(), &args.dir).map_err(at)
        }
        What::Completions => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut Cli::command(), "hushfs", &args.dir)
                    .map_err(at)?;
            }
            Ok(())
        }
    }
}
