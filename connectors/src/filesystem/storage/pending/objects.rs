//! Object stores: a multipart upload cannot be completed by another process through this interface, so a file waits as an
//! object with a hidden name, and is copied to its final one, by the store itself.

use std::io::{self, Write};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use thalweg_engine::{EngineError, Result};
use tokio::runtime::Handle;
use url::Url;

use super::{PendingFile, PendingStorage, staged_name, waiting_folder};
use crate::filesystem::storage::StagedFile;
use crate::filesystem::storage::objects::{Upload, wait};

/// See the module.
#[derive(Debug)]
pub(crate) struct ObjectPending {
    /// `s3://bucket`.
    origin: String,
    store: Arc<dyn ObjectStore>,
    prefix: String,
    waiting: String,
    io: Handle,
}

impl ObjectPending {
    pub(crate) fn new(url: &Url, store: Arc<dyn ObjectStore>, prefix: &str, job: &str, io: Handle) -> Self {
        Self {
            origin: url[..url::Position::BeforePath].to_string(),
            store,
            prefix: prefix.to_string(),
            waiting: waiting_folder(job),
            io,
        }
    }

    fn under_prefix(&self, name: &str) -> String {
        match self.prefix.is_empty() {
            true => name.to_string(),
            false => format!("{}/{name}", self.prefix),
        }
    }

    fn failed(&self, key: &str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
        EngineError::Io {
            path: format!("{}/{key}", self.origin),
            source: io::Error::other(e),
        }
    }

    /// The object's size; `None` when there is none.
    fn size(&self, key: &Path) -> Result<Option<u64>> {
        let (store, at) = (Arc::clone(&self.store), key.clone());
        match wait(&self.io, async move { store.head(&at).await }) {
            Ok(object) => Ok(Some(object.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(key.as_ref(), e)),
        }
    }

    fn publish_one(&self, file: &PendingFile) -> Result<()> {
        if file.folder != self.origin {
            return Err(EngineError::Plan(format!(
                "the checkpoint holds files that wait in {}, and the sink writes to {}; restore with the path that it had",
                file.folder, self.origin
            )));
        }
        let (staged, target) = (key(&file.staged)?, key(&file.name)?);
        match self.size(&staged)? {
            Some(size) if size != file.length => {
                return Err(file.damaged(&format!("{}/{staged}", self.origin), size));
            }
            Some(_) => {}
            None => {
                return match self.size(&target)? {
                    Some(_) => Ok(()),
                    None => Err(file.lost(
                        &format!("{}/{staged}", self.origin),
                        &format!("{}/{target}", self.origin),
                    )),
                };
            }
        }
        // Copied twice, when the process dies in between, it is the same object.
        let (store, from, to) = (Arc::clone(&self.store), staged.clone(), target.clone());
        wait(&self.io, async move { store.copy(&from, &to).await }).map_err(|e| self.failed(target.as_ref(), e))?;
        self.delete(staged)
    }

    fn delete(&self, key: Path) -> Result<()> {
        let (store, at) = (Arc::clone(&self.store), key.clone());
        match wait(&self.io, async move { store.delete(&at).await }) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(key.as_ref(), e)),
        }
    }
}

/// `parse`, not `from`: partition values are percent-encoded already.
fn key(text: &str) -> Result<Path> {
    Path::parse(text).map_err(|e| EngineError::Plan(format!("'{text}' cannot be an object's name: {e}")))
}

impl PendingStorage for ObjectPending {
    fn create(&self, name: &str) -> Result<Box<dyn StagedFile>> {
        let key = key(&self.under_prefix(&staged_name(&self.waiting, name)))?;
        let (store, at) = (Arc::clone(&self.store), key.clone());
        let upload =
            wait(&self.io, async move { store.put_multipart(&at).await }).map_err(|e| self.failed(key.as_ref(), e))?;
        Ok(Box::new(PendingObject {
            upload: Some(Upload::new(upload, self.io.clone())),
            io: self.io.clone(),
        }))
    }

    fn pending(&self, name: &str, length: u64) -> PendingFile {
        let staged = self.under_prefix(&staged_name(&self.waiting, name));
        PendingFile::new(&self.origin, staged, self.under_prefix(name), length)
    }

    fn seal(&self, _files: &[PendingFile]) -> Result<()> {
        Ok(())
    }

    fn publish(&self, files: &[PendingFile]) -> Result<()> {
        files.iter().try_for_each(|file| self.publish_one(file))
    }

    fn recover(&self) -> Result<()> {
        let waiting = key(&self.under_prefix(&self.waiting))?;
        let (store, prefix) = (Arc::clone(&self.store), waiting.clone());
        let left: Vec<Path> = wait(&self.io, async move {
            let objects = store.list(Some(&prefix));
            objects
                .map(|object| object.map(|object| object.location))
                .try_collect()
                .await
        })
        .map_err(|e| self.failed(waiting.as_ref(), e))?;
        left.into_iter().try_for_each(|object| self.delete(object))
    }
}

struct PendingObject {
    /// Taken when the file is complete.
    upload: Option<Upload>,
    io: Handle,
}

impl Write for PendingObject {
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

impl StagedFile for PendingObject {
    fn complete(mut self: Box<Self>) -> io::Result<()> {
        let Some(mut upload) = self.upload.take() else {
            return Ok(());
        };
        upload.wait_for_parts(0)?;
        if let Some(upload) = upload.into_inner() {
            wait(&self.io, upload.finish())?;
        }
        Ok(())
    }
}

impl Drop for PendingObject {
    fn drop(&mut self) {
        // Nobody sees what was uploaded; the store is told that nobody will.
        if let Some(upload) = self.upload.take().and_then(Upload::into_inner) {
            self.io.spawn(upload.abort());
        }
    }
}
