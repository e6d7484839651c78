//! Changes as bytes, to be written by another process: a header as JSON, then two Arrow IPC streams, each with its length
//! before it.

use std::io::Cursor;

use arrow::compute::concat_batches;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use serde::{Deserialize, Serialize};
use thalweg_engine::{Batch, EngineError, Result};

use super::Changes;

/// The version of the form that this build writes, and the only one that it reads.
const VERSION: u32 = 1;

/// What tells a committable from all others. The checkpoints of one writer rise and are published in their order, so the
/// last one that was written says which others were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    version: u32,
    /// The job's name.
    pub(crate) job: String,
    /// The run of the sink, see [`crate::run_token`].
    pub(crate) run: String,
    /// The writer.
    pub(crate) subtask: usize,
    /// The checkpoint.
    pub(crate) checkpoint: u64,
}

impl Mark {
    pub(crate) fn new(job: &str, run: &str, subtask: usize, checkpoint: u64) -> Self {
        Self {
            version: VERSION,
            job: job.to_string(),
            run: run.to_string(),
            subtask,
            checkpoint,
        }
    }
}

/// The changes of one writer up to a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) mark: Mark,
    pub(crate) changes: Changes,
}

impl Prepared {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let header = serde_json::to_vec(&self.mark).map_err(|e| EngineError::Internal(e.to_string()))?;
        let mut bytes = Vec::new();
        for part in [header, ipc(&self.changes.upserts)?, ipc(&self.changes.deletes)?] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let header = part(&mut rest)?;
        let mark: Mark = serde_json::from_slice(header).map_err(damaged)?;
        if mark.version != VERSION {
            return Err(EngineError::BadInput(format!(
                "what a sink prepared has the form {}, this build knows {VERSION}; use the build that wrote the checkpoint",
                mark.version
            )));
        }
        let upserts = batch(part(&mut rest)?)?;
        let deletes = batch(part(&mut rest)?)?;
        if !rest.is_empty() {
            return Err(damaged("there are bytes behind it"));
        }
        Ok(Self {
            mark,
            changes: Changes { upserts, deletes },
        })
    }
}

fn damaged(why: impl std::fmt::Display) -> EngineError {
    EngineError::BadInput(format!(
        "what a sink prepared is damaged ({why}); restore an older checkpoint"
    ))
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let (length, after) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged("it is too short"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(damaged)?;
    let (part, after) = after
        .split_at_checked(length)
        .ok_or_else(|| damaged("it is too short"))?;
    *rest = after;
    Ok(part)
}

fn ipc(batch: &Batch) -> Result<Vec<u8>> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options)?;
    if batch.num_rows() > 0 {
        writer.write(batch)?;
    }
    writer.finish()?;
    Ok(writer.into_inner()?)
}

fn batch(bytes: &[u8]) -> Result<Batch> {
    let reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(damaged)?;
    let schema = reader.schema();
    let batches = reader.collect::<std::result::Result<Vec<_>, _>>().map_err(damaged)?;
    Ok(concat_batches(&schema, &batches)?)
}
