//! The group table: group keys to dense group numbers, in order of first appearance.
//!
//! Columns are first brought to a *key type* (dictionaries and run-ends to their values, booleans to bytes), then
//! numbered by the cheapest [`KeyStore`] that can hold them. A store that is too narrow for what turns up later (the
//! first NULL or the first long string in a packed key) is replaced: its keys go, in order, into a wider one, so that group numbers stand.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use arrow::compute::{cast, filter};
use arrow::datatypes::{ArrowDictionaryKeyType, ArrowNativeType, DataType};

use super::column_keys::ColumnKeys;
use super::packed_bytes::longest;
use super::packed_keys::{PackedKeys, Seen};
use crate::data::{EngineError, Result, canonical_floats, has_nested_float};

/// A store up to this size is replaced by a wider one without asking.
const WIDEN_AT_ONCE_BYTES: usize = 1 << 18;

/// Distinct keys, numbered in order of first appearance.
pub(super) trait KeyStore: Send + Sync {
    /// Whether the store can represent these keys.
    fn accepts(&self, arrays: &[ArrayRef]) -> bool;

    /// Appends to `groups` the group of each row.
    ///
    /// # Errors
    /// When there are too many groups or a type cannot be converted.
    fn intern(&mut self, arrays: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()>;

    /// How many groups there are.
    fn len(&self) -> usize;

    /// The keys of a range of groups.
    ///
    /// # Errors
    /// When a type cannot be converted back.
    fn emit(&self, range: Range<usize>) -> Result<Vec<ArrayRef>>;

    /// The keys of these groups, in this order.
    ///
    /// # Errors
    /// As for `emit`.
    fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>>;

    /// Bytes held.
    fn size(&self) -> usize;

    /// Bytes that the keys of a range of groups take when they are emitted.
    fn bytes_in(&self, range: Range<usize>) -> usize;

    /// Bytes that these rows may add, if all of them are new groups.
    fn growth(&self, columns: &[ArrayRef]) -> usize;

    /// A copy that keys can be read from, and no more: the index over them is not copied.
    ///
    /// # Errors
    /// When a type has no row format.
    fn frozen(&self) -> Result<Box<dyn KeyStore>>;
}

/// Bytes that a vector of `len` elements gains by `more`: vectors double.
pub(super) fn vec_growth<T>(vec: &Vec<T>, more: usize) -> usize {
    let needed = vec.len() + more;
    if needed <= vec.capacity() {
        return 0;
    }
    (needed.max(2 * vec.capacity()) - vec.capacity()) * size_of::<T>()
}

/// Group keys to dense group numbers.
pub(in crate::operator) struct GroupTable {
    declared: Vec<DataType>,
    types: Vec<DataType>,
    nested_floats: Vec<bool>,
    seen: Vec<Seen>,
    store: Box<dyn KeyStore>,
    dictionary_groups: Vec<usize>,
}

impl GroupTable {
    /// A table for keys of these types (at least one).
    ///
    /// # Errors
    /// When a type cannot be a group key.
    pub(in crate::operator) fn new(declared: Vec<DataType>) -> Result<Self> {
        let types: Vec<DataType> = declared.iter().map(key_type).collect();
        let seen = vec![Seen::default(); types.len()];
        let store = store_for(&types, &seen)?;
        let nested_floats = types.iter().map(has_nested_float).collect();
        Ok(Self {
            declared,
            types,
            nested_floats,
            seen,
            store,
            dictionary_groups: Vec::new(),
        })
    }

    /// An empty table for keys of the same types, prepared for what this one has seen of them.
    ///
    /// # Errors
    /// As for `new`.
    pub(in crate::operator) fn successor(&self) -> Result<Self> {
        Ok(Self {
            declared: self.declared.clone(),
            types: self.types.clone(),
            nested_floats: self.nested_floats.clone(),
            seen: self.seen.clone(),
            store: store_for(&self.types, &self.seen)?,
            dictionary_groups: Vec::new(),
        })
    }

