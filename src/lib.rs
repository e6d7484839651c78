//! Thalweg: one engine for batch and streams on Apache Arrow.
//!
//! A [`Session`] plans SQL with DataFusion's front end, lowers it to a job graph of Thalweg's own operators and runs
//! that as a parallel dataflow in this process.
//!
//! ```
//! # fn main() -> thalweg::Result<()> {
//! let session = thalweg::Session::new(thalweg::SessionConfig::default())?;
//! let rows = session.sql("SELECT 1 + 1 AS two")?.collect()?;
//! assert_eq!(rows[0].num_rows(), 1);
//! # Ok(())
//! # }
//! ```

mod checkpoint_settings;
mod checkpoints;
mod config;
mod ddl;
mod error;
mod explain;
mod json_value;
mod large_stack;
mod launch;
mod local_store;
mod memory_table;
mod proctime;
mod relations;
mod resolver;
mod result;
mod row_fields;
mod script;
mod session;
mod settings;
mod sql_dialect;
mod statement;
pub mod stream;
mod stream_ddl;
mod stream_dialect;
mod stream_table;
mod streaming;
mod suggest;

pub use checkpoint_settings::{CheckpointConfig, RestartConfig};
pub use checkpoints::{ask_job, jobs_in};
pub use config::{RuntimeMode, SessionConfig};
pub use error::{Error, ErrorKind, Result};
pub use result::{Canceller, Outcome, Progress, ProgressHandle, QueryResult};
pub use script::ScriptStatement;
pub use session::Session;
pub use stream_table::{StreamTable, TableDefinition};

pub use thalweg_engine as engine;
