//! Where the bytes of a secret come from: a file, a command, systemd, a line of standard input, or the terminal.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::cli::output;
use crate::cli::prompt;
use crate::crypto::{KEY_FILE_LEN_MAX, KEY_FILE_LEN_MIN, Secret};
use crate::error::{Error, ExitStatus, Kind, Result, io_text};

/// Maximum length of a password, and of the output of a password command, in bytes.
const PASSWORD_LEN_MAX: usize = 64 * 1024;
/// The name of the systemd credential (systemd.exec(5), `LoadCredential=hushfs.password:...`).
const CREDENTIAL: &str = "hushfs.password";
/// Maximum number of times that a person is asked.
const TRIES: u32 = 3;
/// What some editors write at the beginning of a text file.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// A secret as text.
pub type Line = Zeroizing<Vec<u8>>;

/// Text, and the name of its source.
pub struct Sourced {
    /// The text.
    pub text: Line,
    /// Name of its source in messages.
    pub name: String,
}

impl Sourced {
    /// Returns the first line, without its line feed.
    pub fn first_line(self) -> Result<Self> {
        let mut text = self.text;
        match text.iter().position(|b| *b == b'\n') {
            Some(end) => text.truncate(end),
            None if text.len() > PASSWORD_LEN_MAX => return Err(too_long(self.name)),
            None => {}
        }
        Ok(Self { text, ..self })
    }

    /// Returns the whole text, without one line feed at its end.
    pub fn whole(self) -> Result<Self> {
        let mut text = self.text;
        if text.len() > PASSWORD_LEN_MAX {
            return Err(too_long(self.name));
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        }
        Ok(Self { text, ..self })
    }

    /// Returns a new secret, without the marks of a text file from Windows. Opening tries to leave these out, too.
    pub fn into_new(self) -> Line {
        if self.text.starts_with(BYTE_ORDER_MARK.as_bytes()) {
            log::warn!(
                "{}: it begins with a byte order mark, which is left out of the password",
                self.name
            );
        }
        if self.text.ends_with(b"\r") {
            log::warn!(
                "{}: its first line ends with a carriage return, which is left out of the password",
                self.name
            );
        }
        Line::new(without_marks(&self.text).to_vec())
    }
}

/// Returns a text without a byte order mark at its beginning and a carriage return at its end.
pub fn without_marks(text: &[u8]) -> &[u8] {
    let text = text
        .strip_prefix(BYTE_ORDER_MARK.as_bytes())
        .unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

/// Returns what the file contains, or the command prints.
pub fn from_file_or_command(
    file: Option<&Path>,
    command: Option<&OsStr>,
) -> Result<Option<Sourced>> {
    match (file, command) {
        (Some(path), _) => from_file(path, "password file").map(Some),
        (None, Some(command)) => command_output(command).map(Some),
        (None, None) => Ok(None),
    }
}

/// Returns the path of the password that systemd passes.
pub fn credential() -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = Path::new(&folder).join(CREDENTIAL);
    path.exists().then_some(path)
}

/// Returns the password that systemd passes.
pub fn from_credential() -> Result<Option<Sourced>> {
    let path = credential();
    path.map(|path| from_file(&path, "credential")).transpose()
}

fn from_file(path: &Path, what: &str) -> Result<Sourced> {
    Ok(Sourced {
        text: read_file(path, what, PASSWORD_LEN_MAX)?,
        name: format!("{what} {}", path.display()),
    })
}

/// Reads a key file.
pub fn read_key_file(path: &Path) -> Result<Secret> {
    let bytes = read_file(path, "key file", KEY_FILE_LEN_MAX)?;
    if !(KEY_FILE_LEN_MIN..=KEY_FILE_LEN_MAX).contains(&bytes.len()) {
        return Err(Error::secret(
            format_args!("key file {}", path.display()),
            format_args!("a key file has {KEY_FILE_LEN_MIN} to {KEY_FILE_LEN_MAX} bytes"),
        )
        .hint("`hushfs key add --generate --new-key-file FILE DIR` creates one"));
    }
    Ok(Secret::KeyFile(bytes))
}

