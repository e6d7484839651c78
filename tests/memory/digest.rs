//! Results without keeping them: the number of rows and a sum of row hashes, equal for equal multisets of rows, and
//! whether the rows come in order.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use xxhash_rust::xxh3::xxh3_64;

/// The image of NULL.
pub(crate) const NULL: u64 = 0x9e6c_63d0_a5f1_2b47;

/// The image of a text; that of a number is the number.
pub(crate) fn text_image(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

/// The image of a number that may be NULL.
pub(crate) fn image(value: Option<i64>) -> u64 {
    value.map_or(NULL, |value| value as u64)
}

/// How many rows, and which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) rows: u64,
    pub(crate) sum: u64,
}

const START: u64 = 0x51ed_270b_7f4a_7c15;

fn fold(hash: u64, image: u64) -> u64 {
    let mixed = (hash ^ image).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

impl Digest {
    /// Adds a row, given by the images of its columns.
    pub(crate) fn add(&mut self, images: impl IntoIterator<Item = u64>) {
        self.add_hash(images.into_iter().fold(START, fold));
    }

    fn add_hash(&mut self, hash: u64) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(fold(hash, 0));
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// When a column is of a type that no query here should give.
    pub(crate) fn add_batch(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let mut hashes = vec![START; batch.num_rows()];
        for column in batch.columns() {
            fold_column(column, &mut hashes)?;
        }
        hashes.into_iter().for_each(|hash| self.add_hash(hash));
        Ok(())
    }
}

fn fold_column(column: &ArrayRef, hashes: &mut [u64]) -> Result<(), String> {
    fn all<T>(hashes: &mut [u64], values: impl Iterator<Item = Option<T>>, image: impl Fn(T) -> u64) {
        for (hash, value) in hashes.iter_mut().zip(values) {
            *hash = fold(*hash, value.map_or(NULL, &image));
        }
    }
    match column.data_type() {
        DataType::Int64 => all(hashes, column.as_primitive::<Int64Type>().iter(), |v| v as u64),
        DataType::UInt64 => all(hashes, column.as_primitive::<UInt64Type>().iter(), |v| v),
        DataType::Float64 => all(hashes, column.as_primitive::<Float64Type>().iter(), f64::to_bits),
        DataType::Utf8 => all(hashes, column.as_string::<i32>().iter(), text_image),
        DataType::LargeUtf8 => all(hashes, column.as_string::<i64>().iter(), text_image),
        DataType::Utf8View => all(hashes, column.as_string_view().iter(), text_image),
        other => return Err(format!("a column of type {other}")),
    }
    Ok(())
}

/// One key of an ORDER BY. As SQL has it here: NULL is larger than everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrderKey {
    /// Which column of the result.
    pub(crate) column: usize,
    pub(crate) descending: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Int(i64),
    Text(String),
    Null,
}

/// Compares each row with the one before.
pub(crate) struct OrderCheck {
    keys: Vec<OrderKey>,
    last: Option<Vec<Value>>,
    rows: u64,
}

impl OrderCheck {
    pub(crate) fn new(keys: Vec<OrderKey>) -> Self {
        let last = None;
        Self { keys, last, rows: 0 }
    }

    /// Looks at the next rows.
    ///
    /// # Errors
    /// When a row should have come earlier.
    pub(crate) fn add_batch(&mut self, batch: &RecordBatch) -> Result<(), String> {
        if self.keys.is_empty() || batch.num_rows() == 0 {
            return Ok(());
        }
        if let Some(last) = &self.last {
            let first = self.keys.iter().zip(last);
            let order = first.map(|(key, last)| key.direct(compare_with(batch.column(key.column), 0, last).reverse()));
            self.expect(order, 0)?;
        }
        for row in 1..batch.num_rows() {
            let order = self
                .keys
                .iter()
                .map(|key| key.direct(compare(batch.column(key.column), row - 1, row)));
            self.expect(order, row)?;
        }
        let end = batch.num_rows() - 1;
        self.last = Some(
            self.keys
                .iter()
                .map(|key| value(batch.column(key.column), end))
                .collect(),
        );
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn expect(&self, mut keys: impl Iterator<Item = Ordering>, row: usize) -> Result<(), String> {
        match keys.find(|order| order.is_ne()) {
            Some(Ordering::Greater) => Err(format!("row {} comes too late", self.rows + row as u64)),
            _ => Ok(()),
        }
    }
}

impl OrderKey {
    fn direct(self, order: Ordering) -> Ordering {
        if self.descending { order.reverse() } else { order }
    }
}

fn compare(column: &ArrayRef, a: usize, b: usize) -> Ordering {
    match (column.is_null(a), column.is_null(b)) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => match column.data_type() {
            DataType::Int64 => {
                let values = column.as_primitive::<Int64Type>();
                values.value(a).cmp(&values.value(b))
            }
            _ => text(column, a).cmp(text(column, b)),
        },
    }
}