    /// Puts into `groups` the group of each row, and widens the store if it has to.
    ///
    /// # Errors
    /// As for `intern`.
    pub(in crate::operator) fn number(&mut self, columns: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        self.intern_columns(columns, groups, true).map(|_| ())
    }

    /// Puts into `groups` the group of each row. Says `false`, and has done nothing, when that needs a wider store than
    /// the present one, whose many keys would all be copied: see [`Self::intern_wider`].
    ///
    /// # Errors
    /// When there are too many groups or a type cannot be converted.
    pub(in crate::operator) fn intern(&mut self, columns: &[ArrayRef], groups: &mut Vec<usize>) -> Result<bool> {
        let widens = self.size() <= WIDEN_AT_ONCE_BYTES;
        self.intern_columns(columns, groups, widens)
    }

    /// The same, whatever it takes: for a moment up to three times [`Self::size`] more.
    ///
    /// # Errors
    /// As for `intern`.
    pub(in crate::operator) fn intern_wider(&mut self, columns: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        self.intern_columns(columns, groups, true).map(|_| ())
    }

    fn intern_columns(&mut self, columns: &[ArrayRef], groups: &mut Vec<usize>, widens: bool) -> Result<bool> {
        groups.clear();
        if let [column] = columns
            && let Some((values, used)) = self.dictionary(column)?
        {
            let mut numbers = std::mem::take(&mut self.dictionary_groups);
            numbers.clear();
            let interned = self.intern_keys(&[values], &mut numbers, widens)?;
            if interned {
                spread(column, &used, &numbers, groups)?;
            }
            self.dictionary_groups = numbers;
            return Ok(interned);
        }
        let keys = self.to_keys(columns)?;
        self.intern_keys(&keys, groups, widens)
    }

    /// How many groups there are.
    pub(in crate::operator) fn len(&self) -> usize {
        self.store.len()
    }

    /// The group columns, of their declared types, for a range of groups.
    ///
    /// # Errors
    /// When a key does not fit its declared type (a dictionary with too narrow an index).
    pub(in crate::operator) fn emit(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        let keys = self.emit_keys(range)?;
        keys.iter()
            .zip(&self.declared)
            .map(|(key, declared)| to_type(key, declared))
            .collect()
    }

    /// The group columns, of their declared types, of these groups in this order.
    ///
    /// # Errors
    /// As for `emit`.
    pub(in crate::operator) fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let keys = self.store.gather(groups)?;
        keys.iter()
            .zip(&self.declared)
            .map(|(key, declared)| to_type(key, declared))
            .collect()
    }

    /// The same without dictionaries: those of another batch would be others.
    ///
    /// # Errors
    /// As for `emit`.
    pub(in crate::operator) fn gather_plain(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let keys = self.store.gather(groups)?;
        keys.iter()
            .zip(&self.declared)
            .map(|(key, declared)| to_type(key, plain_type(declared)))
            .collect()
    }

    /// A copy that keys can be gathered from, and no more.
    ///
    /// # Errors
    /// As for `new`.
    pub(in crate::operator) fn frozen(&self) -> Result<Self> {
        Ok(Self {
            declared: self.declared.clone(),
            types: self.types.clone(),
            nested_floats: self.nested_floats.clone(),
            seen: self.seen.clone(),
            store: self.store.frozen()?,
            dictionary_groups: Vec::new(),
        })
    }

    /// The types that keys are stored as.
    pub(in crate::operator) fn key_types(&self) -> &[DataType] {
        &self.types
    }

    /// The group columns as they are stored, without dictionaries; `intern` takes these as well.
    ///
    /// # Errors
    /// When the keys do not fit one array.
    pub(in crate::operator) fn emit_keys(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        self.store.emit(range)
    }

    /// Bytes that the group columns of a range of groups take.
    pub(in crate::operator) fn bytes_in(&self, range: Range<usize>) -> usize {
        self.store.bytes_in(range)
    }

