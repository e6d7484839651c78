//! Columns by slot: plain values, or bytes on a heap.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, BinaryViewBuilder, BooleanArray, FixedSizeBinaryArray, GenericByteArray, make_array,
    new_null_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowNativeType, BinaryType, ByteArrayType, DataType, LargeBinaryType, LargeUtf8Type, Utf8Type,
};
use arrow::row::RowConverter;

use super::NO_SLOT;
use super::pages::{Heap, Pages};
use super::source::{Layout, Source, Values};
use crate::data::{EngineError, Result};

/// A column of a table. Sources have the column's layout.
pub(super) trait Column: Send + Sync {
    /// Makes room for `slots` values.
    fn grow(&mut self, slots: usize);
    /// Stores one value.
    fn set(&mut self, slot: u32, source: &Source, row: usize);
    /// Stores values by row; of a slot that is there twice the last.
    fn scatter(&mut self, slots: &[u32], source: &Source);
    /// Makes a value NULL.
    fn clear(&mut self, slot: u32);
    /// The slot is not in use any more.
    fn release(&mut self, slot: u32);
    /// Whether a value equals that of a row; NULL equals NULL.
    fn equals(&self, slot: u32, source: &Source, row: usize) -> bool;
    /// Makes those of `slots` that do not equal their row [`NO_SLOT`].
    fn compare(&self, slots: &mut [u32], source: &Source);
    /// The values at `slots`; NULL for [`NO_SLOT`].
    fn gather(&self, slots: &[u32]) -> Result<ArrayRef>;
    /// The column as it is now; shares its pages.
    fn freeze(&mut self) -> Box<dyn Column>;
    /// The values at `slots` in a column of their own.
    fn compacted(&self, slots: &[u32]) -> Box<dyn Column>;
    /// Gets rid of garbage when there is much; `slots` are in use.
    fn tidy(&mut self, slots: usize);
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// Bytes that only a snapshot still holds.
    fn copied_bytes(&self) -> usize;
}

/// An empty column of a type.
pub(super) fn column(layout: &Layout, data_type: &DataType) -> Result<Box<dyn Column>> {
    Ok(match layout {
        Layout::Boolean | Layout::Fixed(1) => Box::new(Fixed::<u8>::new(data_type)),
        Layout::Fixed(2) => Box::new(Fixed::<u16>::new(data_type)),
        Layout::Fixed(4) => Box::new(Fixed::<u32>::new(data_type)),
        Layout::Fixed(8) => Box::new(Fixed::<u64>::new(data_type)),
        Layout::Fixed(_) => Box::new(Fixed::<i128>::new(data_type)),
        Layout::Bytes => Box::new(Texts::new(data_type, None)),
        Layout::Rows(converter) => {
            let null = converter.convert_columns(&[new_null_array(data_type, 1)])?;
            let null = null.row(0).as_ref().to_vec();
            Box::new(Texts::new(data_type, Some((Arc::clone(converter), null.into()))))
        }
    })
}

/// A plain value of the width of a source's.
trait Plain: ArrowNativeType {
    fn of(values: &Values) -> &[Self];
}

macro_rules! plain {
    ($($native:ty => $variant:ident),*) => {
        $(impl Plain for $native {
            #[inline]
            fn of(values: &Values) -> &[Self] {
                match values {
                    Values::$variant(values) => values,
                    _ => &[],
                }
            }
        })*
    };
}

plain!(u8 => W1, u16 => W2, u32 => W4, u64 => W8, i128 => W16);

/// Values of one width.
struct Fixed<T> {
    data_type: DataType,
    values: Pages<T>,
    /// None until the first NULL: keys seldom have any.
    valid: Option<Pages<bool>>,
    slots: usize,
}

impl<T: Plain> Fixed<T> {
    fn new(data_type: &DataType) -> Self {
        Self {
            data_type: data_type.clone(),
            values: Pages::new(T::default()),
            valid: None,
            slots: 0,
        }
    }

    #[inline]
    fn is_valid(&self, slot: u32) -> bool {
        self.valid.as_ref().is_none_or(|valid| valid.get(slot))
    }

