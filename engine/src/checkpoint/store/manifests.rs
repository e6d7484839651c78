//! Manifests: written last and once, read with suspicion.

use std::collections::BTreeMap;

use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{CheckpointStore, Contents, MANIFEST, checkpoint_folder, checkpoint_of};
use crate::checkpoint::download::is_damage;
use crate::checkpoint::fault;
use crate::checkpoint::frame;
use crate::checkpoint::manifest::{MANIFEST_VERSION, Manifest, StoredPart};
use crate::checkpoint::upload::store_error;
use crate::data::{EngineError, Result};

/// What the first line begins with.
const TITLE: &str = "thalweg-manifest";
/// More cannot be a manifest.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// The JSON of a manifest: who wrote it, then the manifest.
#[derive(Serialize)]
struct Signed<'a> {
    writer: &'a str,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

/// Who wrote a manifest.
#[derive(Deserialize)]
pub(super) struct Signature {
    #[serde(default)]
    pub(super) writer: String,
}

impl CheckpointStore {
    /// Completes the checkpoint or savepoint in `folder`: from now on it can be restored. Its files must have been written.
    ///
    /// # Errors
    /// When another process has completed this checkpoint or a later one (nothing is changed then, and this process should
    /// stop: two run one job), when a file of the checkpoint has not arrived, or when the store fails. After the last, whether
    /// the checkpoint is complete is not known.
    pub fn commit(&self, folder: &str, manifest: &Manifest) -> Result<()> {
        fault::point("before-manifest")?;
        check(manifest).map_err(|what| EngineError::Internal(format!("a manifest that contradicts itself: {what}")))?;
        self.check_arrived(folder, manifest)?;
        self.check_not_overtaken(folder, manifest)?;
        let text = self.text_of(manifest)?;
        self.put_manifest(&join(folder, MANIFEST), &text, manifest.checkpoint)?;
        fault::point("after-manifest")
    }

