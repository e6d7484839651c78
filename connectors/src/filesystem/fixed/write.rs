//! Rows to records.

use std::io::Write;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Schema};
use thalweg_engine::Batch;

use super::{Layout, Place};
use crate::filesystem::encode::{EncodeResult, FileEncoder};
use crate::filesystem::storage::StagedFile;

/// Records are put together in a buffer of about this size.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes one file.
pub(in crate::filesystem) struct FixedEncoder {
    layout: Layout,
    file: Box<dyn StagedFile>,
    records: Vec<u8>,
    rows_written: usize,
}

impl FixedEncoder {
    pub(in crate::filesystem) fn try_new(
        schema: &Schema,
        lengths: &[usize],
        file: Box<dyn StagedFile>,
    ) -> EncodeResult<Self> {
        Ok(Self {
            layout: Layout::try_new(schema, lengths)?,
            file,
            records: Vec::new(),
            rows_written: 0,
        })
    }
}

impl FileEncoder for FixedEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        let record_bytes = self.layout.record_bytes;
        let rows_at_once = (BUFFER_BYTES / record_bytes.max(1)).max(1);
        for start in (0..batch.num_rows()).step_by(rows_at_once) {
            let rows = rows_at_once.min(batch.num_rows() - start);
            self.records.resize(rows * record_bytes, 0);
            for (place, column) in self.layout.places.iter().zip(batch.columns()) {
                let column = column.slice(start, rows);
                place
                    .scatter(&column, &mut self.records, record_bytes)
                    .map_err(|(row, what)| {
                        format!("row {}: column '{}' {what}", self.rows_written + row + 1, place.column)
                    })?;
            }
            self.file.write_all(&self.records)?;
            self.rows_written += rows;
        }
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        Ok(self.file)
    }
}

impl Place {
    /// Copies the column's values into the records; else the row that cannot be written, and why.
    fn scatter(&self, column: &ArrayRef, records: &mut [u8], record_bytes: usize) -> Result<(), (usize, String)> {
        if let Some(row) = (0..column.len()).find(|row| column.is_null(*row)) {
            return Err((row, "is NULL, which the format 'fixed' cannot hold".into()));
        }
        match column.data_type() {
            DataType::FixedSizeBinary(_) => {
                self.copy(column.as_fixed_size_binary().iter().flatten(), records, record_bytes)
            }
            DataType::Binary => self.copy(column.as_binary::<i32>().iter().flatten(), records, record_bytes),
            DataType::LargeBinary => self.copy(column.as_binary::<i64>().iter().flatten(), records, record_bytes),
            DataType::BinaryView => self.copy(column.as_binary_view().iter().flatten(), records, record_bytes),
            other => Err((0, format!("is {other}, not {}", self.data_type))),
        }
    }

    fn copy<'a>(
        &self,
        values: impl Iterator<Item = &'a [u8]>,
        records: &mut [u8],
        record_bytes: usize,
    ) -> Result<(), (usize, String)> {
        for (row, (value, record)) in values.zip(records.chunks_exact_mut(record_bytes)).enumerate() {
            if value.len() != self.length {
                let problem = format!(
                    "has a value of {} bytes where records hold {}",
                    value.len(),
                    self.length
                );
                return Err((row, problem));
            }
            record[self.start..][..self.length].copy_from_slice(value);
        }
        Ok(())
    }
}
