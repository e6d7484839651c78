//! Where files are staged and how they are published. A staged file is invisible under its final name until
//! [`Storage::publish`]; [`Storage::discard`] removes every trace.

mod local;
mod objects;
mod pending;

use std::fmt::Debug;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use thalweg_engine::operator::SinkJob;
use thalweg_engine::{EngineError, Result};
use url::Url;

pub(super) use local::LocalStorage;
pub(super) use objects::ObjectStorage;
pub(super) use pending::{PendingFile, PendingStorage};

use pending::{LocalPending, ObjectPending};

use crate::filesystem::{FileOptions, Format};

/// A file that is being staged. Dropped without `complete` it stays staged and unfinished, and stops the publishing.
pub(super) trait StagedFile: Write + Send {
    /// All bytes are written and safe.
    fn complete(self: Box<Self>) -> io::Result<()>;
}

/// One job's files under one target.
pub(super) trait Storage: Debug + Send + Sync {
    /// Stages a new file whose final name is `name`, relative to the target.
    fn create(&self, name: &str) -> Result<Box<dyn StagedFile>>;
    /// How a file is called in messages.
    fn describe(&self, name: &str) -> String;
    /// Whether anything has been staged.
    fn is_empty(&self) -> bool;
    /// Whether the target holds no file yet.
    fn target_is_empty(&self) -> Result<bool>;
    /// Gives a complete file its final name now, ahead of the others.
    fn publish_file(&self, name: &str) -> Result<()>;
    /// Gives all staged files that are left their final names; all or none.
    fn publish(&self) -> Result<()>;
    /// Removes what is staged.
    fn discard(&self);
}

/// What a path means to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The one file `name` in the folder.
    File { folder: Folder, name: String },
    /// Files in the folder.
    Folder(Folder),
}

/// A folder, local or in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Folder {
    Local(PathBuf),
    Store { url: Url, prefix: String },
}

impl Target {
    /// Reads `options.path`. The path is one file when the options say so, when it is one, or when its name ends
    /// like a file of a known format and no such folder exists.
    pub(super) fn resolve(options: &FileOptions) -> Result<Self> {
        let path = options.path.as_str();
        if path.contains(['*', '?', '[']) && !path.contains("://") {
            return Err(EngineError::Plan(format!(
                "'{path}' is a pattern; a sink needs one file or one folder"
            )));
        }
        let local = local_path(path)?;
        let exists_as_folder = local.as_ref().is_some_and(|local| local.is_dir());
        let exists_as_file = local.as_ref().is_some_and(|local| local.is_file());
        let single = match options.single_file {
            Some(single) => single,
            None if path.ends_with('/') || exists_as_folder || !options.partition_by.is_empty() => false,
            None => exists_as_file || Format::of_path(path).is_some(),
        };
        if single && exists_as_folder {
            return Err(EngineError::Plan(format!(
                "'{path}' is a folder; a single file cannot take its place"
            )));
        }
        if single && !options.partition_by.is_empty() {
            return Err(EngineError::Plan(format!(
                "'{path}' is one file and cannot be partitioned; name a folder"
            )));
        }
        if !single && exists_as_file {
            return Err(EngineError::Plan(format!(
                "'{path}' is a file; this sink needs a folder"
            )));
        }
        match local {
            Some(path) if single => Self::local_file(path),
            Some(path) => Ok(Target::Folder(Folder::Local(path))),
            None => Self::in_store(path, single),
        }
    }

