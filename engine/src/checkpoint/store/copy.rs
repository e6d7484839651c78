//! Copying a checkpoint: what comes of it is self-contained.

use std::collections::BTreeMap;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::PathPart;

use super::manifests::needed;
use super::{CheckpointStore, MANIFEST};
use crate::checkpoint::download::{Frames, Source};
use crate::checkpoint::frame::{ALIGNMENT, check_file_header, shared};
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::upload::store_error;
use crate::data::{EngineError, Result};

impl CheckpointStore {
    /// Copies every file that a checkpoint of this store refers to into `folder` of `target`, checking each frame, and gives the
    /// manifest that refers to the copies. It is not written: the caller says what it is and commits it.
    ///
    /// # Errors
    /// When a file is damaged or a store fails; what was copied stays for [`CheckpointStore::discard`].
    pub fn copy_into(&self, manifest: &Manifest, target: &CheckpointStore, folder: &str) -> Result<Manifest> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (number, (file, length)) in needed(manifest).into_iter().enumerate() {
            let copy = target.name_of_copy(folder, number, file)?;
            self.copy_file(file, length, target, &copy)?;
            names.insert(file.to_string(), copy);
        }
        let mut copied = manifest.clone();
        let tables = copied.operators.iter_mut().flat_map(|operator| &mut operator.tables);
        for part in tables.flat_map(|table| &mut table.runs).flat_map(|run| &mut run.parts) {
            part.file = names.get(&part.file).cloned().unwrap_or_default();
        }
        Ok(copied)
    }

    /// A name for the copy of a file: files of several folders come into one.
    fn name_of_copy(&self, folder: &str, number: usize, file: &str) -> Result<String> {
        let name = file.rsplit('/').next().unwrap_or(file);
        // A name that has been copied before does not grow.
        let name = name.split('.').next().unwrap_or(name);
        let name = format!("{name}.{}-copy-{number}", self.writer.mark);
        let location = self.location(folder)?.join(PathPart::from(name));
        self.relative(&location)
            .filter(|name| name != MANIFEST)
            .ok_or_else(|| EngineError::Internal(format!("{location} is not within {}", self.root)))
    }

    fn copy_file(&self, file: &str, length: u64, target: &CheckpointStore, copy: &str) -> Result<()> {
        let source = self.source(file)?;
        let header = self.file_header(&source)?;
        let mut upload = target.upload(copy)?;
        upload.push(header)?;
        let mut frames = Frames::new(source, ALIGNMENT as u64..length);
        while let Some(frame) = frames.next()? {
            let padding = frame.padded as usize - frame.payload.len();
            upload.push(shared(frame.header))?;
            upload.push(shared(frame.payload))?;
            upload.push(Bytes::from_static(&[0; ALIGNMENT]).slice(..padding))?;
        }
        upload.finish().map(drop)
    }

    fn file_header(&self, source: &Source) -> Result<Bytes> {
        let read = source.store.get_range(&source.location, 0..ALIGNMENT as u64);
        let header = match self.io.block_on(read) {
            Ok(header) => header,
            Err(object_store::Error::NotFound { .. }) => return Err(source.damaged("it is missing")),
            Err(error) => return Err(store_error(&source.shown, error)),
        };
        check_file_header(&header).map_err(|what| source.damaged(&what))?;
        Ok(header)
    }

    /// Reads all that a checkpoint consists of and checks it.
    ///
    /// # Errors
    /// When a file is damaged or the store fails.
    pub fn verify(&self, manifest: &Manifest) -> Result<()> {
        for part in super::manifests::parts(manifest) {
            for deleted in [false, true] {
                for batch in self.read(part, deleted)? {
                    batch?;
                }
            }
        }
        Ok(())
    }
}
