//! Sort and Limit.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::logical_expr::{Expr, FetchType, Limit, SkipType, Sort, SortExpr};
use thalweg_engine::plan::{LimitSpec, MergeSpec, OperatorSpec, ScalarExpr, SortKey, SortSpec};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use crate::properties::{Stream, same};

impl Lowering<'_> {
    pub(super) fn sort(&mut self, sort: &Sort, input: Stream) -> Result<Stream> {
        let keys = self.sort_keys(&sort.expr, sort.input.schema(), &input)?;
        let sorted = self.sort_to_one(input, keys, sort.fetch);
        Ok(sorted)
    }

    /// The physical form of an order. A key that repeats an earlier one decides nothing and is left out.
    pub(super) fn sort_keys(&self, order: &[SortExpr], schema: &DFSchema, input: &Stream) -> Result<Vec<SortKey>> {
        let mut keys: Vec<SortKey> = Vec::with_capacity(order.len());
        for sort in order {
            let expr = self.physical(&sort.expr, schema)?;
            if keys.iter().any(|key| same(&key.expr.expr, &expr)) {
                continue;
            }
            keys.push(SortKey {
                expr: ScalarExpr::new(expr, Arc::clone(&input.schema)),
                descending: !sort.asc,
                nulls_first: sort.nulls_first,
            });
        }
        Ok(keys)
    }

    /// One subtask with all rows in order: each subtask sorts its own, then the sorted streams are merged.
    pub(super) fn sort_to_one(&mut self, input: Stream, keys: Vec<SortKey>, fetch: Option<usize>) -> Stream {
        let sorted = self.sort_locally(input, &keys, fetch);
        if sorted.is_single() {
            return sorted;
        }
        let merge = OperatorSpec::Merge(MergeSpec {
            keys: keys.clone(),
            fetch,
        });
        let mut merged = self.exchange_merge(sorted, merge, keys);
        merged.estimate = merged.estimate.limit(fetch);
        merged
    }

    /// Every subtask sorts its own rows, unless they are in order already.
    pub(super) fn sort_locally(&mut self, mut input: Stream, keys: &[SortKey], fetch: Option<usize>) -> Stream {
        let schema = Arc::clone(&input.schema);
        if input.is_sorted_by(keys) {
            return match fetch {
                Some(_) => self.chain(input, OperatorSpec::Limit(LimitSpec { skip: 0, fetch }), schema),
                None => input,
            };
        }
        // Each subtask may keep `fetch` rows; which ones is decided at the merge.
        if input.is_single() {
            input.estimate = input.estimate.limit(fetch);
        }
        input.ordering = keys.to_vec();
        let operator = OperatorSpec::Sort(SortSpec {
            keys: keys.to_vec(),
            fetch,
            by_range: false,
        });
        // Branches of a union stay apart: each sorts its own rows and the merge takes them all.
        if input.tails.len() > 1 {
            for tail in &input.tails {
                self.graph.vertices[*tail].chain.push(operator.clone());
            }
            return input;
        }
        self.chain(input, operator, schema)
    }

    /// Turns "sort in every subtask, then merge in one" into a sort by range: the same rows in as many subtasks as
    /// sort, in order when put one after the other. For sinks that keep such an order. `None`, and nothing changed, when
    /// `stream` is not made that way.
    pub(super) fn sorted_by_range(&mut self, stream: &Stream, writers: Option<usize>) -> Option<Stream> {
        let [merging] = stream.tails[..] else { return None };
        let (head, rest) = self.graph.vertices[merging].chain.split_first()?;
        let is_row_wise =
            |operator: &OperatorSpec| matches!(operator, OperatorSpec::Project(_) | OperatorSpec::Filter(_));
        let is_last = merging + 1 == self.graph.vertices.len() && self.graph.outputs_of(merging).next().is_none();
        if !is_last
            || !matches!(head, OperatorSpec::Merge(spec) if spec.fetch.is_none())
            || !rest.iter().all(is_row_wise)
        {
            return None;
        }
        let producers: Vec<usize> = self.graph.inputs_of(merging).map(|edge| edge.from).collect();
        let [sorting] = producers[..] else { return None };
        let parallelism = self.graph.vertices[sorting].parallelism;
        let Some(OperatorSpec::Sort(sort)) = self.graph.vertices[sorting].chain.last_mut() else {
            return None;
        };
        if sort.fetch.is_some() || parallelism < 2 || writers.is_some_and(|most| most < parallelism) {
            return None;
        }
        sort.by_range = true;
        self.graph.edges.retain(|edge| edge.to != merging);
        let merging = self.graph.vertices.pop()?;
        let sorting = &mut self.graph.vertices[sorting];
        sorting.chain.extend(merging.chain.into_iter().skip(1));
        sorting.output_schema = merging.output_schema;
        Some(Stream {
            tails: producers,
            schema: Arc::clone(&stream.schema),
            parallelism,
            hashed: Vec::new(),
            ordering: Vec::new(),
            estimate: stream.estimate.clone(),
            handled_filters: Vec::new(),
        })
    }

    pub(super) fn limit(&mut self, limit: &Limit, input: Stream) -> Result<Stream> {
        let SkipType::Literal(skip) = limit.get_skip_type()? else {
            return Err(not_literal("OFFSET", limit.skip.as_deref()));
        };
        let FetchType::Literal(fetch) = limit.get_fetch_type()? else {
            return Err(not_literal("LIMIT", limit.fetch.as_deref()));
        };
        let schema = Arc::clone(&input.schema);
        let mut input = input;
        if let Some(fetch) = fetch
            && !input.is_single()
        {
            let local = LimitSpec {
                skip: 0,
                fetch: Some(fetch.saturating_add(skip)),
            };
            input = self.chain(input, OperatorSpec::Limit(local), Arc::clone(&schema));
        }
        input.estimate = input.estimate.limit(fetch);
        if skip == 0 && fetch.is_none() {
            return Ok(input);
        }
        Ok(self.gather(input, OperatorSpec::Limit(LimitSpec { skip, fetch }), schema))
    }
}

fn not_literal(clause: &str, expr: Option<&Expr>) -> EngineError {
    let text = expr.map(ToString::to_string).unwrap_or_default();
    EngineError::Plan(format!(
        "{clause} {text} is not known before the query runs; write a number"
    ))
}
