//! Finding the checkpoint that a user means.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::manifests::{join, needed};
use super::{CheckpointStore, MANIFEST};
use crate::checkpoint::manifest::Manifest;
use crate::data::{EngineError, Result};

/// A checkpoint or savepoint, and the store that its files are in.
#[derive(Debug)]
pub struct Located {
    /// Its root is what the files of the manifest are relative to.
    pub store: CheckpointStore,
    /// What it consists of.
    pub manifest: Manifest,
    /// The folder of the manifest, as users know it.
    pub url: String,
    /// Newer checkpoints that cannot be restored, and why.
    pub passed_over: Vec<String>,
}

impl CheckpointStore {
    /// The folder that a user names: a path, or a URL.
    ///
    /// # Errors
    /// When the URL's scheme has no store in this build.
    pub fn at(place: &str, io: Handle) -> Result<CheckpointStore> {
        if !place.contains("://") {
            return Self::local(Path::new(place), io);
        }
        let wrong = |what: String| {
            EngineError::Plan(format!(
                "there is no store for '{place}': {what}; write a path, or file:///folder"
            ))
        };
        let url = url::Url::parse(place).map_err(|e| wrong(e.to_string()))?;
        if url.scheme() == "file" {
            let path = url
                .to_file_path()
                .map_err(|()| wrong("it names no local folder".into()))?;
            return Self::local(&path, io);
        }
        let (store, root) = object_store::parse_url(&url).map_err(|e| wrong(e.to_string()))?;
        Self::open(place, Arc::from(store), root, io)
    }

    /// The checkpoint that a user means by this folder: itself when it is a checkpoint or savepoint, else the latest one in it.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn locate(&self) -> Result<Located> {
        if self.contents("")?.files.contains_key(MANIFEST) {
            return self.locate_here();
        }
        match self.latest()? {
            Some((manifest, passed_over)) => Ok(Located {
                url: self.shown(&super::checkpoint_folder(manifest.checkpoint)),
                store: self.clone(),
                manifest,
                passed_over,
            }),
            None => Err(EngineError::Plan(format!(
                "there is no checkpoint in {}; name the folder of a job, a checkpoint or a savepoint",
                self.url
            ))),
        }
    }

    /// The manifest is here; its files are relative to this folder, or to the one above.
    fn locate_here(&self) -> Result<Located> {
        let manifest = self.load("")?;
        let parts: Vec<_> = self.root.parts().collect();
        let folder = parts.last().map(|part| part.as_ref().to_string()).unwrap_or_default();
        // A checkpoint's files are named from the job's folder, also when its own has none.
        let own = self.contents("")?;
        let is_here = needed(&manifest).keys().all(|file| own.files.contains_key(*file));
        let is_above = needed(&manifest)
            .keys()
            .any(|file| file.starts_with(&join(&folder, "")));
        let store = match !is_here || is_above {
            true => self.above(),
            false => self.clone(),
        };
        store.contents("")?.check(&store, needed(&manifest))?;
        Ok(Located {
            store,
            manifest,
            url: self.url.to_string(),
            passed_over: Vec::new(),
        })
    }

    fn above(&self) -> CheckpointStore {
        let parts: Vec<_> = self.root.parts().collect();
        let mut above = self.clone();
        above.root = parts.iter().take(parts.len().saturating_sub(1)).cloned().collect();
        above.url = match self.url.rsplit_once('/') {
            Some((url, _)) => url.into(),
            None => Arc::clone(&self.url),
        };
        above.directory = self
            .directory
            .as_ref()
            .and_then(|directory| directory.parent().map(|parent| Arc::new(parent.to_path_buf())));
        above
    }
}
