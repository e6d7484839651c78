//! The strings of the peers' harness, which is written in Java: the same generator gives the same strings.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, StringViewArray};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};

const MULTIPLIER: u64 = 0x5_DEEC_E66D;
const MASK: u64 = (1 << 48) - 1;

/// `java.util.Random`, as its documentation defines it.
#[derive(Debug)]
pub(crate) struct JavaRandom(u64);

impl JavaRandom {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed ^ MULTIPLIER) & MASK)
    }

    fn bits(&mut self, bits: u32) -> i32 {
        self.0 = self.0.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        (self.0 >> (48 - bits)) as i32
    }

    /// From 0 to `bound - 1`; `bound` is no power of two.
    pub(crate) fn next_int(&mut self, bound: i32) -> i32 {
        loop {
            let bits = self.bits(31);
            let value = bits % bound;
            // The last, incomplete stretch of the range would favour small values.
            if bits.wrapping_sub(value).wrapping_add(bound - 1) >= 0 {
                return value;
            }
        }
    }

    #[cfg(feature = "ysb")]
    pub(crate) fn next_long(&mut self) -> u64 {
        let high = (self.bits(32) as u64) << 32;
        high.wrapping_add(self.bits(32) as i64 as u64)
    }
}

/// Strings to choose from. A column of them is views into one buffer: no byte of a string is copied.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    strings: StringViewArray,
    buffers: Arc<[Buffer]>,
}

impl Pool {
    pub(crate) fn new<S: AsRef<str>>(strings: impl IntoIterator<Item = S>) -> Self {
        // By way of offsets, which makes it a single buffer.
        let strings = StringViewArray::from(&StringArray::from_iter_values(strings));
        let buffers = strings.data_buffers().to_vec().into();
        Self { strings, buffers }
    }

    /// `count` strings of `prefix` and then `letters` random small letters.
    pub(crate) fn random(prefix: &str, letters: usize, count: usize, seed: u64) -> Self {
        let mut random = JavaRandom::new(seed);
        let string = |_| {
            let letters = (0..letters).map(|_| char::from(b'a' + random.next_int(26) as u8));
            prefix.chars().chain(letters).collect::<String>()
        };
        Self::new((0..count).map(string).collect::<Vec<_>>())
    }

    /// The views, one a string; a column chooses among them.
    pub(crate) fn views(&self) -> &[u128] {
        self.strings.views()
    }

    /// A string.
    #[cfg(feature = "ysb")]
    pub(crate) fn get(&self, index: usize) -> &str {
        self.strings.value(index)
    }

    /// A column of views that were taken from [`Self::views`] of this pool, or are 0, the empty string.
    pub(crate) fn column(&self, views: ScalarBuffer<u128>, nulls: Option<NullBuffer>) -> ArrayRef {
        // SAFETY: views of this pool's strings point into `buffers`, which are theirs, in the same order; 0 is the
        // inline view of the empty string. To check each view again would cost more than to make the column.
        Arc::new(unsafe { StringViewArray::new_unchecked(views, Arc::clone(&self.buffers), nulls) })
    }
}
