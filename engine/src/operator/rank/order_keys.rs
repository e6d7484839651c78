//! The order of a rank as keys that compare as bytes do.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, Result};
use crate::operator::aggregate::evaluate_all;
use crate::operator::keyed::{Frozen, plain_field, to_type};
use crate::plan::SortKey;

/// The order's expressions and how they become keys.
pub(super) struct OrderKeys {
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    types: Vec<DataType>,
    converter: Arc<RowConverter>,
    /// Bytes of every key, if all have the same.
    width: Option<usize>,
}

impl OrderKeys {
    /// Of an order over batches of this schema.
    ///
    /// # Errors
    /// When a type has no order.
    pub(super) fn new(order: &[SortKey], schema: &SchemaRef) -> Result<Self> {
        let types = order.iter().map(|key| Ok(key.expr.expr.data_type(schema)?));
        let types: Vec<DataType> = types.collect::<Result<_>>()?;
        let fields = types.iter().zip(order);
        let fields = fields.map(|(data_type, key)| SortField::new_with_options(data_type.clone(), key.options()));
        Ok(Self {
            exprs: order.iter().map(|key| Arc::clone(&key.expr.expr)).collect(),
            converter: Arc::new(RowConverter::new(fields.collect())?),
            width: types.iter().map(fixed_width).sum(),
            types,
        })
    }

    /// The keys of a batch.
    ///
    /// # Errors
    /// When an expression fails.
    pub(super) fn encode(&self, batch: &Batch) -> Result<Rows> {
        let columns = evaluate_all(&self.exprs, batch)?;
        if columns.is_empty() {
            // Without an order all rows are equal.
            let mut rows = self.converter.empty_rows(0, 0);
            let parser = self.converter.parser();
            (0..batch.num_rows()).for_each(|_| rows.push(parser.parse(&[])));
            return Ok(rows);
        }
        Ok(self.converter.convert_columns(&columns)?)
    }

    /// The order's columns in a table.
    pub(super) fn fields(&self) -> Vec<Field> {
        let field =
            |(at, of): (usize, &DataType)| plain_field(&Field::new(format!("$order_{}", at + 1), of.clone(), true));
        self.types.iter().enumerate().map(field).collect()
    }

    /// The order's columns of some keys, for another thread to decode.
    pub(super) fn freeze<K: OrderKey>(&self, keys: Vec<K>) -> Frozen {
        let (converter, width) = (Arc::clone(&self.converter), self.width);
        let bytes = keys.capacity() * size_of::<K>() + keys.iter().map(K::heap_bytes).sum::<usize>();
        Frozen::new(bytes, move |positions| {
            let mut bytes = Vec::new();
            let mut ends = Vec::with_capacity(positions.len());
            for position in positions {
                let start = bytes.len();
                keys[*position as usize].append_to(&mut bytes);
                if let Some(width) = width {
                    bytes.truncate(start + width);
                }
                ends.push((start, bytes.len()));
            }
            let parser = converter.parser();
            let rows = ends.iter().map(|(start, end)| parser.parse(&bytes[*start..*end]));
            Ok(converter.convert_rows(rows)?)
        })
    }

    /// Keys of columns that `freeze` gave.
    ///
    /// # Errors
    /// When a value does not fit its type.
    pub(super) fn thaw(&self, columns: &[ArrayRef]) -> Result<Rows> {
        let columns = columns.iter().zip(&self.types);
        let columns = columns.map(|(column, of)| to_type(Arc::clone(column), of));
        Ok(self.converter.convert_columns(&columns.collect::<Result<Vec<_>>>()?)?)
    }

    /// Bytes of every key, if all have the same.
    pub(super) fn width(&self) -> Option<usize> {
        self.width
    }
}

/// The bytes of a value in row format: one for NULL, then the value's own.
fn fixed_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(2),
        other => other.primitive_width().map(|width| width + 1),
    }
}

/// A key that is kept.
pub(super) trait OrderKey: Ord + Clone + Send + 'static {
    /// From the bytes of a row.
    fn of(bytes: &[u8]) -> Self;

    /// Appends the bytes of the row, and maybe zeros.
    fn append_to(&self, bytes: &mut Vec<u8>);

    /// How the bytes of a row compare with this key.
    fn order_of(&self, bytes: &[u8]) -> Ordering;

    /// Bytes that the key has elsewhere.
    fn heap_bytes(&self) -> usize;
}

/// Keys of at most 16 bytes.
impl OrderKey for u128 {
    #[inline]
    fn of(bytes: &[u8]) -> Self {
        let mut all = [0; 16];
        all[..bytes.len()].copy_from_slice(bytes);
        u128::from_be_bytes(all)
    }
    fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.to_be_bytes());
    }
    #[inline]
    fn order_of(&self, bytes: &[u8]) -> Ordering {
        Self::of(bytes).cmp(self)
    }
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Keys of at most 32 bytes.
impl OrderKey for [u8; 32] {
    #[inline]
    fn of(bytes: &[u8]) -> Self {
        let mut all = [0; 32];
        all[..bytes.len()].copy_from_slice(bytes);
        all
    }
    fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
    #[inline]
    fn order_of(&self, bytes: &[u8]) -> Ordering {
        bytes.cmp(&self[..bytes.len()])
    }
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl OrderKey for Box<[u8]> {
    fn of(bytes: &[u8]) -> Self {
        bytes.into()
    }
    fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
    fn order_of(&self, bytes: &[u8]) -> Ordering {
        bytes.cmp(self.as_ref())
    }
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}
