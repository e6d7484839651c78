//! Running statements and showing what comes of them.

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use arrow::array::RecordBatch;
use thalweg::{Outcome, QueryResult, ScriptStatement, Session};

use super::encode::{self, Encoder, Summary};
use super::failure::{Failure, Result};
use super::interrupt::Interrupts;
use super::options::Format;
use super::progress::{Meter, TICK};
use super::stopwatch::Stopwatch;

/// Rows of a slow result are held no longer than this to judge the widths of columns by.
const HOLD: Duration = Duration::from_secs(1);

/// The text of statements, and what to call it in errors.
pub(crate) struct Script {
    text: String,
    name: Option<String>,
}

impl Script {
    /// Reads a file, or standard input for `-`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let (name, bytes) = if path == Path::new("-") {
            let mut bytes = Vec::new();
            (
                "standard input".to_string(),
                io::stdin().read_to_end(&mut bytes).map(|_| bytes),
            )
        } else {
            (path.display().to_string(), std::fs::read(path))
        };
        let bytes = bytes.map_err(|e| {
            Failure::error(
                format!("cannot read {name}: {e}"),
                "check the path; `-` reads standard input",
            )
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()]
                .iter()
                .filter(|&&b| b == b'\n')
                .count();
            Failure::error(
                format!("{name} is not UTF-8 at line {line}"),
                "convert the script to UTF-8",
            )
        })?;
        let text = text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text);
        Ok(Self { text, name: Some(name) })
    }

    /// Statements given directly.
    pub(crate) fn unnamed(text: String) -> Self {
        Self { text, name: None }
    }

    fn statements(&self) -> Result<Vec<ScriptStatement>> {
        Session::split(&self.text).map_err(|error| match &self.name {
            Some(name) => Failure::from(error).at(name),
            None => error.into(),
        })
    }

    /// Where an error happened; nothing when there is only one place it can be.
    fn place(&self, statement: &ScriptStatement, of: usize) -> Option<String> {
        let place = format!("statement starting at line {}", statement.line);
        match &self.name {
            Some(name) => Some(format!("{name}, {place}")),
            None => (of > 1).then_some(place),
        }
    }
}

/// Runs statements in a session and prints their results.
pub(crate) struct Runner {
    pub(crate) session: Rc<Session>,
    pub(crate) format: Format,
    /// None and 0 are no limit.
    pub(crate) max_rows: Option<u64>,
    /// Whether to say how long a statement took.
    pub(crate) timing: bool,
    interrupts: Arc<Interrupts>,
    results: usize,
}

impl Runner {
    /// Tells times only on a terminal, so that output kept in files is the same each time.
    pub(crate) fn new(
        session: Rc<Session>,
        interrupts: Arc<Interrupts>,
        format: Format,
        max_rows: Option<u64>,
    ) -> Self {
        let timing = io::stdout().is_terminal();
        Self {
            session,
            format,
            max_rows,
            timing,
            interrupts,
            results: 0,
        }
    }

    /// Runs statements in order, up to the first failure.
    pub(crate) fn script(&mut self, script: &Script) -> Result<()> {
        self.each(script, |runner, statement, _| runner.statement(&statement.sql))
    }

    /// Prints the plans of a script's queries; carries out only what defines things.
    pub(crate) fn explain(&mut self, script: &Script) -> Result<()> {
        let mut shown = 0;
        self.each(script, |runner, statement, of| match Purpose::of(&statement.sql) {
            Purpose::Define => runner.define(&statement.sql),
            purpose => {
                shown += 1;
                if of > 1 {
                    let gap = if shown > 1 { "\n" } else { "" };
                    write_out(format!("{gap}-- statement starting at line {}\n", statement.line).as_bytes())?;
                }
                if purpose == Purpose::Explain {
                    return runner.statement(&statement.sql);
                }
                let plan = runner.session.explain(&statement.sql)?;
                write_out(format!("{}\n", plan.trim_end()).as_bytes())
            }
        })
    }

    fn each(
        &mut self,
        script: &Script,
        mut run: impl FnMut(&mut Self, &ScriptStatement, usize) -> Result<()>,
    ) -> Result<()> {
        let interrupts = self.interrupts.clone();
        let _busy = interrupts.busy();
        let statements = script.statements()?;
        for statement in &statements {
            interrupts.check()?;
            run(self, statement, statements.len()).map_err(|failure| {
                match script.place(statement, statements.len()) {
                    Some(place) => failure.at(&place),
                    None => failure,
                }
            })?;
        }
        Ok(())
    }

    fn statement(&mut self, sql: &str) -> Result<()> {
        let stopwatch = Stopwatch::start();
        let outcome = self.session.execute(sql);
        self.interrupts.check()?;
        match outcome? {
            Outcome::Done(message) if message.is_empty() || self.format != Format::Table => Ok(()),
            Outcome::Done(message) => write_out(format!("{message}\n").as_bytes()),
            Outcome::Rows(result) => self.show(result, stopwatch),
        }
    }

    fn define(&mut self, sql: &str) -> Result<()> {
        let outcome = self.session.execute(sql);
        self.interrupts.check()?;
        if let Outcome::Rows(result) = outcome? {
            for batch in result {
                batch?;
            }
        }
        Ok(())
    }

