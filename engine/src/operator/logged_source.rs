//! [`LoggedSource`]: a source that cannot be read again, with a log of what it has said.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::execution::TaskContext;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use xxhash_rust::xxh3::xxh3_64;

use crate::checkpoint::wal::{Frame, FrameKind, Log, Replay};
use crate::data::{Batch, EngineError, Result};
use crate::operator::{Positioned, SplitId, SplitReader, SplitSource, SplitStream, rows_given};

/// Writes each batch of a source to a [`Log`] before it is handed on. The position is the number of the batch's frame; to go on
/// there is to read the frames after it and then what the source says now.
#[derive(Debug)]
pub struct LoggedSource {
    source: Arc<dyn SplitSource>,
    directory: PathBuf,
    schema: SchemaRef,
}

impl LoggedSource {
    /// A log of `source`, whose rows have `schema`, in `directory`: a directory a split.
    pub fn new(source: Arc<dyn SplitSource>, directory: PathBuf, schema: SchemaRef) -> Self {
        Self {
            source,
            directory,
            schema,
        }
    }
}

impl SplitSource for LoggedSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        self.source.splits()
    }

    fn splits_besides<'a>(&'a self, known: &'a [SplitId]) -> BoxFuture<'a, Result<Vec<SplitId>>> {
        self.source.splits_besides(known)
    }

    fn discovery_interval(&self) -> Option<Duration> {
        self.source.discovery_interval()
    }

    fn open_at_once(&self) -> usize {
        self.source.open_at_once()
    }

    fn reader(&self, subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(LoggedReader {
            reader: self.source.reader(subtask, task)?,
            directory: self.directory.clone(),
            schema: Arc::clone(&self.schema),
            released: HashMap::new(),
        }))
    }
}

struct LoggedReader {
    reader: Box<dyn SplitReader>,
    directory: PathBuf,
    schema: SchemaRef,
    /// Up to which frame each split's log is not needed any more.
    released: HashMap<String, Arc<AtomicU64>>,
}

impl SplitReader for LoggedReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let directory = self.directory.join(format!("{:016x}", xxh3_64(split.name.as_bytes())));
        let log = Log::open(&directory)?;
        if position.is_none() && log.first() > 1 {
            return Err(EngineError::Plan(format!(
                "the log of '{}' in {} is of an earlier run of the job, and the job starts without that run's state; start \
                 from its checkpoint, or remove that directory",
                split.name,
                directory.display()
            )));
        }
        let released = Arc::new(AtomicU64::new(0));
        self.released.insert(split.name.clone(), Arc::clone(&released));
        let logged = Logged {
            replay: Some(log.replay(rows_given(position, &split.name)?)?),
            // What it says from now on: it is connected to at once, so that it need not wait until the log is read.
            live: self.reader.open(split, None)?,
            log,
            directory,
            schema: Arc::clone(&self.schema),
            released,
            has_ended: false,
        };
        let batches = stream::try_unfold(logged, |mut logged| async move {
            Ok(logged.next().await?.map(|batch| (batch, logged)))
        });
        Ok(batches.boxed())
    }

    fn checkpoint_complete(&mut self, positions: &[(SplitId, Vec<u8>)]) {
        for (split, position) in positions {
            if let (Some(released), Ok(frame)) =
                (self.released.get(&split.name), rows_given(Some(position), &split.name))
            {
                // The log itself belongs to the stream, which sees to it when it next writes.
                released.fetch_max(frame, Ordering::Relaxed);
            }
        }
    }

    fn bad_records(&self) -> u64 {
        self.reader.bad_records()
    }
}

/// A split with its log.
struct Logged {
    replay: Option<Replay>,
    live: SplitStream,
    log: Log,
    directory: PathBuf,
    schema: SchemaRef,
    released: Arc<AtomicU64>,
    has_ended: bool,
}

impl Logged {
    async fn next(&mut self) -> Result<Option<Positioned>> {
        if self.has_ended {
            return Ok(None);
        }
        if let Some(replay) = &mut self.replay {
            match replay.next().transpose()? {
                Some(frame) => return self.again(&frame),
                None => self.replay = None,
            }
        }
        // An empty batch says nothing.
        let read = loop {
            match self.live.next().await.transpose()? {
                Some(read) if read.batch.num_rows() == 0 => {}
                other => break other,
            }
        };
        self.log.release(self.released.load(Ordering::Relaxed))?;
        let Some(read) = read else {
            self.has_ended = true;
            self.log.append(FrameKind::End, &[])?;
            return Ok(None);
        };
        let number = self.log.append(FrameKind::Rows, &encode(&read.batch)?)?;
        Ok(Some(Positioned {
            batch: read.batch,
            position: number.to_le_bytes().to_vec(),
        }))
    }

    fn again(&mut self, frame: &Frame) -> Result<Option<Positioned>> {
        if frame.kind == FrameKind::End {
            self.has_ended = true;
            return Ok(None);
        }
        Ok(Some(Positioned {
            batch: decode(frame, &self.schema, &self.directory)?,
            position: frame.number.to_le_bytes().to_vec(),
        }))
    }
}

fn encode(batch: &Batch) -> Result<Vec<u8>> {
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
    writer.write(batch)?;
    Ok(writer.into_inner()?)
}

fn decode(frame: &Frame, schema: &SchemaRef, directory: &Path) -> Result<Batch> {
    let mut reader = StreamReader::try_new(frame.payload.as_slice(), None)?;
    let batch = reader.next().ok_or_else(|| {
        EngineError::BadInput(format!("frame {} in {} has no rows", frame.number, directory.display()))
    })??;
    let same = |(one, other): (&Arc<_>, &Arc<_>)| {
        let (one, other): (&arrow::datatypes::Field, &arrow::datatypes::Field) = (one, other);
        one.name() == other.name() && one.data_type() == other.data_type()
    };
    let written = batch.schema();
    if written.fields().len() != schema.fields().len() || !written.fields().iter().zip(schema.fields()).all(same) {
        return Err(EngineError::Plan(format!(
            "the log in {} has rows of other columns than the program reads now; end the job with the program that wrote it, \
             with a savepoint, and start the new one from there",
            directory.display()
        )));
    }
    Ok(batch.with_schema(Arc::clone(schema))?)
}

#[cfg(test)]
mod tests;
