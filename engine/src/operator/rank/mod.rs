//! Rank: the rows of each partition whose place in an order is from `first` to `last` (`ROW_NUMBER() OVER (..) <= n`).
//!
//! Four operators, chosen by the spec: [`dedup`] keeps one row per partition, [`top_n`] the best of insertions, [`retract`]
//! all rows of a changelog, [`windowed`] the best of each window until that is complete. All number the partitions of a batch with
//! a [`KeyIndex`], bring the order to bytes once per batch, and hand on the net change of each partition. Of equal
//! rows the one that came first is first.
//!
//! A snapshot is the rows that are kept, each with its place among those of its partition and the partition's access time:
//! the keys of the partitions and of the order are computed anew from the rows. Of a deduplication whose rows are not kept it is
//! the partitions' keys with the order's.

mod dedup;
mod order_keys;
mod places;
mod retract;
#[cfg(test)]
mod tests;
mod top_n;
mod windowed;

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, EngineError, Result, is_changelog, without_row_kind};
use crate::operator::keyed::{Changes, KeyIndex, RestoredBatch, RowStore, Touched, evaluate_keys};
use crate::operator::{Context, Operator};
use crate::plan::{RankSpec, SortKey};
use dedup::{Dedup, First};
use order_keys::{OrderKey, OrderKeys};
use retract::Retract;
use top_n::TopN;
use windowed::Windowed;

/// The operator of this spec.
///
/// # Errors
/// When the spec contradicts itself, or a type cannot be partitioned or ordered by.
pub(super) fn rank(spec: &RankSpec) -> Result<Box<dyn Operator>> {
    if spec.first == 0 || spec.last < spec.first {
        return Err(EngineError::Plan(format!(
            "a rank from {} to {} has no rows",
            spec.first, spec.last
        )));
    }
    let order = OrderKeys::new(&spec.order_by, &without_row_kind(&spec.input_schema.0))?;
    match order.width() {
        Some(width) if width <= 16 => ranked::<u128>(spec, order),
        Some(width) if width <= 32 => ranked::<[u8; 32]>(spec, order),
        _ => ranked::<Box<[u8]>>(spec, order),
    }
}

fn ranked<K: OrderKey>(spec: &RankSpec, order: OrderKeys) -> Result<Box<dyn Operator>> {
    let (takes_back, changelog) = (is_changelog(&spec.input_schema.0), is_changelog(&spec.schema.0));
    let contradiction = |text: &str| Err(EngineError::Internal(format!("a rank {text}")));
    let one = spec.by_time && spec.last == 1;
    if let Some(end) = spec.window_end {
        if takes_back || changelog {
            return contradiction("within windows is of insertions and gives insertions");
        }
        return Ok(Box::new(Windowed::<K>::new(spec, order, end)?));
    }
    if takes_back {
        if !changelog {
            return contradiction("of a changelog gives a changelog");
        }
        return Ok(Box::new(Retract::<K>::new(spec, order)?));
    }
    if !changelog {
        if !one || spec.order_by.first().is_some_and(|key| key.descending) {
            return contradiction("that gives insertions only keeps the first row");
        }
        return Ok(Box::new(First::new(spec)?));
    }
    if one {
        return Ok(Box::new(Dedup::<K>::new(spec, order)?));
    }
    Ok(Box::new(TopN::<K>::new(spec, order)?))
}

/// What all ranks have: the partitions, and the rows that are kept.
struct Partitions {
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    index: KeyIndex,
    /// The partition of each row of the batch.
    groups: Vec<usize>,
    touched: Touched,
    store: RowStore,
    changes: Changes,
}

impl Partitions {
    /// Partitions by the spec's expressions, after keys of the types `before`.
    fn new(spec: &RankSpec, before: &[DataType]) -> Result<Self> {
        let input = without_row_kind(&spec.input_schema.0);
        let own = spec.partition_by.iter();
        let own = own
            .map(|key| Ok(key.expr.data_type(&input)?))
            .collect::<Result<Vec<_>>>()?;
        let types = before.iter().cloned().chain(own).collect();
        Ok(Self {
            partition_by: spec.partition_by.iter().map(|key| Arc::clone(&key.expr)).collect(),
            index: KeyIndex::new(types, spec.ttl_ms)?,
            groups: Vec::new(),
            touched: Touched::default(),
            store: RowStore::new(input),
            changes: Changes::new(Arc::clone(&spec.schema.0), spec.number, is_changelog(&spec.schema.0)),
        })
    }

    /// Takes rows back into the store. Gives back their slots; their partitions are in `groups`.
    fn restore(&mut self, batch: &RestoredBatch, keys: &[ArrayRef], cx: &mut Context) -> Result<Vec<u32>> {
        let rows = batch.rows.num_rows();
        let accessed = batch.accessed.as_ref();
        self.index
            .restore(keys, accessed, cx.clock.now_ms(), (rows, false), &mut self.groups)?;
        let slots = self.store.push(batch.rows.columns().to_vec(), rows)?;
        cx.hold(self.size())?;
        Ok(slots)
    }

    /// Numbers the partitions of a batch's rows.
    fn intern(&mut self, rows: &Batch) -> Result<()> {
        let keys = evaluate_keys(&self.partition_by, rows)?;
        self.index.intern(&keys, rows.num_rows(), &mut self.groups)?;
        self.touched.start(self.index.len());
        Ok(())
    }

    fn size(&self) -> usize {
        self.index.size() + self.store.size() + self.touched.size() + self.groups.capacity() * size_of::<usize>()
    }
}

/// Whether partitions are forgotten.
fn has_ttl(spec: &RankSpec) -> bool {
    spec.ttl_ms.is_some_and(|ttl| ttl > 0)
}

/// Keeps these rows of a batch.
fn keep_rows(store: &mut RowStore, batch: &Batch, rows: Vec<u32>) -> Result<Vec<u32>> {
    let count = rows.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    let rows = UInt32Array::from(rows);
    let columns = batch.columns().iter();
    let columns = columns.map(|column| Ok(take(column, &rows, None)?));
    store.push(columns.collect::<Result<_>>()?, count)
}

/// Whether the last of equal rows stays: a deduplication that keeps the last row in time keeps the last that came.
fn last_of_equals(order: &[SortKey]) -> bool {
    matches!(order, [key] if key.descending)
}