    fn put(&mut self, slot: u32, value: T, is_null: bool) {
        if is_null {
            return self.clear(slot);
        }
        self.values.set(slot, value);
        if let Some(valid) = &mut self.valid {
            valid.set(slot, true);
        }
    }
}

impl<T: Plain + Send + Sync> Column for Fixed<T> {
    fn grow(&mut self, slots: usize) {
        self.slots = slots;
        self.values.grow(slots);
        if let Some(valid) = &mut self.valid {
            valid.grow(slots);
        }
    }

    fn set(&mut self, slot: u32, source: &Source, row: usize) {
        self.put(slot, T::of(&source.values)[row], source.is_null(row));
    }

    fn scatter(&mut self, slots: &[u32], source: &Source) {
        let values = T::of(&source.values);
        for (row, (slot, value)) in slots.iter().zip(values).enumerate() {
            if *slot != NO_SLOT {
                self.put(*slot, *value, source.is_null(row));
            }
        }
    }

    fn clear(&mut self, slot: u32) {
        let slots = self.slots;
        let valid = self.valid.get_or_insert_with(|| {
            let mut valid = Pages::new(true);
            valid.grow(slots);
            valid
        });
        valid.set(slot, false);
    }

    fn release(&mut self, _slot: u32) {}

    fn equals(&self, slot: u32, source: &Source, row: usize) -> bool {
        match (self.is_valid(slot), source.is_null(row)) {
            (true, false) => self.values.get(slot) == T::of(&source.values)[row],
            (is_valid, is_null) => is_valid != is_null,
        }
    }

    fn compare(&self, slots: &mut [u32], source: &Source) {
        let values = T::of(&source.values);
        if self.valid.is_none() && source.nulls.is_none() {
            for (slot, value) in slots.iter_mut().zip(values) {
                if *slot != NO_SLOT && self.values.get(*slot) != *value {
                    *slot = NO_SLOT;
                }
            }
            return;
        }
        for (row, slot) in slots.iter_mut().enumerate() {
            if *slot != NO_SLOT && !self.equals(*slot, source, row) {
                *slot = NO_SLOT;
            }
        }
    }

    fn gather(&self, slots: &[u32]) -> Result<ArrayRef> {
        let value = |slot: &u32| match *slot {
            NO_SLOT => T::default(),
            slot => self.values.get(slot),
        };
        let values: Vec<T> = slots.iter().map(value).collect();
        let nulls = NullBuffer::from_iter(slots.iter().map(|slot| *slot != NO_SLOT && self.is_valid(*slot)));
        let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
        if self.data_type == DataType::Boolean {
            let bits = BooleanBuffer::from_iter(values.iter().map(|value| *value != T::default()));
            return Ok(Arc::new(BooleanArray::new(bits, nulls)));
        }
        let data = ArrayData::builder(self.data_type.clone())
            .len(slots.len())
            .add_buffer(Buffer::from_vec(values))
            .nulls(nulls);
        Ok(make_array(data.build()?))
    }

    fn freeze(&mut self) -> Box<dyn Column> {
        Box::new(Self {
            data_type: self.data_type.clone(),
            values: self.values.freeze(),
            valid: self.valid.as_mut().map(Pages::freeze),
            slots: self.slots,
        })
    }

    fn compacted(&self, slots: &[u32]) -> Box<dyn Column> {
        Box::new(Self {
            data_type: self.data_type.clone(),
            values: self.values.compacted(slots),
            valid: self.valid.as_ref().map(|valid| valid.compacted(slots)),
            slots: slots.len(),
        })
    }

    fn tidy(&mut self, _slots: usize) {}

    fn bytes(&self) -> usize {
        self.values.bytes() + self.valid.as_ref().map_or(0, Pages::bytes)
    }

    fn copied_bytes(&self) -> usize {
        self.values.copied_bytes() + self.valid.as_ref().map_or(0, Pages::copied_bytes)
    }
}

/// Where the bytes of a value are: up to 12 of them here, more on the heap, as in Arrow's views.
type View = u128;

const INLINE: usize = 12;
const NULL: View = u32::MAX as View;

