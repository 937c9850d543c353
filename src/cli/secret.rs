//! Where secrets come from: a prompt, a file, a command, systemd; never an argument.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use zeroize::Zeroizing;

use super::prompt;

use crate::crypto::{KEY_FILE_LEN_MAX, KEY_FILE_LEN_MIN, MasterKey, Secret};
use crate::error::{Error, Kind, Result};

/// The longest password, and the most that a password command may print, in bytes.
const PASSWORD_LEN_MAX: usize = 64 * 1024;
/// The name of the systemd credential (systemd.exec(5), `LoadCredential=hushfs.password:...`).
const CREDENTIAL: &str = "hushfs.password";

/// Where a password or key file comes from, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct SecretArgs {
    /// Read the password from the first line of FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_command", "key_file"])]
    pub password_file: Option<PathBuf>,
    /// Read the password from the first line that the shell command CMD prints
    #[arg(long, value_name = "CMD", conflicts_with = "key_file")]
    pub password_command: Option<OsString>,
    /// Use a key file in place of a password
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Where the secret comes from that opens a library, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct OpenArgs {
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Open with the recovery code; it is asked for, or read as a password would be
    #[arg(long, conflicts_with = "key_file")]
    pub recovery: bool,
    /// Try also what in key/ asks for much more memory or time than passwords of hushfs do
    #[arg(long)]
    pub accept_cost: bool,
}

/// Where a new password comes from, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct NewPasswordArgs {
    /// Read the new password from the first line of FILE
    #[arg(long, value_name = "FILE", conflicts_with = "new_password_command")]
    pub new_password_file: Option<PathBuf>,
    /// Read the new password from the first line that the shell command CMD prints
    #[arg(long, value_name = "CMD")]
    pub new_password_command: Option<OsString>,
}

/// What opens a library.
pub enum Opener {
    /// A slot's secret.
    Secret {
        /// The secret.
        secret: Secret,
        /// Slots are tried whatever they cost, within the bounds of the format.
        accept_cost: bool,
    },
    /// The master key itself, from the recovery code.
    Recovery(MasterKey),
}

impl OpenArgs {
    /// Whether a secret can be had without asking a person.
    pub fn given(&self) -> bool {
        let SecretArgs {
            password_file,
            password_command,
            key_file,
        } = &self.secret;
        password_file.is_some()
            || password_command.is_some()
            || key_file.is_some()
            || self.recovery
            || credential().is_some()
    }

    /// Refuses two secrets at once, where they did not all come through the parser.
    pub fn check(&self) -> Result<()> {
        let SecretArgs {
            password_file,
            password_command,
            key_file,
        } = &self.secret;
        let passwords =
            usize::from(password_file.is_some()) + usize::from(password_command.is_some());
        let key_file = key_file.is_some();
        if passwords > 1 || key_file && (passwords > 0 || self.recovery) {
            return Err(Error::usage("more than one secret is given"));
        }
        Ok(())
    }

    /// Gets the secret of a foreign library: all of it, but for one line feed at the end.
    pub fn ask_text(&self, prompt: &str) -> Result<Line> {
        if self.recovery || self.secret.key_file.is_some() {
            return Err(Error::usage(
                "--recovery and --key-file are for libraries of hushfs itself",
            ));
        }
        self.secret.text(|| ask_once(prompt))
    }

    /// Gets it, asking where nothing else is given.
    pub fn ask(&self) -> Result<Opener> {
        let opener = |secret| Opener::Secret {
            secret,
            accept_cost: self.accept_cost,
        };
        if let Some(path) = &self.secret.key_file {
            return read_key_file(path).map(opener);
        }
        let file = self.secret.password_file.as_deref();
        let command = self.secret.password_command.as_deref();
        if self.recovery {
            let code = match from_file_or_command(file, command)? {
                Some(code) => code,
                None => ask_once("Recovery code: ")?,
            };
            let code = std::str::from_utf8(&code)
                .map_err(|_| Error::usage("this is not a recovery code: it is not text"))?;
            return Ok(Opener::Recovery(MasterKey::from_recovery_code(code)?));
        }
        let password = match from_file_or_command(file, command)?.or(from_credential()?) {
            Some(password) => password,
            None => ask_once("Password: ")?,
        };
        checked(password).map(opener)
    }
}

