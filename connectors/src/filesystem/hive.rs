//! What a hive directory's name says about the rows below it.

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::{FieldRef, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, ScalarValue, Statistics, plan_datafusion_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use std::sync::Arc;

use crate::filesystem::partition::NULL_PARTITION;

/// `file`, whose partition values DataFusion has read as text, with values of the declared types.
pub(super) fn typed(mut file: PartitionedFile, partitions: &[FieldRef]) -> Result<PartitionedFile> {
    let location = file.object_meta.location.clone();
    for (value, field) in file.partition_values.iter_mut().zip(partitions) {
        let null = format!("{}={NULL_PARTITION}", field.name());
        *value = if location.as_ref().split('/').any(|segment| segment == null) {
            ScalarValue::try_from(field.data_type())?
        } else {
            value.cast_to(field.data_type()).map_err(|_| {
                plan_datafusion_err!(
                    "/{location}: the directory {}={value} is not a {}; rename it, or declare the column as STRING",
                    field.name(),
                    field.data_type()
                )
            })?
        };
    }
    file.statistics = file.statistics.take().map(|statistics| {
        let mut statistics = Arc::unwrap_or_clone(statistics);
        let in_files = statistics.column_statistics.len() - partitions.len();
        statistics.column_statistics.truncate(in_files);
        let values = file.partition_values.iter().map(|value| of_value(value, &statistics));
        let values: Vec<ColumnStatistics> = values.collect();
        statistics.column_statistics.extend(values);
        Arc::new(statistics)
    });
    Ok(file)
}

/// The statistics of a column that has `value` in every row.
fn of_value(value: &ScalarValue, file: &Statistics) -> ColumnStatistics {
    if value.is_null() {
        return ColumnStatistics {
            null_count: file.num_rows,
            ..ColumnStatistics::new_unknown()
        };
    }
    ColumnStatistics {
        null_count: Precision::Exact(0),
        min_value: Precision::Exact(value.clone()),
        max_value: Precision::Exact(value.clone()),
        distinct_count: Precision::Exact(1),
        ..ColumnStatistics::new_unknown()
    }
}

/// The files whose partition values satisfy all of `filters`, which are over partition columns only.
pub(super) fn prune(
    state: &dyn Session,
    files: Vec<PartitionedFile>,
    partitions: &[FieldRef],
    filters: Vec<Expr>,
) -> Result<Vec<PartitionedFile>> {
    let Some(filter) = conjunction(filters) else {
        return Ok(files);
    };
    if files.is_empty() {
        return Ok(files);
    }
    let schema = Arc::new(Schema::new(
        partitions
            .iter()
            .map(|field| field.as_ref().clone().with_nullable(true))
            .collect::<Vec<_>>(),
    ));
    let columns = (0..partitions.len())
        .map(|i| ScalarValue::iter_to_array(files.iter().map(|file| file.partition_values[i].clone())))
        .collect::<Result<Vec<_>>>()?;
    let values = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let predicate = state.create_physical_expr(filter, &DFSchema::try_from(schema)?)?;
    let kept = predicate.evaluate(&values)?.into_array(files.len())?;
    let kept: &BooleanArray = kept.as_boolean();
    Ok(files
        .into_iter()
        .enumerate()
        .filter(|(i, _)| kept.is_valid(*i) && kept.value(*i))
        .map(|(_, file)| file)
        .collect())
}
