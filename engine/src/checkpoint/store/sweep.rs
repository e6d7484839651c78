//! Removing what no checkpoint needs. Only folders `chk-<n>` are touched: what else is in the job's folder is not ours.

use std::collections::BTreeSet;

use futures::TryStreamExt;

use super::manifests::{join, needed, signature};
use super::{CheckpointStore, Contents, MANIFEST, checkpoint_folder, checkpoint_of};
use crate::checkpoint::download::is_damage;
use crate::checkpoint::fault;
use crate::checkpoint::upload::store_error;
use crate::data::Result;

/// What a sweep leaves.
struct Kept {
    /// Checkpoints that keep their manifests.
    manifests: BTreeSet<u64>,
    /// Files that these refer to.
    files: BTreeSet<String>,
    /// A kept manifest of this number cannot be read. It may refer to any file of its own or an earlier folder, so those stay.
    unknown: Option<u64>,
    /// Folders with a greater number are left alone.
    newest: u64,
}

impl CheckpointStore {
    /// Keeps the checkpoints `keep`, which must have those that a checkpoint in the making builds on: removes the manifests of
    /// earlier ones that are not among them, then the files that no manifest refers to any more. Folders of checkpoints after the
    /// newest kept are left alone: they are being written, or are another process's. Gives the number of files removed.
    ///
    /// # Errors
    /// When the newest kept cannot be read, and nothing is removed. When the store fails; some files may be gone then, none that
    /// a kept manifest refers to.
    pub fn retain(&self, keep: &[u64]) -> Result<usize> {
        let newest = keep.iter().max().copied().unwrap_or(0);
        self.sweep(keep.iter().copied().collect(), newest)
    }

