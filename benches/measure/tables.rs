//! Input files: Parquet without compression and dictionaries, in row groups of 500,000 rows.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

/// A Parquet file being written.
pub(crate) struct ParquetFile {
    writer: ArrowWriter<File>,
    schema: SchemaRef,
}

impl ParquetFile {
    /// Rows of a row group.
    pub(crate) const GROUP_ROWS: u64 = 500_000;

    pub(crate) fn create(path: &Path, schema: SchemaRef) -> Self {
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some(Self::GROUP_ROWS as usize))
            .build();
        let writer = ArrowWriter::try_new(File::create(path).unwrap(), Arc::clone(&schema), Some(properties)).unwrap();
        Self { writer, schema }
    }

    /// Writes rows; they should be [`Self::GROUP_ROWS`] at once.
    pub(crate) fn write(&mut self, columns: Vec<ArrayRef>) {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).unwrap();
        self.writer.write(&batch).unwrap();
    }

    pub(crate) fn finish(self) {
        self.writer.close().unwrap();
    }
}

/// Reads the files of a folder once, so that the first contender does not pay for the disk; their bytes.
pub(crate) fn touch(folder: &Path) -> u64 {
    let mut buffer = vec![1; 1 << 20];
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let mut file = File::open(entry.unwrap().path()).unwrap();
        if file.metadata().unwrap().is_dir() {
            continue;
        }
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                read => bytes += read as u64,
            }
        }
    }
    bytes
}
