//! [`Progress`]: how far a source has come that reads files one after the other.

use std::collections::HashSet;

use object_store::path::Path;
use thalweg_engine::{EngineError, Result};
use xxhash_rust::xxh3::xxh3_128;

/// The version of the bytes.
const VERSION: u8 = 1;

/// Which files have been read to their end, and how far the current one is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Hashes of the paths of files that have been read, 16 bytes each: the position of each batch has all of them.
    done: Vec<u8>,
    /// The file that is being read.
    pub(super) current: Option<FileProgress>,
}

/// How far a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileProgress {
    pub(super) path: Path,
    /// Records that need not be looked at again.
    pub(super) records: u64,
    /// Rows that have been given of what follows these records.
    pub(super) rows: u64,
}

impl Progress {
    /// Notes that a file has been read to its end.
    pub(super) fn finish(&mut self, path: &Path) {
        self.done.extend_from_slice(&hash(path).to_le_bytes());
        self.current = None;
    }

    /// The hashes of the paths of files that have been read or are being read.
    pub(super) fn seen(&self) -> HashSet<u128> {
        let done = self.done.chunks_exact(16).map(|bytes| {
            let mut hash = [0; 16];
            hash.copy_from_slice(bytes);
            u128::from_le_bytes(hash)
        });
        done.chain(self.current.iter().map(|file| hash(&file.path))).collect()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let path = self.current.as_ref().map_or("", |file| file.path.as_ref());
        let mut bytes = Vec::with_capacity(1 + 8 + self.done.len() + 1 + 24 + path.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&((self.done.len() / 16) as u64).to_le_bytes());
        bytes.extend_from_slice(&self.done);
        bytes.push(u8::from(self.current.is_some()));
        if let Some(file) = &self.current {
            bytes.extend_from_slice(&file.records.to_le_bytes());
            bytes.extend_from_slice(&file.rows.to_le_bytes());
            bytes.extend_from_slice(&(path.len() as u64).to_le_bytes());
            bytes.extend_from_slice(path.as_bytes());
        }
        bytes
    }

    /// Reads what [`Self::encode`] wrote; nothing has been read without a position.
    pub(super) fn decode(position: Option<&[u8]>, split: &str) -> Result<Self> {
        let Some(bytes) = position else {
            return Ok(Self::default());
        };
        parse(bytes).ok_or_else(|| {
            EngineError::Plan(format!(
                "the position of split '{split}' is of another kind of source; start without the state of this source, or \
                 read the source that it was taken of"
            ))
        })
    }
}

/// What stands for a path.
pub(super) fn hash(path: &Path) -> u128 {
    xxh3_128(path.as_ref().as_bytes())
}

fn parse(bytes: &[u8]) -> Option<Progress> {
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    let (version, rest) = bytes.split_first()?;
    let (count, rest) = rest.split_at_checked(8)?;
    let done = usize::try_from(number(count)?).ok()?.checked_mul(16)?;
    let (done, rest) = rest.split_at_checked(done)?;
    let (has_current, rest) = rest.split_first()?;
    let current = match has_current {
        0 => rest.is_empty().then_some(None)?,
        1 => {
            let (records, rest) = rest.split_at_checked(8)?;
            let (rows, rest) = rest.split_at_checked(8)?;
            let (length, path) = rest.split_at_checked(8)?;
            if number(length)? != path.len() as u64 {
                return None;
            }
            Some(FileProgress {
                path: Path::parse(std::str::from_utf8(path).ok()?).ok()?,
                records: number(records)?,
                rows: number(rows)?,
            })
        }
        _ => return None,
    };
    (*version == VERSION).then(|| Progress {
        done: done.to_vec(),
        current,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_others_are_refused() {
        let mut progress = Progress::default();
        for step in 0..6 {
            let bytes = progress.encode();
            assert_eq!(Progress::decode(Some(&bytes), "s").unwrap(), progress);
            for length in 0..bytes.len() {
                assert!(
                    Progress::decode(Some(&bytes[..length]), "s").is_err(),
                    "cut at {length}"
                );
            }
            let path = Path::from(format!("a folder/{step}"));
            match step % 2 {
                0 => {
                    progress.current = Some(FileProgress {
                        path: path.clone(),
                        records: step,
                        rows: 1000 - step,
                    });
                    assert!(progress.seen().contains(&hash(&path)));
                }
                _ => progress.finish(&path),
            }
        }
        assert_eq!(progress.seen().len(), 3);
        assert!(progress.seen().contains(&hash(&Path::from("a folder/3"))));
        assert_eq!(Progress::decode(None, "s").unwrap(), Progress::default());
        let error = Progress::decode(Some(&[0; 8]), "split s").unwrap_err().to_string();
        assert!(error.contains("'split s' is of another kind"), "{error}");
    }
}
