//! Names the file and line of a bad record. Scans read files in byte ranges, and the readers count lines from the
//! start of a range; so when a scan has failed, its files are read once more from their starts, one by one.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::json::ReaderBuilder as JsonReaderBuilder;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{CsvSource, FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

/// Finds the first bad record of the files that `plan` scans, given that running it has failed with `cause`; a
/// message with file, line and column, or `None` when every file can be read (then `cause` is about something else).
pub async fn locate_bad_record(
    plan: &Arc<dyn ExecutionPlan>,
    runtime: &RuntimeEnv,
    cause: &DataFusionError,
) -> Option<String> {
    if matches!(
        cause.find_root(),
        DataFusionError::ResourcesExhausted(_) | DataFusionError::Plan(_)
    ) {
        return None;
    }
    for scan in scans(plan) {
        let store = runtime
            .object_store_registry
            .get_store(scan.object_store_url.as_ref())
            .ok()?;
        let mut files: Vec<PartitionedFile> = scan
            .file_groups
            .iter()
            .flat_map(|group| group.files().iter().cloned())
            .collect();
        // Byte ranges of one file are one file.
        files.sort_by(|a, b| a.object_meta.location.cmp(&b.object_meta.location));
        files.dedup_by(|a, b| a.object_meta.location == b.object_meta.location);
        for mut file in files {
            file.range = None;
            let name = file_name(&scan, &file);
            if let Some(problem) = read_whole(&scan, file, &store, runtime).await {
                return Some(format!("{name}{problem}"));
            }
        }
    }
    None
}

fn scans(plan: &Arc<dyn ExecutionPlan>) -> Vec<FileScanConfig> {
    let own = plan
        .downcast_ref::<DataSourceExec>()
        .and_then(|exec| exec.data_source().downcast_ref::<FileScanConfig>())
        .cloned();
    own.into_iter()
        .chain(plan.children().into_iter().flat_map(scans))
        .collect()
}

fn file_name(scan: &FileScanConfig, file: &PartitionedFile) -> String {
    shown_name(scan.object_store_url.as_str(), &file.object_meta.location)
}

/// How a file of a store is called in messages.
pub(super) fn shown_name(store: &str, location: &Path) -> String {
    match store {
        "file:///" => {
            let absolute = format!("/{location}");
            // As the user wrote it, where that was relative.
            let here = std::env::current_dir().ok();
            let relative =
                here.and_then(|here| Some(std::path::Path::new(&absolute).strip_prefix(here).ok()?.to_owned()));
            relative.map_or(absolute, |relative| relative.display().to_string())
        }
        origin => format!("{origin}{location}"),
    }
}

/// Reads one file from its start with the scan's own options. What is wrong with it, to be put behind its name.
async fn read_whole(
    scan: &FileScanConfig,
    file: PartitionedFile,
    store: &Arc<dyn ObjectStore>,
    runtime: &RuntimeEnv,
) -> Option<String> {
    let location = file.object_meta.location.clone();
    let failure = first_failure(scan, file, runtime).await?;
    let text = failure.find_root().to_string();
    let format = scan.file_source().file_type();
    if !matches!(format, "csv" | "json") {
        return Some(match format {
            "fixed" => format!(": {}", text.strip_prefix("Execution error: ").unwrap_or(&text)),
            "parquet" => format!(": not a Parquet file, or truncated or damaged ({text})"),
            other => format!(": not a valid {other} file, or truncated or damaged ({text})"),
        });
    }
    let bytes = match store.get(&location).await {
        Ok(object) => object.bytes().await.ok()?,
        Err(e) => return Some(format!(": cannot be read ({e})")),
    };
    let Ok(reader) = scan.file_compression_type.convert_read(std::io::Cursor::new(bytes)) else {
        return Some(format!(": {text}"));
    };
    let schema = scan.file_source().table_schema().file_schema();
    let described = match scan.file_source().downcast_ref::<CsvSource>() {
        Some(csv) => csv_problem(&text, schema, csv, reader),
        None => json_problem(schema, reader),
    };
    let damaged = || match scan.file_compression_type {
        FileCompressionType::UNCOMPRESSED => format!(": {text}"),
        _ => format!(
            ": not a valid {} file, or truncated ({text})",
            scan.file_compression_type.get_variant()
        ),
    };
    Some(described.unwrap_or_else(damaged))
}

async fn first_failure(scan: &FileScanConfig, file: PartitionedFile, runtime: &RuntimeEnv) -> Option<DataFusionError> {
    let single = FileScanConfigBuilder::from(scan.clone())
        .with_file_groups(vec![FileGroup::new(vec![file])])
        .with_limit(None)
        .build();
    let plan = DataSourceExec::from_data_source(single);
    let config = SessionConfig::new().with_batch_size(BATCH);
    let context = TaskContext::default()
        .with_session_config(config)
        .with_runtime(Arc::new(runtime.clone()));
    let mut stream = match plan.execute(0, Arc::new(context)) {
        Ok(stream) => stream,
        Err(e) => return Some(e),
    };
    while let Some(batch) = stream.next().await {
        if let Err(e) = batch {
            return Some(e);
        }
    }
    None
}