    fn local_file(path: PathBuf) -> Result<Self> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .map(str::to_string)
            .ok_or_else(|| EngineError::Plan(format!("'{}' has no file name that is UTF-8", path.display())))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = Folder::Local(parent.map_or_else(|| PathBuf::from("."), PathBuf::from));
        Ok(Target::File { folder, name })
    }

    fn in_store(path: &str, single: bool) -> Result<Self> {
        let url = Url::parse(path).map_err(|e| EngineError::Plan(format!("'{path}' is not a URL: {e}")))?;
        let key = ListingTableUrl::parse(path)?.prefix().to_string();
        let (prefix, name) = match key.rsplit_once('/') {
            _ if !single => (key, None),
            Some((prefix, name)) => (prefix.to_string(), Some(name.to_string())),
            None => (String::new(), Some(key)),
        };
        let folder = Folder::Store { url, prefix };
        Ok(match name {
            Some(name) => Target::File { folder, name },
            None => Target::Folder(folder),
        })
    }

    /// The storage of one job's files. Touches nothing yet.
    pub(super) fn storage(&self, options: &FileOptions, job: &SinkJob) -> Result<Arc<dyn Storage>> {
        // A part file never takes another's place; a single file does when it is asked to.
        let (folder, replace) = match self {
            Target::File { folder, name: _ } => (folder, options.replace),
            Target::Folder(folder) => (folder, false),
        };
        let rename_on_clash = matches!(self, Target::Folder(_));
        Ok(match folder {
            Folder::Local(folder) => Arc::new(LocalStorage::new(
                folder.clone(),
                &job.job,
                replace,
                rename_on_clash,
                options.sync,
            )),
            Folder::Store { url, prefix } => {
                let store = store_of(&job.runtime, url)?;
                Arc::new(ObjectStorage::new(
                    url,
                    store,
                    prefix.clone(),
                    job.io.clone(),
                    replace,
                    rename_on_clash,
                ))
            }
        })
    }
}

impl Folder {
    /// The storage of files that wait for the checkpoints of the job of this name. Touches nothing yet.
    pub(super) fn pending(&self, name: &str, options: &FileOptions, job: &SinkJob) -> Result<Arc<dyn PendingStorage>> {
        Ok(match self {
            Folder::Local(folder) => Arc::new(LocalPending::try_new(folder, name, options.sync)?),
            Folder::Store { url, prefix } => {
                let store = store_of(&job.runtime, url)?;
                Arc::new(ObjectPending::new(url, store, prefix, name, job.io.clone()))
            }
        })
    }
}

fn store_of(runtime: &RuntimeEnv, url: &Url) -> Result<Arc<dyn object_store::ObjectStore>> {
    let listing = ListingTableUrl::parse(url.as_str())?;
    runtime.object_store(&listing).map_err(|e| {
        EngineError::Plan(format!(
            "no object store is registered for '{url}' ({e}); register one with the session, or use a local path"
        ))
    })
}

/// The local path that `path` means; `None` when it is a URL of an object store.
pub(super) fn local_path(path: &str) -> Result<Option<PathBuf>> {
    if !path.contains("://") {
        return Ok(Some(PathBuf::from(path)));
    }
    let url = Url::parse(path).map_err(|e| EngineError::Plan(format!("'{path}' is not a URL: {e}")))?;
    if url.scheme() != "file" {
        return Ok(None);
    }
    let local = url
        .to_file_path()
        .map_err(|()| EngineError::Plan(format!("'{path}' is not a local file URL")))?;
    Ok(Some(local))
}

/// `name` with `-n` before its extension.
fn numbered(name: &str, n: usize) -> String {
    let (folder, file) = name
        .rsplit_once('/')
        .map_or(("", name), |(folder, file)| (folder, file));
    let (stem, extension) = file.split_once('.').unwrap_or((file, ""));
    let slash = if folder.is_empty() { "" } else { "/" };
    let dot = if extension.is_empty() { "" } else { "." };
    format!("{folder}{slash}{stem}-{n}{dot}{extension}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clash_gets_a_number() {
        assert_eq!(numbered("a=1/part-0.csv.gz", 2), "a=1/part-0-2.csv.gz");
        assert_eq!(numbered("part", 1), "part-1");
    }

    #[test]
    fn a_path_is_a_file_or_a_folder() {
        let at = |path: &str| Target::resolve(&FileOptions::new(path, Format::Csv)).unwrap();
        assert!(matches!(at("/nowhere/a.csv"), Target::File { name, .. } if name == "a.csv"));
        assert!(
            matches!(at("a.csv.gz"), Target::File { folder: Folder::Local(folder), .. } if folder.as_os_str() == ".")
        );
        assert!(matches!(at("/nowhere/a.csv/"), Target::Folder(_)));
        assert!(matches!(at("/nowhere/a.v1"), Target::Folder(_)));
        assert!(
            matches!(at("memory:///x/a.csv"), Target::File { folder: Folder::Store { prefix, .. }, .. } if prefix == "x")
        );
    }
}