/// Runs the command with the terminal as its own, so that it may ask for a PIN.
fn command_output(command: &OsStr) -> Result<Sourced> {
    const NAME: &str = "the password command";
    let failed = |e| Error::secret(NAME, io_text(&e));
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let output = child.stdout.take().expect("stdout was asked to be a pipe");
    let text = read_bounded(output, PASSWORD_LEN_MAX);
    if text.as_ref().map_or(true, |b| b.len() > PASSWORD_LEN_MAX) {
        // It may print endlessly.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let text = text.map_err(failed)?;
    // A command that was killed because it printed too much did not fail by itself.
    if !status.success() && text.len() <= PASSWORD_LEN_MAX {
        return Err(Error::secret(NAME, format_args!("failed: {status}")));
    }
    let name = "the output of the password command".to_string();
    Ok(Sourced { text, name })
}

/// Reads at most `len_max` bytes of a file, and one more if it is longer; warns if everybody may read the file.
fn read_file(path: &Path, what: &str, len_max: usize) -> Result<Line> {
    let at = |e: io::Error| {
        let subject = format_args!("{what} {}", path.display());
        match e.kind() {
            io::ErrorKind::NotFound => Error::secret(subject, "not found"),
            _ => Error::secret(subject, io_text(&e)),
        }
    };
    let file = File::open(path).map_err(at)?;
    if file.metadata().map_err(at)?.mode() & 0o004 != 0 {
        log::warn!(
            "{}: everybody on this machine can read this secret (chmod 600 it)",
            path.display()
        );
    }
    read_bounded(file, len_max).map_err(at)
}

/// Reads into one buffer that never moves: a growing one would leave copies of the secret in memory.
fn read_bounded(mut from: impl Read, len_max: usize) -> io::Result<Line> {
    let mut bytes = Zeroizing::new(vec![0; len_max + 1]);
    let mut len = 0;
    while len < bytes.len() {
        match from.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Refuses an empty password: it is a mistake in a script, or a file that is not there yet.
pub fn checked(password: Line) -> Result<Secret> {
    if password.is_empty() {
        return Err(Kind::Secret("the password is empty".into()).into());
    }
    Ok(Secret::Password(password))
}

/// Asks for a new password, twice at a terminal.
pub fn ask_twice() -> Result<Secret> {
    ask_until("New password: ", |typed| {
        let is_typed = is_terminal();
        let new = if is_typed {
            typed.text
        } else {
            typed.into_new()
        };
        let new = checked(new)?;
        // A line from a script was not mistyped.
        match &new {
            Secret::Password(first) if is_typed && *ask_once("Repeat it: ")?.text != **first => {
                Err(Kind::Secret("the two passwords differ".into()).into())
            }
            _ => Ok(new),
        }
    })
}

/// Asks until `take` accepts what is typed: at most three times at a terminal, otherwise once.
pub fn ask_until<T>(prompt: &str, mut take: impl FnMut(Sourced) -> Result<T>) -> Result<T> {
    let again = if is_terminal() { TRIES - 1 } else { 0 };
    for _ in 0..again {
        match take(ask_once(prompt)?) {
            // The end of input is not a wrong answer: do not ask again.
            Err(e) if is_wrong(&e) => output::tell(&e),
            taken => return taken,
        }
    }
    take(ask_once(prompt)?)
}

fn is_wrong(e: &Error) -> bool {
    e.exit_status() == ExitStatus::WrongKey && !matches!(e.kind(), Kind::NoSecret)
}

/// Whether a person can be asked.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Asks at the terminal; if there is none, reads a line of standard input.
fn ask_once(prompt: &str) -> Result<Sourced> {
    if !is_terminal() {
        return match read_line(rustix::stdio::stdin(), "standard input")? {
            (text, false) if text.is_empty() => Err(Error::from(Kind::NoSecret).hint(
                "there is no terminal to ask at: use --password-file, --password-command or --key-file",
            )),
            (text, _) => Ok(Sourced {
                text,
                name: "standard input".into(),
            }),
        };
    }
    let name = "the terminal";
    let asked = prompt::ask(prompt, |terminal| {
        let (text, is_ended) = read_line(terminal, name)?;
        if !is_ended {
            // The cursor is still on the prompt's line.
            let mut screen = terminal;
            let _ = screen.write_all(b"\n");
        }
        match text.is_empty() && !is_ended {
            true => Err(Error::from(Kind::NoSecret)),
            false => Ok(text),
        }
    });
    let text = asked.map_err(|e| Error::new(Kind::Io(e), name))??;
    let name = name.into();
    Ok(Sourced { text, name })
}

/// Asks a yes-or-no question at the terminal; `None` if there is none.
pub fn confirm(question: std::fmt::Arguments<'_>) -> Option<bool> {
    if !is_terminal() {
        return None;
    }
    eprint!("{question} [y/N] ");
    let answer = read_line(rustix::stdio::stdin(), "the terminal");
    if answer.as_ref().is_ok_and(|(_, is_ended)| !is_ended) {
        eprintln!();
    }
    Some(answer.is_ok_and(|(line, _)| matches!(line.first(), Some(b'y' | b'Y'))))
}

/// Reads one line, and returns whether a line feed ended it. Reads byte by byte, because what follows belongs to the
/// next question.
fn read_line(from: impl AsFd, name: &str) -> Result<(Line, bool)> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSWORD_LEN_MAX + 1));
    loop {
        let mut byte = [0];
        match rustix::io::read(&from, &mut byte) {
            Ok(0) => return Ok((line, false)),
            Ok(_) if byte == *b"\n" => return Ok((line, true)),
            Ok(_) if line.len() == PASSWORD_LEN_MAX => return Err(too_long(name)),
            Ok(_) => line.push(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::new(Kind::Io(e.into()), name)),
        }
    }
}

