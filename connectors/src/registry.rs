//! Which connectors there are, and which does what a statement names.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::data::is_changelog;
use thalweg_engine::operator::{SinkConnector, SourceResolver, SplitSource};
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::{EngineError, Result};

use crate::ChangelogTable;
use crate::row_wise::RowWise;

/// All sinks of this build.
pub fn sinks() -> Vec<Arc<dyn SinkConnector>> {
    vec![
        #[cfg(feature = "filesystem")]
        Arc::new(crate::filesystem::FileSinkConnector),
        #[cfg(feature = "kafka")]
        Arc::new(crate::kafka::KafkaConnector::log()),
        #[cfg(feature = "kafka")]
        Arc::new(crate::kafka::KafkaConnector::upsert()),
        #[cfg(feature = "print")]
        Arc::new(crate::print::PrintConnector),
        #[cfg(feature = "blackhole")]
        Arc::new(crate::blackhole::BlackholeConnector),
        #[cfg(feature = "redis")]
        Arc::new(crate::redis::RedisConnector),
        #[cfg(feature = "postgres")]
        Arc::new(crate::postgres::PostgresConnector),
    ]
}

/// The connectors that [`create_table`] knows, in this build.
fn known() -> String {
    let names: &[&str] = &[
        #[cfg(feature = "blackhole")]
        "blackhole",
        #[cfg(feature = "datagen")]
        "datagen",
        #[cfg(feature = "filesystem")]
        "filesystem",
        #[cfg(feature = "kafka")]
        "kafka",
        #[cfg(feature = "nexmark")]
        "nexmark",
        #[cfg(feature = "postgres")]
        "postgres",
        #[cfg(feature = "print")]
        "print",
        #[cfg(feature = "redis")]
        "redis",
        #[cfg(feature = "socket")]
        "socket",
        #[cfg(feature = "kafka")]
        "upsert-kafka",
        #[cfg(feature = "ysb")]
        "ysb",
        #[cfg(feature = "ysb")]
        "ysb-campaigns",
    ];
    names.join(", ")
}

/// What the metadata of a schema says of the table's primary key: its columns, as JSON.
const PRIMARY_KEY: &str = "thalweg.primary-key";

/// `columns` with the primary key of the table, for [`create_table`].
///
/// # Errors
/// When a column's name cannot be told.
pub fn with_primary_key(columns: &SchemaRef, key: &[String]) -> Result<SchemaRef> {
    if key.is_empty() {
        return Ok(Arc::clone(columns));
    }
    let key = serde_json::to_string(key).map_err(|e| EngineError::Internal(e.to_string()))?;
    let mut schema = columns.as_ref().clone();
    schema.metadata.insert(PRIMARY_KEY.into(), key);
    Ok(Arc::new(schema))
}

/// Takes apart what [`with_primary_key`] put together.
fn split_primary_key(columns: SchemaRef) -> Result<(SchemaRef, Vec<String>)> {
    let Some(key) = columns.metadata().get(PRIMARY_KEY) else {
        return Ok((columns, Vec::new()));
    };
    let key = serde_json::from_str(key).map_err(|e| EngineError::Internal(e.to_string()))?;
    let mut schema = columns.as_ref().clone();
    schema.metadata.remove(PRIMARY_KEY);
    Ok((Arc::new(schema), key))
}

/// Makes the table of `CREATE TABLE name (columns) PARTITIONED BY (partition_cols) WITH (options)`. `columns` holds
/// the partition columns too, and the primary key ([`with_primary_key`]); it may be empty where the connector can find the columns
/// itself.
///
/// # Errors
/// When the connector, an option or a column is unknown or wrong.
pub async fn create_table(
    state: &dyn Session,
    name: &str,
    columns: SchemaRef,
    partition_cols: &[String],
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    let connector = options
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("connector"))
        .map(|(_, value)| value);
    let Some(connector) = connector else {
        return Err(EngineError::Plan(format!(
            "table '{name}' needs the option 'connector'; known are: {}",
            known()
        )));
    };
    let lower = connector.trim().to_lowercase();
    if lower != "filesystem" && !partition_cols.is_empty() {
        return Err(EngineError::Plan(format!(
            "table '{name}': connector '{connector}' has no partitions; leave PARTITIONED BY out"
        )));
    }
    let (columns, key) = split_primary_key(columns)?;
    let _ = &key;
    let table = match lower.as_str() {
        #[cfg(feature = "redis")]
        "redis" => crate::redis::create_table(name, columns, &key, options),
        #[cfg(feature = "postgres")]
        "postgres" => crate::postgres::create_table(name, columns, &key, options),
        #[cfg(feature = "filesystem")]
        "filesystem" => crate::filesystem::create_table(state, columns, partition_cols, options).await,
        #[cfg(feature = "datagen")]
        "datagen" => crate::datagen::create_table(columns, options),
        #[cfg(feature = "nexmark")]
        "nexmark" => crate::nexmark::create_table(columns, options),
        #[cfg(feature = "socket")]
        "socket" => crate::socket::create_table(columns, options),
        #[cfg(feature = "ysb")]
        "ysb" => crate::ysb::create_table(columns, options),
        #[cfg(feature = "ysb")]
        "ysb-campaigns" => crate::ysb::create_campaigns(columns, options),
        #[cfg(feature = "kafka")]
        "kafka" => crate::kafka::create_table(name, columns, options),
        #[cfg(feature = "kafka")]
        "upsert-kafka" => crate::kafka::create_upsert_table(name, columns, options),
        #[cfg(feature = "print")]
        "print" => crate::print::create_table(name, columns, options),
        #[cfg(feature = "blackhole")]
        "blackhole" => crate::blackhole::create_table(name, columns, options),
        _ => {
            let _ = state;
            return Err(EngineError::Plan(format!(
                "table '{name}': there is no connector '{connector}'; known are: {}",
                known()
            )));
        }
    };
    let table = table.map(|table| {
        if is_changelog(&table.schema()) {
            Arc::new(ChangelogTable::new(table))
        } else {
            table
        }
    });
    table.map_err(|e| match e {
        EngineError::Plan(message) => EngineError::Plan(format!("table '{name}': {message}")),
        other => other,
    })
}