    /// Like [`CheckpointStore::retain`], for a job that is not running: folders after the newest kept are removed too.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sweep_all(&self, keep: &[u64]) -> Result<usize> {
        self.sweep(keep.iter().copied().collect(), u64::MAX)
    }

    /// Removes what processes that died have left: checkpoints without a manifest, files without a reference. Call it before the
    /// job writes. Gives the number of files removed.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sweep_at_start(&self) -> Result<usize> {
        let manifests = self.contents("")?.manifests;
        let staged = self.remove_staged()?;
        Ok(staged + self.sweep(manifests, u64::MAX)?)
    }

    /// Removes all checkpoints: the job has ended well and nobody will restore them.
    ///
    /// # Errors
    /// When the store fails.
    pub fn remove_all(&self) -> Result<usize> {
        let staged = self.remove_staged()?;
        let removed = staged + self.sweep(BTreeSet::new(), u64::MAX)?;
        self.remove_directory("");
        Ok(removed)
    }

    /// Takes back what this store has written in `folder`: a checkpoint that was given up. What another process has written
    /// there stays.
    ///
    /// # Errors
    /// When the store fails.
    pub fn discard(&self, folder: &str) -> Result<()> {
        let mut files: Vec<String> = self.contents(folder)?.files.into_keys().collect();
        let manifest = join(folder, MANIFEST);
        files.retain(|file| file.contains(&format!(".{}-", self.writer.mark)));
        let (location, writer) = (self.location(&manifest)?, &self.writer.name);
        let read = async { self.store.get_opts(&location, Default::default()).await?.bytes().await };
        match self.io.block_on(read) {
            Ok(text) if signature(&text).is_some_and(|signature| signature.writer == *writer) => {
                self.delete(vec![manifest])?;
            }
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(store_error(&self.shown(&manifest), error)),
        }
        self.delete(files)?;
        self.remove_directory(folder);
        Ok(())
    }

    fn sweep(&self, keep: BTreeSet<u64>, newest: u64) -> Result<usize> {
        fault::point("before-sweep")?;
        let contents = self.contents("")?;
        let kept = self.kept(&contents, &keep, newest)?;
        let dropped: Vec<u64> = contents.manifests.difference(&kept.manifests).copied().collect();
        if let Some(newest) = keep.last()
            && !dropped.is_empty()
        {
            // What is removed must not be all that could be restored.
            self.load(&checkpoint_folder(*newest))?;
        }
        let manifests: Vec<String> = dropped.iter().map(|n| join(&checkpoint_folder(*n), MANIFEST)).collect();
        let is_manifest: BTreeSet<String> = manifests.iter().cloned().collect();
        let files: Vec<String> = contents
            .files
            .keys()
            .filter(|file| !is_manifest.contains(*file) && kept.may_remove(file))
            .cloned()
            .collect();
        let folders: BTreeSet<String> = files
            .iter()
            .chain(&manifests)
            .filter_map(|file| folder_of(file))
            .collect();
        let mut removed = manifests.len() + files.len();
        // A manifest never refers to a file that is not there.
        removed -= self.delete(manifests)?;
        fault::point("within-sweep")?;
        removed -= self.delete(files)?;
        for folder in folders {
            self.remove_directory(&folder);
        }
        fault::point("after-sweep")?;
        Ok(removed)
    }

    fn kept(&self, contents: &Contents, keep: &BTreeSet<u64>, newest: u64) -> Result<Kept> {
        let stays = |n: &&u64| keep.contains(n) || **n > newest;
        let mut kept = Kept {
            manifests: contents.manifests.iter().filter(stays).copied().collect(),
            files: BTreeSet::new(),
            unknown: None,
            newest,
        };
        for &checkpoint in &kept.manifests {
            match self.load(&checkpoint_folder(checkpoint)) {
                Ok(manifest) => kept.files.extend(needed(&manifest).into_keys().map(str::to_string)),
                // A newer version of the program may have written it.
                Err(error) if is_damage(&error) || matches!(error, crate::EngineError::Plan(_)) => {
                    kept.unknown = kept.unknown.max(Some(checkpoint));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(kept)
    }

    /// Removes files, each of which may be gone already; gives how many were.
    fn delete(&self, files: Vec<String>) -> Result<usize> {
        let mut missing = 0;
        for chunk in files.chunks(1000) {
            let locations = chunk
                .iter()
                .map(|file| self.location(file))
                .collect::<Result<Vec<_>>>()?;
            // A store removes many at once, and does not say which of them was missing.
            let all = futures::stream::iter(locations.clone().into_iter().map(Ok));
            let all = self.store.delete_stream(Box::pin(all)).try_collect::<Vec<_>>();
            if self.io.block_on(all).is_ok() {
                continue;
            }
            for (location, file) in locations.into_iter().zip(chunk) {
                let one = futures::stream::once(async move { Ok(location) });
                let one = self.store.delete_stream(Box::pin(one)).try_collect::<Vec<_>>();
                match self.io.block_on(one) {
                    Ok(_) => {}
                    Err(object_store::Error::NotFound { .. }) => missing += 1,
                    Err(error) => return Err(store_error(&self.shown(file), error)),
                }
            }
        }
        Ok(missing)
    }

    /// A directory without files is litter in a local file system; elsewhere there is no such thing.
    fn remove_directory(&self, folder: &str) {
        if let Some(directory) = &self.directory {
            // It stays when something is in it.
            let _ = std::fs::remove_dir(directory.join(folder));
        }
    }

    /// Removes what writers that died have left under temporary names, which listings do not show, and empty directories.
    fn remove_staged(&self) -> Result<usize> {
        let Some(directory) = &self.directory else {
            return Ok(0);
        };
        let mut removed = 0;
        for folder in entries(directory)?
            .into_iter()
            .filter(|name| checkpoint_of(name).is_some())
        {
            let path = directory.join(&folder);
            for name in entries(&path)?.into_iter().filter(|name| is_staged(name)) {
                removed += usize::from(std::fs::remove_file(path.join(name)).is_ok());
            }
            self.remove_directory(&folder);
        }
        Ok(removed)
    }
}

impl Kept {
    fn may_remove(&self, file: &str) -> bool {
        let Some(number) = folder_of(file).and_then(|folder| checkpoint_of(&folder)) else {
            return false;
        };
        let (_, name) = file.split_once('/').unwrap_or_default();
        let is_own_manifest = name == MANIFEST && self.manifests.contains(&number);
        number <= self.newest
            && !is_own_manifest
            && !self.files.contains(file)
            && self.unknown.is_none_or(|unknown| unknown < number)
    }
}

fn folder_of(file: &str) -> Option<String> {
    file.split_once('/').map(|(folder, _)| folder.to_string())
}

/// The local file system's store writes `name#1` and renames it.
fn is_staged(name: &str) -> bool {
    name.rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The names in a directory; none when it is not there.
fn entries(directory: &std::path::Path) -> Result<Vec<String>> {
    let io_error = |source| crate::EngineError::Io {
        path: directory.display().to_string(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(io_error)?,
    };
    let names = entries.map(|entry| Ok(entry.map_err(io_error)?.file_name().to_string_lossy().into_owned()));
    names.collect()
}
