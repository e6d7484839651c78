//! [`Log`]: what a source that cannot be read again has said, frame by frame, on a local disk.
//!
//! A frame is written before anything of it is handed on, and is numbered; a checkpoint holds the number of the last frame
//! before its barrier. After a failure the frames after that one are read again, and then the source goes on. The log is
//! cut into segments, each a file named after its first frame, so that what lies before a complete checkpoint can go.
//!
//! A process that is killed leaves at most a part of its last frame, of which nothing was handed on: it is cut off. Anything
//! else that does not fit is damage and an error. What has been written outlives the process, not the machine: it is
//! handed to the system, and the system is not told to wait for the disk.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::data::{EngineError, Result};

const MAGIC: [u8; 4] = *b"TWL1";
/// Magic, kind, number, length, hash of the payload, hash of all that.
const HEADER_BYTES: usize = 4 + 1 + 8 + 8 + 8 + 8;
const HASHED_BYTES: usize = HEADER_BYTES - 8;
/// A segment that has grown so large is closed.
const SEGMENT_BYTES: u64 = 16 << 20;
const EXTENSION: &str = "wal";

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Rows.
    Rows,
    /// The source has ended: nothing follows.
    End,
}

/// A frame that was read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From 1, without gaps.
    pub number: u64,
    /// What it is.
    pub kind: FrameKind,
    /// What was written.
    pub payload: Vec<u8>,
}

/// A log that is open for writing; nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    /// The numbers of the segments' first frames.
    segments: VecDeque<u64>,
    /// The last segment, and its size.
    file: Option<(File, u64)>,
    next: u64,
    segment_bytes: u64,
    scratch: Vec<u8>,
    _lock: File,
}

impl Log {
    /// Opens the log in `directory`, which is made when it is missing.
    ///
    /// # Errors
    /// When it is open already, is damaged, or cannot be read or written.
    pub fn open(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|e| io(directory, e))?;
        let lock = locked(directory)?;
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(|e| io(directory, e))? {
            let path = entry.map_err(|e| io(directory, e))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                let first = path.file_stem().and_then(|name| name.to_str()?.parse::<u64>().ok());
                segments.push(first.ok_or_else(|| damaged(&path, "has a name that is no number".into()))?);
            }
        }
        segments.sort_unstable();
        let mut log = Self {
            directory: directory.to_path_buf(),
            next: segments.last().copied().unwrap_or(1),
            segments: segments.into(),
            file: None,
            segment_bytes: SEGMENT_BYTES,
            scratch: Vec::new(),
            _lock: lock,
        };
        log.cut_torn_end()?;
        Ok(log)
    }

    #[cfg(test)]
    fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// The number of the first frame that is still there; of the next one when there is none.
    pub fn first(&self) -> u64 {
        self.segments.front().copied().unwrap_or(self.next)
    }

    /// The number of the frame that will be written next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Cuts off what a killed process has left of its last frame.
    fn cut_torn_end(&mut self) -> Result<()> {
        let Some(last) = self.segments.back().copied() else {
            return Ok(());
        };
        let path = self.path(last);
        let mut segment = Segment::open(path.clone(), last)?;
        while segment.skip()? {
            self.next += 1;
        }
        if segment.at < segment.size {
            tracing::info!(
                path = %path.display(),
                bytes = segment.size - segment.at,
                "cut the end of a log that a killed process left"
            );
            let file = OpenOptions::new().write(true).open(&path).map_err(|e| io(&path, e))?;
            file.set_len(segment.at).map_err(|e| io(&path, e))?;
        }
        Ok(())
    }

    /// The frames after frame `after`, up to the last that has been written.
    ///
    /// # Errors
    /// When some of them are gone.
    pub fn replay(&self, after: u64) -> Result<Replay> {
        if after + 1 < self.first() || after + 1 > self.next {
            return Err(EngineError::BadInput(format!(
                "the log in {} has the frames {} to {}, and the checkpoint was taken after frame {after}: start from another \
                 checkpoint, or without the state of this source and without that directory",
                self.directory.display(),
                self.first(),
                self.next - 1,
            )));
        }
        // The last segment that begins at or before the first frame that is wanted.
        let wanted = self.segments.iter().rposition(|first| *first <= after + 1).unwrap_or(0);
        let segments = self.segments.range(wanted.min(self.segments.len())..);
        Ok(Replay {
            segments: segments.map(|first| (*first, self.path(*first))).collect(),
            current: None,
            after,
            end: self.next,
        })
    }

    /// Writes a frame; its number.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, kind: FrameKind, payload: &[u8]) -> Result<u64> {
        let number = self.next;
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.extend_from_slice(&MAGIC);
        frame.push(match kind {
            FrameKind::Rows => 0,
            FrameKind::End => 1,
        });
        frame.extend_from_slice(&number.to_le_bytes());
        frame.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        frame.extend_from_slice(&xxh3_64(payload).to_le_bytes());
        let hash = xxh3_64(&frame);
        frame.extend_from_slice(&hash.to_le_bytes());
        frame.extend_from_slice(payload);
        let directory = self.directory.clone();
        let (file, size) = self.writable()?;
        let at = *size;
        if let Err(error) = file.write_all(&frame) {
            // A part of it may be there: a frame after it would make that look like damage.
            let _ = file.set_len(at);
            return Err(io(&directory, error));
        }
        *size += frame.len() as u64;
        self.next += 1;
        self.scratch = frame;
        Ok(number)
    }

    /// The segment to write to.
    fn writable(&mut self) -> Result<&mut (File, u64)> {
        let is_full = self.file.as_ref().is_some_and(|(_, size)| *size >= self.segment_bytes);
        if is_full || self.file.is_none() {
            self.begin_segment()?;
        }
        self.file
            .as_mut()
            .ok_or_else(|| EngineError::Internal("a log has no segment".into()))
    }

    fn begin_segment(&mut self) -> Result<()> {
        // A last segment without frames has the number of the new one, and is used.
        let path = self.path(self.next);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| io(&path, e))?;
        let size = file.metadata().map_err(|e| io(&path, e))?.len();
        if self.segments.back() != Some(&self.next) {
            self.segments.push_back(self.next);
        }
        self.file = Some((file, size));
        Ok(())
    }

    /// Frames up to `upto` will not be read again: removes the segments that have no others.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn release(&mut self, upto: u64) -> Result<()> {
        let all = upto + 1 >= self.next;
        if all && self.file.as_ref().is_some_and(|(_, size)| *size > 0) {
            self.begin_segment()?;
        }
        while let (Some(first), Some(second)) = (self.segments.front().copied(), self.segments.get(1).copied()) {
            if second > upto + 1 {
                break;
            }
            let path = self.path(first);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(&path, e)),
                _ => self.segments.pop_front(),
            };
        }
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        self.directory.join(format!("{first:020}.{EXTENSION}"))
    }
}

