//! The `thalweg` command: what it takes, what it prints, and how it ends.
//!
//! Exit codes: 0 success (also when the reader of our output goes away), 1 error, 2 usage, 128 + n when ended by signal n.

mod complete;
mod encode;
mod failure;
mod interrupt;
mod jobs;
mod meta;
mod options;
mod progress;
mod run;
mod shell;
mod size;
mod state;
mod stopwatch;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Parser;
use thalweg::{Session, SessionConfig};

use failure::{Failure, Result};
use interrupt::{Interrupts, Mode};
use options::{Command, ExplainArgs, Format, Options, Resources, RunArgs, SqlArgs, StateArgs, StateCommand};
use run::{Runner, Script};

/// Parses the arguments, does what they say, reports how it ended.
pub(crate) fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Run(args) => run_file(&args),
        Command::Sql(args) => sql(args),
        Command::Explain(args) => explain(&args),
        Command::List(args) => jobs::list(&args),
        Command::Cancel(args) => jobs::cancel(&args),
        Command::Savepoint(args) => jobs::savepoint(&args),
        Command::Stop(args) => jobs::stop(&args),
        Command::State(args) => inspect(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run_file(args: &RunArgs) -> Result<()> {
    refuse_jobmanager(args.output.jobmanager.as_deref())?;
    refuse_arrow_on_terminal(args.output.format)?;
    let interrupts = Interrupts::install(Mode::Script)?;
    let script = Script::read(&args.file)?;
    let mut runner = Runner::new(
        session(&args.resources)?,
        interrupts,
        args.output.format,
        args.output.max_rows,
    );
    runner.script(&script)
}

fn sql(args: SqlArgs) -> Result<()> {
    refuse_jobmanager(args.output.jobmanager.as_deref())?;
    let interactive = args.command.is_none() && io::stdin().is_terminal() && io::stdout().is_terminal();
    refuse_arrow_on_terminal(args.output.format)?;
    let mode = if interactive { Mode::Shell } else { Mode::Script };
    let interrupts = Interrupts::install(mode)?;
    if interactive {
        let max_rows = Some(args.output.max_rows.unwrap_or(shell::MAX_ROWS));
        let session = session(&args.resources)?;
        let runner = Runner::new(session, interrupts, args.output.format, max_rows);
        return shell::Shell::open(runner)?.run();
    }
    let script = match args.command {
        Some(text) => Script::unnamed(text),
        None => Script::read(Path::new("-"))?,
    };
    let mut runner = Runner::new(
        session(&args.resources)?,
        interrupts,
        args.output.format,
        args.output.max_rows,
    );
    runner.script(&script)
}

fn explain(args: &ExplainArgs) -> Result<()> {
    let interrupts = Interrupts::install(Mode::Script)?;
    let script = Script::read(&args.file)?;
    Runner::new(session(&args.resources)?, interrupts, Format::Table, None).explain(&script)
}

fn inspect(args: &StateArgs) -> Result<()> {
    let StateCommand::Inspect(args) = &args.command;
    refuse_arrow_on_terminal(args.format)?;
    state::inspect(args)
}

fn session(resources: &Resources) -> Result<Rc<Session>> {
    let mut config = SessionConfig::default();
    if let Some(parallelism) = resources.parallelism {
        config.parallelism = parallelism.get();
    }
    if let Some(bytes) = resources.memory {
        config.memory_bytes = bytes;
    }
    let session = Session::new(config)?;
    session.on_notice(|text| {
        // Nobody may read it.
        let _ = writeln!(io::stderr(), "note: {text}");
    });
    Ok(Rc::new(session))
}

fn refuse_jobmanager(address: Option<&str>) -> Result<()> {
    match address {
        None => Ok(()),
        Some(address) => Err(Failure::usage(
            format!("--jobmanager {address}: running on a cluster is not available in this version"),
            "leave --jobmanager out to run in this process",
        )),
    }
}

fn refuse_arrow_on_terminal(format: Format) -> Result<()> {
    if format == Format::Arrow && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "--format arrow is binary and is not written to a terminal",
            "redirect the output to a file or a pipe",
        ));
    }
    Ok(())
}