fn length(view: View) -> u32 {
    view as u32
}

fn is_on_heap(view: View) -> bool {
    view != NULL && length(view) as usize > INLINE
}

fn inline(value: &[u8]) -> View {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&(value.len() as u32).to_le_bytes());
    bytes[4..4 + value.len()].copy_from_slice(value);
    View::from_le_bytes(bytes)
}

fn on_heap(length: usize, (page, offset): (u32, u32)) -> View {
    View::from(length as u32) | View::from(page) << 32 | View::from(offset) << 64
}

fn place(view: View) -> (u32, u32) {
    ((view >> 32) as u32, (view >> 64) as u32)
}

/// What turns bytes in row format into values, and the bytes of NULL.
type AsRows = (Arc<RowConverter>, Arc<[u8]>);

/// Values of no fixed width.
struct Texts {
    data_type: DataType,
    views: Pages<View>,
    heap: Heap,
    rows: Option<AsRows>,
    slots: usize,
}

impl Texts {
    fn new(data_type: &DataType, rows: Option<AsRows>) -> Self {
        Self {
            data_type: data_type.clone(),
            views: Pages::new(NULL),
            heap: Heap::default(),
            rows,
            slots: 0,
        }
    }

    /// Calls `take` with the bytes of a value.
    fn with<R>(&self, slot: u32, take: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let view = if slot == NO_SLOT { NULL } else { self.views.get(slot) };
        let length = length(view);
        if view == NULL {
            take(None)
        } else if length as usize <= INLINE {
            take(Some(&view.to_le_bytes()[4..4 + length as usize]))
        } else {
            let (page, offset) = place(view);
            take(Some(self.heap.get(page, offset, length)))
        }
    }

    fn put(&mut self, slot: u32, value: Option<&[u8]>) {
        let old = self.views.get(slot);
        if let Some(value) = value.filter(|value| value.len() > INLINE)
            && is_on_heap(old)
            && self.heap.overwrite(place(old), length(old), value)
        {
            return self.views.set(slot, on_heap(value.len(), place(old)));
        }
        if is_on_heap(old) {
            self.heap.forget(length(old));
        }
        let view = match value {
            None => NULL,
            Some(value) if value.len() <= INLINE => inline(value),
            Some(value) => on_heap(value.len(), self.heap.push(value)),
        };
        self.views.set(slot, view);
    }

    fn bytes_of(source: &Source, row: usize) -> Option<&[u8]> {
        match &source.values {
            Values::Bytes(bytes) if !source.is_null(row) => Some(bytes.get(row)),
            _ => None,
        }
    }

    fn texts<B: ByteArrayType>(&self, slots: &[u32]) -> Result<ArrayRef> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut lengths = Vec::with_capacity(slots.len());
        let mut valid = Vec::with_capacity(slots.len());
        for slot in slots {
            self.with(*slot, |value| {
                valid.push(value.is_some());
                let value = value.unwrap_or_default();
                lengths.push(value.len());
                bytes.extend_from_slice(value);
            });
        }
        if B::Offset::from_usize(bytes.len()).is_none() {
            return Err(EngineError::Plan(format!(
                "{} bytes of state do not fit one column of type {}; use {} for it",
                bytes.len(),
                self.data_type,
                DataType::LargeUtf8
            )));
        }
        let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
        let offsets = OffsetBuffer::from_lengths(lengths);
        Ok(Arc::new(GenericByteArray::<B>::try_new(
            offsets,
            Buffer::from_vec(bytes),
            nulls,
        )?))
    }

    fn views_of(&self, slots: &[u32]) -> Result<ArrayRef> {
        let mut builder = BinaryViewBuilder::with_capacity(slots.len());
        for slot in slots {
            self.with(*slot, |value| builder.append_option(value));
        }
        let array = builder.finish();
        Ok(match self.data_type {
            DataType::Utf8View => Arc::new(array.to_string_view()?),
            _ => Arc::new(array),
        })
    }

    fn of_width(&self, slots: &[u32], width: i32) -> Result<ArrayRef> {
        let mut bytes: Vec<u8> = Vec::with_capacity(slots.len() * width as usize);
        let mut valid = Vec::with_capacity(slots.len());
        for slot in slots {
            self.with(*slot, |value| {
                valid.push(value.is_some());
                let end = bytes.len() + width as usize;
                bytes.extend_from_slice(value.unwrap_or_default());
                bytes.resize(end, 0);
            });
        }
        let array = FixedSizeBinaryArray::try_new(width, Buffer::from_vec(bytes), Some(NullBuffer::from(valid)))?;
        Ok(Arc::new(array))
    }

    fn of_rows(&self, slots: &[u32], (converter, null): &AsRows) -> Result<ArrayRef> {
        // The rows must outlive the conversion: short ones have no place of their own.
        let rows: Vec<Vec<u8>> = slots
            .iter()
            .map(|slot| self.with(*slot, |value| value.unwrap_or(null).to_vec()))
            .collect();
        let parser = converter.parser();
        let array = converter
            .convert_rows(rows.iter().map(|row| parser.parse(row)))?
            .swap_remove(0);
        if array.data_type() == &self.data_type {
            return Ok(array);
        }
        Ok(cast(&array, &self.data_type)?)
    }
}

