//! `'connector' = 'socket'`: records that another process writes to a TCP socket, one after the other with a byte
//! between them. A socket cannot be read twice: a job with checkpoints goes on after a failure only when a log is kept of what
//! was read (`'scan.wal' = 'true'`). What is sent while nobody is connected is the sender's to keep.
//!
//! A thread of its own reads what is there and passes on whole records; a batch is what has come since the last one
//! was taken. Nothing waits for a batch to fill. When the other side closes the connection, the table ends.

mod read;
mod scan;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::{EngineError, Result};

use crate::Options;
use crate::formats::{Decoder, FormatOptions, StreamFormat};
use crate::socket::scan::SocketScan;

pub(crate) use source::SocketSource;

/// A table over a socket. It is a changelog (`is_changelog` of its schema) when its format is one.
#[derive(Debug)]
pub struct SocketTable {
    socket: Arc<Socket>,
}

/// Where and how to read.
#[derive(Clone)]
struct Socket {
    /// `host:port`.
    address: String,
    delimiter: u8,
    format: FormatOptions,
    /// As declared.
    columns: SchemaRef,
    /// The columns, and the row kind when the format is a changelog.
    schema: SchemaRef,
    /// Whether a log is kept of what is read.
    is_logged: bool,
}

impl Socket {
    fn decoder(&self) -> Result<Decoder> {
        Decoder::new(&self.format, &self.columns, format!("socket {}", self.address))
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'socket')`. Options: `hostname`, `port`, `byte-delimiter`,
/// `scan.wal`, `format` (one of [`StreamFormat`]) and what [`FormatOptions::take`] knows of it.
///
/// # Errors
/// When an option is missing, unknown or wrong, or the format cannot read a column.
pub fn create_table(columns: SchemaRef, options: &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>> {
    if columns.fields().is_empty() {
        return Err(EngineError::Plan(
            "connector 'socket' needs columns: CREATE TABLE t (a INT, ..) WITH (..)".into(),
        ));
    }
    let mut options = Options::new("socket", options);
    let needed = |what: &str, value: Option<String>| {
        value.ok_or_else(|| EngineError::Plan(format!("connector 'socket' needs the option '{what}'")))
    };
    let hostname = needed("hostname", options.take("hostname"))?;
    let port = options.take("port");
    let port: u16 = match &port {
        Some(text) => text
            .trim()
            .parse()
            .map_err(|_| options.bad_value("port", text, "must be a number from 0 to 65535"))?,
        None => return Err(EngineError::Plan("connector 'socket' needs the option 'port'".into())),
    };
    let delimiter = match options.take("byte-delimiter") {
        None => b'\n',
        Some(text) => byte(&text).ok_or_else(|| {
            options.bad_value(
                "byte-delimiter",
                &text,
                "must be the number of a byte, as 10, or one character",
            )
        })?,
    };
    let is_logged = options.take_bool("scan.wal", false)?;
    let format = needed("format", options.take("format"))?;
    let format = FormatOptions::take(StreamFormat::parse(&format)?, &mut options)?;
    options.finish()?;
    let host = hostname.trim();
    let address = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let socket = Socket {
        address,
        delimiter,
        schema: format.format.schema(&columns),
        format,
        columns,
        is_logged,
    };
    // To make a decoder is to check the columns.
    socket.decoder()?;
    Ok(Arc::new(SocketTable {
        socket: Arc::new(socket),
    }))
}

/// A byte by its number, as Flink's option has it, or as itself.
fn byte(text: &str) -> Option<u8> {
    text.trim().parse().ok().or_else(|| byte_of(text))
}

fn byte_of(text: &str) -> Option<u8> {
    match (text, text.as_bytes()) {
        ("\\n", _) => Some(b'\n'),
        ("\\t", _) => Some(b'\t'),
        ("\\0", _) => Some(0),
        (_, [byte]) => Some(*byte),
        _ => None,
    }
}

#[async_trait]
impl TableProvider for SocketTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.socket.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(SocketScan::try_new(Arc::clone(&self.socket), projection)?))
    }
}
