//! What a user is told: one line of cause, one of remedy.

use std::fmt;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use thalweg_engine::EngineError;

use crate::suggest::{closest, list};

/// Result of a session's operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The statement is not valid.
    Statement,
    /// The statement asks for something that Thalweg does not do.
    Unsupported,
    /// The data, a file or a service.
    Execution,
    /// The user or the client ended it.
    Cancelled,
    /// A defect.
    Internal,
}

/// An error as the user sees it: [`fmt::Display`] gives one line of cause, [`Error::remedy`] one of remedy.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    cause: String,
    remedy: Option<String>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Error {}

impl Error {
    pub(crate) fn new(kind: ErrorKind, cause: impl Into<String>) -> Self {
        let cause = cause
            .into()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self {
            kind,
            cause,
            remedy: None,
        }
    }

    pub(crate) fn statement(cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::Statement, cause)
    }

    pub(crate) fn unsupported(cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, cause)
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// A syntax error at a place of the statement's text (line and column, from 1).
    pub(crate) fn syntax(message: impl Into<String>, place: Option<(u64, u64)>) -> Self {
        let message = message.into();
        Self::statement(match place {
            Some((line, column)) if line > 0 => format!("syntax error at line {line}, column {column}: {message}"),
            _ => format!("syntax error: {message}"),
        })
        .with_remedy("check the statement at that place")
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// One line that says what to do about it; nothing for what the user ended.
    pub fn remedy(&self) -> Option<String> {
        let general = match self.kind {
            ErrorKind::Statement => Some("check the statement; docs/sql.md says what it can hold"),
            ErrorKind::Unsupported => Some("docs/status.md lists what works"),
            ErrorKind::Execution => Some("check the data that the statement reads"),
            ErrorKind::Internal => Some("please report it with the statement"),
            ErrorKind::Cancelled => None,
        };
        self.remedy.clone().or(general.map(ToString::to_string))
    }

    /// Whether the user or the client ended the query.
    pub fn is_cancelled(&self) -> bool {
        self.kind == ErrorKind::Cancelled
    }

    /// Adds the names that an unknown table may have meant.
    pub(crate) fn suggest_tables(self, tables: &[String]) -> Self {
        let Some(name) = self
            .cause
            .strip_prefix("there is no table '")
            .and_then(|rest| rest.strip_suffix('\''))
        else {
            return self;
        };
        let bare = name.rsplit('.').next().unwrap_or(name).to_string();
        if looks_like_a_path(name) {
            let cause = format!("there is no file '{name}' to read as a table");
            return Self { cause, ..self }
                .with_remedy("check the path; .parquet, .csv, .json, .arrow and .avro files can be read in place");
        }
        let remedy = match closest(&bare, tables.iter().map(String::as_str)) {
            Some(table) => format!("did you mean '{table}'?"),
            None if tables.is_empty() => "create it first with CREATE TABLE or CREATE EXTERNAL TABLE".into(),
            None => format!("the tables are: {}", list(tables.iter().map(String::as_str))),
        };
        self.with_remedy(remedy)
    }
}

