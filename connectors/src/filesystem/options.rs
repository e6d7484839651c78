//! What can be said about a set of files, typed. One list serves reading and writing, Flink's names
//! (`csv.field-delimiter`) and DataFusion's (`format.delimiter`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use arrow::ipc::CompressionType as IpcCompression;
use arrow_avro::compression::CompressionCodec;
use datafusion::common::parsers::CompressionTypeVariant;
use datafusion::config::{CsvOptions, JsonOptions, ParquetOptions};
use thalweg_engine::{EngineError, Result};

use crate::filesystem::{DeliveryGuarantee, Format, RollingOptions};
use crate::options::{parse_bool, parse_bytes, parse_duration};

/// How files are read and written.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// File, folder or glob; a local path or a URL.
    pub path: String,
    /// The format of the files.
    pub format: Format,
    /// CSV.
    pub csv: CsvOptions,
    /// JSON lines.
    pub json: JsonOptions,
    /// Whether JSON leaves out the fields that are NULL.
    pub json_ignore_null_fields: bool,
    /// Whether records that cannot be read are skipped.
    pub ignore_parse_errors: bool,
    /// The file to which records that cannot be read are appended, and skipped.
    pub dead_letter: Option<PathBuf>,
    /// Whether Debezium's messages carry their schema.
    pub schema_include: bool,
    /// Parquet.
    pub parquet: ParquetOptions,
    /// Compression of Arrow IPC buffers.
    pub arrow: Option<IpcCompression>,
    /// Compression of Avro blocks.
    pub avro: Option<CompressionCodec>,
    /// The lengths of the columns in files of format `fixed`; none where the types say them.
    pub fixed_lengths: Vec<usize>,
    /// The columns that name directories.
    pub partition_by: Vec<String>,
    /// Whether partition columns also stay in the files.
    pub keep_partition_columns: bool,
    /// One file, or a directory of files; by the path when not said.
    pub single_file: Option<bool>,
    /// Whether an existing single file is replaced.
    pub replace: bool,
    /// Whether a local file is synchronized to disk before it gets its final name.
    pub sync: bool,
    /// When part files are finished and shown before the job ends.
    pub rolling: RollingOptions,
    /// Whether rows may be shown before their checkpoint is complete; by whether there are checkpoints when not said.
    pub delivery: Option<DeliveryGuarantee>,
    /// How long a folder's reader waits before it looks for new files; it reads what is there when `None`.
    pub monitor: Option<Duration>,
    /// The most files that a subtask holds open.
    pub max_open_files: usize,
    /// The most bytes that a subtask holds in its files' writers.
    pub buffer_bytes: usize,
}

type Set = fn(&mut FileOptions, &str) -> std::result::Result<(), String>;

