//! Object stores: a file is a multipart upload, which the store shows to nobody until it is completed. Publishing
//! completes the uploads; nothing is copied.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, Write};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, WriteMultipart};
use parking_lot::Mutex;
use thalweg_engine::{EngineError, Result};
use tokio::runtime::Handle;
use url::Url;

use crate::filesystem::storage::{StagedFile, Storage, numbered};

/// Bytes of a part; stores want 5 MiB at least.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file on their way at once.
const PARTS_IN_FLIGHT: usize = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct ObjectStorage {
    /// `s3://bucket`, for messages.
    origin: String,
    store: Arc<dyn ObjectStore>,
    prefix: String,
    io: Handle,
    replace: bool,
    rename_on_clash: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    taken: BTreeSet<Path>,
    opened: usize,
    complete: Vec<Complete>,
    /// How many have been shown ahead of the others.
    published: usize,
    /// Uploads whose writers gave up: to be aborted.
    dropped: Vec<WriteMultipart>,
    ended: bool,
}

/// A file of which all parts have arrived.
struct Complete {
    /// As it was asked for.
    name: String,
    key: Path,
    upload: WriteMultipart,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} files complete", self.complete.len(), self.opened)
    }
}

impl ObjectStorage {
    pub(crate) fn new(
        url: &Url,
        store: Arc<dyn ObjectStore>,
        prefix: String,
        io: Handle,
        replace: bool,
        rename_on_clash: bool,
    ) -> Self {
        let origin = url[..url::Position::BeforePath].to_string();
        Self {
            origin,
            store,
            prefix,
            io,
            replace,
            rename_on_clash,
            state: Arc::default(),
        }
    }

    fn key(&self, name: &str) -> Result<Path> {
        let text = if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}/{name}", self.prefix)
        };
        // `parse`, not `from`: partition values are percent-encoded already.
        Path::parse(&text).map_err(|e| EngineError::Plan(format!("'{text}' cannot be an object's name: {e}")))
    }

    fn exists(&self, key: &Path) -> Result<bool> {
        let (store, at) = (Arc::clone(&self.store), key.clone());
        match wait(&self.io, async move { store.head(&at).await }) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.failed(key.as_ref(), e)),
        }
    }

    fn free_key(&self, name: &str) -> Result<Path> {
        let mut key = self.key(name)?;
        let mut n = 0;
        while !self.replace && (self.state.lock().taken.contains(&key) || self.exists(&key)?) {
            n += 1;
            if !self.rename_on_clash || n > 10_000 {
                return Err(self.failed(key.as_ref(), io::Error::from(io::ErrorKind::AlreadyExists)));
            }
            key = self.key(&numbered(name, n))?;
        }
        self.state.lock().taken.insert(key.clone());
        Ok(key)
    }

    fn failed(&self, key: &str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
        EngineError::Io {
            path: format!("{}/{key}", self.origin),
            source: io::Error::other(e),
        }
    }

    fn abort_uploads(&self, uploads: Vec<WriteMultipart>) {
        for upload in uploads {
            if let Err(e) = wait(&self.io, upload.abort()) {
                tracing::warn!("{}: an unfinished upload is left behind: {e}", self.origin);
            }
        }
    }
}

impl Storage for ObjectStorage {
    fn create(&self, name: &str) -> Result<Box<dyn StagedFile>> {
        let key = self.free_key(name)?;
        let (store, at) = (Arc::clone(&self.store), key.clone());
        let upload =
            wait(&self.io, async move { store.put_multipart(&at).await }).map_err(|e| self.failed(key.as_ref(), e))?;
        self.state.lock().opened += 1;
        Ok(Box::new(ObjectFile {
            upload: Some(Upload::new(upload, self.io.clone())),
            name: name.to_string(),
            key,
            state: Arc::clone(&self.state),
        }))
    }

