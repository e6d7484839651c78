//! Writing and reading one spill file.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use arrow::ipc::{Block as IpcBlock, MessageHeader, MetadataVersion, root_as_message};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::directory::Locked;
use super::{SpillCompression, arrow_error, damaged, spill_error};
use crate::Result;

/// Magic, rows, length and checksum, padded so that what follows stays aligned.
const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"TWSPILL1";
/// Every body starts at a multiple of this.
const ALIGNMENT: usize = 64;
/// The marker and the length before each IPC message.
const PREFIX_BYTES: usize = 8;

/// Where a block lies.
#[derive(Clone, Copy, Debug)]
struct Block {
    offset: u64,
    /// With its header.
    bytes: u64,
    rows: u32,
}

#[derive(Debug)]
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // The directory is removed as a whole in the end; a file that is already gone is no loss.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes one spill file: each batch becomes a block, written at once, so nothing is buffered here.
pub struct SpillWriter {
    file: File,
    path: Arc<RemoveOnDrop>,
    directory: Arc<Locked>,
    schema: SchemaRef,
    options: IpcWriteOptions,
    /// Serves all blocks where a block cannot refer to an earlier one.
    encoder: Option<StreamEncoder>,
    blocks: Vec<Block>,
    rows: u64,
    bytes: u64,
}

impl SpillWriter {
    pub(super) fn create(
        path: PathBuf,
        directory: Arc<Locked>,
        schema: SchemaRef,
        compression: SpillCompression,
    ) -> Result<Self> {
        let file = File::create_new(&path).map_err(|e| spill_error(&path, e))?;
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)
            .and_then(|options| options.try_with_compression(compression.to_ipc()))
            .map_err(|e| arrow_error(&path, e))?;
        Ok(Self {
            file,
            path: Arc::new(RemoveOnDrop(path)),
            directory,
            schema,
            options,
            encoder: None,
            blocks: Vec::new(),
            rows: 0,
            bytes: 0,
        })
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Appends a batch as one block. Views keep whole buffers alive: a caller that writes few rows of large buffers
    /// copies them out before.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let path = &self.path.0;
        let mut encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => StreamEncoder::try_new_with_options(&self.schema, self.options.clone())
                .map_err(|e| arrow_error(path, e))?,
        };
        let buffers = encoder.encode(batch).map_err(|e| arrow_error(path, e))?;
        if !self
            .schema
            .fields()
            .iter()
            .any(|field| has_dictionary(field.data_type()))
        {
            self.encoder = Some(encoder);
        }
        let rows = batch.num_rows() as u64;
        let length: usize = buffers.iter().map(Buffer::len).sum();
        let mut checksum = Xxh3::new();
        checksum.update(&rows.to_le_bytes());
        for buffer in &buffers {
            checksum.update(buffer);
        }
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&rows.to_le_bytes());
        header[16..24].copy_from_slice(&(length as u64).to_le_bytes());
        header[24..32].copy_from_slice(&checksum.digest().to_le_bytes());
        let padding = [0; ALIGNMENT];
        let padding = &padding[..length.next_multiple_of(ALIGNMENT) - length];
        let mut slices = Vec::with_capacity(buffers.len() + 2);
        slices.push(IoSlice::new(&header));
        slices.extend(buffers.iter().filter(|b| !b.is_empty()).map(|b| IoSlice::new(b)));
        slices.push(IoSlice::new(padding));
        write_all(&mut self.file, &mut slices).map_err(|e| spill_error(&self.path.0, e))?;
        let bytes = (HEADER_BYTES + length + padding.len()) as u64;
        self.blocks.push(Block {
            offset: self.bytes,
            bytes,
            rows: rows as u32,
        });
        self.rows += rows;
        self.bytes += bytes;
        Ok(())
    }

    /// Ends the file; it can now be read any number of times.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(self) -> Result<SpillFile> {
        Ok(SpillFile {
            path: self.path,
            _directory: self.directory,
            schema: self.schema,
            blocks: self.blocks.into(),
            rows: self.rows,
            bytes: self.bytes,
        })
    }
}

/// `write_all` of several slices.
fn write_all(file: &mut File, mut slices: &mut [IoSlice]) -> std::io::Result<()> {
    // An empty slice at the front would look like a disk that takes nothing.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn has_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, _) => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _)
        | DataType::RunEndEncoded(_, field) => has_dictionary(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_dictionary(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_dictionary(field.data_type())),
        _ => false,
    }
}

/// A finished spill file; removed when the last clone, and the last reader, is dropped.
#[derive(Clone, Debug)]
pub struct SpillFile {
    path: Arc<RemoveOnDrop>,
    _directory: Arc<Locked>,
    schema: SchemaRef,
    blocks: Arc<[Block]>,
    rows: u64,
    bytes: u64,
}