impl SecretArgs {
    /// The secret of a new foreign library: a person is asked twice.
    pub fn choose_text(&self) -> Result<Line> {
        if self.key_file.is_some() {
            return Err(Error::usage("--key-file is for libraries of hushfs itself"));
        }
        self.text(|| match ask_twice()? {
            Secret::Password(line) => Ok(line),
            Secret::KeyFile(_) => Err(Error::usage("a password is asked for")),
        })
    }

    fn text(&self, ask: impl FnOnce() -> Result<Line>) -> Result<Line> {
        if let Some(path) = &self.password_file {
            return read_file(path, PASSWORD_LEN_MAX).and_then(|text| whole(text, path.display()));
        }
        if let Some(command) = &self.password_command {
            return whole(command_output(command)?, "the password command's output");
        }
        match credential() {
            Some(path) => {
                read_file(&path, PASSWORD_LEN_MAX).and_then(|text| whole(text, path.display()))
            }
            None => ask(),
        }
    }

    /// The secret of a new library: a person is asked twice.
    pub fn choose(&self) -> Result<Secret> {
        if let Some(path) = &self.key_file {
            return read_key_file(path);
        }
        let file = self.password_file.as_deref();
        let given = from_file_or_command(file, self.password_command.as_deref())?;
        match given.or(from_credential()?) {
            Some(password) => checked(password),
            None => ask_twice(),
        }
    }
}

impl NewPasswordArgs {
    /// The new password of a foreign library: all of the text, but for one line feed at its end.
    pub fn choose_text(&self) -> Result<Line> {
        let secret = SecretArgs {
            password_file: self.new_password_file.clone(),
            password_command: self.new_password_command.clone(),
            key_file: None,
        };
        if secret.password_file.is_some() || secret.password_command.is_some() {
            return secret.choose_text();
        }
        match ask_twice()? {
            Secret::Password(line) => Ok(line),
            Secret::KeyFile(_) => Err(Error::usage("a password is asked for")),
        }
    }

    /// The new password: a person is asked twice.
    pub fn choose(&self) -> Result<Secret> {
        let file = self.new_password_file.as_deref();
        match from_file_or_command(file, self.new_password_command.as_deref())? {
            Some(password) => checked(password),
            None => ask_twice(),
        }
    }
}

/// The whole of a key file.
pub fn read_key_file(path: &Path) -> Result<Secret> {
    let bytes = read_file(path, KEY_FILE_LEN_MAX)?;
    if !(KEY_FILE_LEN_MIN..=KEY_FILE_LEN_MAX).contains(&bytes.len()) {
        return Err(Error::usage(format_args!(
            "{}: a key file has {KEY_FILE_LEN_MIN} to {KEY_FILE_LEN_MAX} bytes",
            path.display()
        ))
        .hint("`hushfs key add --generate --new-key-file FILE DIR` makes one"));
    }
    Ok(Secret::KeyFile(bytes))
}

/// A secret as text.
pub type Line = Zeroizing<Vec<u8>>;

fn from_file_or_command(file: Option<&Path>, command: Option<&OsStr>) -> Result<Option<Line>> {
    if let Some(path) = file {
        let bytes = read_file(path, PASSWORD_LEN_MAX)?;
        return first_line(bytes, path.display()).map(Some);
    }
    command.map(from_command).transpose()
}

fn credential() -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = Path::new(&folder).join(CREDENTIAL);
    path.exists().then_some(path)
}

fn from_credential() -> Result<Option<Line>> {
    let Some(path) = credential() else {
        return Ok(None);
    };
    let bytes = read_file(&path, PASSWORD_LEN_MAX)?;
    first_line(bytes, path.display()).map(Some)
}

