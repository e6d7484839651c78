//! Generated relations: any row can be computed from its number, so a source need not keep rows, and a model can look at
//! the same rows without the engine.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::digest::{NULL, image, text_image};

/// How the keys are distributed and how wide the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Keys at random, a few NULL.
    Uniform,
    /// Half of all rows have one key.
    HotKey,
    /// All rows have one key.
    AllEqual,
    /// Rows come in the order of their keys.
    Sorted,
    /// A payload of 1 MB in each row.
    WideRows,
    /// Keys are texts of 1 MB that differ at the end.
    WideKeys,
    /// 200 columns of numbers.
    ManyColumns,
    /// Keys and values are all NULL.
    AllNull,
}

impl Shape {
    pub(crate) const ALL: [Shape; 8] = [
        Shape::Uniform,
        Shape::HotKey,
        Shape::AllEqual,
        Shape::Sorted,
        Shape::WideRows,
        Shape::WideKeys,
        Shape::ManyColumns,
        Shape::AllNull,
    ];

    /// Views and offsets are different code in the operators: each is used by some shapes.
    fn text_type(self) -> DataType {
        match self {
            Shape::Uniform | Shape::HotKey | Shape::WideRows => DataType::Utf8View,
            _ => DataType::Utf8,
        }
    }
}

/// Whose keys: those of the large side repeat as the shape says, those of the other side come once or twice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    AsShaped,
    OnceOrTwice,
}

/// The key of half of the rows, or all. It comes once among [`Keys::OnceOrTwice`].
const HOT: i64 = 3;
const WIDE_BYTES: usize = 1 << 20;
/// The columns of [`Shape::ManyColumns`].
pub(crate) const MANY: usize = 200;
const NARROW_BYTES: u64 = 24;
/// A batch has at most this many bytes, or one row.
const BATCH_BYTES: u64 = 256 << 10;
const BATCH_ROWS: u64 = 4096;

/// A relation `(id, k, v, p)`, or with `c0 .. c199` instead of `p`.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    pub(crate) shape: Shape,
    pub(crate) keys: Keys,
    pub(crate) seed: u64,
    pub(crate) rows: u64,
    /// Keys of [`Keys::AsShaped`] are below this.
    pub(crate) domain: u64,
    /// The bytes of a payload, on average; not for wide rows and many columns.
    pub(crate) payload_bytes: u64,
    /// The number of the first payload: relations whose numbers overlap have payloads in common.
    pub(crate) first_text: u64,
}

/// What is different from row to row; the payload is a function of `text`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) k: Option<i64>,
    pub(crate) v: Option<i64>,
    pub(crate) text: u64,
}

/// SplitMix64.
pub(crate) fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Text to cut payloads from.
fn noise() -> &'static str {
    static NOISE: OnceLock<String> = OnceLock::new();
    NOISE.get_or_init(|| {
        let word = |i| format!("{:016x}", scramble(i));
        (0..(2 * WIDE_BYTES as u64) / 16).map(word).collect()
    })
}

/// Makes what relations share, so that no test has it on its account.
pub(crate) fn prepare() {
    noise();
}

impl Relation {
    pub(crate) fn row(&self, number: u64) -> Row {
        let chance = scramble(self.seed ^ scramble(number));
        let distinct_texts = self.rows.div_ceil(2).max(1);
        let v = ((chance >> 40) % 1000) as i64;
        Row {
            id: number as i64,
            k: self.key(number, chance),
            v: (!(chance >> 32).is_multiple_of(17) && self.shape != Shape::AllNull).then_some(v),
            text: self.first_text + number % distinct_texts,
        }
    }

    fn key(&self, number: u64, chance: u64) -> Option<i64> {
        if self.shape == Shape::AllNull {
            return None;
        }
        if self.keys == Keys::OnceOrTwice {
            let place = match self.shape {
                Shape::Sorted => number,
                _ => self.permuted(number),
            };
            let key = (place * 2 / 3) as i64;
            return (key % 37 != 36).then_some(key);
        }
        let any = (chance % self.domain) as i64;
        match self.shape {
            Shape::AllEqual => Some(HOT),
            Shape::HotKey if chance >> 63 == 0 => Some(HOT),
            Shape::Sorted => Some((number as u128 * self.domain as u128 / self.rows as u128) as i64),
            _ => (!(chance >> 24).is_multiple_of(32)).then_some(any),
        }
    }

