//! One file on its way to the store: in parts, several at once, with bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::fault;
use crate::data::{EngineError, Result};

/// Bytes of a part. All but the last are of this size, as some stores want it.
const PART_BYTES: usize = 16 << 20;
/// Parts on their way at once.
const PARTS_MAX: usize = 3;
/// Smaller pieces are copied together: a piece is a system call, or a frame of a protocol.
const PIECE_BYTES_MIN: usize = 64 << 10;

/// A file that is being written. What was not finished is taken back.
pub(super) struct Upload {
    store: Arc<dyn ObjectStore>,
    io: Handle,
    location: Path,
    /// What to call the file in errors.
    shown: String,
    /// Small pieces, after `pieces`.
    small: BytesMut,
    pieces: VecDeque<Bytes>,
    /// Bytes of `pieces`.
    ready: usize,
    bytes: u64,
    parts: Option<Box<dyn MultipartUpload>>,
    in_flight: VecDeque<JoinHandle<object_store::Result<()>>>,
}

impl Upload {
    pub(super) fn new(store: Arc<dyn ObjectStore>, io: Handle, location: Path, shown: String) -> Self {
        Self {
            store,
            io,
            location,
            shown,
            small: BytesMut::new(),
            pieces: VecDeque::new(),
            ready: 0,
            bytes: 0,
            parts: None,
            in_flight: VecDeque::new(),
        }
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes. Blocks while enough parts are on their way.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes += bytes.len() as u64;
        if bytes.len() < PIECE_BYTES_MIN {
            if self.small.capacity() - self.small.len() < bytes.len() {
                self.flush_small();
                self.small.reserve(4 * PIECE_BYTES_MIN);
            }
            self.small.extend_from_slice(&bytes);
        } else {
            self.flush_small();
            self.ready += bytes.len();
            self.pieces.push_back(bytes);
        }
        while self.ready >= PART_BYTES {
            self.send_part(PART_BYTES)?;
        }
        Ok(())
    }

    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.ready += self.small.len();
            self.pieces.push_back(self.small.split().freeze());
        }
    }

    /// The next `length` bytes.
    fn take(&mut self, length: usize) -> PutPayload {
        let mut left = length;
        let mut taken = Vec::new();
        while left > 0
            && let Some(mut piece) = self.pieces.pop_front()
        {
            if piece.len() > left {
                self.pieces.push_front(piece.split_off(left));
            }
            left -= piece.len();
            taken.push(piece);
        }
        self.ready -= length - left;
        taken.into_iter().collect()
    }

    fn send_part(&mut self, length: usize) -> Result<()> {
        fault::point("within-upload")?;
        while self.in_flight.len() >= PARTS_MAX {
            self.wait_for_part()?;
        }
        let payload = self.take(length);
        if self.parts.is_none() {
            let started = self.io.block_on(self.store.put_multipart(&self.location));
            self.parts = Some(started.map_err(|e| store_error(&self.shown, e))?);
        }
        if let Some(parts) = &mut self.parts {
            let part = parts.put_part(payload);
            self.in_flight.push_back(self.io.spawn(part));
        }
        Ok(())
    }

    fn wait_for_part(&mut self) -> Result<()> {
        let Some(part) = self.in_flight.pop_front() else {
            return Ok(());
        };
        match self.io.block_on(part) {
            Ok(sent) => sent.map_err(|e| store_error(&self.shown, e)),
            Err(e) => Err(store_error(&self.shown, e.into())),
        }
    }

    /// Writes what is left and makes the file visible; gives its length.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.flush_small();
        if self.parts.is_none() {
            let payload = self.take(self.ready);
            let put = self.io.block_on(self.store.put(&self.location, payload));
            put.map_err(|e| store_error(&self.shown, e))?;
            return Ok(self.bytes);
        }
        if self.ready > 0 {
            self.send_part(self.ready)?;
        }
        while !self.in_flight.is_empty() {
            self.wait_for_part()?;
        }
        if let Some(parts) = &mut self.parts {
            let completed = self.io.block_on(parts.complete());
            completed.map_err(|e| store_error(&self.shown, e))?;
        }
        self.parts = None;
        Ok(self.bytes)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        let in_flight = std::mem::take(&mut self.in_flight);
        // Parts are not taken back before they have arrived. Nobody waits for it, and nobody can do anything if it fails: a
        // part that stays behind is no file.
        self.io.spawn(async move {
            for part in in_flight {
                let _ = part.await;
            }
            let _ = parts.abort().await;
        });
    }
}

/// An error of the store about the file that is shown as `shown`.
pub(super) fn store_error(shown: &str, error: object_store::Error) -> EngineError {
    let kind = io_kind(&error);
    EngineError::Io {
        path: shown.to_string(),
        source: std::io::Error::new(kind, error),
    }
}

/// The kind of the system's error inside, where there is one.
fn io_kind(error: &object_store::Error) -> std::io::ErrorKind {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return std::io::ErrorKind::NotFound;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            return io.kind();
        }
        cause = current.source();
    }
    std::io::ErrorKind::Other
}