impl Column for Texts {
    fn grow(&mut self, slots: usize) {
        self.slots = slots;
        self.views.grow(slots);
    }

    fn set(&mut self, slot: u32, source: &Source, row: usize) {
        self.put(slot, Self::bytes_of(source, row));
    }

    fn scatter(&mut self, slots: &[u32], source: &Source) {
        for (row, slot) in slots.iter().enumerate() {
            if *slot != NO_SLOT {
                self.put(*slot, Self::bytes_of(source, row));
            }
        }
    }

    fn clear(&mut self, slot: u32) {
        self.put(slot, None);
    }

    fn release(&mut self, slot: u32) {
        self.put(slot, None);
    }

    fn equals(&self, slot: u32, source: &Source, row: usize) -> bool {
        self.with(slot, |value| value == Self::bytes_of(source, row))
    }

    fn compare(&self, slots: &mut [u32], source: &Source) {
        for (row, slot) in slots.iter_mut().enumerate() {
            if *slot != NO_SLOT && !self.equals(*slot, source, row) {
                *slot = NO_SLOT;
            }
        }
    }

    fn gather(&self, slots: &[u32]) -> Result<ArrayRef> {
        if let Some(rows) = &self.rows {
            return self.of_rows(slots, rows);
        }
        match self.data_type {
            DataType::Utf8 => self.texts::<Utf8Type>(slots),
            DataType::LargeUtf8 => self.texts::<LargeUtf8Type>(slots),
            DataType::Binary => self.texts::<BinaryType>(slots),
            DataType::LargeBinary => self.texts::<LargeBinaryType>(slots),
            DataType::FixedSizeBinary(width) => self.of_width(slots, width),
            _ => self.views_of(slots),
        }
    }

    fn freeze(&mut self) -> Box<dyn Column> {
        Box::new(Self {
            data_type: self.data_type.clone(),
            views: self.views.freeze(),
            heap: self.heap.clone(),
            rows: self.rows.clone(),
            slots: self.slots,
        })
    }

    fn compacted(&self, slots: &[u32]) -> Box<dyn Column> {
        let mut compacted = Self::new(&self.data_type, self.rows.clone());
        compacted.grow(slots.len());
        for (to, from) in (0..).zip(slots) {
            self.with(*from, |value| compacted.put(to, value));
        }
        Box::new(compacted)
    }

    fn tidy(&mut self, slots: usize) {
        if !self.heap.is_wasteful() {
            return;
        }
        let old = std::mem::take(&mut self.heap);
        for slot in 0..slots as u32 {
            let view = self.views.get(slot);
            if is_on_heap(view) {
                let (page, offset) = place(view);
                let value = old.get(page, offset, length(view));
                let moved = self.heap.push(value);
                self.views.set(slot, on_heap(value.len(), moved));
            }
        }
    }

    fn bytes(&self) -> usize {
        self.views.bytes() + self.heap.bytes()
    }

    fn copied_bytes(&self) -> usize {
        self.views.copied_bytes()
    }
}