    /// Stores make a file visible at once and whole, or not at all, and only if there is none of that name.
    fn put_manifest(&self, file: &str, text: &str, checkpoint: u64) -> Result<()> {
        let location = self.location(file)?;
        let payload = PutPayload::from(text.to_string());
        let put = self
            .store
            .put_opts(&location, payload, PutOptions::from(PutMode::Create));
        match self.io.block_on(put) {
            // Sinks publish on the strength of it, so a store that lost a part of it must be found out now.
            Ok(_) => match self.bytes_of(file) {
                Ok(written) if written != text.as_bytes() => Err(self
                    .source(file)?
                    .damaged("the store did not keep it as it was written")),
                Err(error) if is_damage(&error) => Err(error),
                _ => Ok(()),
            },
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let existing = self.bytes_of(file)?;
                // A request that was sent twice, by this process.
                if existing == text.as_bytes() {
                    return Ok(());
                }
                Err(self.fenced(checkpoint, file, &existing))
            }
            Err(error @ object_store::Error::NotImplemented { .. }) => Err(EngineError::Plan(format!(
                "{} cannot hold checkpoints: {error}; choose a store with conditional writes",
                self.url
            ))),
            // It may have been written, and the answer lost.
            Err(error) => match self.bytes_of(file) {
                Ok(existing) if existing == text.as_bytes() => Ok(()),
                _ => Err(store_error(&self.shown(file), error)),
            },
        }
    }

    /// Another process has completed checkpoint `checkpoint`, with the manifest `existing`.
    fn fenced(&self, checkpoint: u64, file: &str, existing: &[u8]) -> EngineError {
        let writer = signature(existing)
            .map(|signature| signature.writer)
            .filter(|writer| !writer.is_empty());
        EngineError::Plan(format!(
            "checkpoint {checkpoint} has been completed already, by {} ({}); two processes run this job: stop one of them",
            writer.as_deref().unwrap_or("an unknown process"),
            self.shown(file)
        ))
    }

    /// A process that has slept while another took over must not go on where it was.
    fn check_not_overtaken(&self, folder: &str, manifest: &Manifest) -> Result<()> {
        let Some(own) = checkpoint_of(folder) else {
            return Ok(());
        };
        if own != manifest.checkpoint {
            return Err(EngineError::Internal(format!(
                "the manifest of checkpoint {} is written to {folder}",
                manifest.checkpoint
            )));
        }
        let manifests = self.contents("")?.manifests;
        let Some(&later) = manifests.range(own + 1..).next_back() else {
            return Ok(());
        };
        let file = join(&checkpoint_folder(later), MANIFEST);
        let existing = self.bytes_of(&file)?;
        Err(self.fenced(later, &file, &existing))
    }

    /// All files in the checkpoint's own folder are there and long enough.
    fn check_arrived(&self, folder: &str, manifest: &Manifest) -> Result<()> {
        let prefix = join(folder, "");
        let own = needed(manifest)
            .into_iter()
            .filter(|(file, _)| file.starts_with(&prefix));
        let own: BTreeMap<_, _> = own.collect();
        if own.is_empty() {
            return Ok(());
        }
        self.contents(folder)?.check(self, own)
    }

    fn text_of(&self, manifest: &Manifest) -> Result<String> {
        let signed = Signed {
            writer: &self.writer.name,
            manifest,
        };
        let json = serde_json::to_string_pretty(&signed)
            .map_err(|e| EngineError::Internal(format!("a manifest cannot be written as JSON: {e}")))?;
        let checksum = xxh3_64(json.as_bytes());
        Ok(format!("{TITLE} {MANIFEST_VERSION} {checksum:016x}\n{json}"))
    }

    /// The numbers of the complete checkpoints, ascending.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list(&self) -> Result<Vec<u64>> {
        Ok(self.contents("")?.manifests.into_iter().collect())
    }

    /// The number that the next checkpoint must at least have: past all that have been begun, complete or not.
    ///
    /// # Errors
    /// When the store fails.
    pub fn next_checkpoint(&self) -> Result<u64> {
        let contents = self.contents("")?;
        let folders = contents.files.keys().filter_map(|file| file.split('/').next());
        Ok(folders.filter_map(checkpoint_of).max().map_or(1, |last| last + 1))
    }

    /// Reads the manifest in `folder`.
    ///
    /// # Errors
    /// `BadInput` when it is missing or damaged; `Plan` when a newer version of the program wrote it; `Io` when the store fails.
    pub fn load(&self, folder: &str) -> Result<Manifest> {
        let file = join(folder, MANIFEST);
        let text = self.bytes_of(&file)?;
        let manifest = self.parse(&file, &text)?;
        match checkpoint_of(folder) {
            Some(number) if number != manifest.checkpoint => Err(self.source(&file)?.damaged(&format!(
                "it is the manifest of checkpoint {}, in the folder of another",
                manifest.checkpoint
            ))),
            _ => Ok(manifest),
        }
    }

    fn bytes_of(&self, file: &str) -> Result<Vec<u8>> {
        let source = self.source(file)?;
        let read = async {
            let answer = self.store.get(&source.location).await?;
            let size = answer.meta.size;
            if size > MANIFEST_BYTES_MAX {
                return Ok(Err(size));
            }
            Ok(Ok((answer.bytes().await?, size)))
        };
        match self.io.block_on(read) {
            Ok(Ok((bytes, size))) if bytes.len() as u64 == size => Ok(bytes.to_vec()),
            Ok(Ok((bytes, _))) => Err(source.damaged(&format!("reading it ended at byte {}", bytes.len()))),
            Ok(Err(size)) => Err(source.damaged(&format!("{size} bytes cannot be a manifest"))),
            Err(object_store::Error::NotFound { .. }) => Err(source.damaged("it is missing")),
            Err(error) => Err(store_error(&source.shown, error)),
        }
    }

    fn parse(&self, file: &str, text: &[u8]) -> Result<Manifest> {
        let source = self.source(file)?;
        let end = text.iter().take(200).position(|byte| *byte == b'\n');
        let line = end.and_then(|end| std::str::from_utf8(&text[..end]).ok());
        let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
        let ([TITLE, version, checksum], Some(end)) = (words.as_slice(), end) else {
            return Err(source.damaged("it does not begin as a manifest does"));
        };
        let json = &text[end + 1..];
        let Ok(version) = version.parse::<u32>() else {
            return Err(source.damaged("its version is not a number"));
        };
        if format!("{:016x}", xxh3_64(json)) != *checksum {
            return Err(source.damaged("its checksum does not match"));
        }
        if version > MANIFEST_VERSION {
            return Err(EngineError::Plan(format!(
                "{} is of version {version}, this program reads up to {MANIFEST_VERSION}; \
                 use the version of the program that wrote it, or a newer one",
                source.shown
            )));
        }
        let manifest: Manifest = serde_json::from_slice(json).map_err(|e| source.damaged(&e.to_string()))?;
        check(&manifest).map_err(|what| source.damaged(&what))?;
        Ok(manifest)
    }

    /// The newest checkpoint that can be restored as far as can be told without reading its files, and why newer ones cannot.
    ///
    /// # Errors
    /// When there are checkpoints and all are damaged: to begin without state is the user's decision. When the store fails, or a
    /// newer version of the program wrote the newest one.
    pub fn latest(&self) -> Result<Option<(Manifest, Vec<String>)>> {
        self.latest_before(u64::MAX)
    }

    /// The newest one with a smaller number than `before`, whose files turned out to be damaged. Otherwise like
    /// [`CheckpointStore::latest`].
    ///
    /// # Errors
    /// As for [`CheckpointStore::latest`].
    pub fn latest_before(&self, before: u64) -> Result<Option<(Manifest, Vec<String>)>> {
        let contents = self.contents("")?;
        let mut passed_over = Vec::new();
        for &checkpoint in contents.manifests.range(..before).rev() {
            let loaded = self.load(&checkpoint_folder(checkpoint)).and_then(|manifest| {
                contents.check(self, needed(&manifest))?;
                Ok(manifest)
            });
            match loaded {
                Ok(manifest) => return Ok(Some((manifest, passed_over))),
                Err(error) if is_damage(&error) => passed_over.push(format!("checkpoint {checkpoint}: {error}")),
                Err(error) => return Err(error),
            }
        }
        match passed_over.is_empty() {
            true => Ok(None),
            false => Err(EngineError::BadInput(format!(
                "no checkpoint in {} can be restored: {}; restore a savepoint, or remove the folder to begin without state",
                self.url,
                passed_over.join("; ")
            ))),
        }
    }
}