    /// One thread pulls the rows, so that this one can attend to the progress line and to slow results.
    fn show(&mut self, result: QueryResult, stopwatch: Stopwatch) -> Result<()> {
        self.results += 1;
        if self.format == Format::Arrow && self.results > 1 {
            return Err(Failure::error(
                "--format arrow holds one result, and this statement gives a second",
                "keep one query in the script, or choose --format json or csv",
            ));
        }
        let canceller = result.canceller();
        let display = Display {
            encoder: encode::encoder(self.format, &result.schema(), terminal_width())?,
            meter: Meter::new(result.progress()),
            on_terminal: io::stdout().is_terminal(),
            limit: self.max_rows.filter(|&limit| limit > 0).unwrap_or(u64::MAX),
            rows: 0,
            buffer: Vec::new(),
        };
        self.interrupts.watch(&canceller);
        let shown = thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let reader = scope.spawn(move || pull(result, |batch| sender.send(batch).is_ok()));
            let shown = display.show(receiver, stopwatch, self.timing, &self.interrupts);
            if !matches!(shown, Ok(Shown::All)) {
                canceller.cancel();
            }
            let read = reader.join();
            read.map_err(|_| Failure::error("the query's thread panicked", "report it with the message above"))?;
            shown.map(|_| ())
        });
        self.interrupts.unwatch();
        self.interrupts.check()?;
        shown
    }
}

fn pull(result: QueryResult, mut pass_on: impl FnMut(thalweg::Result<RecordBatch>) -> bool) {
    for batch in result {
        let last = batch.is_err();
        if !pass_on(batch) || last {
            return;
        }
    }
}

enum Shown {
    All,
    Part,
}

/// One result on its way to stdout.
struct Display {
    encoder: Box<dyn Encoder>,
    meter: Meter,
    on_terminal: bool,
    limit: u64,
    rows: u64,
    buffer: Vec<u8>,
}

impl Display {
    fn show(
        mut self,
        batches: Receiver<thalweg::Result<RecordBatch>>,
        stopwatch: Stopwatch,
        timing: bool,
        interrupts: &Interrupts,
    ) -> Result<Shown> {
        let mut cut = false;
        let mut first_row: Option<Stopwatch> = None;
        while !cut {
            match batches.recv_timeout(TICK) {
                Ok(batch) => cut = self.batch(&batch?)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.rows > 0 && first_row.get_or_insert_with(Stopwatch::start).elapsed() > HOLD {
                self.encoder.settle(&mut self.buffer)?;
            }
            self.write()?;
            self.meter.tick();
        }
        if interrupts.signal().is_some() {
            self.encoder.settle(&mut self.buffer)?;
            self.write()?;
            return Ok(Shown::Part);
        }
        let elapsed = timing.then(|| stopwatch.elapsed());
        self.encoder.end(
            &Summary {
                rows: self.rows,
                elapsed,
                cut,
            },
            &mut self.buffer,
        )?;
        self.write()?;
        io::stdout().flush()?;
        Ok(if cut { Shown::Part } else { Shown::All })
    }

    /// Shows rows up to the limit; true when there were more.
    fn batch(&mut self, batch: &RecordBatch) -> Result<bool> {
        let room = usize::try_from(self.limit - self.rows).unwrap_or(usize::MAX);
        let shown = batch.num_rows().min(room);
        if shown > 0 {
            self.encoder.batch(&batch.slice(0, shown), &mut self.buffer)?;
            self.rows += shown as u64;
        }
        Ok(shown < batch.num_rows())
    }

    fn write(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if self.on_terminal {
            self.meter.retire();
        }
        io::stdout().write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Writes to stdout, at once.
pub(crate) fn write_out(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// The width results are fitted to: the terminal's, 80 when it does not say, or none when there is no terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let columns = console::Term::stdout()
        .size_checked()
        .map_or(0, |(_, columns)| usize::from(columns));
    Some(if columns > 0 { columns } else { 80 })
}

/// What `explain` does with a statement.
#[derive(Debug, PartialEq, Eq)]
enum Purpose {
    Define,
    Explain,
    Query,
}

impl Purpose {
    fn of(sql: &str) -> Self {
        match first_word(sql).to_ascii_uppercase().as_str() {
            "CREATE" | "DROP" | "ALTER" | "SET" | "RESET" | "USE" | "LOAD" => Self::Define,
            "EXPLAIN" => Self::Explain,
            _ => Self::Query,
        }
    }
}

/// The first word after any comments.
fn first_word(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start();
        let rest = if sql.starts_with("--") {
            sql.split_once('\n').map(|(_, rest)| rest)
        } else if sql.starts_with("/*") {
            sql.split_once("*/").map(|(_, rest)| rest)
        } else {
            let end = sql.find(|c: char| !c.is_alphanumeric()).unwrap_or(sql.len());
            return &sql[..end];
        };
        sql = rest.unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_explain_carries_out() {
        assert_eq!(
            Purpose::of("-- a table\n/* of\nmine */ create table t (a int)"),
            Purpose::Define
        );
        assert_eq!(Purpose::of("EXPLAIN SELECT 1"), Purpose::Explain);
        assert_eq!(Purpose::of("(select 1)"), Purpose::Query);
        assert_eq!(Purpose::of("-- nothing"), Purpose::Query);
    }
}
