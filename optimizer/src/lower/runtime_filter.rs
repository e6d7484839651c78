//! Runtime filters: which joins tell which scans what their build sides hold.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::JoinType;
use thalweg_engine::plan::{
    BuildFilterSpec, ExchangeMode, FilterSpec, OperatorSpec, RuntimeCheckSpec, RuntimeFilterId, RuntimeFilterSpec,
    ScalarExpr, VertexId,
};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use super::join::Oriented;
use super::origin::{Origin, Reach, origins};
use crate::properties::{Physical, Stream, column_index};

/// A filter should let through at most this share of the keys.
const MOST_SHARE_KEPT: f64 = 0.7;
/// A build side of so few rows is worth a try on weaker evidence: its filter is made in no time.
const SMALL_BUILD_ROWS: f64 = 100_000.0;
/// A scan looks at no more filters than this.
const MOST_CHECKS: usize = 4;

impl Lowering<'_> {
    /// Lets the join at `vertex`, just placed, tell the scans of its probe side which keys can match.
    pub(super) fn add_runtime_filters(&mut self, vertex: VertexId, join: &Oriented, broadcast: bool) -> Result<()> {
        if !self.options.runtime_filters || !drops_unmatched_probe_rows(join.join_type) || join.null_equals_null {
            return Ok(());
        }
        let mut made = Vec::new();
        for (position, (build_key, probe_key)) in join.keys.iter().enumerate() {
            let data_type = build_key.data_type(&join.build.schema)?;
            let Some(column) = column_index(probe_key).filter(|_| RuntimeFilterSpec::supports(&data_type)) else {
                continue;
            };
            let id = self.next_runtime_filter;
            let build = BuildKey::new(self, &join.build, build_key);
            let mut is_used = false;
            for origin in self.probe_origins(vertex, column) {
                is_used |= self.pays(&build, &origin) && self.add_check(&origin, id)?;
            }
            if is_used {
                self.next_runtime_filter += 1;
                made.push(BuildFilterSpec {
                    id,
                    key: position,
                    broadcast,
                    estimated_keys: build.keys.map(|keys| keys.round() as u64),
                    domain: build.range.filter(|_| counts_in_words(&data_type)),
                });
            }
        }
        if let Some(OperatorSpec::HashJoin(spec)) = self.graph.vertices[vertex].chain.first_mut() {
            spec.runtime_filters = made;
        }
        Ok(())
    }

    /// The scans that column `column` of the probe side of the join at `vertex` comes from, and that run together with
    /// the join.
    fn probe_origins(&self, vertex: VertexId, column: usize) -> Vec<Origin> {
        self.graph
            .inputs_of(vertex)
            .filter(|edge| edge.input == 1 && edge.mode == ExchangeMode::Pipelined)
            .flat_map(|edge| origins(&self.graph, edge.from, column, Reach::Pipelined))
            .collect()
    }

    /// Whether a filter by `build` drops enough at `origin`, as far as estimates tell.
    fn pays(&self, build: &BuildKey, origin: &Origin) -> bool {
        let least_rows = self.options.runtime_filter_min_rows as f64;
        if least_rows == 0.0 {
            return true;
        }
        let (Some(keys), Some(rows)) = (build.keys, build.rows) else {
            return false;
        };
        let Some(probe_rows) = self.rows_at(origin) else {
            return false;
        };
        // What filters and joins have left of the keys that there are in the build side's own table; a probe side that
        // refers to that table has them all.
        let of_build = build.all_keys.map(|all| keys / all.max(1.0));
        // A probe side with more keys than there are in the build side's table loses more. Keys with gaps look as if.
        let probe_keys = self.scans.get(&origin.vertex);
        let probe_keys = probe_keys.and_then(|scan| scan.distinct_values(origin.column));
        let of_probe = probe_keys.map(|all| keys / all.max(1.0));
        let share = match (of_build, of_probe) {
            (Some(of_build), Some(of_probe)) if rows <= SMALL_BUILD_ROWS => of_build.min(of_probe),
            (Some(share), _) | (None, Some(share)) => share,
            (None, None) => return false,
        };
        probe_rows >= least_rows && share <= MOST_SHARE_KEPT && probe_rows * (1.0 - share) >= rows
    }

    /// Rows that leave the scan and its filters.
    fn rows_at(&self, origin: &Origin) -> Option<f64> {
        let vertex = &self.graph.vertices[origin.vertex];
        let keeps_rows = |operator: &OperatorSpec| {
            matches!(
                operator,
                OperatorSpec::Filter(_) | OperatorSpec::RuntimeFilter(_) | OperatorSpec::Project(_)
            )
        };
        if vertex.chain[1..].iter().all(keeps_rows) {
            vertex.estimated_rows.map(|rows| rows as f64)
        } else {
            self.scans.get(&origin.vertex)?.rows
        }
    }

    /// Adds a look at filter `id` behind a scan; whether there was room.
    fn add_check(&mut self, origin: &Origin, id: RuntimeFilterId) -> Result<bool> {
        let chain = &mut self.graph.vertices[origin.vertex].chain;
        let check = RuntimeCheckSpec {
            id,
            key: ScalarExpr::column(origin.column_at_place, &schema_before(&chain[..origin.place])?),
        };
        match chain.get_mut(origin.place - 1) {
            Some(OperatorSpec::RuntimeFilter(filter)) if filter.checks.len() >= MOST_CHECKS => return Ok(false),
            Some(OperatorSpec::RuntimeFilter(filter)) => filter.checks.push(check),
            _ => {
                let filter = RuntimeFilterSpec { checks: vec![check] };
                chain.insert(origin.place, OperatorSpec::RuntimeFilter(filter));
            }
        }
        if let Some(OperatorSpec::Scan(scan)) = chain.first_mut() {
            let key = ScalarExpr::column(origin.column, &scan.plan.0.schema());
            scan.bounded_by.push(RuntimeCheckSpec { id, key });
        }
        Ok(true)
    }
}