/// Whether a sink takes updates and deletions beside insertions.
pub fn takes_changelog(sink: &SinkSpec) -> bool {
    match sink.connector.as_str() {
        "print" | "blackhole" | "upsert-kafka" => true,
        // What changes is found by its key.
        "redis" | "postgres" => sink_key(sink).is_ok_and(|key| !key.is_empty()),
        _ => {
            let format = sink.options.get("format").or_else(|| sink.options.get("value.format"));
            let format = format.map(String::as_str);
            matches!(format, Some("debezium-json" | "canal-json"))
        }
    }
}

/// The columns of a sink whose rows take the place of those with the same values in them; none for a sink that only adds rows.
/// Rows of the same key must come to the same writer, in their order.
///
/// # Errors
/// When there is no such column.
pub fn sink_key(sink: &SinkSpec) -> Result<Vec<usize>> {
    match sink.connector.as_str() {
        #[cfg(any(feature = "redis", feature = "postgres"))]
        "redis" | "postgres" => crate::upsert::key_columns(&sink.options, &sink.schema.0),
        _ => Ok(Vec::new()),
    }
}

/// The scans of this build that can go on from a position.
#[derive(Debug)]
pub struct Sources;

impl SourceResolver for Sources {
    fn split_source(&self, plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn SplitSource>> {
        split_source(plan)
    }
}

/// The source that `plan` reads, when a connector knows how to go on from a position in it. Of other plans (rows in memory,
/// programs of the user) the runtime counts the rows of each partition.
pub fn split_source(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn SplitSource>> {
    type Resolve = fn(&RowWise) -> Option<Arc<dyn SplitSource>>;
    fn shared<S: SplitSource + 'static>(source: Option<S>) -> Option<Arc<dyn SplitSource>> {
        source.map(|source| Arc::new(source) as _)
    }
    #[cfg(feature = "kafka")]
    if let Some(source) = crate::kafka::split_source(plan) {
        return Some(source);
    }
    let plan = RowWise::of(plan)?;
    let sources: &[Resolve] = &[
        #[cfg(feature = "filesystem")]
        |plan| shared(crate::filesystem::FileSource::of(plan)),
        #[cfg(feature = "filesystem")]
        |plan| shared(crate::filesystem::RecordSource::of(plan)),
        #[cfg(feature = "filesystem")]
        |plan| shared(crate::filesystem::WatchSource::of(plan)),
        #[cfg(any(feature = "datagen", feature = "nexmark", feature = "ysb"))]
        |plan| shared(crate::generate::GeneratedSource::of(plan)),
        #[cfg(feature = "socket")]
        |plan| shared(crate::socket::SocketSource::of(plan)),
    ];
    sources.iter().find_map(|source| source(&plan))
}

/// Whether a table may have no end; those of files and of rows in memory that are there now have one.
pub fn may_be_unbounded(table: &dyn TableProvider) -> bool {
    let any = table as &dyn std::any::Any;
    if any.is::<datafusion::catalog::MemTable>() {
        return false;
    }
    #[cfg(feature = "filesystem")]
    {
        if any.is::<datafusion::datasource::listing::ListingTable>() {
            return false;
        }
        if let Some(table) = any.downcast_ref::<crate::filesystem::FileTable>() {
            return table.is_watched();
        }
    }
    #[cfg(any(feature = "print", feature = "blackhole", feature = "redis", feature = "postgres"))]
    if any.is::<crate::SinkTable>() {
        return false;
    }
    #[cfg(feature = "kafka")]
    if let Some(table) = any.downcast_ref::<crate::kafka::KafkaTable>() {
        return !table.is_bounded();
    }
    true
}

/// Where `INSERT INTO` this table writes; `None` when it cannot be written through a connector.
///
/// # Errors
/// When it is a table of files that cannot be written to, with the reason.
pub fn sink_of(table: &dyn TableProvider) -> Result<Option<SinkSpec>> {
    let any = table as &dyn std::any::Any;
    if let Some(table) = any.downcast_ref::<ChangelogTable>() {
        return sink_of(table.inner());
    }
    #[cfg(any(feature = "print", feature = "blackhole", feature = "redis", feature = "postgres"))]
    if let Some(table) = any.downcast_ref::<crate::SinkTable>() {
        return Ok(Some(table.sink()));
    }
    #[cfg(feature = "kafka")]
    if let Some(table) = any.downcast_ref::<crate::kafka::KafkaTable>() {
        return table.sink().map(Some);
    }
    #[cfg(feature = "filesystem")]
    {
        if let Some(table) = any.downcast_ref::<crate::filesystem::FileTable>() {
            return table.sink().map(Some);
        }
        if let Some(table) = any.downcast_ref::<crate::filesystem::RecordTable>() {
            return table.sink().map(Some);
        }
        if let Some(table) = any.downcast_ref::<datafusion::datasource::listing::ListingTable>() {
            return crate::filesystem::listing_sink(table).map(Some);
        }
    }
    let _ = any;
    Ok(None)
}

#[cfg(test)]
pub(crate) mod tests;
