//! The form of a file: a header, then frames. A frame is a header and a payload, which is an Arrow IPC stream of one batch; it
//! can be read without any other.
//!
//! ```text
//! file    magic (8) | version u32 | zeros to 64 | frame ..
//! frame   length u32 | xxh3-64 of the payload (8) | check of these two and the place u32 | zeros to 64
//!         payload, zeros to a multiple of 64
//! ```
//!
//! Numbers are little-endian. Everything starts at a multiple of 64 bytes, so that columns can be used where they were read to. A
//! header says whether it is damaged before anything is read or allocated for its payload, the payload before it is decoded.
//! The checks are seeded with the frame's place in the file: a frame is sound only where it was written.

use std::sync::Arc;

use arrow::array::RecordBatchOptions;
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::convert::try_schema_from_ipc_buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use arrow::ipc::{CompressionType, MetadataVersion};
use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::data::{Batch, EngineError, Result};

/// Every header's length, and what everything is aligned to.
pub(super) const ALIGNMENT: usize = 64;
const MAGIC: &[u8; 8] = b"TWSTATE\n";
/// The version of the form that this build writes, and the newest that it reads.
const VERSION: u32 = 1;

/// How frames are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: as fast as memory.
    #[default]
    None,
    /// LZ4: little and fast.
    Lz4,
    /// Zstandard: more and slower.
    Zstd,
}

impl Compression {
    fn to_ipc(self) -> Option<CompressionType> {
        match self {
            Compression::None => None,
            Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
            Compression::Zstd => Some(CompressionType::ZSTD),
        }
    }
}

/// What every file begins with.
pub(super) fn file_header() -> [u8; ALIGNMENT] {
    let mut header = [0; ALIGNMENT];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header
}

/// What is wrong with the header of a file.
pub(super) fn check_file_header(header: &[u8]) -> std::result::Result<(), String> {
    if !header.starts_with(MAGIC) || header.len() != ALIGNMENT {
        return Err("it does not begin as a file of state does".into());
    }
    match u32_at(header, 8) {
        VERSION => Ok(()),
        version => Err(format!(
            "it is of version {version} of the form, this program reads {VERSION}"
        )),
    }
}

/// The bytes of a frame that stands at `place` of its file: in order, not copied where they are columns.
pub(super) fn encode(batch: &Batch, compression: Compression, place: u64) -> Result<Vec<Bytes>> {
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
    let options = options.try_with_compression(compression.to_ipc())?;
    // Each frame has an encoder of its own, so that it carries its schema and dictionaries.
    let mut encoder = StreamEncoder::try_new_with_options(batch.schema_ref(), options)?;
    let mut buffers = encoder.encode(batch)?;
    buffers.extend(encoder.finish()?);
    buffers.retain(|buffer| !buffer.is_empty());
    let length: usize = buffers.iter().map(Buffer::len).sum();
    let Ok(length) = u32::try_from(length) else {
        return Err(EngineError::Plan(format!(
            "rows of state are too large: {length} bytes cannot be written as one frame, which holds up to 4 GB; \
             keep smaller values in state"
        )));
    };
    let mut checksum = Xxh3::with_seed(place);
    buffers.iter().for_each(|buffer| checksum.update(buffer));
    let header = Header {
        length,
        checksum: checksum.digest(),
    };
    let padding = (length as usize).next_multiple_of(ALIGNMENT) - length as usize;
    let mut bytes = Vec::with_capacity(buffers.len() + 2);
    bytes.push(Bytes::copy_from_slice(&header.to_bytes(place)));
    bytes.extend(buffers.into_iter().map(shared));
    bytes.push(Bytes::from_static(&[0; ALIGNMENT]).slice(..padding));
    Ok(bytes)
}

/// Bytes that are a buffer's.
pub(super) fn shared(buffer: Buffer) -> Bytes {
    struct Shared(Buffer);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Shared(buffer))
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the payload without padding.
    pub(super) length: u32,
    checksum: u64,
}

impl Header {
    fn to_bytes(self, place: u64) -> [u8; ALIGNMENT] {
        let mut bytes = [0; ALIGNMENT];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.checksum.to_le_bytes());
        let check = xxh3_64_with_seed(&bytes[..12], place) as u32;
        bytes[12..16].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads a header that stands at `place` of its file; `None` when it is damaged.
    pub(super) fn parse(bytes: &[u8], place: u64) -> Option<Self> {
        if bytes.len() != ALIGNMENT {
            return None;
        }
        let mut checksum = [0; 8];
        checksum.copy_from_slice(&bytes[4..12]);
        let header = Self {
            length: u32_at(bytes, 0),
            checksum: u64::from_le_bytes(checksum),
        };
        (header.to_bytes(place) == bytes).then_some(header)
    }

    /// Bytes of the payload with padding.
    pub(super) fn padded(&self) -> u64 {
        u64::from(self.length).next_multiple_of(ALIGNMENT as u64)
    }

    /// Whether `payload` (without padding) of the frame at `place` is what was written.
    pub(super) fn is_of(&self, payload: &[u8], place: u64) -> bool {
        payload.len() == self.length as usize && xxh3_64_with_seed(payload, place) == self.checksum
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// The batch of a payload; its columns are parts of `payload`.
pub(super) fn decode(mut payload: Buffer) -> std::result::Result<Batch, String> {
    // Arrow validates what it decodes. A checksum says that the bytes are as written, not by whom.
    let mut decoder = StreamDecoder::new();
    let batch = match decoder.decode(&mut payload) {
        Ok(Some(batch)) => batch,
        Ok(None) => return Err("a frame holds no batch".into()),
        Err(error) => return Err(error.to_string()),
    };
    match decoder.decode(&mut payload) {
        Ok(None) if payload.is_empty() => Ok(batch),
        Ok(_) => Err("a frame holds more than a batch".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// A batch as one of `schema`, whose fields may differ in nullability and metadata; the error says what does not fit.
pub(super) fn with_schema(batch: &Batch, schema: &SchemaRef) -> std::result::Result<Batch, String> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Batch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options).map_err(|e| e.to_string())
}

/// A schema as an IPC message in hexadecimal digits.
pub(super) fn schema_to_hex(schema: &Schema) -> Result<String> {
    let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?;
    let message = StreamEncoder::try_new_with_options(schema, options)?.finish()?;
    // The encoder's first buffers are the schema; what ends the stream does no harm.
    let mut hex = String::new();
    for byte in message.iter().flat_map(|buffer| buffer.iter()) {
        hex.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        hex.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    Ok(hex)
}

/// The inverse of [`schema_to_hex`]; the error says what is wrong.
pub(super) fn schema_from_hex(hex: &str) -> std::result::Result<SchemaRef, String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect();
    let bytes = bytes.ok_or("a schema is not written in hexadecimal digits")?;
    let schema = try_schema_from_ipc_buffer(&bytes).map_err(|e| format!("a schema cannot be read: {e}"))?;
    Ok(Arc::new(schema))
}
