//! What opens a library, as typed: which secret, where it comes from, and how often it is asked for. A secret is never
//! an argument.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::crypto::{MasterKey, Secret};
use crate::error::{Error, Kind, Result};
use crate::library::Opener;

mod source;

pub use source::{Line, confirm, is_terminal, read_key_file, without_marks};
use source::{
    Sourced, ask_twice, ask_until, checked, credential, from_credential, from_file_or_command,
};

/// Where a password or key file comes from, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct SecretArgs {
    /// Read the password from the first line of FILE
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_command", "key_file"])]
    pub password_file: Option<PathBuf>,
    /// Read the password from the first line printed by the shell command CMD
    #[arg(long, value_name = "CMD", conflicts_with = "key_file")]
    pub password_command: Option<OsString>,
    /// Use a key file instead of a password
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Where the secret comes from that opens a library, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct OpenArgs {
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Use the recovery code (asked for, or read like a password)
    #[arg(long, conflicts_with = "key_file")]
    pub recovery: bool,
    /// Also try slots that need much more memory or time than those of hushfs do
    #[arg(long)]
    pub accept_cost: bool,
}

/// Where a new password comes from, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct NewPasswordArgs {
    /// Read the new password from the first line of FILE
    #[arg(long, value_name = "FILE", conflicts_with = "new_password_command")]
    pub new_password_file: Option<PathBuf>,
    /// Read the new password from the first line printed by the shell command CMD
    #[arg(long, value_name = "CMD")]
    pub new_password_command: Option<OsString>,
}

/// Returns the opener for a line with a password.
fn password(line: Sourced) -> Result<Opener> {
    let bare = without_marks(&line.text);
    let bare = (bare.len() < line.text.len() && !bare.is_empty())
        .then(|| Secret::Password(Line::new(bare.to_vec())));
    let secret = checked(line.text)?;
    Ok(Opener::Secret { secret, bare })
}

fn recovery(line: Sourced) -> Result<Opener> {
    let code = std::str::from_utf8(without_marks(&line.text)).map_err(|_| {
        Error::from(Kind::Secret(
            "this is not a recovery code: it is not text".into(),
        ))
    })?;
    MasterKey::from_recovery_code(code).map(Opener::Recovery)
}

impl OpenArgs {
    /// Whether the command line or systemd says what opens the library.
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

    /// Whether the library is to be opened with a password, if with anything.
    pub fn is_password(&self) -> bool {
        self.secret.key_file.is_none() && !self.recovery
    }

    /// Refuses more than one secret. The parser does so for arguments, but `-o` options bypass it.
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

    /// Passes the secret to `open`, and asks for one if none is given. If one that was typed is wrong, asks again,
    /// three times in all.
    pub fn each<T>(&self, mut open: impl FnMut(Opener) -> Result<T>) -> Result<T> {
        if let Some(path) = &self.secret.key_file {
            let secret = read_key_file(path)?;
            return open(Opener::Secret { secret, bare: None });
        }
        let (prompt, opener): (_, fn(Sourced) -> Result<Opener>) = match self.recovery {
            true => ("Recovery code: ", recovery),
            false => ("Password: ", password),
        };
        match self.secret.given(!self.recovery)? {
            Some(given) => open(opener(given.first_line()?)?),
            None => ask_until(prompt, |typed| open(opener(typed)?)),
        }
    }

    /// The same with an optional password: an empty line means none.
    pub fn each_or_none<T>(&self, mut open: impl FnMut(Opener) -> Result<T>) -> Result<Option<T>> {
        let prompt = "Password (leave it empty to go on without): ";
        ask_until(prompt, |typed| match typed.text.is_empty() {
            true => Ok(None),
            false => open(password(typed)?).map(Some),
        })
    }

    /// The same with the secret of a foreign library, which is the whole text without one line feed at its end. The
    /// second argument of `open` says whether it was typed at a terminal.
    pub fn each_text<T>(
        &self,
        prompt: &str,
        mut open: impl FnMut(&Line, bool) -> Result<T>,
    ) -> Result<T> {
        if self.recovery || self.secret.key_file.is_some() {
            return Err(Error::usage(
                "--recovery and --key-file are for libraries of hushfs itself",
            ));
        }
        match self.secret.given(true)? {
            Some(given) => open(&given.whole()?.text, false),
            None => ask_until(prompt, |typed| open(&typed.text, is_terminal())),
        }
    }
}

impl SecretArgs {
    /// Returns the secret from a file, a command or, with `or_credential`, systemd.
    fn given(&self, or_credential: bool) -> Result<Option<Sourced>> {
        let file = self.password_file.as_deref();
        let given = from_file_or_command(file, self.password_command.as_deref())?;
        match given {
            None if or_credential => from_credential(),
            given => Ok(given),
        }
    }

    /// Returns the secret of a new foreign library. A person is asked twice.
    pub fn choose_text(&self) -> Result<Line> {
        if self.key_file.is_some() {
            return Err(Error::usage("--key-file is for libraries of hushfs itself"));
        }
        new_text(self.given(true)?)
    }

    /// Returns the secret of a new library. A person is asked twice.
    pub fn choose(&self) -> Result<Secret> {
        match &self.key_file {
            Some(path) => read_key_file(path),
            None => new_password(self.given(true)?),
        }
    }
}

impl NewPasswordArgs {
    /// Returns the same as what opens the library that is created with it.
    pub fn as_secret(&self) -> SecretArgs {
        SecretArgs {
            password_file: self.new_password_file.clone(),
            password_command: self.new_password_command.clone(),
            key_file: None,
        }
    }

    /// Returns the new password of a foreign library. A person is asked twice.
    pub fn choose_text(&self) -> Result<Line> {
        new_text(self.as_secret().given(false)?)
    }

    /// Returns the new password. A person is asked twice.
    pub fn choose(&self) -> Result<Secret> {
        new_password(self.as_secret().given(false)?)
    }
}

fn new_password(given: Option<Sourced>) -> Result<Secret> {
    match given {
        Some(given) => checked(given.first_line()?.into_new()),
        None => ask_twice(),
    }
}

fn new_text(given: Option<Sourced>) -> Result<Line> {
    match given {
        Some(given) => Ok(given.whole()?.into_new()),
        None => match ask_twice()? {
            Secret::Password(line) => Ok(line),
            Secret::KeyFile(_) => Err(Error::usage("a password is asked for")),
        },
    }
}