    fn describe(&self, name: &str) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}/{}{slash}{name}", self.origin, self.prefix)
    }

    fn is_empty(&self) -> bool {
        self.state.lock().opened == 0
    }

    fn target_is_empty(&self) -> Result<bool> {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        let first = wait(&self.io, async move {
            let prefix = (!prefix.is_empty()).then(|| Path::from(prefix));
            store.list(prefix.as_ref()).try_next().await
        });
        Ok(first.map_err(|e| self.failed(&self.prefix, e))?.is_none())
    }

    fn publish_file(&self, name: &str) -> Result<()> {
        let complete = {
            let mut state = self.state.lock();
            let place = state.complete.iter().position(|complete| complete.name == name);
            state.published += usize::from(place.is_some());
            place.map(|place| state.complete.swap_remove(place))
        };
        let Some(Complete { key, upload, .. }) = complete else {
            return Err(EngineError::Internal(format!(
                "{} is not complete",
                self.describe(name)
            )));
        };
        match wait(&self.io, upload.finish()) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.failed(key.as_ref(), e)),
        }
    }

    fn publish(&self) -> Result<()> {
        let (uploads, unfinished) = {
            let mut state = self.state.lock();
            state.ended = true;
            let unfinished = state.opened - state.published - state.complete.len();
            (std::mem::take(&mut state.complete), unfinished)
        };
        let mut published: Vec<Path> = Vec::new();
        let mut uploads = uploads.into_iter();
        let mut outcome = Ok(());
        if unfinished > 0 {
            outcome = Err(EngineError::Internal(format!(
                "{unfinished} files under {} are unfinished",
                self.origin
            )));
        }
        while outcome.is_ok() {
            let Some(Complete { key, upload, .. }) = uploads.next() else {
                return Ok(());
            };
            match wait(&self.io, upload.finish()) {
                Ok(_) => published.push(key),
                Err(e) => outcome = Err(self.failed(key.as_ref(), e)),
            }
        }
        let dropped = std::mem::take(&mut self.state.lock().dropped);
        self.abort_uploads(uploads.map(|complete| complete.upload).chain(dropped).collect());
        for key in published {
            let (store, at) = (Arc::clone(&self.store), key.clone());
            if let Err(e) = wait(&self.io, async move { store.delete(&at).await }) {
                tracing::warn!("{}/{key} was published and cannot be removed: {e}", self.origin);
            }
        }
        outcome
    }

    fn discard(&self) {
        let uploads = {
            let mut state = self.state.lock();
            state.ended = true;
            let complete = std::mem::take(&mut state.complete)
                .into_iter()
                .map(|complete| complete.upload);
            let mut uploads: Vec<WriteMultipart> = complete.collect();
            uploads.append(&mut state.dropped);
            uploads
        };
        self.abort_uploads(uploads);
    }
}

impl Drop for ObjectStorage {
    fn drop(&mut self) {
        if !self.state.lock().ended {
            self.discard();
        }
    }
}

struct ObjectFile {
    /// Taken when the file is complete.
    upload: Option<Upload>,
    name: String,
    key: Path,
    state: Arc<Mutex<State>>,
}

impl Write for ObjectFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.upload {
            Some(upload) => upload.write(bytes),
            None => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StagedFile for ObjectFile {
    fn complete(mut self: Box<Self>) -> io::Result<()> {
        let Some(mut upload) = self.upload.take() else {
            return Ok(());
        };
        // A part that failed is an error of this writer, not of the commit.
        upload.wait_for_parts(0)?;
        if let Some(upload) = upload.into_inner() {
            let complete = Complete {
                name: std::mem::take(&mut self.name),
                key: self.key.clone(),
                upload,
            };
            self.state.lock().complete.push(complete);
        }
        Ok(())
    }
}

impl Drop for ObjectFile {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take().and_then(Upload::into_inner) {
            self.state.lock().dropped.push(upload);
        }
    }
}

/// A multipart upload that is written to from a thread that may block.
pub(super) struct Upload {
    /// Gone when a part has failed.
    upload: Option<WriteMultipart>,
    io: Handle,
}

impl Upload {
    pub(super) fn new(upload: Box<dyn MultipartUpload>, io: Handle) -> Self {
        Self {
            upload: Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)),
            io,
        }
    }

    pub(super) fn into_inner(mut self) -> Option<WriteMultipart> {
        self.upload.take()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait_for_parts(PARTS_IN_FLIGHT)?;
        // One part at a time, so that the wait above bounds what is in memory.
        let taken = bytes.len().min(PART_BYTES);
        let _runtime = self.io.enter();
        if let Some(upload) = &mut self.upload {
            upload.write(&bytes[..taken]);
        }
        Ok(taken)
    }

    pub(super) fn wait_for_parts(&mut self, in_flight: usize) -> io::Result<()> {
        let Some(mut upload) = self.upload.take() else {
            return Ok(());
        };
        let (upload, outcome) = wait(&self.io, async move {
            let outcome = upload.wait_for_capacity(in_flight).await;
            Ok((upload, outcome))
        })?;
        self.upload = Some(upload);
        Ok(outcome?)
    }
}

/// Runs `future` on the I/O runtime and waits. Not `Handle::block_on`: that panics on a runtime's own thread.
pub(super) fn wait<T: Send + 'static>(
    io: &Handle,
    future: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> object_store::Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    io.spawn(async move {
        let _ = sender.send(future.await);
    });
    receiver.recv().unwrap_or_else(|gone| {
        Err(object_store::Error::Generic {
            store: "I/O runtime",
            source: Box::new(gone),
        })
    })
}