/// All of a text, but for one line feed at its end.
fn whole(mut text: Line, name: impl std::fmt::Display) -> Result<Line> {
    if text.len() > PASSWORD_LEN_MAX {
        return Err(too_long(name));
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Ok(text)
}

fn from_command(command: &OsStr) -> Result<Line> {
    first_line(command_output(command)?, "the password command's output")
}

/// Runs the command with the terminal as its own, so that it may ask for a PIN.
fn command_output(command: &OsStr) -> Result<Line> {
    let failed = |e| Error::new(Kind::Io(e), "the password command");
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let output = child.stdout.take().expect("stdout was asked to be a pipe");
    let bytes = read_bounded(output, PASSWORD_LEN_MAX);
    if bytes.as_ref().map_or(true, |b| b.len() > PASSWORD_LEN_MAX) {
        // It may print for ever.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let bytes = bytes.map_err(failed)?;
    // One that was ended because it printed too much did not fail of its own.
    if !status.success() && bytes.len() <= PASSWORD_LEN_MAX {
        return Err(Error::usage(format_args!(
            "the password command failed: {status}"
        )));
    }
    Ok(bytes)
}

/// Reads at most `len_max` bytes of a file, and one more where it is longer; warns where everybody may read it.
fn read_file(path: &Path, len_max: usize) -> Result<Line> {
    let at = |e| Error::io(e, path);
    let file = File::open(path).map_err(at)?;
    if file.metadata().map_err(at)?.mode() & 0o004 != 0 {
        log::warn!(
            "{}: everybody on this machine can read this secret (chmod 600 it)",
            path.display()
        );
    }
    read_bounded(file, len_max).map_err(at)
}

/// Into one buffer that never moves: one that grew would leave pieces of the secret behind.
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

/// What stands before the first line feed.
fn first_line(mut bytes: Line, name: impl std::fmt::Display) -> Result<Line> {
    match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => bytes.truncate(end),
        None if bytes.len() > PASSWORD_LEN_MAX => {
            return Err(too_long(name));
        }
        None => {}
    }
    Ok(bytes)
}

/// A password, not an empty one: that is a mistake of a script, or a file that is not there yet.
fn checked(password: Line) -> Result<Secret> {
    if password.is_empty() {
        return Err(Error::usage("the password is empty"));
    }
    Ok(Secret::Password(password))
}

fn ask_twice() -> Result<Secret> {
    let password = ask_once("New password: ")?;
    // A line from a script was not mistyped.
    if io::stdin().is_terminal() && *ask_once("Repeat it: ")? != *password {
        return Err(Error::usage("the two passwords differ"));
    }
    checked(password)
}

/// Asks at the terminal; reads a line of standard input where that is none.
fn ask_once(prompt: &str) -> Result<Line> {
    if !io::stdin().is_terminal() {
        return read_line(rustix::stdio::stdin(), "standard input");
    }
    prompt::ask(prompt, |terminal| read_line(terminal, "the terminal"))
        .map_err(|e| Error::new(Kind::Io(e), "the terminal"))?
}

/// Asks what is answered by yes or no, at the terminal; none where nobody can be asked.
pub fn confirm(question: std::fmt::Arguments<'_>) -> Option<bool> {
    if !io::stdin().is_terminal() {
        return None;
    }
    eprint!("{question} [y/N] ");
    let answer = read_line(rustix::stdio::stdin(), "the terminal");
    Some(answer.is_ok_and(|line| matches!(line.first(), Some(b'y' | b'Y'))))
}

/// One line, byte by byte: what follows belongs to the next question.
fn read_line(from: impl AsFd, name: &str) -> Result<Line> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSWORD_LEN_MAX + 1));
    loop {
        let mut byte = [0];
        match rustix::io::read(&from, &mut byte) {
            Ok(0) if line.is_empty() => {
                return Err(
                    Error::usage("no password is given, and nobody can be asked")
                        .hint("use --password-file, --password-command, --key-file, or a terminal"),
                );
            }
            Ok(0) => return Ok(line),
            Ok(_) if byte == *b"\n" => return Ok(line),
            Ok(_) if line.len() == PASSWORD_LEN_MAX => return Err(too_long(name)),
            Ok(_) => line.push(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::new(Kind::Io(e.into()), name)),
        }
    }
}

fn too_long(name: impl std::fmt::Display) -> Error {
    Error::usage(format_args!(
        "{name}: a password has {PASSWORD_LEN_MAX} bytes at most"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> Result<Vec<u8>> {
        first_line(Zeroizing::new(bytes.to_vec()), "F").map(|line| line.to_vec())
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
    fn a_command_prints_the_password() {
        let run = |command: &str| from_command(OsStr::new(command)).map(|line| line.to_vec());
        assert_eq!(run("printf 'one\\ntwo'").unwrap(), b"one");
        assert!(run("echo one; exit 1").is_err());
        assert!(run("yes | tr -d '\\n'").is_err());
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        let bytes = read_file(Path::new("/dev/zero"), 100).unwrap();
        assert_eq!(bytes.len(), 101);
    }
}