fn compare_with(column: &ArrayRef, row: usize, value: &Value) -> Ordering {
    match (column.is_null(row), value) {
        (true, Value::Null) => Ordering::Equal,
        (true, _) => Ordering::Greater,
        (false, Value::Null) => Ordering::Less,
        (false, Value::Int(value)) => column.as_primitive::<Int64Type>().value(row).cmp(value),
        (false, Value::Text(value)) => text(column, row).cmp(value.as_str()),
    }
}

fn value(column: &ArrayRef, row: usize) -> Value {
    match column.data_type() {
        _ if column.is_null(row) => Value::Null,
        DataType::Int64 => Value::Int(column.as_primitive::<Int64Type>().value(row)),
        _ => Value::Text(text(column, row).to_string()),
    }
}

fn text(column: &ArrayRef, row: usize) -> &str {
    match column.data_type() {
        DataType::Utf8View => column.as_string_view().value(row),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row),
        _ => column.as_string::<i32>().value(row),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewArray};

    use super::*;

    fn batch(numbers: &[Option<i64>], texts: &[Option<&str>]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter(numbers.iter().copied()));
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter(texts.iter().copied()));
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("t", texts, true)]).unwrap()
    }

    #[test]
    fn equal_multisets_of_rows_have_equal_digests_and_others_not() {
        let digest = |batches: &[RecordBatch]| {
            let mut digest = Digest::default();
            batches.iter().for_each(|batch| digest.add_batch(batch).unwrap());
            digest
        };
        let whole = digest(&[batch(&[Some(1), Some(2), None], &[Some("a"), None, Some("c")])]);
        let turned = [
            batch(&[None], &[Some("c")]),
            batch(&[Some(2), Some(1)], &[None, Some("a")]),
        ];
        assert_eq!(whole, digest(&turned));
        let mut model = Digest::default();
        model.add([1, text_image("a")]);
        model.add([2, NULL]);
        model.add([image(None), text_image("c")]);
        assert_eq!(whole, model);
        for wrong in [
            batch(&[Some(1), Some(2), None], &[Some("a"), Some(""), Some("c")]),
            batch(&[Some(2), Some(1), None], &[Some("a"), None, Some("c")]),
            batch(&[Some(1), Some(2)], &[Some("a"), None]),
            batch(&[Some(1), Some(2), None], &[Some("a"), None, Some("d")]),
        ] {
            assert_ne!(whole, digest(&[wrong]));
        }
    }

    #[test]
    fn a_row_out_of_order_is_seen_within_and_between_batches() {
        let check = |keys: &[(usize, bool)], batches: &[RecordBatch]| {
            let key = |&(column, descending)| OrderKey { column, descending };
            let mut check = OrderCheck::new(keys.iter().map(key).collect());
            batches.iter().try_for_each(|batch| check.add_batch(batch))
        };
        let up = batch(&[Some(1), Some(1), Some(2)], &[Some("a"), None, Some("b")]);
        let end = batch(&[Some(2), None], &[Some("b"), None]);
        assert_eq!(check(&[(0, false), (1, false)], &[up.clone(), end.clone()]), Ok(()));
        assert!(check(&[(0, true)], std::slice::from_ref(&up)).is_err());
        assert_eq!(
            check(&[(0, false), (1, false)], &[end.clone(), up.clone()]),
            Err("row 2 comes too late".into())
        );
        assert!(check(&[(1, false)], std::slice::from_ref(&up)).is_err());
        let down = batch(&[None, Some(3), Some(2)], &[Some("x"), Some("x"), Some("x")]);
        assert_eq!(check(&[(1, false), (0, true)], std::slice::from_ref(&down)), Ok(()));
        assert!(check(&[(0, true)], &[down, end]).is_err());
    }
}