fn looks_like_a_path(name: &str) -> bool {
    let extensions = [
        ".parquet", ".csv", ".json", ".arrow", ".avro", ".tsv", ".ndjson", ".gz", ".zst",
    ];
    name.contains('/') || extensions.iter().any(|extension| name.ends_with(extension))
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Operator { operator, source } => {
                let mut inner = Error::from(*source);
                inner.cause = format!("{} (in operator {operator})", inner.cause);
                inner
            }
            EngineError::Cancelled => Error::new(ErrorKind::Cancelled, "the query was cancelled"),
            EngineError::DataFusion(error) => Error::from(error),
            EngineError::Arrow(error) => Error::from(error),
            EngineError::Plan(message) => Error::statement(message),
            EngineError::BadInput(message) => Error::new(ErrorKind::Execution, message)
                .with_remedy("mend the file, or declare the columns as they are"),
            EngineError::Io { path, source } => Error::from_io(Some(&path), &source),
            EngineError::Memory(error) => Error::from_memory(&error),
            error @ (EngineError::Panic(_) | EngineError::Internal(_)) => {
                Error::new(ErrorKind::Internal, error.to_string()).with_remedy("please report it with the statement")
            }
        }
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::DivideByZero => Error::new(ErrorKind::Execution, "division by zero")
                .with_remedy("guard the divisor, e.g. x / NULLIF(y, 0)"),
            ArrowError::IoError(_, source) => Error::from_io(None, &source),
            ArrowError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
                Ok(inner) => Error::from(*inner),
                Err(other) => Error::new(ErrorKind::Execution, other.to_string()),
            },
            ArrowError::CastError(message) | ArrowError::ParseError(message) => {
                Error::new(ErrorKind::Execution, message).with_remedy("TRY_CAST gives NULL for what cannot be cast")
            }
            ArrowError::ComputeError(message) => Error::new(ErrorKind::Execution, message),
            ArrowError::ArithmeticOverflow(message) => {
                Error::new(ErrorKind::Execution, message).with_remedy("cast to a wider type before the operation")
            }
            other => Error::new(ErrorKind::Execution, other.to_string()),
        }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        if let Some(error) = Error::from_function_mismatch(&error.strip_backtrace()) {
            return error;
        }
        match error {
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => Error::from(*inner),
            DataFusionError::Shared(inner) => Error::from_display(&inner),
            DataFusionError::Collection(mut errors) if !errors.is_empty() => Error::from(errors.swap_remove(0)),
            DataFusionError::ArrowError(inner, _) => Error::from(*inner),
            DataFusionError::SQL(inner, _) => Error::from_parser(*inner),
            DataFusionError::SchemaError(inner, _) => Error::from_schema(*inner),
            DataFusionError::IoError(source) => Error::from_io(None, &source),
            DataFusionError::External(inner) => match inner.downcast::<EngineError>() {
                Ok(inner) => Error::from(*inner),
                Err(inner) => match inner.downcast::<DataFusionError>() {
                    Ok(inner) => Error::from(*inner),
                    Err(other) => Error::new(ErrorKind::Execution, other.to_string()),
                },
            },
            DataFusionError::Plan(message) => Error::from_plan(&message),
            DataFusionError::NotImplemented(message)
                if message.contains("logical expression InSubquery")
                    || message.contains("logical expression Exists") =>
            {
                Error::unsupported("IN and EXISTS over a subquery are supported as conditions only")
                    .with_remedy("in a select list, write it as a LEFT JOIN")
            }
            DataFusionError::NotImplemented(message) => {
                Error::unsupported(format!("not supported: {}", without_backtrace(&message)))
                    .with_remedy("docs/status.md lists what works")
            }
            DataFusionError::ResourcesExhausted(message) => {
                Error::new(ErrorKind::Execution, without_backtrace(&message))
                    .with_remedy("raise --memory or lower the parallelism")
            }
            DataFusionError::ObjectStore(inner) => Error::from_object_store(&inner),
            DataFusionError::Internal(message) => Error::new(ErrorKind::Internal, without_backtrace(&message))
                .with_remedy("please report it with the statement"),
            other => Error::from_display(&other),
        }
    }
}

fn without_backtrace(message: &str) -> String {
    message
        .split(DataFusionError::BACK_TRACE_SEP)
        .next()
        .unwrap_or(message)
        .to_string()
}

impl Error {
    fn from_display(error: &DataFusionError) -> Self {
        Error::new(ErrorKind::Execution, error.strip_backtrace())
    }

    fn from_memory(error: &thalweg_memory::MemoryError) -> Self {
        let text = error.to_string();
        match text.split_once("; ") {
            Some((cause, remedy)) => Error::new(ErrorKind::Execution, cause).with_remedy(remedy),
            None => Error::new(ErrorKind::Execution, text),
        }
    }

    fn from_io(path: Option<&str>, source: &std::io::Error) -> Self {
        let place = path.map(|path| format!("{path}: ")).unwrap_or_default();
        let text = source.to_string();
        let remedy = match source.kind() {
            // Writers pass the system's error on inside one of their own.
            _ if text.contains("No space left on device") => "free space on that disk, or write elsewhere",
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the file's permissions",
            _ => "check the file and the disk it is on",
        };
        Error::new(ErrorKind::Execution, format!("{place}{text}")).with_remedy(remedy)
    }

