//! Which words the build side has: a bitmap over a dense range of integers, or a Bloom filter.
//!
//! Several subtasks put words in at once; whoever looks does so after all have finished.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A Bloom filter gets at least so many bits per key where memory allows: about one stranger in thirty passes.
const BITS_PER_KEY: usize = 12;
/// With fewer bits per key than this, so many strangers pass that looking is not worth the while.
const LEAST_BITS_PER_KEY: usize = 5;
/// The least size of either, in bytes.
const LEAST_BYTES: usize = 64;

/// A set of words that may contain a few more than were put in, never fewer.
#[derive(Debug)]
pub(super) enum Members {
    /// One bit per word of a range.
    Bitmap(Bitmap),
    /// All bits of a word lie in one machine word: one access per look.
    Bloom(Bloom),
}

/// How to make [`Members`] for so many words of a range, in so many bytes at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// About how many words there will be.
    pub(super) keys: u64,
    /// Least and greatest of them, if they have a meaning as numbers.
    pub(super) domain: Option<(i64, i64)>,
    /// The most bytes.
    pub(super) most_bytes: usize,
}

impl Plan {
    /// Bytes of a bitmap, if that is no larger than a Bloom filter.
    fn bitmap_bytes(&self) -> Option<usize> {
        let (least, greatest) = self.domain?;
        let span = greatest
            .checked_sub(least)
            .and_then(|span| usize::try_from(span).ok())?;
        let bytes = span / 8 + 8;
        (bytes <= self.bloom_bytes().max(4096).min(self.most_bytes)).then_some(bytes)
    }

    fn bloom_bytes(&self) -> usize {
        let keys = usize::try_from(self.keys).unwrap_or(usize::MAX);
        let wanted = (keys.saturating_mul(BITS_PER_KEY) / 8).max(LEAST_BYTES);
        let most = (self.most_bytes + 1).next_power_of_two() / 2;
        // Rounding down may leave eight bits per key, which is still worth it.
        wanted.checked_next_power_of_two().map_or(most, |bytes| bytes.min(most))
    }

    /// What the members will take.
    pub(super) fn bytes(&self) -> usize {
        self.bitmap_bytes().unwrap_or_else(|| self.bloom_bytes())
    }

    /// Whether there is a filter worth making within the bytes.
    pub(super) fn is_possible(&self) -> bool {
        let bits = (self.bloom_bytes() as u64).saturating_mul(8);
        self.bitmap_bytes().is_some()
            || (self.most_bytes >= LEAST_BYTES && bits / (LEAST_BITS_PER_KEY as u64) >= self.keys)
    }

    pub(super) fn make(&self) -> Members {
        match (self.bitmap_bytes(), self.domain) {
            (Some(bytes), Some((least, _))) => Members::Bitmap(Bitmap {
                least,
                bits: zeros(bytes.div_ceil(8)),
                strays: AtomicBool::new(false),
            }),
            _ => Members::Bloom(Bloom::with_bytes(self.bloom_bytes())),
        }
    }
}

fn zeros(words: usize) -> Box<[AtomicU64]> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

/// Sets bits that are not set yet: looking first spares the locked write for keys that come again.
#[inline]
fn set(word: &AtomicU64, mask: u64) {
    if word.load(Ordering::Relaxed) & mask != mask {
        word.fetch_or(mask, Ordering::Relaxed);
    }
}

impl Members {
    /// Puts words in.
    pub(super) fn insert(&self, words: &[i64]) {
        match self {
            Members::Bitmap(bitmap) => words.iter().for_each(|word| bitmap.insert(*word)),
            Members::Bloom(bloom) => words.iter().for_each(|word| bloom.insert(*word)),
        }
    }

    /// Whether `keys` words, of which some may be equal, are too many for a look to be worth it.
    pub(super) fn is_crowded(&self, keys: u64) -> bool {
        let Members::Bloom(bloom) = self else { return false };
        // Equal words take no room: what counts in the end is how many bits are set.
        let room = bloom.words.len() as u64 * 64;
        keys > room / LEAST_BITS_PER_KEY as u64 && bloom.ones() * 5 > room * 3
    }
}

/// One bit per word of a range.
#[derive(Debug)]
pub(super) struct Bitmap {
    least: i64,
    bits: Box<[AtomicU64]>,
    /// Whether a word outside the range came in: then nothing outside is known to be absent.
    strays: AtomicBool,
}

impl Bitmap {
    #[inline]
    fn place(&self, word: i64) -> Option<(&AtomicU64, u64)> {
        let offset = word.wrapping_sub(self.least) as u64;
        let cell = self.bits.get(usize::try_from(offset / 64).ok()?)?;
        Some((cell, 1 << (offset % 64)))
    }

    fn insert(&self, word: i64) {
        match self.place(word) {
            Some((cell, mask)) => set(cell, mask),
            None => self.strays.store(true, Ordering::Relaxed),
        }
    }

    #[inline]
    pub(super) fn contains(&self, word: i64) -> bool {
        match self.place(word) {
            Some((cell, mask)) => cell.load(Ordering::Relaxed) & mask != 0,
            None => self.strays.load(Ordering::Relaxed),
        }
    }
}

/// A Bloom filter whose bits for one key lie in one machine word.
#[derive(Debug)]
pub(super) struct Bloom {
    words: Box<[AtomicU64]>,
    /// Brings the top bits of a hash down to an index.
    shift: u32,
}

impl Bloom {
    /// `bytes` is a power of two, at least eight.
    fn with_bytes(bytes: usize) -> Self {
        let words = zeros((bytes / 8).max(2));
        let shift = 64 - words.len().trailing_zeros();
        Self { words, shift }
    }

    /// The machine word, and the four bits in it.
    #[inline]
    fn place(&self, word: i64) -> (&AtomicU64, u64) {
        let mut hash = (word as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ (hash >> 32)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        // The index takes the top bits, at most 19 of them (4 MB); the middle bits, well mixed too, choose the four.
        let bits = hash >> 20;
        let mask = (1 << (bits & 63)) | (1 << (bits >> 6 & 63)) | (1 << (bits >> 12 & 63)) | (1 << (bits >> 18 & 63));
        (&self.words[(hash >> self.shift) as usize], mask)
    }

    fn insert(&self, word: i64) {
        let (cell, mask) = self.place(word);
        set(cell, mask);
    }

    #[inline]
    pub(super) fn contains(&self, word: i64) -> bool {
        let (cell, mask) = self.place(word);
        cell.load(Ordering::Relaxed) & mask == mask
    }

    fn ones(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum()
    }
}
