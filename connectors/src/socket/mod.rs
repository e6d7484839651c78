//! `'connector' = 'socket'`: records that another process writes to a TCP socket, one after the other with a byte
//! between them. A socket cannot be read twice, so after a failure what was read is gone: this source is for trying
//! things out.
//!
//! A thread of its own reads what is there and passes on whole records; a batch is what has come since the last one
//! was taken. Nothing waits for a batch to fill. When the other side closes the connection, the table ends.

mod decode;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use thalweg_engine::{EngineError, Result};

use crate::Options;
use crate::socket::decode::{Decoder, Format};
use crate::socket::read::Connection;

/// A table over a socket.
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
    format: Format,
    schema: SchemaRef,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'socket')`. Options: `hostname`, `port`, `byte-delimiter`,
/// `format` (`csv`, `json`, `raw`), `csv.field-delimiter`.
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
    let format = needed("format", options.take("format"))?;
    let format = match format.trim().to_lowercase().as_str() {
        "csv" => Format::Csv {
            field_delimiter: match options.take("csv.field-delimiter") {
                None => b',',
                Some(text) => {
                    byte_of(&text).ok_or_else(|| options.bad_value("csv.field-delimiter", &text, "must be one byte"))?
                }
            },
        },
        "json" => Format::Json,
        "raw" => Format::Raw,
        _ => return Err(options.bad_value("format", &format, "must be csv, json or raw")),
    };
    options.finish()?;
    // To make a decoder is to check the columns.
    Decoder::try_new(format, &columns, delimiter, 1).map_err(EngineError::Plan)?;
    let host = hostname.trim();
    let address = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    Ok(Arc::new(SocketTable {
        socket: Arc::new(Socket {
            address,
            delimiter,
            format,
            schema: columns,
        }),
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
        Ok(Arc::new(StreamingTableExec::try_new(
            Arc::clone(&self.socket.schema),
            vec![Arc::clone(&self.socket) as Arc<dyn PartitionStream>],
            projection,
            [],
            true,
            None,
        )?))
    }
}

impl PartitionStream for Socket {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batch_rows = task.session_config().batch_size().max(1);
        let reading = Decoder::try_new(self.format, &self.schema, self.delimiter, batch_rows)
            .map_err(DataFusionError::Execution)
            .map(|decoder| Reading {
                address: self.address.clone(),
                connection: Connection::open(self.address.clone(), self.delimiter),
                decoder,
                ready: VecDeque::new(),
            });
        let stream = futures::stream::try_unfold(reading, |reading| async move {
            let mut reading = reading?;
            let batch = reading.next().await?;
            Ok(batch.map(|batch| (batch, Ok(reading))))
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream))
    }
}

/// A connection being read.
struct Reading {
    address: String,
    connection: Connection,
    decoder: Decoder,
    /// Decoded and not yet taken, where more rows came at once than go in a batch.
    ready: VecDeque<RecordBatch>,
}

impl Reading {
    async fn next(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let Some(bytes) = self.connection.next().await? else {
                return Ok(None);
            };
            let decoded = self.decoder.decode(&bytes);
            let decoded =
                decoded.map_err(|why| DataFusionError::Execution(format!("socket {}: {why}", self.address)))?;
            self.ready.extend(decoded);
        }
    }
}
