//! How the command can end other than well, and what it says then.

use std::io::{self, Write};

use arrow::error::ArrowError;

/// A result of the command.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why the command, or one statement, stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong: one line of cause, one of remedy.
    Error { cause: String, help: Option<String> },
    /// The command was asked for something it cannot mean.
    Usage { cause: String, help: String },
    /// A signal asked us to stop.
    Interrupted { signal: i32 },
    /// Whoever read our output has gone, which is no error: `| head`.
    ReaderGone,
}

impl Failure {
    /// An error with its remedy.
    pub(crate) fn error(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Error {
            cause: cause.into(),
            help: Some(help.into()),
        }
    }

    /// A usage error with its remedy.
    pub(crate) fn usage(cause: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Usage {
            cause: cause.into(),
            help: help.into(),
        }
    }

    /// The same failure, saying where it happened.
    pub(crate) fn at(self, place: &str) -> Self {
        match self {
            Self::Error { cause, help } => Self::Error {
                cause: format!("{place}: {cause}"),
                help,
            },
            other => other,
        }
    }

    /// The code the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Error { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Interrupted { signal } => u8::try_from(128 + signal).unwrap_or(1),
            Self::ReaderGone => 0,
        }
    }

    /// What is said about it on stderr; empty when there is nothing to say.
    pub(crate) fn message(&self) -> String {
        let (cause, help) = match self {
            Self::Error { cause, help } => (cause.as_str(), help.as_deref()),
            Self::Usage { cause, help } => (cause.as_str(), Some(help.as_str())),
            Self::Interrupted { .. } => ("interrupted", None),
            Self::ReaderGone => return String::new(),
        };
        let mut message = format!("error: {}\n", one_line(cause));
        if let Some(help) = help {
            message.push_str(&format!("  help: {}\n", one_line(help)));
        }
        message
    }

    /// Says it on stderr. If stderr is gone too, there is nobody left to tell.
    pub(crate) fn report(&self) {
        let _ = io::stderr().write_all(self.message().as_bytes());
    }
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

impl From<thalweg::Error> for Failure {
    fn from(error: thalweg::Error) -> Self {
        Self::Error {
            cause: error.to_string(),
            help: error.remedy(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::error(
            format!("cannot write the output: {error}"),
            "check the disk or the program that reads the output",
        )
    }
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Self::error(
            format!("cannot format the result: {error}"),
            "cast the column to text, or choose another --format",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_cause_and_one_of_remedy() {
        let failure = Failure::error("broken\n  in two", "mend\nit").at("q.sql, statement starting at line 3");
        assert_eq!(
            failure.message(),
            "error: q.sql, statement starting at line 3: broken in two\n  help: mend it\n"
        );
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn exit_codes_are_those_of_a_unix_tool() {
        assert_eq!(Failure::usage("a", "b").exit_code(), 2);
        assert_eq!(Failure::Interrupted { signal: 2 }.exit_code(), 130);
        assert_eq!(Failure::Interrupted { signal: 15 }.exit_code(), 143);
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((gone.exit_code(), gone.message().as_str()), (0, ""));
    }
}
