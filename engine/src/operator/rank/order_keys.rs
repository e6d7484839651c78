//! The order of a rank as keys that compare as bytes do.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, Result};
use crate::operator::aggregate::evaluate_all;
use crate::plan::SortKey;

/// The order's expressions and how they become keys.
pub(super) struct OrderKeys {
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    converter: RowConverter,
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
            converter: RowConverter::new(fields.collect())?,
            width: types.iter().map(fixed_width).sum(),
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
    fn order_of(&self, bytes: &[u8]) -> Ordering {
        bytes.cmp(self.as_ref())
    }
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}
