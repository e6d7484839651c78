//! `'connector' = 'kafka'` and `'upsert-kafka'`: topics of Apache Kafka.
//!
//! **Reading.** A partition is a split (see `source`): its position is the offset of the next record, kept in checkpoints; the
//! consumer group is told of it for monitoring only. What open and aborted transactions hold is not read.
//!
//! **Writing.** With `'sink.delivery-guarantee' = 'exactly-once'` all that a subtask writes between two barriers is one
//! transaction of one producer (see `pool`). At the barrier the records are flushed and the transaction's identity goes into the
//! checkpoint: its transactional id, producer id, epoch and beginning. It is committed when the checkpoint is complete; the next
//! rows go to another producer meanwhile. If the process dies in between, the next one commits the transaction at its
//! coordinator by that identity (see `transactions`), because librdkafka cannot resume one; that is what the protocol's
//! messages are for (see `wire`). Transactions that belong to no complete checkpoint are aborted, and their producers fenced.

mod avro;
mod client;
mod columns;
mod encode;
mod options;
mod pool;
mod registry;
mod rows;
mod sink;
mod source;
mod start;
mod table;
#[cfg(test)]
mod tests;
mod transactions;
mod wire;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::Result;
use thalweg_engine::operator::SplitSource;

pub use sink::KafkaConnector;
pub use table::KafkaTable;

use options::Flavor;
use table::KafkaScan;

/// The table of `CREATE TABLE name .. WITH ('connector' = 'kafka')`.
///
/// # Errors
/// When an option is missing, unknown or wrong, or a format cannot hold a column.
pub fn create_table(
    name: &str,
    columns: SchemaRef,
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    Ok(Arc::new(KafkaTable::try_new(Flavor::Log, name, columns, options)?))
}

/// The table of `CREATE TABLE name .. WITH ('connector' = 'upsert-kafka')`; the option [`crate::PRIMARY_KEY`] tells its key.
///
/// # Errors
/// As for [`create_table`], and when there is no key.
pub fn create_upsert_table(
    name: &str,
    columns: SchemaRef,
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    Ok(Arc::new(KafkaTable::try_new(Flavor::Upsert, name, columns, options)?))
}

/// What reads topics from noted positions, when `plan` is a scan of topics.
pub fn split_source(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn SplitSource>> {
    let scan = (plan.as_ref() as &dyn std::any::Any).downcast_ref::<KafkaScan>()?;
    Some(Arc::new(scan.source(0)))
}
