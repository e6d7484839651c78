//! What the group table needs of a fixed-width value: a canonical form, bits, a hash.

use arrow::datatypes::{IntervalDayTime, IntervalMonthDayNano, i256};
use half::f16;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
const SEED: u64 = 0x243F_6A88_85A3_08D3;

/// The hash of a NULL, before it is combined.
pub(super) const NULL_HASH: u64 = 0xA409_3822_299F_31D0;

/// Folded multiplication: the two halves of the 128-bit product, each hiding the other's weak bits.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hashes one word. Not the hash that exchanges use: within one subtask the leading bits of that one are all alike.
#[inline]
pub(super) fn hash_word(word: u64) -> u64 {
    fold(word ^ SEED, MULTIPLIER)
}

/// Adds a column's hash to that of the columns before it.
#[inline]
pub(super) fn combine(seed: u64, hash: u64) -> u64 {
    fold(seed.rotate_left(29) ^ hash, MULTIPLIER)
}

/// A fixed-width native value of Arrow.
pub(super) trait KeyValue: Copy + Default + PartialEq + Send + 'static {
    /// Width in bits.
    const BITS: u32;
    /// The one value that stands for all equal ones: SQL's NaNs are one value, and so are the zeros. `==` on canonical
    /// values is equality of keys, except for NaN; `bits` is equality for all.
    #[inline]
    fn canonical(self) -> Self {
        self
    }
    /// The bits (the low 128 of a wider value).
    fn bits(self) -> u128;
    /// From `bits`, for values of at most 128.
    fn from_bits(bits: u128) -> Self;
    /// Whether two canonical values are the same key.
    #[inline]
    fn same(self, other: Self) -> bool {
        self == other
    }
    /// A hash of the canonical value.
    #[inline]
    fn hash(self) -> u64 {
        let bits = self.bits();
        if Self::BITS <= 64 {
            hash_word(bits as u64)
        } else {
            combine(hash_word(bits as u64), (bits >> 64) as u64)
        }
    }
}

macro_rules! integer_key {
    ($($native:ty => $unsigned:ty),*) => {$(
        impl KeyValue for $native {
            const BITS: u32 = <$native>::BITS;
            #[inline]
            fn bits(self) -> u128 {
                self as $unsigned as u128
            }
            #[inline]
            fn from_bits(bits: u128) -> Self {
                bits as Self
            }
        }
    )*};
}
integer_key!(i8 => u8, i16 => u16, i32 => u32, i64 => u64, i128 => u128, u8 => u8, u16 => u16, u32 => u32, u64 => u64);

macro_rules! float_key {
    ($($native:ty => $unsigned:ty),*) => {$(
        impl KeyValue for $native {
            const BITS: u32 = <$unsigned>::BITS;
            #[inline]
            fn canonical(self) -> Self {
                if self.is_nan() {
                    <$native>::NAN
                } else if self == <$native as Default>::default() {
                    <$native as Default>::default()
                } else {
                    self
                }
            }
            #[inline]
            fn bits(self) -> u128 {
                u128::from(self.to_bits())
            }
            #[inline]
            fn from_bits(bits: u128) -> Self {
                <$native>::from_bits(bits as $unsigned)
            }
            #[inline]
            fn same(self, other: Self) -> bool {
                self.to_bits() == other.to_bits()
            }
        }
    )*};
}
float_key!(f16 => u16, f32 => u32, f64 => u64);

impl KeyValue for i256 {
    const BITS: u32 = 256;
    #[inline]
    fn bits(self) -> u128 {
        self.to_parts().0
    }
    #[inline]
    fn from_bits(bits: u128) -> Self {
        i256::from_parts(bits, 0)
    }
    #[inline]
    fn hash(self) -> u64 {
        let (low, high) = self.to_parts();
        combine(low.hash_wide(), high.cast_unsigned().hash_wide())
    }
}

trait HashWide {
    fn hash_wide(self) -> u64;
}

impl HashWide for u128 {
    #[inline]
    fn hash_wide(self) -> u64 {
        combine(hash_word(self as u64), (self >> 64) as u64)
    }
}

impl KeyValue for IntervalDayTime {
    const BITS: u32 = 64;
    #[inline]
    fn bits(self) -> u128 {
        (self.days.bits() << 32) | self.milliseconds.bits()
    }
    #[inline]
    fn from_bits(bits: u128) -> Self {
        Self {
            days: (bits >> 32) as i32,
            milliseconds: bits as i32,
        }
    }
}

impl KeyValue for IntervalMonthDayNano {
    const BITS: u32 = 128;
    #[inline]
    fn bits(self) -> u128 {
        (self.months.bits() << 96) | (self.days.bits() << 64) | self.nanoseconds.bits()
    }
    #[inline]
    fn from_bits(bits: u128) -> Self {
        Self {
            months: (bits >> 96) as i32,
            days: (bits >> 64) as i32,
            nanoseconds: bits as i64,
        }
    }
}
