//! Frames of a file on their way from the store: read ahead, checked, with bounded memory.

use std::ops::Range;
use std::sync::Arc;

use arrow::buffer::Buffer;
use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::frame::{ALIGNMENT, Header};
use super::upload::store_error;
use crate::data::{EngineError, Result};

/// Bytes of one request. A multiple of the alignment, so that frames stay aligned.
const CHUNK_BYTES: u64 = 4 << 20;
/// Requests on their way at once.
const REQUESTS_MAX: usize = 2;

/// Where a file is.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) io: Handle,
    pub(super) location: Path,
    /// What to call the file in errors.
    pub(super) shown: String,
}

impl Source {
    /// The error that says what is wrong with the file.
    pub(super) fn damaged(&self, what: &str) -> EngineError {
        damaged(&self.shown, what)
    }
}

/// The error that says what is wrong with the file shown as `shown`.
pub(super) fn damaged(shown: &str, what: &str) -> EngineError {
    EngineError::BadInput(format!(
        "checkpoint file {shown} is damaged: {what}; restore an older checkpoint or a savepoint"
    ))
}

/// Whether an error means that a checkpoint is damaged for good, rather than that the store failed this time.
pub(super) fn is_damage(error: &EngineError) -> bool {
    matches!(error, EngineError::BadInput(_))
}

/// Why a range could not be read.
enum ReadError {
    Missing,
    /// The file has so many bytes, which is not enough.
    Short(u64),
    Store(object_store::Error),
}

impl ReadError {
    /// Stores have different errors for a range past the end, so a file that could not be read is looked at again.
    async fn of(error: object_store::Error, source: &Source, wanted: &Range<u64>) -> Self {
        match source.store.head(&source.location).await {
            Err(object_store::Error::NotFound { .. }) => ReadError::Missing,
            Ok(file) if file.size < wanted.end => ReadError::Short(file.size),
            _ => ReadError::Store(error),
        }
    }

    /// What is not there, or shorter than it was, is damage; the rest is an error of the store.
    fn into_error(self, source: &Source, end: u64) -> EngineError {
        match self {
            ReadError::Missing => source.damaged("it is missing"),
            ReadError::Short(size) => source.damaged(&format!("it ends at byte {size}, before byte {end}")),
            ReadError::Store(error) => store_error(&source.shown, error),
        }
    }
}

/// A range of a file, chunk by chunk. The requests begin with the first call.
struct Chunks {
    source: Source,
    range: Range<u64>,
    receiver: Option<mpsc::Receiver<std::result::Result<Bytes, ReadError>>>,
}

impl Chunks {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let receiver = match &mut self.receiver {
            Some(receiver) => receiver,
            none => none.insert(request(&self.source, self.range.clone())),
        };
        let wanted = CHUNK_BYTES.min(self.range.end - self.range.start);
        let Some(chunk) = receiver.blocking_recv() else {
            return Err(EngineError::Io {
                path: self.source.shown.clone(),
                source: std::io::Error::other("reading was given up: the runtime for I/O has ended"),
            });
        };
        let chunk = chunk.map_err(|e| e.into_error(&self.source, self.range.start + wanted))?;
        if chunk.len() as u64 != wanted {
            let end = self.range.start + chunk.len() as u64;
            return Err(self.source.damaged(&format!("reading it ended at byte {end}")));
        }
        self.range.start += wanted;
        Ok(Some(chunk))
    }
}

fn request(source: &Source, range: Range<u64>) -> mpsc::Receiver<std::result::Result<Bytes, ReadError>> {
    let (sender, receiver) = mpsc::channel(1);
    let source = source.clone();
    source.io.clone().spawn(async move {
        let starts = range.clone().step_by(CHUNK_BYTES as usize);
        let requests = futures::stream::iter(starts).map(|start| {
            let wanted = start..range.end.min(start + CHUNK_BYTES);
            let source = &source;
            async move {
                let ranges = std::slice::from_ref(&wanted);
                match source.store.get_ranges(&source.location, ranges).await {
                    Ok(chunks) => Ok(chunks.into_iter().next().unwrap_or_default()),
                    Err(error) => Err(ReadError::of(error, source, &wanted).await),
                }
            }
        });
        let mut answers = requests.buffered(REQUESTS_MAX);
        while let Some(answer) = answers.next().await {
            let is_last = answer.is_err();
            // Whoever has read enough hangs up.
            if sender.send(answer).await.is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// A frame whose checksum is right.
pub(super) struct SoundFrame {
    /// With its padding, as written.
    pub(super) header: Buffer,
    /// Without padding.
    pub(super) payload: Buffer,
    /// With the padding.
    pub(super) padded: u64,
}

/// The frames of a part of a file, in order.
pub(super) struct Frames {
    chunks: Chunks,
    /// What has been read and not been taken.
    rest: Buffer,
    position: u64,
    end: u64,
}

impl Frames {
    /// The frames between these bytes of a file. Nothing is read before the first one is asked for.
    pub(super) fn new(source: Source, range: Range<u64>) -> Self {
        Self {
            rest: Buffer::default(),
            position: range.start,
            end: range.end,
            chunks: Chunks {
                source,
                range,
                receiver: None,
            },
        }
    }

    /// The next frame; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<SoundFrame>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let place = self.position;
        let damaged = |frames: &Self, what: &str| {
            let what = format!("the frame at byte {place} {what}");
            Err(frames.chunks.source.damaged(&what))
        };
        if self.end - place < ALIGNMENT as u64 {
            return damaged(self, "is cut short");
        }
        let bytes = self.take(ALIGNMENT)?;
        let Some(header) = Header::parse(&bytes, place) else {
            return damaged(self, "has a header that is not as it was written");
        };
        if header.padded() > self.end - self.position {
            return damaged(self, "is longer than the part of the file that it is in");
        }
        // The length was checked: it is what was written, and is there unless the file is shorter.
        let padded = self.take(header.padded() as usize)?;
        let payload = padded.slice_with_length(0, header.length as usize);
        if !header.is_of(&payload, place) {
            return damaged(self, "has a checksum that does not match");
        }
        Ok(Some(SoundFrame {
            header: bytes,
            payload,
            padded: header.padded(),
        }))
    }

    /// The next `length` bytes: a part of what was read, copied together only where they were not read at once.
    fn take(&mut self, length: usize) -> Result<Buffer> {
        self.position += length as u64;
        if self.rest.is_empty() && length > 0 {
            self.rest = self.chunk()?;
        }
        if self.rest.len() >= length {
            let taken = self.rest.slice_with_length(0, length);
            self.rest.advance(length);
            return Ok(taken);
        }
        let mut taken = Vec::with_capacity(length);
        taken.extend_from_slice(&self.rest);
        while taken.len() < length {
            let mut chunk = self.chunk()?;
            let needed = chunk.len().min(length - taken.len());
            taken.extend_from_slice(&chunk[..needed]);
            chunk.advance(needed);
            self.rest = chunk;
        }
        Ok(Buffer::from_vec(taken))
    }

    fn chunk(&mut self) -> Result<Buffer> {
        match self.chunks.next()? {
            Some(chunk) => Ok(Buffer::from(chunk)),
            None => Err(self.chunks.source.damaged("a frame is cut short")),
        }
    }
}