impl Contents {
    /// Whether all files are there with at least these lengths.
    pub(super) fn check(&self, store: &CheckpointStore, needed: BTreeMap<&str, u64>) -> Result<()> {
        for (file, length) in needed {
            match self.files.get(file) {
                Some(size) if *size >= length => {}
                Some(size) => {
                    let what = format!("it has {size} bytes and should have {length}");
                    return Err(store.source(file)?.damaged(&what));
                }
                None => return Err(store.source(file)?.damaged("it is missing")),
            }
        }
        Ok(())
    }
}

/// Who wrote a manifest, if that can be read.
pub(super) fn signature(text: &[u8]) -> Option<Signature> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    serde_json::from_slice(&text[end + 1..]).ok()
}

/// A file in a folder; the root is the folder without a name.
pub(super) fn join(folder: &str, file: &str) -> String {
    match folder {
        "" => file.to_string(),
        folder => format!("{folder}/{file}"),
    }
}

/// The parts that have frames.
pub(super) fn parts(manifest: &Manifest) -> impl Iterator<Item = &StoredPart> {
    let tables = manifest.operators.iter().flat_map(|operator| &operator.tables);
    let parts = tables.flat_map(|table| &table.runs).flat_map(|run| &run.parts);
    parts.filter(|part| part.rows + part.deleted > 0)
}

/// The files that a checkpoint needs, with how long they must be.
pub(super) fn needed(manifest: &Manifest) -> BTreeMap<&str, u64> {
    let mut files: BTreeMap<&str, u64> = BTreeMap::new();
    for part in parts(manifest) {
        let end = part.offset + part.length + part.deleted_length;
        let length = files.entry(&part.file).or_default();
        *length = end.max(*length);
    }
    files
}

/// What contradicts itself in a manifest.
fn check(manifest: &Manifest) -> std::result::Result<(), String> {
    for operator in &manifest.operators {
        for table in &operator.tables {
            let of = format!("table '{}' of operator '{}'", table.name, operator.id);
            if table.runs.first().is_some_and(|run| run.since.is_some()) {
                return Err(format!("{of} has changes and no whole run before them"));
            }
            for part in table.runs.iter().flat_map(|run| &run.parts) {
                check_part(part).map_err(|what| format!("a part of {of} {what}"))?;
            }
        }
    }
    Ok(())
}

fn check_part(part: &StoredPart) -> std::result::Result<(), String> {
    if part.subtask >= part.parallelism {
        return Err(format!("is of subtask {} of {}", part.subtask, part.parallelism));
    }
    let end = part.offset.checked_add(part.length);
    if end.and_then(|end| end.checked_add(part.deleted_length)).is_none() {
        return Err("ends after the end of any file".into());
    }
    if part.rows.checked_add(part.deleted).is_none() {
        return Err("has more rows than can be".into());
    }
    if part.rows + part.deleted > 0 && part.file.is_empty() {
        return Err("has rows and no file".into());
    }
    frame::schema_from_hex(&part.schema).map(drop)
}