fn too_long(name: impl Display) -> Error {
    Error::secret(
        name,
        format_args!("a password has at most {PASSWORD_LEN_MAX} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> Result<Vec<u8>> {
        let sourced = Sourced {
            text: Zeroizing::new(bytes.to_vec()),
            name: "F".into(),
        };
        sourced.first_line().map(|line| line.text.to_vec())
    }

    #[test]
    fn a_password_is_the_first_line_without_its_end() {
        assert_eq!(line(b"one").unwrap(), b"one");
        assert_eq!(line(b"one\n").unwrap(), b"one");
        assert_eq!(line(b" one \ntwo\n").unwrap(), b" one ");
        assert_eq!(line(b"\n").unwrap(), b"");
        assert!(line(&vec![b'x'; PASSWORD_LEN_MAX]).is_ok());
        assert!(line(&vec![b'x'; PASSWORD_LEN_MAX + 1]).is_err());
        assert!(checked(Zeroizing::new(Vec::new())).is_err());
    }

    #[test]
    fn marks_of_windows_are_left_out() {
        for (text, bare) in [
            ("one", "one"),
            ("one\r", "one"),
            ("\u{feff}one", "one"),
            ("\u{feff}one\r", "one"),
            ("one\r\r", "one\r"),
            ("\r", ""),
            ("o\u{feff}ne", "o\u{feff}ne"),
        ] {
            assert_eq!(without_marks(text.as_bytes()), bare.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn a_command_prints_the_password() {
        let run = |command: &str| {
            let output = command_output(OsStr::new(command))?.first_line();
            output.map(|line| line.text.to_vec())
        };
        assert_eq!(run("printf 'one\\ntwo'").unwrap(), b"one");
        assert!(run("echo one; exit 1").is_err());
        assert!(run("yes | tr -d '\\n'").is_err());
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        let bytes = read_file(Path::new("/dev/zero"), "file", 100).unwrap();
        assert_eq!(bytes.len(), 101);
    }
}
