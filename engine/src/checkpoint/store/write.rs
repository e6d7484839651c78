//! Writing: frozen tables become frames of one file.

use std::sync::atomic::Ordering;

use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use datafusion::physical_expr::expressions::Column;
use object_store::path::PathPart;

use super::CheckpointStore;
use crate::checkpoint::compact::compact;
use crate::checkpoint::fault;
use crate::checkpoint::frame::{self, Compression, file_header};
use crate::checkpoint::manifest::StoredPart;
use crate::checkpoint::upload::Upload;
use crate::data::{Batch, EngineError, Result, batch_bytes};
use crate::state::{Frozen, FrozenTable, Scope, TableSpec};

/// Neighbours are written together until they are so many rows or bytes.
const FRAME_ROWS_MIN: usize = 8 << 10;
const FRAME_BYTES_MIN: usize = 1 << 20;
/// Larger batches are written as several frames, so that reading is bounded too.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// The key in a stored schema's metadata under which the columns of a keyed table's keys are: their numbers, with commas. Absent
/// when the keys are not plain columns.
pub(super) const KEY_COLUMNS: &str = "thalweg.key-columns";

/// A table of an operator as it was written by one subtask.
#[derive(Clone, Debug)]
pub struct WrittenTable {
    /// The operator's id.
    pub operator: String,
    /// The table.
    pub spec: TableSpec,
    /// The checkpoint after which the changes are; `None` for a whole table.
    pub since: Option<u64>,
    /// What was written. With neither rows nor deleted keys there is nothing to refer to.
    pub part: StoredPart,
}

impl CheckpointStore {
    /// Draws the rows of tables and writes them to one file of `folder`; to none when there are no rows at all. Subtask and
    /// parallelism are `place`. The file's name begins with `file` and is unlike all others; the parts tell it.
    ///
    /// # Errors
    /// When drawing fails, rows are not of their table's schema, or the store fails. Nothing is visible then.
    pub fn write(
        &self,
        folder: &str,
        file: &str,
        tables: Vec<(String, FrozenTable)>,
        place: (usize, usize),
    ) -> Result<Vec<WrittenTable>> {
        fault::point("before-upload")?;
        let mut writer = FileWriter {
            file: self.name_of_file(folder, file)?,
            store: self,
            upload: None,
        };
        let mut written = Vec::with_capacity(tables.len());
        for (operator, table) in tables {
            let name = table.spec.name.clone();
            let table = writer.table(&operator, table, place);
            written.push(table.map_err(|error| in_table(error, &operator, &name))?);
        }
        writer.finish()?;
        fault::point("after-upload")?;
        Ok(written)
    }

    /// A new name, as the store writes it.
    fn name_of_file(&self, folder: &str, file: &str) -> Result<String> {
        let number = self.writer.files.fetch_add(1, Ordering::Relaxed);
        let name = format!("{file}.{}-{number}", self.writer.mark);
        let location = self.location(folder)?.join(PathPart::from(name));
        self.relative(&location)
            .ok_or_else(|| EngineError::Internal(format!("{location} is not within {}", self.root)))
    }
}

/// Errors of rows and of expressions do not say whose they are.
fn in_table(error: EngineError, operator: &str, table: &str) -> EngineError {
    match error {
        EngineError::Internal(what) => {
            EngineError::Internal(format!("table '{table}' of operator '{operator}': {what}"))
        }
        EngineError::Plan(what) => EngineError::Plan(format!("table '{table}' of operator '{operator}': {what}")),
        other => other,
    }
}

/// One file in the making.
struct FileWriter<'a> {
    store: &'a CheckpointStore,
    file: String,
    /// Begun with the first frame.
    upload: Option<Upload>,
}