    /// Another place for each row, all different.
    fn permuted(&self, number: u64) -> u64 {
        const PRIME: u64 = 1_000_003;
        let is_coprime = !self.rows.is_multiple_of(PRIME);
        if is_coprime {
            (number * PRIME + self.seed % self.rows) % self.rows
        } else {
            number
        }
    }

    pub(crate) fn all_rows(&self) -> Vec<Row> {
        (0..self.rows).map(|number| self.row(number)).collect()
    }

    /// The columns of the payload.
    pub(crate) fn payload_columns(&self) -> Vec<String> {
        match self.shape {
            Shape::ManyColumns => (0..MANY).map(|column| format!("c{column}")).collect(),
            _ => vec!["p".into()],
        }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        let key_type = match self.shape {
            Shape::WideKeys => self.shape.text_type(),
            _ => DataType::Int64,
        };
        let payload_type = match self.shape {
            Shape::ManyColumns => DataType::Int64,
            _ => self.shape.text_type(),
        };
        let mut fields = vec![
            Field::new("id", DataType::Int64, false),
            Field::new("k", key_type, true),
            Field::new("v", DataType::Int64, true),
        ];
        let payload = |name| Field::new(name, payload_type.clone(), true);
        fields.extend(self.payload_columns().into_iter().map(payload));
        Arc::new(Schema::new(fields))
    }

    /// The bytes of a row with the payload, on average.
    pub(crate) fn row_bytes(shape: Shape, payload_bytes: u64) -> u64 {
        NARROW_BYTES
            + match shape {
                Shape::WideRows | Shape::WideKeys => WIDE_BYTES as u64,
                Shape::ManyColumns => MANY as u64 * 8,
                _ => payload_bytes,
            }
    }

