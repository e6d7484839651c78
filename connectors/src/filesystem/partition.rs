//! Hive partitioning: which directory a row belongs to.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::sync::Arc;
use thalweg_engine::{Batch, EngineError, Result};

/// The directory value of NULL.
pub(super) const NULL_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// What DataFusion's hive reader decodes and expects encoded: its pruning looks for other characters as they are.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'/').add(b'?').add(b'#');

/// Splits batches by the values of the partition columns.
#[derive(Clone, Debug)]
pub(super) struct Partitioner {
    /// Name and index of the partition columns.
    columns: Vec<(String, usize)>,
    /// Indices of the columns that go into the files.
    kept: Vec<usize>,
}

impl Partitioner {
    /// Partitions rows of `schema` by the columns `names`.
    ///
    /// # Errors
    /// When a column is missing or cannot name a directory, or no column is left for the files.
    pub(super) fn try_new(schema: &Schema, names: &[String], keep: bool) -> Result<Self> {
        let mut columns = Vec::with_capacity(names.len());
        for name in names {
            let (index, field) = schema.column_with_name(name).ok_or_else(|| {
                let known: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                EngineError::Plan(format!(
                    "there is no column '{name}' to partition by; the columns are: {}",
                    known.join(", ")
                ))
            })?;
            if field.data_type().is_nested() || name.contains(['/', '=']) || name.is_empty() {
                return Err(EngineError::Plan(format!(
                    "column '{name}' of type {} cannot name directories; partition by another",
                    field.data_type()
                )));
            }
            columns.push((name.clone(), index));
        }
        let kept: Vec<usize> = (0..schema.fields().len())
            .filter(|index| keep || !columns.iter().any(|(_, column)| column == index))
            .collect();
        if kept.is_empty() {
            return Err(EngineError::Plan(
                "every column is a partition column; none is left for the files".into(),
            ));
        }
        Ok(Self { columns, kept })
    }

    /// The schema of the files.
    pub(super) fn file_schema(&self, schema: &Schema) -> Result<SchemaRef> {
        Ok(Arc::new(schema.project(&self.kept)?))
    }

    /// `batch` by directory (`a=1/b=x`), in the order of first appearance, without the partition columns.
    pub(super) fn split(&self, batch: &Batch) -> Result<Vec<(String, Batch)>> {
        if self.columns.is_empty() {
            return Ok(vec![(String::new(), batch.clone())]);
        }
        let values = self
            .columns
            .iter()
            .map(|(_, index)| cast(batch.column(*index), &DataType::Utf8))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let files = batch.project(&self.kept)?;
        let mut groups: Vec<(String, Vec<u32>)> = Vec::new();
        let mut index_of: HashMap<String, usize> = HashMap::new();
        let mut directory = String::new();
        for row in 0..batch.num_rows() {
            directory.clear();
            self.directory(&values, row, &mut directory);
            let group = match index_of.get(&directory) {
                Some(group) => *group,
                None => {
                    index_of.insert(directory.clone(), groups.len());
                    groups.push((directory.clone(), Vec::new()));
                    groups.len() - 1
                }
            };
            groups[group].1.push(row as u32);
        }
        if let [(only, _)] = groups.as_slice() {
            return Ok(vec![(only.clone(), files)]);
        }
        groups
            .into_iter()
            .map(|(directory, rows)| Ok((directory, take_record_batch(&files, &UInt32Array::from(rows))?)))
            .collect()
    }

    fn directory(&self, values: &[ArrayRef], row: usize, directory: &mut String) {
        for ((name, _), column) in self.columns.iter().zip(values) {
            if !directory.is_empty() {
                directory.push('/');
            }
            directory.push_str(name);
            directory.push('=');
            if column.is_null(row) {
                directory.push_str(NULL_PARTITION);
                continue;
            }
            match column.as_string::<i32>().value(row) {
                // A text that looks like NULL's directory: encoded it is not mistaken for it.
                NULL_PARTITION => directory.push_str("%5F_HIVE_DEFAULT_PARTITION__"),
                text => directory.extend(utf8_percent_encode(text, ENCODED)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringArray};

    use super::*;

    #[test]
    fn rows_go_to_the_directories_of_their_values() {
        let a: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None, Some(1)]));
        let b: ArrayRef = Arc::new(StringArray::from(vec!["x/y", "é", "x/y"]));
        let c: ArrayRef = Arc::new(Int32Array::from(vec![10, 20, 30]));
        let batch = Batch::try_from_iter([("a", a), ("b", b), ("c", c)]).unwrap();
        let names = ["a".to_string(), "b".to_string()];
        let partitioner = Partitioner::try_new(&batch.schema(), &names, false).unwrap();
        let parts = partitioner.split(&batch).unwrap();
        assert_eq!(parts[0].0, "a=1/b=x%2Fy");
        assert_eq!(parts[1].0, format!("a={NULL_PARTITION}/b=%C3%A9"));
        assert_eq!(parts[0].1.num_rows(), 2);
        assert_eq!(parts[0].1.schema().fields().len(), 1);
    }

    #[test]
    fn columns_that_cannot_partition_are_named() {
        let c: ArrayRef = Arc::new(Int32Array::from(vec![10]));
        let batch = Batch::try_from_iter([("c", c)]).unwrap();
        let error = |name: &str| {
            Partitioner::try_new(&batch.schema(), &[name.into()], false)
                .unwrap_err()
                .to_string()
        };
        assert!(error("d").contains("no column 'd'"));
        assert!(error("c").contains("none is left"));
    }
}
