//! Made-up bytes, each a function of the seed, the row and its place: any row can be made again without the others.

/// A stream of numbers for each row.
#[derive(Clone, Copy)]
pub(crate) struct Noise {
    seed: u64,
}

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: mix(seed) }
    }

    /// The `place`-th number of `row`.
    pub(crate) fn word(self, row: u64, place: u64) -> u64 {
        mix(self
            .seed
            .wrapping_add(row.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_add(place.wrapping_mul(0xD1B5_4A32_D192_ED03)))
    }

    /// A number of `row` below `end`.
    pub(crate) fn below(self, row: u64, end: u64) -> u64 {
        ((u128::from(self.word(row, 0)) * u128::from(end)) >> 64) as u64
    }

    /// Fills `bytes` with the row's values from `first` to `first + count - 1`.
    pub(crate) fn fill(self, row: u64, bytes: &mut [u8], first: u8, count: u8) {
        for (place, chunk) in bytes.chunks_mut(4).enumerate() {
            let mut word = self.word(row, place as u64);
            for byte in chunk {
                *byte = first + (((word & 0xFFFF) * u64::from(count)) >> 16) as u8;
                word >>= 16;
            }
        }
    }

    /// The numbers 0 to `count - 1` in some order.
    pub(crate) fn permutation(self, count: usize) -> Vec<i64> {
        let mut numbers: Vec<i64> = (0..count as i64).collect();
        for last in (1..count).rev() {
            numbers.swap(last, self.below(last as u64, last as u64 + 1) as usize);
        }
        numbers
    }
}

/// The finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
