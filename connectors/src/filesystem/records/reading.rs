//! One split of files of records on its way.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::common::exec_datafusion_err;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::Count;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Files, RecordScan, external};
use crate::filesystem::diagnose::shown_name;
use crate::filesystem::progress::{FileProgress, Progress};
use crate::formats::{Decoder, FormatOptions, Lines};

/// So much of a file is read at once.
const READ_BYTES: u64 = 1 << 20;

/// One split on its way.
pub(super) struct Reading {
    store: Arc<dyn ObjectStore>,
    files: Files,
    waiting: VecDeque<ObjectMeta>,
    open: Option<OpenFile>,
    ready: VecDeque<Ready>,
    columns: SchemaRef,
    format: FormatOptions,
    projection: Vec<usize>,
    batch_rows: usize,
    bad_records: Count,
    /// After the last batch that was given.
    progress: Progress,
}

/// A batch that was decoded, and where its file is after it.
struct Ready {
    batch: RecordBatch,
    records: u64,
    rows: u64,
    /// Whether it is the last of its file.
    is_last: bool,
}

/// One file on its way.
struct OpenFile {
    meta: ObjectMeta,
    name: String,
    bytes: BoxStream<'static, Result<Bytes>>,
    lines: Lines,
    decoder: Decoder,
    /// Records that have been passed over or decoded.
    records: u64,
    /// Records still to be passed over: a header, and what was read before.
    skipped: u64,
    /// Rows still to be left out after that.
    left_out: u64,
}

impl Reading {
    /// Reads `files`, in this order, from `progress` on: its current file must be the first of them.
    pub(super) fn new(
        scan: &RecordScan,
        files: Vec<ObjectMeta>,
        progress: Progress,
        task: &TaskContext,
        bad_records: Count,
    ) -> Self {
        Self {
            store: Arc::clone(&scan.store),
            files: scan.files.clone(),
            waiting: files.into(),
            open: None,
            ready: VecDeque::new(),
            columns: Arc::clone(&scan.columns),
            format: scan.format.clone(),
            projection: scan.projection.clone(),
            batch_rows: task.session_config().batch_size().max(1),
            bad_records,
            progress,
        }
    }

    /// Where it is after the last batch that was given.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                if let Some(mut current) = self.progress.current.take() {
                    current.records = ready.records;
                    current.rows = ready.rows;
                    match ready.is_last {
                        true => self.progress.finish(&current.path),
                        false => self.progress.current = Some(current),
                    }
                }
                return Ok(Some(ready.batch));
            }
            let Some(mut file) = self.open.take() else {
                let Some(next) = self.waiting.pop_front() else {
                    return Ok(None);
                };
                self.open = Some(self.open_file(next)?);
                continue;
            };
            match file.bytes.next().await {
                Some(bytes) => {
                    file.lines.push(&bytes?);
                    if file.lines.len() as u64 >= READ_BYTES {
                        self.decode(&mut file, false)?;
                    }
                    self.open = Some(file);
                }
                None => self.decode(&mut file, true)?,
            }
        }
    }

    fn open_file(&mut self, file: ObjectMeta) -> Result<OpenFile> {
        let header = u64::from(self.files.skips_header);
        let current = self.progress.current.take();
        // The one that was being read is the first of the files.
        let begun = current.filter(|current| current.path == file.location);
        let (records, rows) = begun.map_or((0, 0), |begun| (begun.records, begun.rows));
        self.progress.current = Some(FileProgress {
            path: file.location.clone(),
            records,
            rows,
        });
        let store = Arc::clone(&self.store);
        let name = shown_name(self.files.url.object_store().as_str(), &file.location);
        let location = file.location.clone();
        let size = file.size;
        let pieces = stream::iter((0..size).step_by(READ_BYTES as usize)).then(move |start| {
            let (store, location, end) = (Arc::clone(&store), location.clone(), (start + READ_BYTES).min(size));
            async move { Ok(store.get_range(&location, start..end).await?) }
        });
        Ok(OpenFile {
            meta: file,
            bytes: self.files.compression.convert_stream(pieces.boxed())?,
            lines: Lines::default(),
            decoder: Decoder::new(&self.format, &self.columns, name.clone()).map_err(external)?,
            name,
            records: 0,
            skipped: records.max(header),
            left_out: rows,
        })
    }

    /// Decodes the lines that are complete, or all at the end of the file.
    fn decode(&mut self, file: &mut OpenFile, at_end: bool) -> Result<()> {
        let mut lines = if at_end {
            file.lines.all()
        } else {
            file.lines.complete()
        };
        let before = file.decoder.bad_records();
        let skipped = (lines.len() as u64).min(file.skipped);
        for _ in 0..skipped {
            file.decoder.skip_record();
        }
        // No more than there are.
        lines.drain(..skipped as usize);
        file.skipped -= skipped;
        file.records += skipped;
        for records in lines.chunks(self.batch_rows) {
            let batch = file.decoder.decode(records).map_err(external)?;
            let begin = file.records;
            file.records += records.len() as u64;
            let left_out = (batch.num_rows() as u64).min(file.left_out);
            file.left_out -= left_out;
            for start in (left_out as usize..batch.num_rows()).step_by(self.batch_rows) {
                let end = (start + self.batch_rows).min(batch.num_rows());
                let (records, rows) = match end == batch.num_rows() {
                    true => (file.records, 0),
                    false => (begin, end as u64),
                };
                self.ready.push_back(Ready {
                    batch: batch.slice(start, end - start).project(&self.projection)?,
                    records,
                    rows,
                    is_last: false,
                });
            }
        }
        self.bad_records.add((file.decoder.bad_records() - before) as usize);
        drop(lines);
        file.lines.consume();
        if at_end {
            self.close(file)?;
        }
        Ok(())
    }

    fn close(&mut self, file: &OpenFile) -> Result<()> {
        let header = u64::from(self.files.skips_header);
        // A file without its header has no rows, and never had any.
        if file.left_out > 0 || file.skipped > 0 && file.records + file.skipped > header {
            return Err(exec_datafusion_err!(
                "{} has fewer records than had been read of it before: it has changed or shrunk; restore it, or start without \
                 the state of this source",
                file.name
            ));
        }
        match self.ready.back_mut() {
            // Done when that has been given.
            Some(last) => last.is_last = true,
            None => self.progress.finish(&file.meta.location),
        }
        Ok(())
    }
}
