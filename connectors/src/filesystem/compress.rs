//! Compression of text files on their way to the staged file.

use std::io::{self, Write};

use bzip2::write::BzEncoder;
use datafusion::common::parsers::CompressionTypeVariant;
use flate2::write::GzEncoder;
use liblzma::write::XzEncoder;

use crate::filesystem::storage::StagedFile;

/// A staged file behind its compression.
pub(super) enum Compressed {
    Plain(Box<dyn StagedFile>),
    Gzip(GzEncoder<Box<dyn StagedFile>>),
    Bzip2(BzEncoder<Box<dyn StagedFile>>),
    Xz(XzEncoder<Box<dyn StagedFile>>),
    Zstd(zstd::Encoder<'static, Box<dyn StagedFile>>),
}

impl Compressed {
    pub(super) fn new(
        file: Box<dyn StagedFile>,
        compression: CompressionTypeVariant,
        level: Option<u32>,
    ) -> io::Result<Self> {
        Ok(match compression {
            CompressionTypeVariant::UNCOMPRESSED => Compressed::Plain(file),
            CompressionTypeVariant::GZIP => Compressed::Gzip(GzEncoder::new(
                file,
                flate2::Compression::new(level.unwrap_or(6).min(9)),
            )),
            CompressionTypeVariant::BZIP2 => Compressed::Bzip2(BzEncoder::new(
                file,
                bzip2::Compression::new(level.unwrap_or(6).clamp(1, 9)),
            )),
            CompressionTypeVariant::XZ => Compressed::Xz(XzEncoder::new(file, level.unwrap_or(6).min(9))),
            CompressionTypeVariant::ZSTD => {
                Compressed::Zstd(zstd::Encoder::new(file, level.unwrap_or(3).clamp(1, 22) as i32)?)
            }
        })
    }

    /// Ends the compressed stream and gives the file back.
    pub(super) fn finish(self) -> io::Result<Box<dyn StagedFile>> {
        match self {
            Compressed::Plain(file) => Ok(file),
            Compressed::Gzip(encoder) => encoder.finish(),
            Compressed::Bzip2(encoder) => encoder.finish(),
            Compressed::Xz(encoder) => encoder.finish(),
            Compressed::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Compressed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressed::Plain(file) => file.write(bytes),
            Compressed::Gzip(encoder) => encoder.write(bytes),
            Compressed::Bzip2(encoder) => encoder.write(bytes),
            Compressed::Xz(encoder) => encoder.write(bytes),
            Compressed::Zstd(encoder) => encoder.write(bytes),
        }
    }

    /// Does nothing for compressed files: arrow's CSV writer flushes after every batch, and an encoder that is
    /// flushed ends its block, which costs compression. What counts is `finish`.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressed::Plain(file) => file.flush(),
            _ => Ok(()),
        }
    }
}