    /// Group columns of a batch as `emit` would give them, without grouping.
    ///
    /// # Errors
    /// When a column cannot be rebuilt.
    pub(in crate::operator) fn declared(&self, columns: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
        let columns = columns.into_iter().zip(&self.nested_floats);
        columns
            .map(|(column, nested)| if *nested { canonical_floats(&column) } else { Ok(column) })
            .collect()
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.store.size()
    }

    /// Bytes that these rows may add, if all of them are new groups.
    pub(in crate::operator) fn growth(&self, columns: &[ArrayRef]) -> usize {
        self.store.growth(columns)
    }

    /// Forgets all groups and gives back the memory.
    ///
    /// # Errors
    /// As for `new`.
    pub(in crate::operator) fn clear(&mut self) -> Result<()> {
        self.store = store_for(&self.types, &self.seen)?;
        Ok(())
    }

    fn intern_keys(&mut self, keys: &[ArrayRef], groups: &mut Vec<usize>, widens: bool) -> Result<bool> {
        if !self.store.accepts(keys) {
            if !widens {
                return Ok(false);
            }
            self.widen(keys)?;
        }
        self.store.intern(keys, groups)?;
        Ok(true)
    }

    fn widen(&mut self, keys: &[ArrayRef]) -> Result<()> {
        for (seen, key) in self.seen.iter_mut().zip(keys) {
            seen.nulls |= key.logical_null_count() > 0;
            seen.longest = seen.longest.max(longest(key));
        }
        let mut wider = store_for(&self.types, &self.seen)?;
        if self.store.len() > 0 {
            let held = self.store.emit(0..self.store.len())?;
            wider.intern(&held, &mut Vec::with_capacity(self.store.len()))?;
        }
        self.store = wider;
        Ok(())
    }

    fn to_keys(&self, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        columns
            .iter()
            .zip(self.types.iter().zip(&self.nested_floats))
            .map(|(column, (key_type, nested_floats))| {
                let key = to_type(column, key_type)?;
                if *nested_floats {
                    canonical_floats(&key)
                } else {
                    Ok(key)
                }
            })
            .collect()
    }

    /// A dictionary column's values that its rows use, as keys, and which of the dictionary's values those are, when
    /// numbering them is less work than numbering the rows.
    fn dictionary(&self, column: &ArrayRef) -> Result<Option<(ArrayRef, Vec<bool>)>> {
        let Some(dictionary) = column.as_any_dictionary_opt() else {
            return Ok(None);
        };
        let values = dictionary.values();
        // NULLs among the values are rare and make two keys of one group: leave them to the plain path.
        if values.len() > column.len() || values.logical_null_count() > 0 || dictionary.keys().null_count() > 0 {
            return Ok(None);
        }
        let mut used = vec![false; values.len()];
        for key in dictionary.normalized_keys() {
            used[key] = true;
        }
        let kept = filter(values, &BooleanArray::from(used.clone()))?;
        let keys = self.to_keys(&[kept])?;
        Ok(keys.into_iter().next().map(|keys| (keys, used)))
    }
}

/// Appends to `groups` the group of each row of a dictionary column: `numbers` are those of its used values.
fn spread(column: &ArrayRef, used: &[bool], numbers: &[usize], groups: &mut Vec<usize>) -> Result<()> {
    let mut numbers = numbers.iter().copied();
    let by_value: Vec<usize> = used
        .iter()
        .map(|used| if *used { numbers.next().unwrap_or(0) } else { 0 })
        .collect();
    fn each<K: ArrowDictionaryKeyType>(keys: &PrimitiveArray<K>, by_value: &[usize], groups: &mut Vec<usize>) {
        groups.extend(keys.values().iter().map(|key| by_value[key.as_usize()]));
    }
    macro_rules! each_key {
        ($t:ty) => {
            each::<$t>(column.as_dictionary::<$t>().keys(), &by_value, groups)
        };
    }
    let DataType::Dictionary(index, _) = column.data_type() else {
        return Err(EngineError::Internal(format!(
            "{} is no dictionary",
            column.data_type()
        )));
    };
    arrow::array::downcast_integer! {
        index.as_ref() => (each_key),
        other => return Err(EngineError::Internal(format!("{other} cannot index a dictionary")))
    }
    Ok(())
}

