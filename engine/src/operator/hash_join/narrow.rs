//! The narrow form of a join: each side cut down to the columns that the join needs, with its keys among them.
//!
//! What is written to disk has this form, and so a join of two spill files needs no more than a spec over their two
//! schemas. A spec of this form can also be turned around ([`mirror`]): either file can be the build side.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{JoinSide, JoinType};
use datafusion::physical_expr::expressions::Column;

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::keys::KeyShape;
use crate::operator::hash_join::output::{Layout, Source};
use crate::plan::{HashJoinSpec, JoinFilterSpec, ScalarExpr};

/// How one side's batches are brought into the narrow form.
pub(in crate::operator) struct Side {
    /// The columns of the input that are kept, then the keys that are not among them.
    kept: Vec<usize>,
    computed: Vec<usize>,
    /// Where each key lies in the narrow form.
    keys: Vec<usize>,
    /// The keys over the input.
    exprs: Vec<ScalarExpr>,
    schema: SchemaRef,
}

impl Side {
    /// Keeps the columns `kept` of the input and keys of `types`; a key that is a column is kept once only, when `exprs`
    /// say so.
    fn new(input: &SchemaRef, kept: Vec<usize>, exprs: &[ScalarExpr], types: &[DataType]) -> Self {
        // Nullable, as a declared schema may promise more than its batches keep.
        let nullable = |field: &Field| field.clone().with_nullable(true);
        let mut fields: Vec<Field> = kept.iter().map(|column| nullable(input.field(*column))).collect();
        let (mut computed, mut keys) = (Vec::new(), Vec::new());
        for (number, data_type) in types.iter().enumerate() {
            let column = exprs.get(number).and_then(|expr| expr.expr.downcast_ref::<Column>());
            let place = column.and_then(|column| kept.iter().position(|kept| *kept == column.index()));
            match place {
                Some(place) if fields[place].data_type() == data_type => keys.push(place),
                _ => {
                    keys.push(fields.len());
                    computed.push(number);
                    fields.push(Field::new(format!("key {number}"), data_type.clone(), true));
                }
            }
        }
        Self {
            kept,
            computed,
            keys,
            exprs: exprs.to_vec(),
            schema: Arc::new(Schema::new(fields)),
        }
    }

    /// The narrow schema.
    pub(in crate::operator) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The narrow form of an input batch, and its keys.
    pub(super) fn of_input(&self, shape: &KeyShape, batch: &Batch) -> Result<(Batch, Vec<ArrayRef>)> {
        let keys = shape.evaluate(&self.exprs, batch)?;
        Ok((self.of_columns(self.kept_of(batch), &keys, batch.num_rows())?, keys))
    }

    /// The columns of an input batch that are kept.
    pub(in crate::operator) fn kept_of(&self, batch: &Batch) -> impl Iterator<Item = ArrayRef> {
        self.kept.iter().map(|column| Arc::clone(batch.column(*column)))
    }

    /// The narrow form of rows of which the kept columns and the keys are at hand.
    pub(in crate::operator) fn of_columns(
        &self,
        kept: impl Iterator<Item = ArrayRef>,
        keys: &[ArrayRef],
        rows: usize,
    ) -> Result<Batch> {
        let computed = self.computed.iter().map(|key| Arc::clone(&keys[*key]));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let columns = kept.chain(computed).collect();
        Ok(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }

    fn narrow_keys(&self) -> Vec<ScalarExpr> {
        self.keys
            .iter()
            .map(|column| ScalarExpr::column(*column, &self.schema))
            .collect()
    }

    fn place(&self, column: usize) -> Result<usize> {
        let place = self.kept.iter().position(|kept| *kept == column);
        place.ok_or_else(|| EngineError::Internal(format!("join column {column} was not kept")))
    }
}

/// A join over the narrow forms of both sides.
pub(in crate::operator) struct Narrow {
    /// The join. It is not null-aware any more: whoever spills sees to that.
    pub(in crate::operator) spec: HashJoinSpec,
    pub(in crate::operator) build: Side,
    pub(in crate::operator) probe: Side,
}

impl Narrow {
    /// The narrow form of `spec`, whose output is `layout` and whose keys are of `key_types`.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(in crate::operator) fn new(spec: &HashJoinSpec, layout: &Layout, key_types: &[DataType]) -> Result<Self> {
        Self::of_keys(spec, layout, [&spec.build_keys, &spec.probe_keys], key_types)
    }