impl SpillFile {
    /// Rows in the file.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The schema of its batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many batches were written.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of the largest block: what a reader needs at once.
    pub fn largest_block_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes).max().unwrap_or(0)
    }

    /// Where the file is.
    pub fn path(&self) -> &std::path::Path {
        &self.path.0
    }

    /// Reads the file from the beginning.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self) -> Result<SpillReader> {
        self.open_at(0)
    }

    /// Reads the file from block `block` on.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_at(&self, block: usize) -> Result<SpillReader> {
        let file = File::open(&self.path.0).map_err(|e| spill_error(&self.path.0, e))?;
        Ok(SpillReader {
            file,
            spilled: self.clone(),
            next: block,
        })
    }
}

/// Reads one spill file block by block; a file that is cut short or altered is an error, never other rows.
pub struct SpillReader {
    file: File,
    spilled: SpillFile,
    next: usize,
}

impl SpillReader {
    /// Bytes of the block that comes next; 0 at the end.
    pub fn next_block_bytes(&self) -> usize {
        self.spilled
            .blocks
            .get(self.next)
            .map_or(0, |block| block.bytes as usize)
    }

    fn read(&mut self, block: Block) -> Result<RecordBatch> {
        let path = &self.spilled.path.0;
        self.file
            .seek(SeekFrom::Start(block.offset))
            .map_err(|e| spill_error(path, e))?;
        let mut bytes = Vec::with_capacity(block.bytes as usize);
        (&self.file)
            .take(block.bytes)
            .read_to_end(&mut bytes)
            .map_err(|e| spill_error(path, e))?;
        if bytes.len() as u64 != block.bytes {
            return Err(damaged(
                path,
                format!("it ends at byte {}, inside a block", block.offset + bytes.len() as u64),
            ));
        }
        let number = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (rows, length, checksum) = (number(8), number(16), number(24));
        let end = HEADER_BYTES as u64 + length;
        let header_fits = bytes.starts_with(MAGIC) && rows == u64::from(block.rows) && end <= block.bytes;
        if !header_fits || digest(rows, &bytes[HEADER_BYTES..end as usize]) != checksum {
            return Err(damaged(
                path,
                format!("the checksum of the block at byte {} does not match", block.offset),
            ));
        }
        let buffer = Buffer::from_vec(bytes).slice_with_length(HEADER_BYTES, length as usize);
        decode(&self.spilled.schema, buffer)
            .and_then(|batch| batch.ok_or_else(|| damaged_text("a block holds no batch")))
            .map_err(|e| damaged(path, e))
    }
}

fn digest(rows: u64, body: &[u8]) -> u64 {
    if body.is_empty() {
        return xxh3_64(&rows.to_le_bytes());
    }
    let mut checksum = Xxh3::new();
    checksum.update(&rows.to_le_bytes());
    checksum.update(body);
    checksum.digest()
}

fn damaged_text(text: &str) -> arrow::error::ArrowError {
    arrow::error::ArrowError::IpcError(text.into())
}

/// Decodes the messages of one block; the arrays are slices of `buffer`.
fn decode(schema: &SchemaRef, buffer: Buffer) -> arrow::error::Result<Option<RecordBatch>> {
    let decoder = FileDecoder::new(Arc::clone(schema), MetadataVersion::V5);
    // SAFETY: the bytes were written by this process and their checksum has been verified.
    let mut decoder = unsafe { decoder.with_skip_validation(true) };
    let mut rest = buffer;
    while rest.len() > PREFIX_BYTES {
        let mut length = [0; 4];
        length.copy_from_slice(&rest[4..PREFIX_BYTES]);
        let head = PREFIX_BYTES + u32::from_le_bytes(length) as usize;
        if head > rest.len() {
            return Err(damaged_text("a message is longer than its block"));
        }
        let message = root_as_message(&rest[PREFIX_BYTES..head]).map_err(|e| damaged_text(&e.to_string()))?;
        let (kind, body) = (message.header_type(), message.bodyLength() as usize);
        let block = IpcBlock::new(0, head as i32, body as i64);
        match kind {
            MessageHeader::RecordBatch => return decoder.read_record_batch(&block, &rest),
            MessageHeader::DictionaryBatch => decoder.read_dictionary(&block, &rest)?,
            _ => {}
        }
        if head + body > rest.len() {
            return Err(damaged_text("a message is longer than its block"));
        }
        rest = rest.slice(head + body);
    }
    Ok(None)
}

impl Iterator for SpillReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = *self.spilled.blocks.get(self.next)?;
        self.next += 1;
        let batch = self.read(block);
        if batch.is_err() {
            // One error, not one for each block that follows.
            self.next = self.spilled.blocks.len();
        }
        Some(batch)
    }
}
