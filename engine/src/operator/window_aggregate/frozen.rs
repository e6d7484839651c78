//! Rows of a state table that are made of shared columns by another thread: keys, the end of a slice or window, values.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatchOptions, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::changes::GoneKeys;
use crate::data::{Batch, Result};
use crate::state::{Frozen, Snapshot, TableSpec, distinct_names};

/// Rows of a batch.
const BATCH_ROWS: usize = 1 << 16;

/// Where the keys of some rows are.
pub(super) enum Keys {
    /// Here.
    Own(Vec<ArrayRef>),
    /// Among many, at these places.
    Among(Arc<Vec<ArrayRef>>, Vec<u32>),
}

/// Rows of one slice or window.
pub(super) struct Piece {
    pub(super) end: i64,
    pub(super) rows: usize,
    pub(super) keys: Keys,
    pub(super) values: Vec<ArrayRef>,
}

impl Piece {
    fn batch(&self, start: usize, rows: usize, schema: &SchemaRef) -> Result<Batch> {
        let mut columns = match &self.keys {
            Keys::Own(keys) => keys.iter().map(|key| key.slice(start, rows)).collect(),
            Keys::Among(all, places) => {
                let places = UInt32Array::from(places[start..start + rows].to_vec());
                let taken = all.iter().map(|key| take(key, &places, None));
                taken.collect::<std::result::Result<Vec<_>, _>>()?
            }
        };
        columns.push(Arc::new(Int64Array::from(vec![self.end; rows])));
        columns.extend(self.values.iter().map(|values| values.slice(start, rows)));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }
}

/// The table `name` of the columns `keys`, the column `end`, and `values`: the keys and the end are its key.
pub(super) fn table<'a>(name: &str, keys: &[Field], end: &str, values: impl Iterator<Item = &'a Field>) -> TableSpec {
    let mut fields = keys.to_vec();
    fields.push(Field::new(end, DataType::Int64, false));
    fields.extend(values.cloned());
    let schema = distinct_names(&Schema::new(fields));
    let mut spec = TableSpec::by_key(name, schema, keys.len());
    spec.unique = keys.len() + 1;
    spec
}

/// Hands over the pieces of a table that have changed: all of it when there is no `since`.
pub(super) fn hand_over(
    state: &mut Snapshot,
    spec: &TableSpec,
    since: Option<u64>,
    pieces: Vec<Piece>,
    gone: Vec<GoneKeys>,
) {
    let changed = rows_of(pieces, Arc::clone(&spec.schema));
    let Some(since) = since else {
        state.full(spec, changed);
        return;
    };
    let key_fields: Vec<_> = spec.schema.fields().iter().take(spec.unique).cloned().collect();
    let gone = gone.into_iter().map(|(end, keys, rows)| Piece {
        end,
        rows,
        keys: Keys::Own(keys),
        values: Vec::new(),
    });
    let gone = rows_of(gone.collect(), Arc::new(Schema::new(key_fields)));
    state.delta(spec, since, changed, gone);
}

fn rows_of(pieces: Vec<Piece>, schema: SchemaRef) -> Frozen {
    let batches = pieces.into_iter().flat_map(move |piece| {
        let schema = Arc::clone(&schema);
        (0..piece.rows).step_by(BATCH_ROWS).map(move |start| {
            let rows = BATCH_ROWS.min(piece.rows - start);
            piece.batch(start, rows, &schema)
        })
    });
    Box::new(batches)
}
