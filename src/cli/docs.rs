//! `hushfs docs`: man pages and completions, made from the same definitions as `--help`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;
use crate::error::{Error, Result};

mod text;

/// The pages written by hand: folder, name, text.
const PAGES: [(&str, &str, &str); 5] = [
    (
        "man5",
        "hushfs-foreign.5",
        include_str!("../../man/hushfs-foreign.5"),
    ),
    (
        "man5",
        "hushfs-format.5",
        include_str!("../../man/hushfs-format.5"),
    ),
    (
        "man7",
        "hushfs-foreign.7",
        include_str!("../../man/hushfs-foreign.7"),
    ),
    (
        "man7",
        "hushfs-security.7",
        include_str!("../../man/hushfs-security.7"),
    ),
    (
        "man7",
        "hushfs-stores.7",
        include_str!("../../man/hushfs-stores.7"),
    ),
];

/// Heading of the table of exit codes in `--help`.
const EXIT_CODES: &str = "Exit codes";

/// What was typed.
#[derive(Args, Debug)]
pub struct DocsArgs {
    /// What to write
    what: What,
    /// Folder for it; created if missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum What {
    /// Man pages, in man1, man5 and man7
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

/// Writes the files.
pub fn run(args: &DocsArgs) -> Result<()> {
    let dir = &args.dir;
    match args.what {
        What::Man => {
            let mut command = Cli::command().disable_help_subcommand(true);
            // Gives the subcommands their full names.
            command.build();
            write_pages_of(&command, dir)?;
            PAGES.iter().try_for_each(|(folder, name, page)| {
                write(&dir.join(folder), name, page.as_bytes())
            })
        }
        What::Completions => {
            let at = |e| Error::io(e, dir);
            fs::create_dir_all(dir).map_err(at)?;
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut Cli::command(), "hushfs", dir)
                    .map_err(at)?;
            }
            Ok(())
        }
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(e, folder))?;
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|e| Error::io(e, &path))
}

/// Writes the page of a command and those of its subcommands.
fn write_pages_of(command: &Command, dir: &Path) -> Result<()> {
    let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
    for command in visible {
        write_pages_of(command, dir)?;
    }
    let name = name_of(command);
    let page = page(command).map_err(|e| Error::io(e, dir))?;
    write(&dir.join("man1"), &format!("{name}.1"), &page)
}

/// Returns the name of a command's page, such as `hushfs-key-add`.
fn name_of(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let name = name_of(command);
    let mut command = command.clone();
    let after_help = command.get_after_help().map(ToString::to_string);
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    let has_commands = command.get_subcommands().any(|c| !c.is_hide_set());
    let man = Man::new(
        command
            .override_usage(usage)
            .subcommand_help_heading("COMMANDS"),
    );
    let man = man
        .title(name.to_uppercase())
        .date(text::DATE)
        .source(concat!("hushfs ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    let after_help = after_help.unwrap_or_default();
    sections(&mut rest, &after_help);
    if !after_help.contains(EXIT_CODES) {
        rest.control("SH", ["EXIT STATUS"]);
        rest.text([roman("The exit codes are listed in")]);
        rest.control("BR", ["hushfs", "(1)."]);
    }
    add_text(&mut rest, name);
    rest.to_writer(&mut page)?;
    Ok(page)
}

/// Adds the text after the options of `--help`, as sections. A paragraph is a heading with a colon and a list of words
/// with their meanings, or plain text.
fn sections(roff: &mut Roff, text: &str) {
    for paragraph in text.split("\n\n").filter(|p| !p.is_empty()) {
        let Some((heading, list)) = paragraph.split_once(":\n") else {
            roff.control("SH", ["NOTES"]);
            roff.text([roman(paragraph)]);
            continue;
        };
        let heading = match heading {
            EXIT_CODES => "EXIT STATUS",
            other => &other.to_uppercase(),
        };
        roff.control("SH", [heading]);
        for line in list.lines() {
            let (word, meaning) = line.trim().split_once("  ").unwrap_or(("", line));
            if !word.is_empty() {
                roff.control("TP", []);
                roff.text([bold(word)]);
            }
            roff.text([roman(meaning.trim())]);
        }
    }
}

/// Adds what the definitions of the command line do not contain: files, examples, limitations, other pages.
fn add_text(roff: &mut Roff, name: &str) {
    let list = |roff: &mut Roff, heading, items: &[(&str, &str)]| {
        roff.control("SH", [heading]);
        for (word, meaning) in items {
            roff.control("TP", []);
            roff.text([bold(*word)]);
            roff.text([roman(*meaning)]);
        }
    };
    if name == "hushfs" {
        list(roff, "FILES", &text::FILES);
    }
    if name == "hushfs-mount" {
        list(roff, "LIMITATIONS", &text::LIMITATIONS);
    }
    let mut examples = text::EXAMPLES.iter().filter(|(page, ..)| *page == name);
    if let Some(first) = examples.next() {
        roff.control("SH", ["EXAMPLES"]);
        for (_, what, typed) in std::iter::once(first).chain(examples) {
            roff.control("PP", []);
            roff.text([roman(*what)]);
            roff.control("PP", []);
            roff.control("RS", ["4"]);
            roff.control("EX", []);
            for line in typed.lines() {
                roff.text([roman(line)]);
            }
            roff.control("EE", []);
            roff.control("RE", []);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = text::SEE_ALSO.iter().filter(|(page, _)| *page != name);
    let last = others.clone().count();
    for (number, (page, section)) in others.enumerate() {
        let comma = if number + 1 < last { "," } else { "" };
        roff.control("BR", [*page, &format!("({section}){comma}")]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// The names of all pages.
    fn names() -> Vec<String> {
        fn add(command: &Command, names: &mut Vec<String>) {
            names.push(name_of(command).to_owned());
            let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
            visible.for_each(|command| add(command, names));
        }
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let mut names = Vec::new();
        add(&command, &mut names);
        names
    }

    #[test]
    fn every_page_has_examples() {
        for name in names() {
            let has = text::EXAMPLES.iter().any(|(page, ..)| *page == name);
            assert!(has, "{name}");
        }
    }

    #[test]
    fn examples_can_be_typed() {
        let names = names();
        let shown = |page: &str| names.iter().any(|name| name == page);
        let shown = text::EXAMPLES.iter().filter(|(page, ..)| shown(page));
        let lines = shown.flat_map(|(.., typed)| typed.lines());
        for line in lines.filter(|line| line.starts_with("hushfs ")) {
            // Every second part is in quotes.
            let parts = line.split('\'').enumerate();
            let words = parts.flat_map(|(number, part)| match number % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            let typed = Cli::try_parse_from(words);
            assert!(typed.is_ok(), "{line}: {}", typed.unwrap_err());
        }
    }

    #[test]
    fn the_text_after_the_options_becomes_sections() {
        let mut roff = Roff::new();
        let text = "Exit codes:\n  0  done\n  1  failed\n     badly\n\nEnvironment:\n  NAME   what\n\nOf passwords.";
        sections(&mut roff, text);
        let made = roff.to_roff();
        let expected = ".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\ndone\n.TP\n\\fB1\\fR\nfailed\nbadly\n.SH ENVIRONMENT\n.TP\n\\fBNAME\\fR\nwhat\n.SH NOTES\nOf passwords.\n";
        assert_eq!(made, expected);
    }
}