    /// All bytes of the columns `id`, `k`, `v` and the payload.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows * Self::row_bytes(self.shape, self.payload_bytes)
    }

    /// How many rows a batch with these columns has.
    pub(crate) fn batch_rows(&self, projection: &[usize]) -> u64 {
        let has_payload = projection.iter().any(|column| *column >= 3);
        let has_wide_key = self.shape == Shape::WideKeys && projection.contains(&1);
        let row_bytes = match has_payload || has_wide_key {
            true => Self::row_bytes(self.shape, self.payload_bytes),
            false => NARROW_BYTES,
        };
        (BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS)
    }

    /// The payload of the number `text`, unless it is many columns.
    fn payload(&self, text: u64) -> String {
        let chance = scramble(text);
        let length = match self.shape {
            Shape::WideRows => WIDE_BYTES + (chance % 1000) as usize,
            Shape::WideKeys => 8,
            // From nothing to twice the average.
            _ => (chance % (2 * self.payload_bytes + 1)) as usize,
        };
        let head = match self.shape {
            Shape::Sorted => text,
            _ => chance,
        };
        let start = (chance >> 32) as usize % (noise().len() - length);
        let mut payload = String::with_capacity(length + 16);
        payload.push_str(&format!("{head:016x}"));
        payload.push_str(&noise()[start..start + length]);
        payload
    }

    fn wide_key(key: i64) -> String {
        let mut text = String::with_capacity(WIDE_BYTES + 8);
        text.push_str(&noise()[..WIDE_BYTES]);
        text.push_str(&format!("{key:08}"));
        text
    }

    fn payload_number(text: u64, column: usize) -> Option<i64> {
        let is_null = (text + column as u64).is_multiple_of(11);
        (!is_null).then(|| (text * 1_000_003 + column as u64 * 7919) as i64)
    }

    /// The image of a key in a digest.
    pub(crate) fn key_image(&self, key: Option<i64>) -> u64 {
        match (self.shape, key) {
            (Shape::WideKeys, Some(key)) => text_image(&Self::wide_key(key)),
            _ => image(key),
        }
    }

    /// The images of the payload's columns in a digest.
    pub(crate) fn payload_images(&self, text: u64) -> Vec<u64> {
        match self.shape {
            Shape::ManyColumns => (0..MANY)
                .map(|column| image(Self::payload_number(text, column)))
                .collect(),
            _ => vec![text_image(&self.payload(text))],
        }
    }

    /// The images of a payload that is not there.
    pub(crate) fn no_payload(&self) -> Vec<u64> {
        vec![NULL; self.payload_columns().len()]
    }

    /// The rows of `range` with the columns of `projection`, indices into [`Self::schema`].
    pub(crate) fn batch(&self, range: Range<u64>, projection: &[usize], schema: &SchemaRef) -> RecordBatch {
        let rows: Vec<Row> = range.map(|number| self.row(number)).collect();
        let numbers = |value: &dyn Fn(&Row) -> Option<i64>| -> ArrayRef {
            Arc::new(rows.iter().map(value).collect::<Int64Array>())
        };
        let texts = |value: &dyn Fn(&Row) -> Option<String>| -> ArrayRef {
            match self.shape.text_type() {
                DataType::Utf8View => Arc::new(rows.iter().map(value).collect::<StringViewArray>()),
                _ => Arc::new(rows.iter().map(value).collect::<StringArray>()),
            }
        };
        let column = |index: &usize| match (index, self.shape) {
            (0, _) => numbers(&|row| Some(row.id)),
            (1, Shape::WideKeys) => texts(&|row| row.k.map(Self::wide_key)),
            (1, _) => numbers(&|row| row.k),
            (2, _) => numbers(&|row| row.v),
            (index, Shape::ManyColumns) => numbers(&|row| Self::payload_number(row.text, index - 3)),
            _ => texts(&|row| Some(self.payload(row.text))),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let columns = projection.iter().map(column).collect();
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(shape: Shape, keys: Keys) -> Relation {
        Relation {
            shape,
            keys,
            seed: 7,
            rows: 3000,
            domain: 3000,
            payload_bytes: 100,
            first_text: 0,
        }
    }

    #[test]
    fn the_shapes_are_what_they_are_called() {
        let keys = |shape, keys| -> Vec<_> { relation(shape, keys).all_rows().iter().map(|row| row.k).collect() };
        let hot = |keys: &[Option<i64>]| keys.iter().filter(|key| **key == Some(HOT)).count();
        assert!((1350..1650).contains(&hot(&keys(Shape::HotKey, Keys::AsShaped))));
        assert_eq!(hot(&keys(Shape::AllEqual, Keys::AsShaped)), 3000);
        assert!(keys(Shape::Sorted, Keys::AsShaped).is_sorted());
        assert!(keys(Shape::AllNull, Keys::AsShaped).iter().all(Option::is_none));
        let mut uniform = keys(Shape::Uniform, Keys::AsShaped);
        assert!((50..150).contains(&uniform.iter().filter(|key| key.is_none()).count()));
        uniform.sort_unstable();
        uniform.dedup();
        assert!(uniform.len() > 1500);
        for shape in [Shape::Uniform, Shape::HotKey, Shape::AllEqual, Shape::Sorted] {
            let mut few = keys(shape, Keys::OnceOrTwice);
            assert_eq!(hot(&few), 1);
            few.retain(Option::is_some);
            few.sort_unstable();
            assert!(few.windows(3).all(|keys| keys[0] < keys[2]), "{shape:?}");
        }
    }

    #[test]
    fn batches_hold_the_rows_and_images_of_the_model() {
        let _alone = crate::alone();
        prepare();
        for shape in Shape::ALL {
            let relation = relation(shape, Keys::AsShaped);
            let schema = relation.schema();
            let all: Vec<usize> = (0..schema.fields().len()).collect();
            let batch = relation.batch(10..20, &all, &schema);
            let (mut streamed, mut model) = (crate::digest::Digest::default(), crate::digest::Digest::default());
            streamed.add_batch(&batch).unwrap();
            for row in (10..20).map(|number| relation.row(number)) {
                let head = [row.id as u64, relation.key_image(row.k), image(row.v)];
                model.add(head.into_iter().chain(relation.payload_images(row.text)));
            }
            assert_eq!(streamed, model, "{shape:?}");
            let none = relation.batch(0..5, &[], &Arc::new(Schema::empty()));
            assert_eq!((none.num_rows(), none.num_columns()), (5, 0));
        }
    }
}
