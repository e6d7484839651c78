//! The engine's error: what was wrong and in which operator.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// What can go wrong while a job is built or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An operator failed; `source` is the cause.
    #[error("operator '{operator}' failed: {source}")]
    Operator {
        /// The operator's name in the plan, with its subtask when there are several.
        operator: String,
        /// The cause.
        #[source]
        source: Box<EngineError>,
    },
    /// An operator panicked: a defect, caught at the subtask's loop.
    #[error("panicked: {0}; this is a defect of the operator, not of the query")]
    Panic(String),
    /// The job was cancelled.
    #[error("the job was cancelled")]
    Cancelled,
    /// An expression, function or scan failed.
    #[error(transparent)]
    DataFusion(#[from] DataFusionError),
    /// A kernel failed.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// The memory budget or a spill file.
    #[error(transparent)]
    Memory(#[from] thalweg_memory::MemoryError),
    /// A file or directory.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The job graph or the request is not valid.
    #[error("{0}")]
    Plan(String),
    /// Input data that cannot be read, with its place.
    #[error("{0}")]
    BadInput(String),
    /// The engine contradicts itself.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl EngineError {
    /// Wraps an error with the operator it happened in; an error that already names one stays as it is.
    pub fn in_operator(self, operator: &str) -> Self {
        match self {
            EngineError::Operator { .. } | EngineError::Cancelled => self,
            source => EngineError::Operator {
                operator: operator.to_string(),
                source: Box::new(source),
            },
        }
    }

    /// The innermost cause, past the operator's name.
    pub fn root(&self) -> &EngineError {
        match self {
            EngineError::Operator { source, .. } => source.root(),
            other => other,
        }
    }
}

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, EngineError>;
