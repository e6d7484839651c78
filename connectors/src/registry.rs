//! Which connectors there are, and which does what a statement names.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use thalweg_engine::data::is_changelog;
use thalweg_engine::operator::SinkConnector;
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::{EngineError, Result};

use crate::ChangelogTable;

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
        #[cfg(feature = "print")]
        "print",
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

/// Makes the table of `CREATE TABLE name (columns) PARTITIONED BY (partition_cols) WITH (options)`. `columns` holds
/// the partition columns too; it may be empty where the connector can find the columns itself.
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
    let table = match lower.as_str() {
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
        _ => {
            let format = sink.options.get("format").or_else(|| sink.options.get("value.format"));
            let format = format.map(String::as_str);
            matches!(format, Some("debezium-json" | "canal-json"))
        }
    }
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
    #[cfg(any(feature = "print", feature = "blackhole"))]
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
    #[cfg(any(feature = "print", feature = "blackhole"))]
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