    /// The narrow form of `spec` in which the keys are columns of `key_types` that the caller makes of them.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(in crate::operator) fn with_keys(spec: &HashJoinSpec, layout: &Layout, key_types: &[DataType]) -> Result<Self> {
        Self::of_keys(spec, layout, [&[], &[]], key_types)
    }

    fn of_keys(
        spec: &HashJoinSpec,
        layout: &Layout,
        [build_exprs, probe_exprs]: [&[ScalarExpr]; 2],
        key_types: &[DataType],
    ) -> Result<Self> {
        let filter = spec.filter.as_ref();
        let build_columns = layout.build_columns(filter);
        let build = Side::new(&spec.build_schema.0, build_columns, build_exprs, key_types);
        let probe_columns = layout.probe_columns(filter);
        let probe = Side::new(&spec.probe_schema.0, probe_columns, probe_exprs, key_types);
        let build_width = build.schema.fields().len();
        let one_side = match spec.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => Some(build_width),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => Some(probe.schema.fields().len()),
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => None,
        };
        let mut projection = Vec::with_capacity(layout.sources().len());
        for source in layout.sources() {
            projection.push(match (*source, one_side) {
                (Source::Build(column), _) => build.place(column)?,
                (Source::Probe(column), Some(_)) => probe.place(column)?,
                (Source::Probe(column), None) => build_width + probe.place(column)?,
                (Source::Mark, width) => width.unwrap_or_default(),
            });
        }
        let filter = filter
            .map(|filter| -> Result<JoinFilterSpec> {
                let columns = filter.columns.iter().map(|(side, column)| match side {
                    JoinSide::Left => Ok((*side, build.place(*column)?)),
                    _ => Ok((*side, probe.place(*column)?)),
                });
                Ok(JoinFilterSpec {
                    columns: columns.collect::<Result<_>>()?,
                    ..filter.clone()
                })
            })
            .transpose()?;
        let narrow = HashJoinSpec {
            join_type: spec.join_type,
            build_keys: build.narrow_keys(),
            probe_keys: probe.narrow_keys(),
            null_equals_null: spec.null_equals_null,
            null_aware: false,
            runtime_filters: Vec::new(),
            filter,
            projection: Some(projection),
            build_schema: Arc::clone(&build.schema).into(),
            probe_schema: Arc::clone(&probe.schema).into(),
            schema: spec.schema.clone(),
        };
        Ok(Self {
            spec: narrow,
            build,
            probe,
        })
    }
}

/// The same join with its sides exchanged.
pub(in crate::operator) fn mirror(spec: &HashJoinSpec) -> HashJoinSpec {
    debug_assert!(!spec.null_aware, "a null-aware join has no mirror image");
    let build_width = spec.build_schema.0.fields().len();
    let probe_width = spec.probe_schema.0.fields().len();
    let both = matches!(
        spec.join_type,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
    );
    let exchanged = |column: usize| match column {
        column if !both => column,
        column if column < build_width => column + probe_width,
        column => column - build_width,
    };
    let projection = match &spec.projection {
        Some(columns) => Some(columns.iter().map(|column| exchanged(*column)).collect()),
        None if both => Some((0..build_width + probe_width).map(exchanged).collect()),
        None => None,
    };
    let filter = spec.filter.as_ref().map(|filter| JoinFilterSpec {
        columns: filter
            .columns
            .iter()
            .map(|(side, column)| (side.negate(), *column))
            .collect(),
        ..filter.clone()
    });
    HashJoinSpec {
        join_type: spec.join_type.swap(),
        build_keys: spec.probe_keys.clone(),
        probe_keys: spec.build_keys.clone(),
        null_equals_null: spec.null_equals_null,
        null_aware: spec.null_aware,
        runtime_filters: Vec::new(),
        filter,
        projection,
        build_schema: spec.probe_schema.clone(),
        probe_schema: spec.build_schema.clone(),
        schema: spec.schema.clone(),
    }
}