    fn from_object_store(error: &object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => {
                Error::new(ErrorKind::Execution, format!("there is no file '{path}'")).with_remedy("check the path")
            }
            other => Error::new(ErrorKind::Execution, other.to_string()),
        }
    }

    fn from_parser(error: ParserError) -> Self {
        let (ParserError::ParserError(message) | ParserError::TokenizerError(message)) = error else {
            return Error::syntax("the statement is nested too deeply", None);
        };
        let (text, place) = match message.rsplit_once(" at Line: ") {
            Some((text, place)) => (text, parse_place(place)),
            None => (message.as_str(), None),
        };
        Error::syntax(text.trim(), place)
    }

    fn from_schema(error: SchemaError) -> Self {
        match error {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let names: Vec<String> = valid_fields.iter().map(|column| column.name.clone()).collect();
                let remedy = match closest(&field.name, names.iter().map(String::as_str)) {
                    Some(name) => format!("did you mean '{name}'?"),
                    None if names.is_empty() => "no column can be named here".into(),
                    None => format!("the columns are: {}", list(names.iter().map(String::as_str))),
                };
                Error::statement(format!("there is no column '{}'", field.flat_name())).with_remedy(remedy)
            }
            SchemaError::AmbiguousReference { field } => {
                Error::statement(format!("the column '{}' is ambiguous", field.name))
                    .with_remedy("put the table's name or alias before it")
            }
            other => Error::statement(other.to_string()),
        }
    }

    /// A function that does not exist, or not for these types.
    fn from_function_mismatch(message: &str) -> Option<Self> {
        if let Some((_, rest)) = message.split_once("No function matches the given name and argument types '") {
            let (call, rest) = rest.split_once('\'')?;
            let candidates = rest
                .split_once("Candidate functions:")
                .map_or("", |(_, candidates)| candidates);
            let candidates = candidates.split('\n').map(str::trim).filter(|line| !line.is_empty());
            return Some(
                Self::statement(format!("there is no function {call}"))
                    .with_remedy(format!("cast the arguments; there is {}", list(candidates))),
            );
        }
        let (_, rest) = message.split_once("Invalid function '")?;
        let (name, rest) = rest.split_once("'.")?;
        let guess = rest
            .trim()
            .trim_start_matches("Did you mean")
            .trim_matches([' ', '?', '\'', '.']);
        Some(Self::statement(format!("there is no function '{name}'")).with_remedy(format!("did you mean '{guess}'?")))
    }

    fn from_plan(message: &str) -> Self {
        let message = without_backtrace(message);
        if let Some(name) = message
            .strip_prefix("table '")
            .and_then(|rest| rest.strip_suffix("' not found"))
        {
            let short = name.strip_prefix("datafusion.public.").unwrap_or(name);
            return Error::statement(format!("there is no table '{short}'"));
        }
        if let Some(rest) = message.strip_prefix("No files found at ") {
            let place = rest.split(". Cannot infer").next().unwrap_or(rest);
            let place = place.strip_prefix("file://").unwrap_or(place);
            return Error::new(ErrorKind::Execution, format!("there is no file '{place}'"))
                .with_remedy("check the path");
        }
        let error = Error::statement(&message);
        if message.contains("Cannot coerce") {
            error.with_remedy("cast one side to the type of the other")
        } else {
            error
        }
    }

    /// Names the file or folder that a failed statement reads, when the error does not.
    pub(crate) fn at_location(mut self, location: &str) -> Self {
        let name = location.trim_end_matches('/').rsplit('/').next().unwrap_or(location);
        if self.kind != ErrorKind::Statement && self.kind != ErrorKind::Cancelled && !self.cause.contains(name) {
            self.cause = format!("{location}: {}", self.cause);
            self.remedy
                .get_or_insert_with(|| "check that the file is whole and of the format that is read".into());
        }
        self
    }

    /// Puts a syntax error at the end of the statement at its place.
    pub(crate) fn at_end_of(self, sql: &str) -> Self {
        let Some(message) = self
            .cause
            .strip_prefix("syntax error: ")
            .filter(|m| m.ends_with("found: EOF"))
        else {
            return self;
        };
        let sql = sql.trim_end();
        let line = sql.matches('\n').count() as u64 + 1;
        let column = sql.rsplit('\n').next().unwrap_or(sql).chars().count() as u64 + 1;
        Self::syntax(message, Some((line, column)))
    }
}

fn parse_place(text: &str) -> Option<(u64, u64)> {
    let (line, column) = text.split_once(", Column: ")?;
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    Some((line.trim().parse().ok()?, column.parse().ok()?))
}