impl FileWriter<'_> {
    fn table(
        &mut self,
        operator: &str,
        table: FrozenTable,
        (subtask, parallelism): (usize, usize),
    ) -> Result<WrittenTable> {
        let FrozenTable {
            spec,
            since,
            rows,
            deleted,
        } = table;
        let offset = self.position();
        let (rows, length) = self.rows(&spec.schema, rows)?;
        let (deleted, deleted_length) = match deleted {
            Some(deleted) => {
                let fields = spec.schema.fields().iter().take(spec.unique).cloned();
                let keys = Schema::new(fields.collect::<Vec<_>>());
                self.rows(&keys.into(), deleted)?
            }
            None => (0, 0),
        };
        let part = StoredPart {
            subtask,
            parallelism,
            file: match rows + deleted {
                0 => String::new(),
                _ => self.file.clone(),
            },
            offset,
            length,
            deleted_length,
            rows,
            deleted,
            schema: frame::schema_to_hex(&stored_schema(&spec))?,
        };
        Ok(WrittenTable {
            operator: operator.to_string(),
            spec,
            since,
            part,
        })
    }

    fn position(&self) -> u64 {
        match &self.upload {
            Some(upload) => upload.bytes(),
            None => file_header().len() as u64,
        }
    }

    /// Writes rows as frames; gives how many rows and bytes.
    fn rows(&mut self, schema: &SchemaRef, batches: Frozen) -> Result<(u64, u64)> {
        let begin = self.position();
        let mut rows = 0;
        let mut gathered = Gathered::default();
        for batch in batches {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            let batch = frame::with_schema(&batch, schema)
                .map_err(|what| EngineError::Internal(format!("rows of a snapshot are not of the table: {what}")))?;
            rows += batch.num_rows() as u64;
            gathered.push(batch);
            if gathered.is_enough() {
                self.frames(schema, gathered.take())?;
            }
        }
        self.frames(schema, gathered.take())?;
        Ok((rows, self.position() - begin))
    }

    /// Writes batches as one frame if that is possible, and as several if it would be too large.
    fn frames(&mut self, schema: &SchemaRef, batches: Vec<Batch>) -> Result<()> {
        let batches = match batches.len() {
            0 | 1 => batches,
            // Dictionaries together may have more values than their keys can number.
            _ => match concat_batches(schema, &batches) {
                Ok(batch) => vec![batch],
                Err(_) => batches,
            },
        };
        for batch in batches {
            // First as a whole, so that what its columns share does not count as its own; then what the slices share.
            let batch = compact(batch)?;
            let bytes = batch_bytes(&batch);
            let rows = match bytes > FRAME_BYTES_MAX {
                true => (batch.num_rows() * FRAME_BYTES_MAX / bytes).next_multiple_of(8).max(8),
                false => batch.num_rows(),
            };
            for begin in (0..batch.num_rows()).step_by(rows) {
                self.frame(batch.slice(begin, rows.min(batch.num_rows() - begin)))?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, batch: Batch) -> Result<()> {
        let batch = compact(batch)?;
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => {
                let mut upload = self.store.upload(&self.file)?;
                upload.push(Bytes::copy_from_slice(&file_header()))?;
                none.insert(upload)
            }
        };
        let compression: Compression = self.store.compression;
        for bytes in frame::encode(&batch, compression, upload.bytes())? {
            upload.push(bytes)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self.upload {
            Some(upload) => upload.finish().map(drop),
            None => Ok(()),
        }
    }
}

/// Batches that become one frame.
#[derive(Default)]
struct Gathered {
    batches: Vec<Batch>,
    rows: usize,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, batch: Batch) {
        self.rows += batch.num_rows();
        if self.rows < FRAME_ROWS_MIN {
            self.bytes += batch_bytes(&batch);
        }
        self.batches.push(batch);
    }

    fn is_enough(&self) -> bool {
        self.rows >= FRAME_ROWS_MIN || self.bytes >= FRAME_BYTES_MIN
    }

    fn take(&mut self) -> Vec<Batch> {
        std::mem::take(self).batches
    }
}

/// The table's schema, with what a reader without the program can know of its keys.
fn stored_schema(spec: &TableSpec) -> Schema {
    let mut schema = spec.schema.as_ref().clone();
    let Scope::Keyed(keys) = &spec.scope else {
        return schema;
    };
    let columns = keys.iter().map(|key| {
        let column = key.downcast_ref::<Column>()?;
        Some(column.index().to_string())
    });
    if let Some(columns) = columns.collect::<Option<Vec<_>>>() {
        schema.metadata.insert(KEY_COLUMNS.to_string(), columns.join(","));
    }
    schema
}
