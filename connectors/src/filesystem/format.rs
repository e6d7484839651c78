//! The file formats, the compressions of text, and how a file's name tells them.

use datafusion::common::parsers::CompressionTypeVariant;
use thalweg_engine::{EngineError, Result};

use crate::formats::StreamFormat;

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Delimited text.
    Csv,
    /// One JSON object a line.
    Json,
    /// The Arrow IPC file format.
    Arrow,
    /// Avro object container files.
    Avro,
    /// Records of one length, without anything between them.
    Fixed,
    /// A changelog as Debezium tells it, one JSON object a line.
    DebeziumJson,
    /// A changelog as Canal tells it, one JSON object a line.
    CanalJson,
}

/// File extensions, the first of each format is the one it writes.
const EXTENSIONS: &[(Format, &[&str])] = &[
    (Format::Parquet, &["parquet", "parq", "pq"]),
    (Format::Csv, &["csv", "tsv", "tbl", "txt"]),
    (Format::Json, &["json", "ndjson", "jsonl"]),
    (Format::Arrow, &["arrow", "ipc", "feather"]),
    (Format::Avro, &["avro"]),
    (Format::Fixed, &["fixed", "bin"]),
    (Format::DebeziumJson, &["debezium-json"]),
    (Format::CanalJson, &["canal-json"]),
];

const COMPRESSIONS: &[(CompressionTypeVariant, &str)] = &[
    (CompressionTypeVariant::GZIP, "gz"),
    (CompressionTypeVariant::ZSTD, "zst"),
    (CompressionTypeVariant::BZIP2, "bz2"),
    (CompressionTypeVariant::XZ, "xz"),
];

impl Format {
    /// The format called `name`.
    ///
    /// # Errors
    /// When there is none; lists those that there are.
    pub fn parse(name: &str) -> Result<Self> {
        let lower = name.trim().trim_start_matches('.').to_lowercase();
        EXTENSIONS
            .iter()
            .find(|(_, names)| names.contains(&lower.as_str()))
            .map(|(format, _)| *format)
            .ok_or_else(|| {
                EngineError::Plan(format!(
                    "there is no file format '{name}'; the formats are: parquet, csv, json, arrow, avro, fixed, \
                     debezium-json, canal-json"
                ))
            })
    }

    /// The format and compression that the file name at the end of `path` tells.
    pub fn of_path(path: &str) -> Option<(Self, CompressionTypeVariant)> {
        let name = path.rsplit('/').next()?.to_lowercase();
        let (stem, last) = name.rsplit_once('.')?;
        match COMPRESSIONS.iter().find(|(_, extension)| *extension == last) {
            Some((compression, _)) => {
                let (_, inner) = stem.rsplit_once('.')?;
                let format = Self::parse(inner).ok().filter(Format::is_text)?;
                Some((format, *compression))
            }
            None => Self::parse(last)
                .ok()
                .map(|format| (format, CompressionTypeVariant::UNCOMPRESSED)),
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Arrow => "arrow",
            Format::Avro => "avro",
            Format::Fixed => "fixed",
            Format::DebeziumJson => "debezium-json",
            Format::CanalJson => "canal-json",
        }
    }

    /// The format of its records, if it has such that can be read one by one.
    pub fn records(self) -> Option<StreamFormat> {
        match self {
            Format::Csv => Some(StreamFormat::Csv),
            Format::Json => Some(StreamFormat::Json),
            Format::DebeziumJson => Some(StreamFormat::DebeziumJson),
            Format::CanalJson => Some(StreamFormat::CanalJson),
            Format::Parquet | Format::Arrow | Format::Avro | Format::Fixed => None,
        }
    }

    /// Whether files are text, which may be compressed as a whole.
    pub fn is_text(&self) -> bool {
        self.records().is_some()
    }

    /// The extension of the files it writes under `compression`, e.g. `csv.gz`.
    pub fn extension(self, compression: CompressionTypeVariant) -> String {
        let name = match self {
            Format::DebeziumJson | Format::CanalJson => Format::Json.name(),
            other => other.name(),
        };
        match COMPRESSIONS.iter().find(|(known, _)| *known == compression) {
            Some((_, extension)) if self.is_text() => format!("{name}.{extension}"),
            _ => name.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_format_and_compression() {
        use CompressionTypeVariant::{GZIP, UNCOMPRESSED, XZ};
        assert_eq!(Format::of_path("/a/b.csv"), Some((Format::Csv, UNCOMPRESSED)));
        assert_eq!(Format::of_path("s3://x/b.JSON.gz"), Some((Format::Json, GZIP)));
        assert_eq!(Format::of_path("b.tbl.xz"), Some((Format::Csv, XZ)));
        assert_eq!(Format::of_path("a.csv/b"), None);
        assert_eq!(Format::of_path("b.parquet.gz"), None, "Parquet compresses inside");
        assert_eq!(Format::Csv.extension(GZIP), "csv.gz");
    }
}
