//! `key_secret_base64` in a `medusa.ini`, parsed as Medusa does: with `configparser` of Python 3.11 without interpolation. No
//! crate does the same: values continue in indented lines, and a duplicate is an error.

use std::collections::{HashMap, HashSet};

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The option.
const NAME: &str = "key_secret_base64";
/// Its section.
const SECTION: &str = "storage";
/// The section with defaults for all others.
const DEFAULT: &str = "DEFAULT";

/// The state of the parser.
#[derive(Default)]
struct Settings {
    /// The lines of each value, by section and option.
    values: HashMap<(String, String), Vec<String>>,
    sections: HashSet<String>,
    /// The section of the next line.
    section: Option<String>,
    option: Option<String>,
    /// The indentation of the last line that was not a continuation, in characters.
    indent: usize,
}

/// The key in a `medusa.ini`; `None` if it is not set or empty. [`Kind::Usage`](crate::error::Kind::Usage) if Medusa would
/// refuse the file as well.
pub fn key_in_ini(text: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let text = std::str::from_utf8(text).map_err(|_| Error::usage("it is no text in UTF-8"))?;
    let text = Zeroizing::new(text.replace("\r\n", "\n").replace('\r', "\n"));
    let mut settings = Settings::default();
    for (line, number) in text.split('\n').zip(1..) {
        let taken = settings.take(line);
        taken.map_err(|why| {
            Error::usage(format_args!(
                "line {number}: {why}, and Medusa does not read it"
            ))
        })?;
    }
    let mut get = |section: &str| settings.values.remove(&(section.into(), NAME.into()));
    let value = get(SECTION).or_else(|| get(DEFAULT)).unwrap_or_default();
    let value = Zeroizing::new(value.join("\n"));
    let value = value.trim_end();
    Ok((!value.is_empty()).then(|| Zeroizing::new(value.as_bytes().to_vec())))
}

impl Settings {
    fn take(&mut self, line: &str) -> Result<(), &'static str> {
        let text = line.trim();
        if text.is_empty() || text.starts_with(['#', ';']) {
            // An empty line may be part of a value, which makes no difference to a key.
            return Ok(());
        }
        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
        if indent > self.indent
            && let (Some(section), Some(option)) = (&self.section, &self.option)
        {
            let value = self
                .values
                .entry((section.clone(), option.clone()))
                .or_default();
            value.push(text.into());
            return Ok(());
        }
        self.indent = indent;
        if let Some(name) = section_name(text) {
            let is_new = name == DEFAULT || self.sections.insert(name.into());
            self.section = Some(name.into());
            self.option = None;
            return is_new.then_some(()).ok_or("this section was there before");
        }
        let Some(section) = &self.section else {
            return Err("it belongs to no section");
        };
        let (name, value) = text
            .split_once(['=', ':'])
            .ok_or("it is neither a section nor an option")?;
        let name = name.trim_end().to_lowercase();
        if name.is_empty() {
            return Err("the option has no name");
        }
        let place = (section.clone(), name.clone());
        self.option = Some(name);
        match self.values.insert(place, vec![value.trim().into()]) {
            None => Ok(()),
            Some(_) => Err("this option was there before"),
        }
    }
}

/// The name of a section: everything between the first bracket and the last.
fn section_name(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('[')?.rsplit_once(']')?;
    (!name.is_empty()).then_some(name)
}
