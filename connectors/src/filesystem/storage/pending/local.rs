//! Local files: they wait in a hidden folder inside the target, so that publishing is a link or a rename within one file
//! system.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use thalweg_engine::{EngineError, Result};

use super::{PendingFile, PendingStorage, staged_name, waiting_folder};
use crate::filesystem::storage::StagedFile;
use crate::filesystem::storage::local::{failed, make_folders, move_without_replacing};

/// See the module.
#[derive(Debug)]
pub(crate) struct LocalPending {
    /// Absolute: whoever publishes may have been started elsewhere.
    folder: PathBuf,
    folder_name: String,
    waiting: String,
    sync: bool,
}

impl LocalPending {
    pub(crate) fn try_new(folder: &Path, job: &str, sync: bool) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(|e| failed(folder, e))?;
        let folder_name = folder.to_str().map(str::to_string).ok_or_else(|| {
            EngineError::Plan(format!(
                "'{}' is not UTF-8, and a checkpoint could not name it; write to another folder",
                folder.display()
            ))
        })?;
        Ok(Self {
            folder,
            folder_name,
            waiting: waiting_folder(job),
            sync,
        })
    }

    fn publish_one(&self, file: &PendingFile, touched: &mut BTreeSet<PathBuf>) -> Result<()> {
        let folder = Path::new(&file.folder);
        let (staged, target) = (folder.join(&file.staged), folder.join(&file.name));
        match length(&staged)? {
            Some(length) if length != file.length => {
                return Err(file.damaged(&staged.display().to_string(), length));
            }
            Some(_) => {}
            None => {
                return match length(&target)? {
                    Some(_) => Ok(()),
                    None => Err(file.lost(&staged.display().to_string(), &target.display().to_string())),
                };
            }
        }
        if let Some(parent) = target.parent() {
            make_folders(parent, &mut Vec::new()).map_err(|e| failed(parent, e))?;
        }
        match move_without_replacing(&staged, &target) {
            Ok(()) => {}
            // Linked, and killed before the old name was removed.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_same(&staged, &target) => {
                fs::remove_file(&staged).map_err(|e| failed(&staged, e))?;
            }
            Err(e) => return Err(failed(&target, e)),
        }
        let between = target
            .ancestors()
            .skip(1)
            .take_while(|folder| folder.starts_with(&file.folder));
        touched.extend(between.map(Path::to_path_buf));
        self.remove_empty(folder, &staged);
        Ok(())
    }

    /// Removes the folders that nothing waits in any more.
    fn remove_empty(&self, folder: &Path, staged: &Path) {
        let inside = staged.ancestors().skip(1).take_while(|parent| *parent != folder);
        for parent in inside {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }

    fn sync(&self, folders: &BTreeSet<PathBuf>) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        for folder in folders {
            let synced = File::open(folder).and_then(|opened| opened.sync_all());
            match synced {
                // Emptied and removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // Some file systems have no such thing for folders.
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {}
                Err(e) => return Err(failed(folder, e)),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

impl PendingStorage for LocalPending {
    fn create(&self, name: &str) -> Result<Box<dyn StagedFile>> {
        let path = self.folder.join(staged_name(&self.waiting, name));
        let mut attempts = 0;
        loop {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
            }
            match File::create_new(&path) {
                Ok(file) => {
                    return Ok(Box::new(PendingLocalFile {
                        file: BufWriter::with_capacity(256 << 10, file),
                        sync: self.sync,
                    }));
                }
                // The last file that waited was published just now, and the folder went with it.
                Err(e) if e.kind() == io::ErrorKind::NotFound && attempts < 100 => attempts += 1,
                Err(e) => return Err(failed(&path, e)),
            }
        }
    }

    fn pending(&self, name: &str, length: u64) -> PendingFile {
        PendingFile::new(
            &self.folder_name,
            staged_name(&self.waiting, name),
            name.to_string(),
            length,
        )
    }

    fn seal(&self, files: &[PendingFile]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for file in files {
            let staged = self.folder.join(&file.staged);
            let above = staged
                .ancestors()
                .skip(1)
                .take_while(|folder| folder.starts_with(&self.folder));
            folders.extend(above.map(Path::to_path_buf));
        }
        // The folder itself may be new, too.
        folders.extend(
            self.folder
                .parent()
                .filter(|_| !files.is_empty())
                .map(Path::to_path_buf),
        );
        self.sync(&folders)
    }

    fn publish(&self, files: &[PendingFile]) -> Result<()> {
        let mut touched = BTreeSet::new();
        let outcome = files.iter().try_for_each(|file| self.publish_one(file, &mut touched));
        self.sync(&touched)?;
        outcome
    }

    fn recover(&self) -> Result<()> {
        let waiting = self.folder.join(&self.waiting);
        match fs::remove_dir_all(&waiting) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&waiting, e)),
            _ => Ok(()),
        }
    }
}

/// How long a file is; `None` when there is none.
fn length(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(path, e)),
    }
}

/// Whether two names are of one file.
#[cfg(unix)]
fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Whether two names are of one file: names are never used twice, so what has the length is it.
#[cfg(not(unix))]
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::metadata(a), fs::metadata(b)), (Ok(a), Ok(b)) if a.len() == b.len())
}

struct PendingLocalFile {
    file: BufWriter<File>,
    sync: bool,
}

impl Write for PendingLocalFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Keeps the buffer: writers flush after every batch, but only a complete file is ever read.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StagedFile for PendingLocalFile {
    fn complete(mut self: Box<Self>) -> io::Result<()> {
        self.file.flush()?;
        if self.sync {
            self.file.get_ref().sync_data()?;
        }
        Ok(())
    }
}
