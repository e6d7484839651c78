//! `thalweg list`, `cancel`, `savepoint` and `stop`: jobs that other processes run.

use std::io::{self, Write};

use thalweg::{ask_job, jobs_in};

use super::failure::{Failure, Result};
use super::options::{JobArgs, JobsArgs, SavepointArgs, StopArgs};

/// One line a job: its name and whether it runs.
pub(crate) fn list(args: &JobsArgs) -> Result<()> {
    let jobs = jobs_in(&args.dir).map_err(|error| {
        Failure::error(
            format!("cannot read {}: {error}", args.dir.display()),
            "name the folder of the jobs' checkpoints (execution.checkpointing.dir)",
        )
    })?;
    let mut out = io::stdout().lock();
    for (job, runs) in jobs {
        writeln!(out, "{job}\t{}", if runs { "running" } else { "not running" })?;
    }
    Ok(())
}

pub(crate) fn cancel(args: &JobArgs) -> Result<()> {
    ask_job(&args.jobs.dir, &args.job, "cancel", None)?;
    Ok(())
}

/// Prints the savepoint's path.
pub(crate) fn savepoint(args: &SavepointArgs) -> Result<()> {
    ask(args, "savepoint")
}

pub(crate) fn stop(args: &StopArgs) -> Result<()> {
    ask(&args.savepoint, if args.drain { "drain" } else { "stop" })
}

fn ask(args: &SavepointArgs, action: &str) -> Result<()> {
    let job = &args.job;
    if let Some(path) = ask_job(&job.jobs.dir, &job.job, action, args.target.as_deref())? {
        writeln!(io::stdout(), "{path}")?;
    }
    Ok(())
}
