//! Spill files: Arrow IPC streams with LZ4 bodies, in one directory per job that goes away with the job.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::record_batch::RecordBatch;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::{MemoryError, Result};

const BUFFER_BYTES: usize = 1 << 20;

/// The spill directory of one job: made at the first spill, removed with everything in it when dropped.
#[derive(Debug)]
pub struct SpillDirectory {
    parent: PathBuf,
    directory: Mutex<Option<Arc<TempDir>>>,
    next_file: AtomicU64,
}

impl SpillDirectory {
    /// Spill files will go to a new directory under `parent`.
    pub fn new(parent: impl Into<PathBuf>) -> Self {
        Self {
            parent: parent.into(),
            directory: Mutex::new(None),
            next_file: AtomicU64::new(0),
        }
    }

    /// The job's directory, when it has spilled.
    pub fn path(&self) -> Option<PathBuf> {
        self.directory.lock().as_ref().map(|d| d.path().to_path_buf())
    }

    /// Opens a new spill file for batches of `schema`.
    ///
    /// # Errors
    /// When the directory or the file cannot be made.
    pub fn create(&self, schema: SchemaRef) -> Result<SpillWriter> {
        let directory = self.directory()?;
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let path = directory.path().join(format!("{number:06}.arrow"));
        let file = File::create_new(&path).map_err(|e| spill_error(&path, e))?;
        let options = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::LZ4_FRAME))
            .map_err(|e| arrow_error(&path, e))?;
        let writer = StreamWriter::try_new_with_options(BufWriter::with_capacity(BUFFER_BYTES, file), &schema, options)
            .map_err(|e| arrow_error(&path, e))?;
        Ok(SpillWriter {
            writer,
            file: SpillFile {
                path: Arc::new(RemoveOnDrop(path)),
                _directory: directory,
                rows: 0,
                bytes: 0,
            },
        })
    }

    fn directory(&self) -> Result<Arc<TempDir>> {
        let mut slot = self.directory.lock();
        if let Some(directory) = slot.as_ref() {
            return Ok(Arc::clone(directory));
        }
        std::fs::create_dir_all(&self.parent).map_err(|e| spill_error(&self.parent, e))?;
        let directory = tempfile::Builder::new()
            .prefix("thalweg-spill-")
            .tempdir_in(&self.parent)
            .map_err(|e| spill_error(&self.parent, e))?;
        Ok(Arc::clone(slot.insert(Arc::new(directory))))
    }
}

#[derive(Debug)]
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // The directory is removed as a whole in the end; a file that is already gone is no loss.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes one spill file.
pub struct SpillWriter {
    writer: StreamWriter<BufWriter<File>>,
    file: SpillFile,
}

impl SpillWriter {
    /// Appends a batch.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer
            .write(batch)
            .map_err(|e| arrow_error(&self.file.path.0, e))?;
        self.file.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Ends the file; it can now be read any number of times.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn finish(mut self) -> Result<SpillFile> {
        self.writer.finish().map_err(|e| arrow_error(&self.file.path.0, e))?;
        self.writer
            .get_mut()
            .flush()
            .map_err(|e| spill_error(&self.file.path.0, e))?;
        let metadata = self.writer.get_ref().get_ref().metadata();
        self.file.bytes = metadata.map_err(|e| spill_error(&self.file.path.0, e))?.len();
        Ok(self.file)
    }
}

/// A finished spill file; removed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct SpillFile {
    path: Arc<RemoveOnDrop>,
    _directory: Arc<TempDir>,
    rows: u64,
    bytes: u64,
}

impl SpillFile {
    /// Rows in the file.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the file from the beginning.
    ///
    /// # Errors
    /// When it cannot be opened or does not begin as it was written.
    pub fn open(&self) -> Result<SpillReader> {
        let path = &self.path.0;
        let file = File::open(path).map_err(|e| spill_error(path, e))?;
        let reader =
            StreamReader::try_new(BufReader::with_capacity(BUFFER_BYTES, file), None).map_err(|e| damaged(path, &e))?;
        Ok(SpillReader {
            reader,
            rows_left: self.rows,
            file: self.clone(),
        })
    }
}

/// Reads one spill file; a file that is cut short or altered is an error, never fewer rows.
pub struct SpillReader {
    reader: StreamReader<BufReader<File>>,
    rows_left: u64,
    file: SpillFile,
}

impl Iterator for SpillReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.reader.next() {
            Some(Ok(batch)) => {
                self.rows_left = self.rows_left.saturating_sub(batch.num_rows() as u64);
                Some(Ok(batch))
            }
            Some(Err(e)) => {
                self.rows_left = 0;
                Some(Err(damaged(&self.file.path.0, &e)))
            }
            None if self.rows_left > 0 => {
                let missing = std::mem::take(&mut self.rows_left);
                Some(Err(MemoryError::Damaged {
                    path: self.file.path.0.display().to_string(),
                    detail: format!("{missing} rows are missing at its end"),
                }))
            }
            None => None,
        }
    }
}

fn spill_error(path: &Path, source: std::io::Error) -> MemoryError {
    MemoryError::Spill {
        path: path.display().to_string(),
        source,
    }
}

fn arrow_error(path: &Path, error: ArrowError) -> MemoryError {
    match error {
        ArrowError::IoError(_, source) => spill_error(path, source),
        other => spill_error(path, std::io::Error::other(other)),
    }
}

fn damaged(path: &Path, error: &ArrowError) -> MemoryError {
    MemoryError::Damaged {
        path: path.display().to_string(),
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn batch(values: std::ops::Range<i64>) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(values))]).unwrap()
    }

    #[test]
    fn a_file_can_be_read_twice_and_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let directory = SpillDirectory::new(parent.path());
        let mut writer = directory.create(batch(0..1).schema()).unwrap();
        writer.write(&batch(0..1000)).unwrap();
        writer.write(&batch(1000..1500)).unwrap();
        let file = writer.finish().unwrap();
        for _ in 0..2 {
            let batches: Vec<_> = file.open().unwrap().map(|b| b.unwrap()).collect();
            assert_eq!(batches, vec![batch(0..1000), batch(1000..1500)]);
        }
        assert!(file.bytes() > 0);
        drop(file);
        drop(directory);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_cut_short_is_an_error_that_names_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = SpillDirectory::new(parent.path());
        let mut writer = directory.create(batch(0..1).schema()).unwrap();
        for _ in 0..10 {
            writer.write(&batch(0..1000)).unwrap();
        }
        let file = writer.finish().unwrap();
        let path = &file.path.0;
        let whole = std::fs::metadata(path).unwrap().len();
        for keep in [whole / 2, whole - 20] {
            File::options().write(true).open(path).unwrap().set_len(keep).unwrap();
            let errors: Vec<_> = file.open().unwrap().filter_map(std::result::Result::err).collect();
            assert_eq!(errors.len(), 1, "cut to {keep}");
            assert!(errors[0].to_string().contains("is damaged"), "{}", errors[0]);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("occupied");
        std::fs::write(&file, b"x").unwrap();
        let error = SpillDirectory::new(&file).create(batch(0..1).schema()).err().unwrap();
        assert!(
            error.to_string().contains("occupied") && error.to_string().contains("io.tmp.dirs"),
            "{error}"
        );
    }
}