fn key_type(declared: &DataType) -> DataType {
    match declared {
        DataType::Boolean => DataType::UInt8,
        DataType::Dictionary(_, values) => key_type(values),
        DataType::RunEndEncoded(_, values) => key_type(values.data_type()),
        other => other.clone(),
    }
}

/// The type without a dictionary.
pub(in crate::operator) fn plain_type(declared: &DataType) -> &DataType {
    match declared {
        DataType::Dictionary(_, values) => plain_type(values),
        other => other,
    }
}

fn to_type(column: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if column.data_type() == wanted {
        return Ok(Arc::clone(column));
    }
    Ok(cast(column, wanted)?)
}

fn store_for(types: &[DataType], seen: &[Seen]) -> Result<Box<dyn KeyStore>> {
    if let Some(packed) = PackedKeys::<u64>::try_new(types, seen) {
        return Ok(Box::new(packed));
    }
    if let Some(packed) = PackedKeys::<u128>::try_new(types, seen) {
        return Ok(Box::new(packed));
    }
    Ok(Box::new(ColumnKeys::new(types)?))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, DictionaryArray, Int16Array, Int64Array, ListArray, StringArray, StringViewArray, UInt32Array,
    };
    use arrow::compute::take;
    use arrow::datatypes::{Int32Type, Int64Type};

    use super::*;

    /// Keys come in the order that is asked for, whatever they are stored as.
    #[test]
    fn chosen_groups_are_gathered() {
        let list = |of: Option<i64>| of.map(|value| vec![Some(value), None]);
        let lists =
            ListArray::from_iter_primitive::<Int64Type, _, _>([list(Some(1)), None, list(Some(2)), list(Some(3))]);
        let long = |n: &str| format!("{n} and what makes it too long to be packed");
        let dictionary: DictionaryArray<Int32Type> = [Some("x"), None, Some("y"), Some("z")].into_iter().collect();
        let columns: Vec<Vec<ArrayRef>> = vec![
            vec![Arc::new(Int16Array::from(vec![Some(3), None, Some(1), Some(2)]))],
            vec![Arc::new(Int64Array::from(vec![Some(3), Some(9), None, Some(2)]))],
            vec![
                Arc::new(Int64Array::from(vec![Some(3), Some(9), None, Some(2)])),
                Arc::new(Int16Array::from(vec![None, Some(9), Some(1), Some(2)])),
            ],
            vec![Arc::new(StringArray::from(vec![Some("a"), None, Some(""), Some("bc")]))],
            vec![
                Arc::new(StringViewArray::from_iter([
                    Some(long("a")),
                    None,
                    Some(long("b")),
                    Some("c".into()),
                ])),
                Arc::new(BooleanArray::from(vec![None, Some(true), Some(false), Some(true)])),
            ],
            vec![Arc::new(lists)],
            vec![Arc::new(dictionary)],
        ];
        for columns in columns {
            let types = columns.iter().map(|column| column.data_type().clone()).collect();
            let mut table = GroupTable::new(types).unwrap();
            let mut groups = Vec::new();
            table.number(&columns, &mut groups).unwrap();
            assert_eq!(groups, [0, 1, 2, 3]);
            let wanted = [3, 1, 1, 0, 2];
            let expected = columns
                .iter()
                .map(|column| take(column, &UInt32Array::from(wanted.to_vec()), None).unwrap());
            assert_eq!(table.gather(&wanted).unwrap(), expected.collect::<Vec<_>>());
            assert_eq!(table.gather(&[]).unwrap()[0].len(), 0);
            let mut successor = table.successor().unwrap();
            assert_eq!(successor.len(), 0);
            successor.number(&table.gather(&wanted).unwrap(), &mut groups).unwrap();
            assert_eq!(groups, [0, 1, 1, 2, 3]);
        }
    }
}
