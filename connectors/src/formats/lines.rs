//! A stream of bytes cut into lines.

use memchr::{memchr_iter, memrchr};

/// Bytes of which the last line may not be complete.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no bytes are held.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The complete lines, without their ends (`\n` or `\r\n`).
    pub fn complete(&self) -> Vec<&[u8]> {
        let mut start = 0;
        let lines = memchr_iter(b'\n', &self.bytes).map(|end| {
            let line = &self.bytes[start..end];
            start = end + 1;
            line.strip_suffix(b"\r").unwrap_or(line)
        });
        lines.collect()
    }

    /// Drops the complete lines.
    pub fn consume(&mut self) {
        if let Some(last) = memrchr(b'\n', &self.bytes) {
            self.bytes.drain(..=last);
        }
    }

    /// All lines, with a last one that has no end: for the end of the stream.
    pub fn all(&self) -> Vec<&[u8]> {
        let mut lines = self.complete();
        let rest = memrchr(b'\n', &self.bytes).map_or(0, |last| last + 1);
        if rest < self.bytes.len() {
            let line = &self.bytes[rest..];
            lines.push(line.strip_suffix(b"\r").unwrap_or(line));
        }
        lines
    }
}
