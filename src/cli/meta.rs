//! The shell's own commands, which begin with a backslash.

use std::path::PathBuf;

use clap::ValueEnum;

use super::failure::{Failure, Result};
use super::options::Format;

/// A command to the shell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    Quit,
    Help,
    /// All tables, or the columns of one.
    Describe(Option<String>),
    /// On, off, or the other way round.
    Timing(Option<bool>),
    Include(PathBuf),
    /// A new form of results, or which it is.
    Format(Option<Format>),
    /// A new limit of rows, or which it is.
    Limit(Option<u64>),
}

/// Their names, for completion.
pub(crate) const COMMANDS: [&str; 7] = ["\\?", "\\d", "\\format", "\\i", "\\q", "\\set limit", "\\timing"];

/// What `\?` prints.
pub(crate) const HELP: &str = r"End a statement with ; to run it. Tab completes, Ctrl-C clears the line or cancels the query.

  \d [TABLE]        list the tables, or the columns of one
  \format [FORMAT]  show results as table, csv or json
  \i FILE           run the statements of a file
  \set limit N      stop each result after N rows; 0 is no limit
  \timing [on|off]  say how long statements take, or not
  \?                this help
  \q                leave (also quit, exit, Ctrl-D)
";

impl Meta {
    /// Understands a line that begins with a backslash.
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let argument = (!rest.is_empty()).then_some(rest);
        match (name, argument) {
            ("\\q", None) => Ok(Self::Quit),
            ("\\?" | "\\h" | "\\help", None) => Ok(Self::Help),
            ("\\d", table) => Ok(Self::Describe(table.map(str::to_string))),
            ("\\timing", None) => Ok(Self::Timing(None)),
            ("\\timing", Some("on")) => Ok(Self::Timing(Some(true))),
            ("\\timing", Some("off")) => Ok(Self::Timing(Some(false))),
            ("\\i", Some(path)) => Ok(Self::Include(PathBuf::from(unquoted(path)))),
            ("\\format", None) => Ok(Self::Format(None)),
            ("\\format", Some(format)) => parse_format(format),
            ("\\set", Some(setting)) => parse_limit(line, setting),
            _ => Err(misunderstood(line)),
        }
    }
}

fn parse_format(name: &str) -> Result<Meta> {
    match Format::from_str(name, true) {
        Ok(Format::Arrow) | Err(_) => Err(Failure::error(
            format!("`{name}` is not a format of the shell"),
            "choose table, csv or json; `thalweg run --format arrow` writes Arrow to a file or pipe",
        )),
        Ok(format) => Ok(Meta::Format(Some(format))),
    }
}

fn parse_limit(line: &str, setting: &str) -> Result<Meta> {
    let mut words = setting
        .split(|c: char| c.is_whitespace() || c == '=')
        .filter(|word| !word.is_empty());
    match (words.next(), words.next().map(str::parse), words.next()) {
        (Some("limit"), None, _) => Ok(Meta::Limit(None)),
        (Some("limit"), Some(Ok(rows)), None) => Ok(Meta::Limit(Some(rows))),
        _ => Err(misunderstood(line)),
    }
}

fn misunderstood(line: &str) -> Failure {
    Failure::error(
        format!("`{line}` is not a command of the shell"),
        "\\? lists the commands",
    )
}

fn unquoted(path: &str) -> &str {
    let inner = |quote: char| path.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        for (line, meta) in [
            ("\\q", Meta::Quit),
            ("\\?;", Meta::Help),
            ("\\d", Meta::Describe(None)),
            ("\\d  flights ; ", Meta::Describe(Some("flights".into()))),
            ("\\timing off", Meta::Timing(Some(false))),
            ("\\i 'a file.sql'", Meta::Include("a file.sql".into())),
            ("\\format CSV", Meta::Format(Some(Format::Csv))),
            ("\\set limit 5", Meta::Limit(Some(5))),
            ("\\set limit = 0", Meta::Limit(Some(0))),
        ] {
            assert_eq!(Meta::parse(line).unwrap(), meta, "{line}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        for line in [
            "\\x",
            "\\q now",
            "\\i",
            "\\format xml",
            "\\format arrow",
            "\\set limit many",
            "\\set",
            "\\",
        ] {
            let message = Meta::parse(line).expect_err(line).message();
            assert!(message.contains("\n  help: "), "{message}");
        }
    }
}
