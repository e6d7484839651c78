//! The interactive shell.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use signal_hook::consts::SIGINT;

use super::complete::Assistant;
use super::failure::{Failure, Result};
use super::meta::{HELP, Meta};
use super::run::{Runner, Script};

/// Rows of a result that the shell shows unless told otherwise.
pub(crate) const MAX_ROWS: u64 = 10_000;

/// Statements that the history remembers.
const HISTORY: usize = 10_000;

/// Reads statements and commands from a terminal.
pub(crate) struct Shell {
    runner: Runner,
    editor: Editor<Assistant, FileHistory>,
    history: Option<PathBuf>,
}

impl Shell {
    /// A shell with the history of earlier ones, where there is a place to keep it.
    pub(crate) fn open(runner: Runner) -> Result<Self> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .max_history_size(HISTORY);
        let config = config.map_err(unusable)?.build();
        let mut editor = Editor::with_config(config).map_err(unusable)?;
        editor.set_helper(Some(Assistant::new(runner.session.clone())));
        let history = history_file(|name| env::var_os(name)).filter(|file| match file.parent() {
            Some(folder) => std::fs::create_dir_all(folder).is_ok(),
            None => false,
        });
        if let Some(file) = &history {
            // A first start has none; a damaged one is not worth refusing to start for.
            let _ = editor.load_history(file);
        }
        Ok(Self {
            runner,
            editor,
            history,
        })
    }

    /// Serves until the user leaves.
    pub(crate) fn run(mut self) -> Result<()> {
        say(&format!(
            "thalweg {}: \\? for help, \\q to leave\n",
            env!("CARGO_PKG_VERSION")
        ))?;
        loop {
            match self.editor.readline("thalweg> ") {
                Ok(input) => {
                    self.remember(&input);
                    if self.input(input)?.is_break() {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(unusable(error)),
            }
        }
    }

    fn remember(&mut self, input: &str) {
        let entry = input.trim();
        if entry.is_empty() {
            return;
        }
        // A history that cannot be written is no reason to disturb the work.
        if let (Ok(true), Some(file)) = (self.editor.add_history_entry(entry), &self.history) {
            let _ = self.editor.append_history(file);
        }
    }

    /// Does what was entered. Only what ends the shell is an error here.
    fn input(&mut self, input: String) -> Result<ControlFlow<()>> {
        let entered = input.trim();
        let done = if is_farewell(entered) {
            return Ok(ControlFlow::Break(()));
        } else if entered.starts_with('\\') {
            self.meta(entered)
        } else {
            self.runner.script(&Script::unnamed(input)).map(ControlFlow::Continue)
        };
        match done {
            Err(Failure::Interrupted { signal: SIGINT }) => {
                let _ = io::stderr().write_all(b"cancelled\n");
                Ok(ControlFlow::Continue(()))
            }
            Err(failure @ (Failure::Interrupted { .. } | Failure::ReaderGone)) => Err(failure),
            Err(failure) => {
                failure.report();
                Ok(ControlFlow::Continue(()))
            }
            Ok(flow) => Ok(flow),
        }
    }

    fn meta(&mut self, line: &str) -> Result<ControlFlow<()>> {
        match Meta::parse(line)? {
            Meta::Quit => return Ok(ControlFlow::Break(())),
            Meta::Help => say(HELP)?,
            Meta::Describe(None) => self.runner.script(&Script::unnamed("SHOW TABLES".into()))?,
            Meta::Describe(Some(table)) => self.runner.script(&Script::unnamed(format!("DESCRIBE {table}")))?,
            Meta::Include(path) => self.runner.script(&Script::read(&path)?)?,
            Meta::Timing(wish) => {
                self.runner.timing = wish.unwrap_or(!self.runner.timing);
                say(if self.runner.timing {
                    "timing on\n"
                } else {
                    "timing off\n"
                })?;
            }
            Meta::Format(wish) => {
                self.runner.format = wish.unwrap_or(self.runner.format);
                say(&format!(
                    "format {}\n",
                    format!("{:?}", self.runner.format).to_lowercase()
                ))?;
            }
            Meta::Limit(wish) => {
                self.runner.max_rows = wish.or(self.runner.max_rows);
                say(&match self.runner.max_rows {
                    Some(rows) if rows > 0 => format!("limit {rows} rows\n"),
                    _ => "no limit\n".to_string(),
                })?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// `quit` and `exit`, as people type them.
pub(crate) fn is_farewell(text: &str) -> bool {
    let word = text.trim().trim_end_matches(';').trim_end();
    word.eq_ignore_ascii_case("quit") || word.eq_ignore_ascii_case("exit")
}

/// Where the XDG base directory specification puts it, if the environment names a place at all.
fn history_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("thalweg/history"))
}

fn unusable(error: ReadlineError) -> Failure {
    Failure::error(
        format!("cannot use this terminal: {error}"),
        "pass statements with -c or as a script",
    )
}

fn say(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_has_a_place_or_none() {
        let with = |pairs: &'static [(&str, &str)]| {
            history_file(move |name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.into())
            })
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("HOME", "/h")]), Some("/h/.local/state/thalweg/history".into()));
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]),
            Some("/s/thalweg/history".into())
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_STATE_HOME", "relative")]),
            Some("/h/.local/state/thalweg/history".into())
        );
    }

    #[test]
    fn farewells() {
        assert!(is_farewell("quit") && is_farewell(" EXIT; "));
        assert!(!is_farewell("exit now") && !is_farewell(""));
    }
}
