//! What the command line accepts.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::size;

/// One engine for batch and streams, on Apache Arrow.
#[derive(Debug, Parser)]
#[command(name = "thalweg", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the statements of a SQL script, in order, up to the first error
    Run(RunArgs),
    /// Open a SQL shell, or run one statement, or a script from standard input
    Sql(SqlArgs),
    /// Show the plans of a SQL script's queries without running them
    ///
    /// Statements that define something (CREATE, DROP, SET, USE, ..) are carried out, so that later ones can be planned.
    Explain(ExplainArgs),
    /// List the jobs that keep checkpoints in a folder, and whether they run
    List(JobsArgs),
    /// Cancel a running job; its checkpoints stay, and it can go on from them
    Cancel(JobArgs),
    /// Take a savepoint of a running job, which goes on
    Savepoint(SavepointArgs),
    /// End a running job with a savepoint
    Stop(StopArgs),
    /// Look into the state that checkpoints and savepoints keep
    State(StateArgs),
}

/// Where jobs are looked for.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// The folder of the jobs' checkpoints (execution.checkpointing.dir)
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: PathBuf,
}

/// A running job.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's name (pipeline.name); `thalweg list` shows it
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) jobs: JobsArgs,
}

/// A running job and where its savepoint goes.
#[derive(Debug, Args)]
pub(crate) struct SavepointArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// The folder or URL below which the savepoint goes [default: execution.checkpointing.savepoint-dir of the job]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) target: Option<String>,
}

/// How a job is ended.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) savepoint: SavepointArgs,
    /// Complete what is open first (windows, joins), as at the end of the input: the job cannot go on where it was
    #[arg(long)]
    pub(crate) drain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The script; `-` reads standard input
    #[arg(value_name = "FILE.sql")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) resources: Resources,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// Run this (one or more statements) instead of opening the shell
    #[arg(short = 'c', long = "command", value_name = "STATEMENT")]
    pub(crate) command: Option<String>,
    #[command(flatten)]
    pub(crate) resources: Resources,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The script; `-` reads standard input
    #[arg(value_name = "FILE.sql")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) resources: Resources,
}

#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    pub(crate) command: StateCommand,
}

/// What to do with state.
#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Show the operators and tables of a checkpoint or savepoint, or the rows of a table
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A checkpoint, a savepoint, or the folder of a job, whose latest checkpoint is shown; a path or a URL
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    /// Only the operator with this id or name
    #[arg(long, value_name = "ID")]
    pub(crate) operator: Option<String>,
    /// Only tables of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) table: Option<String>,
    /// Show the rows of a table, the newest of each key, at most N; 0 is no limit
    #[arg(long, value_name = "N", conflicts_with = "key_groups")]
    pub(crate) rows: Option<u64>,
    /// Show rows and bytes per key group
    #[arg(long)]
    pub(crate) key_groups: bool,
    /// The form of what is shown
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// What the engine may use.
#[derive(Debug, Args)]
pub(crate) struct Resources {
    /// Subtasks per operator [default: the number of cores]
    #[arg(long, value_name = "N")]
    pub(crate) parallelism: Option<NonZeroUsize>,
    /// Memory for the data in work, as in 512MB, 2GB, 1GiB or bytes [default: 60 % of the machine]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) memory: Option<usize>,
}

/// How results are shown.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// The form of the results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Stop each result after N rows; 0 is no limit [default: 10000 in the shell, otherwise no limit]
    #[arg(long, value_name = "N")]
    pub(crate) max_rows: Option<u64>,
    /// Submit to a cluster (not available in this version)
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) jobmanager: Option<String>,
}

/// The form of the results on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For reading; cut to the terminal's width, whole when not on a terminal
    Table,
    /// RFC 4180 with a header; NULL is an empty field
    Csv,
    /// One object per line
    Json,
    /// One Arrow IPC stream; a second result is an error
    Arrow,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn sizes_and_parallelism_are_checked_at_the_door() {
        let parse = |args: &[&str]| Options::try_parse_from([&["thalweg", "run", "q.sql"], args].concat());
        assert!(parse(&["--memory", "512MB", "--parallelism", "2"]).is_ok());
        for bad in [["--memory", "512XB"], ["--parallelism", "0"], ["--format", "xml"]] {
            let error = parse(&bad).expect_err("must be refused");
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
    }
}