/// Rows that are decoded at once: also how far apart two faults must be for the first to be surely the one reported.
const BATCH: usize = 1024;

/// Reads what arrow-csv says, which knows the record but not the line.
fn csv_problem(text: &str, schema: &SchemaRef, csv: &CsvSource, reader: impl Read) -> Option<String> {
    let number = |after: &str| -> Option<usize> {
        let rest = &text[text.find(after)? + after.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let column = |index: usize| {
        schema
            .fields()
            .get(index)
            .map_or(index.to_string(), |field| field.name().clone())
    };
    let (record, place, what) = if text.contains("incorrect number of fields") {
        let expected = number("expected ")?;
        let got = match number("got more than ") {
            Some(_) => "more".to_string(),
            None => number("got ")?.to_string(),
        };
        (
            number("for line ")?,
            String::new(),
            format!("{got} fields where the table has {expected}"),
        )
    } else if text.contains("invalid UTF-8") {
        // Fields count from 1.
        let field = number("and field ")?.checked_sub(1)?;
        (
            number("for line ")?,
            format!(", column '{}'", column(field)),
            "invalid UTF-8".to_string(),
        )
    } else if let Some(value) = text
        .find("parsing value '")
        .map(|at| &text[at + "parsing value '".len()..])
    {
        // Here arrow counts records from 0.
        let (value, rest) = value.split_once("' as type '")?;
        let (data_type, _) = rest.split_once('\'')?;
        let at = column(number("for column ")?);
        (
            number("at line ")? + 1,
            String::new(),
            format!("cannot parse '{value}' as {data_type} in column '{at}'"),
        )
    } else {
        let at = column(number("Error parsing column ")?);
        let (_, why) = text
            .split_once(": ")
            .filter(|(head, _)| head.contains("at line"))
            .or(Some(("", text)))?;
        (
            number("at line ")? + 1,
            String::new(),
            format!("cannot parse column '{at}': {why}"),
        )
    };
    let line = line_of_record(BufReader::new(reader), record, csv);
    Some(format!(", line {line}{place}: {what}"))
}

/// The 1-based line on which the 1-based `record` (the header is one) begins: blank lines, comments and line breaks
/// in quotes make the two differ.
fn line_of_record(reader: impl BufRead, record: usize, csv: &CsvSource) -> usize {
    let (mut line, mut records) = (1, 0);
    let (mut between, mut in_comment, mut quoted, mut escaped) = (true, false, false, false);
    for byte in reader.bytes().map_while(Result::ok) {
        if between && !in_comment && byte != b'\n' && byte != b'\r' {
            in_comment = csv.comment() == Some(byte);
            if !in_comment {
                between = false;
                records += 1;
                if records == record {
                    return line;
                }
            }
        }
        if escaped {
            escaped = false;
        } else if csv.escape() == Some(byte) {
            escaped = true;
        } else if !between && byte == csv.quote() {
            quoted = !quoted;
        }
        if byte == b'\n' {
            line += 1;
            if !quoted {
                (between, in_comment) = (true, false);
            }
        }
    }
    line
}

/// Decodes line by line until one fails. A record may span lines.
fn json_problem(schema: &SchemaRef, reader: impl Read) -> Option<String> {
    let mut decoder = JsonReaderBuilder::new(Arc::clone(schema)).build_decoder().ok()?;
    let mut reader = BufReader::new(reader);
    let mut text = Vec::new();
    let mut begun_at = 1;
    for line in 1.. {
        text.clear();
        if reader.read_until(b'\n', &mut text).ok()? == 0 {
            break;
        }
        if !decoder.has_partial_record() {
            begun_at = line;
        }
        if std::str::from_utf8(&text).is_err() {
            return Some(format!(", line {line}: invalid UTF-8"));
        }
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            match decoder.decode(rest) {
                Ok(0) => {
                    if let Err(e) = decoder.flush() {
                        return Some(format!(", line {begun_at}: {e}"));
                    }
                }
                Ok(read) => rest = &rest[read..],
                Err(e) => return Some(format!(", line {line}: {e}")),
            }
        }
        if !decoder.has_partial_record()
            && let Err(e) = decoder.flush()
        {
            return Some(format!(", line {begun_at}: {e}"));
        }
    }
    decoder
        .has_partial_record()
        .then(|| format!(", line {begun_at}: the file ends in the middle of a record"))
}