/// The schema of what a scan and the filters behind it emit.
fn schema_before(chain: &[OperatorSpec]) -> Result<SchemaRef> {
    let [OperatorSpec::Scan(scan), filters @ ..] = chain else {
        return Err(EngineError::Internal("a chain without a scan has no origin".into()));
    };
    let mut schema = scan.plan.0.schema();
    for operator in filters {
        if let OperatorSpec::Filter(FilterSpec {
            projection: Some(columns),
            ..
        }) = operator
        {
            schema = Arc::new(schema.project(columns)?);
        }
    }
    Ok(schema)
}

/// What is known of one key of a build side.
struct BuildKey {
    rows: Option<f64>,
    /// How many keys there are.
    keys: Option<f64>,
    /// How many there are in the table that the key comes from.
    all_keys: Option<f64>,
    /// Between which values.
    range: Option<(i64, i64)>,
}

impl BuildKey {
    fn new(lowering: &Lowering<'_>, build: &Stream, key: &Physical) -> Self {
        let rows = build.estimate.rows;
        let Some(column) = column_index(key) else {
            return Self {
                rows,
                keys: rows,
                all_keys: None,
                range: None,
            };
        };
        let origins = build
            .tails
            .iter()
            .flat_map(|tail| origins(&lowering.graph, *tail, column, Reach::Everywhere));
        let all_keys = origins
            .filter_map(|origin| lowering.scans.get(&origin.vertex)?.values_of(origin.column))
            .reduce(f64::min);
        Self {
            rows,
            keys: build.estimate.values_of(column),
            all_keys,
            range: build.estimate.whole_range(column),
        }
    }
}

/// Whether a probe row without a match brings no output, so that nobody misses it.
fn drops_unmatched_probe_rows(join_type: JoinType) -> bool {
    matches!(
        join_type,
        JoinType::Inner
            | JoinType::Left
            | JoinType::LeftSemi
            | JoinType::LeftAnti
            | JoinType::LeftMark
            | JoinType::RightSemi
    )
}

/// Whether statistics of the type are in the numbers that a filter works with.
fn counts_in_words(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Date32)
}
