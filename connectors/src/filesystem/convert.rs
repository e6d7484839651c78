//! From DataFusion's statements and tables to a sink: `COPY .. TO` and `CREATE EXTERNAL TABLE`.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::parsers::CompressionTypeVariant;
use datafusion::config::{CsvOptions, ParquetOptions};
use datafusion::datasource::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::ListingTable;
use datafusion::logical_expr::dml::CopyTo;
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::filesystem::{FileOptions, Format};

type Map = BTreeMap<String, String>;

fn base(path: &str, format: Format, partition_by: &[String]) -> Result<Map> {
    let mut options = Map::from([
        ("path".into(), path.to_string()),
        ("format".into(), format.name().to_string()),
    ]);
    if !partition_by.is_empty() {
        let names = serde_json::to_string(partition_by).map_err(|e| EngineError::Internal(e.to_string()))?;
        options.insert("partitioned-by".into(), names);
    }
    Ok(options)
}

/// The sink of `COPY .. TO ..`: it replaces an existing single file.
///
/// # Errors
/// When the format has no writer, or an option is unknown or wrong.
pub fn copy_sink(copy: &CopyTo) -> Result<SinkSpec> {
    let format = Format::parse(&copy.file_type.get_ext())?;
    let mut options = base(&copy.output_url, format, &copy.partition_by)?;
    options.insert("sink.replace".into(), "true".into());
    options.extend(copy.options.iter().map(|(key, value)| (key.clone(), value.clone())));
    FileOptions::parse(&options)?;
    let schema = Arc::clone(copy.input.schema().inner());
    Ok(SinkSpec {
        connector: "filesystem".into(),
        options,
        schema: SchemaSpec(schema),
    })
}

/// The sink of `INSERT INTO` a table of `CREATE EXTERNAL TABLE`.
///
/// # Errors
/// When the table has several locations, is a pattern, or its format has no writer.
pub fn listing_sink(table: &ListingTable) -> Result<SinkSpec> {
    let [path] = table.table_paths().as_slice() else {
        return Err(EngineError::Plan(
            "a table of several locations cannot be written; insert into one of them".into(),
        ));
    };
    if let Some(glob) = path.get_glob() {
        // A folder of which DataFusion has made `*.ext` is a folder still.
        if !glob.as_str().starts_with("*.") {
            return Err(EngineError::Plan(format!(
                "{path}{glob} is a pattern and cannot be written; name a folder"
            )));
        }
    }
    let listing = table.options();
    let format = Format::parse(&listing.format.get_ext())?;
    let partition_by: Vec<String> = listing
        .table_partition_cols
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    let mut options = base(path.as_str(), format, &partition_by)?;
    describe(listing.format.as_ref(), &mut options);
    FileOptions::parse(&options)?;
    Ok(SinkSpec {
        connector: "filesystem".into(),
        options,
        schema: SchemaSpec(table.schema()),
    })
}

/// What a format of DataFusion says about writing, as options.
fn describe(format: &dyn FileFormat, options: &mut Map) {
    let any = format as &dyn std::any::Any;
    if let Some(csv) = any.downcast_ref::<CsvFormat>() {
        describe_csv(csv.options(), options);
    } else if let Some(json) = any.downcast_ref::<JsonFormat>() {
        put(
            options,
            "json.compression",
            Some(compression(json.options().compression)),
        );
    } else if let Some(parquet) = any.downcast_ref::<ParquetFormat>() {
        let ParquetOptions {
            compression,
            max_row_group_size,
            ..
        } = &parquet.options().global;
        put(options, "parquet.compression", compression.clone());
        put(options, "parquet.row-group-size", Some(max_row_group_size.to_string()));
    }
}

fn describe_csv(csv: &CsvOptions, options: &mut Map) {
    let text = |byte: u8| char::from(byte).to_string();
    put(options, "csv.header", csv.has_header.map(|header| header.to_string()));
    put(options, "csv.field-delimiter", Some(text(csv.delimiter)));
    put(options, "csv.quote-character", Some(text(csv.quote)));
    put(options, "csv.escape-character", csv.escape.map(text));
    put(options, "csv.null-literal", csv.null_value.clone());
    put(options, "csv.date-format", csv.date_format.clone());
    put(options, "csv.time-format", csv.time_format.clone());
    put(options, "csv.timestamp-format", csv.timestamp_format.clone());
    put(options, "csv.timestamp-tz-format", csv.timestamp_tz_format.clone());
    put(options, "csv.compression", Some(compression(csv.compression)));
}

fn put(options: &mut Map, key: &str, value: Option<String>) {
    if let Some(value) = value {
        options.insert(key.into(), value);
    }
}

fn compression(compression: CompressionTypeVariant) -> String {
    match compression {
        CompressionTypeVariant::UNCOMPRESSED => "none".into(),
        other => other.to_string(),
    }
}
