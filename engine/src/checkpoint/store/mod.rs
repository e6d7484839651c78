//! [`CheckpointStore`]: where the checkpoints of a job, or a savepoint, live.

mod copy;
mod locate;
mod manifests;
mod read;
mod sweep;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use tokio::runtime::Handle;

use super::download::Source;
use super::frame::Compression;
use super::upload::{Upload, store_error};
use crate::data::{EngineError, Result};

pub use locate::Located;
pub use read::StoredTable;
pub use write::WrittenTable;

/// The name of the file that makes a folder a checkpoint.
const MANIFEST: &str = "MANIFEST";
const CHECKPOINT_PREFIX: &str = "chk-";

/// The folder of checkpoint `checkpoint` within its job's.
pub fn checkpoint_folder(checkpoint: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{checkpoint}")
}

/// The number of the checkpoint whose folder this is.
fn checkpoint_of(folder: &str) -> Option<u64> {
    let number = folder.strip_prefix(CHECKPOINT_PREFIX)?.parse().ok()?;
    (checkpoint_folder(number) == folder).then_some(number)
}

/// A folder of checkpoints in an object store or a file system. Clones are the same writer.
///
/// The methods block the thread that calls them; they must not be called by async code.
#[derive(Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    io: Handle,
    root: Path,
    /// The root as users know it, without a slash at the end.
    url: Arc<str>,
    /// The root in the local file system, if it is there.
    directory: Option<Arc<PathBuf>>,
    compression: Compression,
    writer: Arc<Writer>,
}

/// Who writes: tells processes, and runs in one process, apart.
struct Writer {
    /// For people, and unlike all others.
    name: String,
    /// Unlike all others; part of the names of files.
    mark: String,
    /// Files begun.
    files: AtomicU64,
}

impl Writer {
    fn new() -> Self {
        let random = RandomState::new().build_hasher().finish();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = match host.trim() {
            "" => "unknown host",
            host => host,
        };
        let mark = format!("{random:016x}");
        Self {
            name: format!("process {} on {host} ({mark})", std::process::id()),
            mark,
            files: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for CheckpointStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointStore({})", self.url)
    }
}

impl CheckpointStore {
    /// The folder `root` of `object_store`, which users know as `url`. Nothing is read or made.
    ///
    /// # Errors
    /// When `url` is not one.
    pub fn open(url: &str, object_store: Arc<dyn ObjectStore>, root: Path, io: Handle) -> Result<CheckpointStore> {
        let parsed = url::Url::parse(url).map_err(|e| {
            EngineError::Plan(format!(
                "'{url}' is no URL of a folder for checkpoints: {e}; write file:///folder, or scheme://bucket/folder"
            ))
        })?;
        let directory = match parsed.scheme() {
            "file" => parsed.to_file_path().ok().map(Arc::new),
            _ => None,
        };
        Ok(Self {
            store: object_store,
            io,
            root,
            url: url.trim_end_matches('/').into(),
            directory,
            compression: Compression::None,
            writer: Arc::new(Writer::new()),
        })
    }

    /// A directory of the local file system. It is made when something is written.
    ///
    /// # Errors
    /// When the path cannot be one of an object store.
    pub fn local(dir: &std::path::Path, io: Handle) -> Result<Self> {
        let wrong = |what: String| {
            EngineError::Plan(format!(
                "'{}' cannot hold checkpoints: {what}; choose another directory",
                dir.display()
            ))
        };
        let absolute = std::path::absolute(dir).map_err(|e| wrong(e.to_string()))?;
        let root = Path::from_absolute_path(&absolute).map_err(|e| wrong(e.to_string()))?;
        let url = url::Url::from_file_path(&absolute).map_err(|()| wrong("it is not absolute".into()))?;
        Self::open(url.as_str(), Arc::new(LocalFileSystem::new()), root, io)
    }

    /// Compresses what is written from now on. What is read says itself how it is compressed.
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The folder, as users know it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A file or folder as users know it.
    fn shown(&self, path: &str) -> String {
        match path {
            "" => self.url.to_string(),
            path => format!("{}/{path}", self.url),
        }
    }

    /// Where the file or folder `path` is, which is relative to the root and written as the store writes it.
    fn location(&self, path: &str) -> Result<Path> {
        let whole = match (self.root.as_ref(), path) {
            (root, "") => root.to_string(),
            ("", path) => path.to_string(),
            (root, path) => format!("{root}/{path}"),
        };
        let wrong = |what: String| EngineError::BadInput(format!("'{path}' is no file of a checkpoint: {what}"));
        let location = Path::parse(whole).map_err(|e| wrong(e.to_string()))?;
        // Elsewhere a manifest has no business.
        match location.prefix_matches(&self.root) {
            true => Ok(location),
            false => Err(wrong(format!("it is outside of {}", self.url))),
        }
    }

    fn source(&self, file: &str) -> Result<Source> {
        Ok(Source {
            store: Arc::clone(&self.store),
            io: self.io.clone(),
            location: self.location(file)?,
            shown: self.shown(file),
        })
    }

    fn upload(&self, file: &str) -> Result<Upload> {
        let (store, io) = (Arc::clone(&self.store), self.io.clone());
        Ok(Upload::new(store, io, self.location(file)?, self.shown(file)))
    }

    /// A path relative to the root, written as the store writes it.
    fn relative(&self, location: &Path) -> Option<String> {
        let parts: Vec<_> = location.prefix_match(&self.root)?.collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        Some(parts.join("/"))
    }

    /// What there is below `folder`, or everything.
    fn contents(&self, folder: &str) -> Result<Contents> {
        let prefix = self.location(folder)?;
        let listing = self.store.list(Some(&prefix)).try_collect::<Vec<_>>();
        let listed = match self.io.block_on(listing) {
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            listed => listed.map_err(|e| store_error(&self.shown(folder), e))?,
        };
        let mut contents = Contents::default();
        for file in listed {
            let Some(path) = self.relative(&file.location) else {
                continue;
            };
            if let Some(folder) = path.strip_suffix(MANIFEST).and_then(|path| path.strip_suffix('/'))
                && let Some(checkpoint) = checkpoint_of(folder)
            {
                contents.manifests.insert(checkpoint);
            }
            contents.files.insert(path, file.size);
        }
        Ok(contents)
    }
}

/// A listing.
#[derive(Debug, Default)]
struct Contents {
    /// Checkpoints with a manifest.
    manifests: BTreeSet<u64>,
    /// Files by path from the root, with their lengths.
    files: BTreeMap<String, u64>,
}