/// An option: its name, its other names, and what it sets.
struct Known(&'static str, &'static [&'static str], Set);

const COMMON: &[Known] = &[
    Known("path", &[], |o, v| assign(&mut o.path, v.to_string())),
    Known("format", &[], |_, _| Ok(())),
    Known("partitioned-by", &["partition-by"], |o, v| {
        assign(&mut o.partition_by, names(v)?)
    }),
    Known(
        "keep-partition-by-columns",
        &["execution.keep-partition-by-columns"],
        |o, v| assign(&mut o.keep_partition_columns, parse_bool(v)?),
    ),
    Known("single-file-output", &[], |o, v| {
        assign(&mut o.single_file, Some(parse_bool(v)?))
    }),
    Known("sink.replace", &[], |o, v| assign(&mut o.replace, parse_bool(v)?)),
    Known("sink.sync", &[], |o, v| assign(&mut o.sync, parse_bool(v)?)),
    Known("sink.delivery-guarantee", &[], |o, v| {
        assign(&mut o.delivery, Some(DeliveryGuarantee::parse(v)?))
    }),
    Known("sink.rolling-policy.file-size", &[], |o, v| {
        assign(&mut o.rolling.file_bytes, Some(parse_bytes(v)?))
    }),
    Known("sink.rolling-policy.rollover-interval", &[], |o, v| {
        assign(&mut o.rolling.rollover_interval, Some(parse_duration(v)?))
    }),
    Known("sink.rolling-policy.inactivity-interval", &[], |o, v| {
        assign(&mut o.rolling.inactivity_interval, Some(parse_duration(v)?))
    }),
    Known("source.monitor-interval", &[], |o, v| {
        assign(&mut o.monitor, Some(parse_duration(v)?))
    }),
    Known("sink.max-open-files", &[], |o, v| {
        assign(&mut o.max_open_files, positive(v)?)
    }),
    Known("sink.buffer-bytes", &[], |o, v| {
        assign(&mut o.buffer_bytes, positive(v)?)
    }),
];

const CSV: &[Known] = &[
    IGNORE_PARSE_ERRORS,
    DEAD_LETTER,
    Known("header", &["has-header", "ignore-first-line"], |o, v| {
        assign(&mut o.csv.has_header, Some(parse_bool(v)?))
    }),
    Known("field-delimiter", &["delimiter"], |o, v| {
        assign(&mut o.csv.delimiter, byte(v)?)
    }),
    Known("quote-character", &["quote"], |o, v| assign(&mut o.csv.quote, byte(v)?)),
    Known("escape-character", &["escape"], |o, v| {
        assign(&mut o.csv.escape, Some(byte(v)?))
    }),
    Known("null-literal", &["null-value"], |o, v| {
        o.csv.null_regex = Some(format!("^{}$", escape_regex(v)));
        assign(&mut o.csv.null_value, Some(v.to_string()))
    }),
    Known("null-regex", &[], |o, v| {
        assign(&mut o.csv.null_regex, Some(v.to_string()))
    }),
    Known("comment", &[], |o, v| assign(&mut o.csv.comment, Some(byte(v)?))),
    Known("newlines-in-values", &[], |o, v| {
        assign(&mut o.csv.newlines_in_values, Some(parse_bool(v)?))
    }),
    Known("truncated-rows", &[], |o, v| {
        assign(&mut o.csv.truncated_rows, Some(parse_bool(v)?))
    }),
    Known("date-format", &[], |o, v| {
        assign(&mut o.csv.date_format, Some(v.to_string()))
    }),
    Known("time-format", &[], |o, v| {
        assign(&mut o.csv.time_format, Some(v.to_string()))
    }),
    Known("timestamp-format", &[], |o, v| {
        assign(&mut o.csv.timestamp_format, Some(v.to_string()))
    }),
    Known("timestamp-tz-format", &[], |o, v| {
        assign(&mut o.csv.timestamp_tz_format, Some(v.to_string()))
    }),
    Known("schema-infer-max-rec", &[], |o, v| {
        assign(&mut o.csv.schema_infer_max_rec, Some(positive(v)?))
    }),
    Known("compression", &[], |o, v| {
        assign(&mut o.csv.compression, compression(v)?)
    }),
    Known("compression-level", &[], |o, v| {
        assign(&mut o.csv.compression_level, Some(number(v)?))
    }),
];

const IGNORE_PARSE_ERRORS: Known = Known("ignore-parse-errors", &[], |o, v| {
    assign(&mut o.ignore_parse_errors, parse_bool(v)?)
});

const DEAD_LETTER: Known = Known("dead-letter.path", &[], |o, v| {
    assign(&mut o.dead_letter, Some(PathBuf::from(v)))
});

const JSON_COMPRESSION: Known = Known("compression", &[], |o, v| {
    assign(&mut o.json.compression, compression(v)?)
});

const JSON_COMPRESSION_LEVEL: Known = Known("compression-level", &[], |o, v| {
    assign(&mut o.json.compression_level, Some(number(v)?))
});

const DEBEZIUM: &[Known] = &[
    IGNORE_PARSE_ERRORS,
    DEAD_LETTER,
    Known("schema-include", &[], |o, v| {
        assign(&mut o.schema_include, parse_bool(v)?)
    }),
    JSON_COMPRESSION,
    JSON_COMPRESSION_LEVEL,
];

const CANAL: &[Known] = &[
    IGNORE_PARSE_ERRORS,
    DEAD_LETTER,
    JSON_COMPRESSION,
    JSON_COMPRESSION_LEVEL,
];

const JSON: &[Known] = &[
    IGNORE_PARSE_ERRORS,
    DEAD_LETTER,
    Known("encode.ignore-null-fields", &[], |o, v| {
        assign(&mut o.json_ignore_null_fields, parse_bool(v)?)
    }),
    Known("newline-delimited", &[], |o, v| {
        assign(&mut o.json.newline_delimited, parse_bool(v)?)
    }),
    Known("schema-infer-max-rec", &[], |o, v| {
        assign(&mut o.json.schema_infer_max_rec, Some(positive(v)?))
    }),
    JSON_COMPRESSION,
    JSON_COMPRESSION_LEVEL,
];

const PARQUET: &[Known] = &[
    Known("compression", &[], |o, v| {
        assign(&mut o.parquet.compression, Some(parquet_compression(v)?))
    }),
    Known("row-group-size", &["max-row-group-size"], |o, v| {
        assign(&mut o.parquet.max_row_group_size, positive(v)?)
    }),
    Known("page-size", &["data-pagesize-limit"], |o, v| {
        assign(&mut o.parquet.data_pagesize_limit, positive(v)?)
    }),
    Known("dictionary-enabled", &["enable-dictionary"], |o, v| {
        assign(&mut o.parquet.dictionary_enabled, Some(parse_bool(v)?))
    }),
    Known("bloom-filter-enabled", &["bloom-filter-on-write"], |o, v| {
        assign(&mut o.parquet.bloom_filter_on_write, parse_bool(v)?)
    }),
    Known("statistics", &["statistics-enabled"], |o, v| {
        match v.to_lowercase().as_str() {
            level @ ("none" | "chunk" | "page") => assign(&mut o.parquet.statistics_enabled, Some(level.to_string())),
            _ => Err("must be none, chunk or page".into()),
        }
    }),
];

const ARROW: &[Known] = &[Known("compression", &[], |o, v| {
    let codec = match v.to_lowercase().as_str() {
        "lz4" => Some(IpcCompression::LZ4_FRAME),
        "zstd" => Some(IpcCompression::ZSTD),
        "none" | "uncompressed" => None,
        _ => return Err("must be lz4, zstd or none".into()),
    };
    assign(&mut o.arrow, codec)
})];

const AVRO: &[Known] = &[Known("codec", &["compression"], |o, v| {
    let codec = match v.to_lowercase().as_str() {
        "deflate" => Some(CompressionCodec::Deflate),
        "snappy" => Some(CompressionCodec::Snappy),
        "zstd" | "zstandard" => Some(CompressionCodec::ZStandard),
        "none" | "null" | "uncompressed" => None,
        _ => return Err("must be deflate, snappy, zstd or none".into()),
    };
    assign(&mut o.avro, codec)
})];

const FIXED: &[Known] = &[Known("lengths", &[], |o, v| {
    let lengths = v.split(',').map(positive).collect::<std::result::Result<_, _>>()?;
    assign(&mut o.fixed_lengths, lengths)
})];

impl FileOptions {
    /// The options of files of `format` at `path` when nothing more is said.
    pub fn new(path: &str, format: Format) -> Self {
        let by_name = Format::of_path(path).map_or(CompressionTypeVariant::UNCOMPRESSED, |(_, named)| named);
        Self {
            path: path.to_string(),
            format,
            csv: CsvOptions {
                compression: by_name,
                ..CsvOptions::default()
            },
            json: JsonOptions {
                compression: by_name,
                ..JsonOptions::default()
            },
            json_ignore_null_fields: false,
            ignore_parse_errors: false,
            dead_letter: None,
            schema_include: false,
            parquet: ParquetOptions {
                created_by: "thalweg".into(),
                ..ParquetOptions::default()
            },
            arrow: Some(IpcCompression::LZ4_FRAME),
            avro: Some(CompressionCodec::Snappy),
            fixed_lengths: Vec::new(),
            partition_by: Vec::new(),
            keep_partition_columns: false,
            single_file: None,
            replace: false,
            sync: true,
            rolling: RollingOptions::default(),
            delivery: None,
            monitor: None,
            max_open_files: 64,
            buffer_bytes: 64 << 20,
        }
    }

    /// Reads `WITH (..)` or `OPTIONS (..)`.
    ///
    /// # Errors
    /// When the path is missing, the format cannot be told, or an option is unknown or wrong.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self> {
        let given: Vec<(String, &String)> = options
            .iter()
            .map(|(key, value)| (key.trim().to_lowercase().replace('_', "-"), value))
            .filter(|(key, _)| key != "connector")
            .collect();
        let find = |name: &str| {
            given
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let path = find("path").filter(|path| !path.trim().is_empty()).ok_or_else(|| {
            EngineError::Plan("connector 'filesystem' needs the option 'path': a file, a folder or a URL".into())
        })?;
        let format = match find("format") {
            Some(name) => Format::parse(name)?,
            None => Format::of_path(path).map(|(format, _)| format).ok_or_else(|| {
                EngineError::Plan(format!(
                    "'{path}' does not tell its format; add 'format' = 'parquet', 'csv', 'json', 'arrow', 'avro' or 'fixed'"
                ))
            })?,
        };
        let mut parsed = Self::new(path, format);
        for (key, value) in given {
            parsed.set(&key, value)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let own = self.own_options();
        let prefix = format!("{}.", self.format.name());
        let short = key
            .strip_prefix("format.")
            .or_else(|| key.strip_prefix(&prefix))
            .unwrap_or(key);
        let known = COMMON
            .iter()
            .find(|known| known.is(key) || known.is(short))
            .or_else(|| own.iter().find(|known| known.is(short)))
            .ok_or_else(|| self.unknown(key))?;
        (known.2)(self, value).map_err(|why| EngineError::Plan(format!("option '{key}' = '{value}': {why}")))
    }

    fn own_options(&self) -> &'static [Known] {
        match self.format {
            Format::Csv => CSV,
            Format::Json => JSON,
            Format::Parquet => PARQUET,
            Format::Arrow => ARROW,
            Format::Avro => AVRO,
            Format::Fixed => FIXED,
            Format::DebeziumJson => DEBEZIUM,
            Format::CanalJson => CANAL,
        }
    }

    fn unknown(&self, key: &str) -> EngineError {
        let format = self.format.name();
        let own = self.own_options().iter().map(|known| format!("{format}.{}", known.0));
        let valid: Vec<String> = COMMON.iter().map(|known| known.0.to_string()).chain(own).collect();
        EngineError::Plan(format!(
            "connector 'filesystem' with format '{format}' has no option '{key}'; its options are: {}",
            valid.join(", ")
        ))
    }

    /// The compression of the files as a whole.
    pub fn text_compression(&self) -> CompressionTypeVariant {
        match self.format {
            Format::Csv => self.csv.compression,
            Format::Json | Format::DebeziumJson | Format::CanalJson => self.json.compression,
            _ => CompressionTypeVariant::UNCOMPRESSED,
        }
    }

    /// The level of that compression.
    pub fn text_compression_level(&self) -> Option<u32> {
        match self.format {
            Format::Csv => self.csv.compression_level,
            Format::Json | Format::DebeziumJson | Format::CanalJson => self.json.compression_level,
            _ => None,
        }
    }

    /// The extension of the files that are written, e.g. `csv.gz`.
    pub fn extension(&self) -> String {
        self.format.extension(self.text_compression())
    }
}

impl Known {
    fn is(&self, key: &str) -> bool {
        self.0 == key || self.1.contains(&key)
    }
}

fn assign<T>(slot: &mut T, value: T) -> std::result::Result<(), String> {
    *slot = value;
    Ok(())
}

/// Column names: a JSON array (how a [`SinkSpec`](thalweg_engine::plan::SinkSpec) carries them) or comma separated.
fn names(value: &str) -> std::result::Result<Vec<String>, String> {
    if value.trim_start().starts_with('[') {
        return serde_json::from_str(value).map_err(|e| e.to_string());
    }
    Ok(value
        .split(',')
        .map(|name| name.trim().to_string())
        .filter(|name| !name.is_empty())
        .collect())
}

fn number(value: &str) -> std::result::Result<u32, String> {
    value.trim().parse().map_err(|e| format!("must be a number: {e}"))
}

fn positive(value: &str) -> std::result::Result<usize, String> {
    match value.trim().parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(e) => Err(format!("must be a number: {e}")),
    }
}

fn byte(value: &str) -> std::result::Result<u8, String> {
    match value {
        "\\t" => Ok(b'\t'),
        "\\0" => Ok(0),
        _ => match value.as_bytes() {
            [byte] if byte.is_ascii() => Ok(*byte),
            _ => Err("must be one ASCII character".into()),
        },
    }
}

fn compression(value: &str) -> std::result::Result<CompressionTypeVariant, String> {
    match value.trim().to_lowercase().as_str() {
        "none" | "uncompressed" => Ok(CompressionTypeVariant::UNCOMPRESSED),
        other => {
            CompressionTypeVariant::from_str(other).map_err(|_| "must be gzip, zstd, bzip2, xz or none".to_string())
        }
    }
}

fn parquet_compression(value: &str) -> std::result::Result<String, String> {
    let lower = value.trim().to_lowercase();
    let (codec, level) = match lower.split_once('(') {
        Some((codec, rest)) => (codec, Some(rest.trim_end_matches(')'))),
        None => (lower.as_str(), None),
    };
    // The levels of the codecs that want one, where DataFusion would ask the user for it.
    match (codec, level) {
        ("none" | "uncompressed", None) => Ok("uncompressed".into()),
        ("snappy" | "lz4_raw" | "lz4", None) => Ok(codec.into()),
        ("zstd", level) => number(level.unwrap_or("3")).map(|level| format!("zstd({level})")),
        ("gzip", level) => number(level.unwrap_or("6")).map(|level| format!("gzip({level})")),
        _ => Err("must be zstd, zstd(LEVEL), snappy, gzip, lz4, lz4_raw or uncompressed".into()),
    }
}

fn escape_regex(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<FileOptions> {
        FileOptions::parse(
            &options
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        )
    }

    #[test]
    fn flinks_and_datafusions_names_mean_the_same() {
        let flink = parse(&[
            ("path", "x"),
            ("format", "csv"),
            ("csv.field-delimiter", "\\t"),
            ("csv.header", "false"),
        ]);
        let datafusion = parse(&[
            ("path", "x.csv"),
            ("format.delimiter", "\t"),
            ("format.has_header", "false"),
        ]);
        for options in [flink.unwrap(), datafusion.unwrap()] {
            assert_eq!((options.csv.delimiter, options.csv.has_header), (b'\t', Some(false)));
        }
    }

    #[test]
    fn an_unknown_option_is_named_with_the_valid_ones() {
        let message = parse(&[("path", "x.parquet"), ("csv.header", "true")])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no option 'csv.header'") && message.contains("parquet.row-group-size"),
            "{message}"
        );
        let message = parse(&[("path", "x.csv"), ("csv.quote", "ab")])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("'csv.quote' = 'ab': must be one ASCII character"),
            "{message}"
        );
        let message = parse(&[("path", "x.json"), ("compression", "rar")])
            .unwrap_err()
            .to_string();
        assert!(message.contains("gzip, zstd"), "{message}");
    }

    #[test]
    fn a_path_without_format_says_what_to_add() {
        assert!(
            parse(&[("path", "data/")])
                .unwrap_err()
                .to_string()
                .contains("add 'format'")
        );
        assert!(parse(&[]).unwrap_err().to_string().contains("'path'"));
    }

    #[test]
    fn a_null_literal_is_taken_literally() {
        let options = parse(&[("path", "x.csv"), ("csv.null-literal", "\\N")]).unwrap();
        assert_eq!(options.csv.null_regex.as_deref(), Some(r"^\\N$"));
    }
}