/// The frames of a log from one on.
#[derive(Debug)]
pub struct Replay {
    segments: VecDeque<(u64, PathBuf)>,
    current: Option<Segment>,
    after: u64,
    end: u64,
}

impl Replay {
    fn read(&mut self) -> Result<Option<Frame>> {
        while self.after + 1 < self.end {
            let Some(segment) = &mut self.current else {
                let Some((first, path)) = self.segments.pop_front() else {
                    return Err(EngineError::BadInput(format!(
                        "the log of a source ends after frame {}, and {} were written: files have gone; start from another \
                         checkpoint, or without the state of this source",
                        self.after,
                        self.end - 1
                    )));
                };
                if first > self.after + 1 {
                    let lost = format!("begins at frame {first}, and frame {} is gone", self.after + 1);
                    return Err(damaged(&path, lost));
                }
                self.current = Some(Segment::open(path, first)?);
                continue;
            };
            let Some(frame) = segment.read()? else {
                if segment.at < segment.size {
                    return Err(damaged(
                        &segment.path,
                        format!("ends in the middle of frame {}", segment.next),
                    ));
                }
                self.current = None;
                continue;
            };
            if frame.number > self.after {
                self.after = frame.number;
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

impl Iterator for Replay {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// A segment being read.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    /// Where the next frame begins.
    at: u64,
    next: u64,
}

struct Header {
    kind: FrameKind,
    length: u64,
    hash: u64,
}

impl Segment {
    fn open(path: PathBuf, first: u64) -> Result<Self> {
        let file = File::open(&path).map_err(|e| io(&path, e))?;
        let size = file.metadata().map_err(|e| io(&path, e))?.len();
        Ok(Self {
            path,
            file: BufReader::new(file),
            size,
            at: 0,
            next: first,
        })
    }

    /// The header of the next frame; `None` when that is not whole, or there is none.
    fn header(&mut self) -> Result<Option<Header>> {
        let left = self.size - self.at;
        if left < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact(&mut bytes).map_err(|e| io(&self.path, e))?;
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let wrong = |what: &str| damaged(&self.path, format!("has a frame at byte {} {what}", self.at));
        if number(HASHED_BYTES) != xxh3_64(&bytes[..HASHED_BYTES]) || bytes[..4] != MAGIC {
            return Err(wrong("whose header is not what was written"));
        }
        if number(5) != self.next {
            return Err(wrong(&format!("with number {}, and {} was due", number(5), self.next)));
        }
        let kind = match bytes[4] {
            0 => FrameKind::Rows,
            1 => FrameKind::End,
            _ => return Err(wrong("of a kind that this version does not know")),
        };
        let header = Header {
            kind,
            length: number(13),
            hash: number(21),
        };
        Ok((header.length <= left - HEADER_BYTES as u64).then_some(header))
    }

    fn pass(&mut self, header: &Header) {
        self.at += HEADER_BYTES as u64 + header.length;
        self.next += 1;
    }

    /// Passes over the next frame; whether there was a whole one.
    fn skip(&mut self) -> Result<bool> {
        let Some(header) = self.header()? else {
            return Ok(false);
        };
        self.pass(&header);
        self.file
            .seek(SeekFrom::Start(self.at))
            .map_err(|e| io(&self.path, e))?;
        Ok(true)
    }

    fn read(&mut self) -> Result<Option<Frame>> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        // No longer than the file, as has been seen.
        let mut payload = vec![0; header.length as usize];
        self.file.read_exact(&mut payload).map_err(|e| io(&self.path, e))?;
        if xxh3_64(&payload) != header.hash {
            return Err(damaged(
                &self.path,
                format!("has a frame at byte {} that is not what was written", self.at),
            ));
        }
        let number = self.next;
        self.pass(&header);
        Ok(Some(Frame {
            number,
            kind: header.kind,
            payload,
        }))
    }
}

fn locked(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| io(&path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(EngineError::Plan(format!(
            "the log in {} is in use by another run of the job; end that first",
            directory.display()
        ))),
        Err(std::fs::TryLockError::Error(e)) => Err(io(&path, e)),
    }
}

fn io(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io {
        path: path.display().to_string(),
        source,
    }
}

fn damaged(path: &Path, what: String) -> EngineError {
    EngineError::BadInput(format!(
        "the log {} {what}: it is damaged; start from a checkpoint that does not need it, or without the state of this \
         source and without that directory",
        path.display()
    ))
}
