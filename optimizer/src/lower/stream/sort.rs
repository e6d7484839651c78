//! ORDER BY and LIMIT.

use std::sync::Arc;

use datafusion::logical_expr::{FetchType, Limit, LogicalPlan, SkipType, Sort};
use thalweg_engine::Result;
use thalweg_engine::plan::{LimitSpec, OperatorSpec, Partitioning, SchemaSpec, StreamSortSpec};

use super::flow::Flow;
use super::refused;
use crate::lower::Lowering;
use crate::properties::column_index;

impl Lowering<'_> {
    pub(super) async fn stream_sort(&mut self, sort: &Sort) -> Result<Flow> {
        let input = self.flow(&sort.input).await?;
        let keys = self.order_keys(&sort.expr, sort.input.schema(), &input)?;
        if let Some(fetch) = sort.fetch {
            return self.first_of_all(input, keys, 0, fetch);
        }
        let by_time = keys
            .first()
            .filter(|key| !key.descending)
            .and_then(|key| column_index(&key.expr.expr))
            .filter(|column| input.rowtimes.contains(column) && !input.is_changelog());
        let Some(time) = by_time else {
            return Err(refused(
                "ORDER BY anything but ascending event time, without LIMIT,",
                "add LIMIT n, or SET 'execution.runtime-mode' = 'batch'",
            ));
        };
        let schema = Arc::clone(&input.stream.schema);
        let operator = OperatorSpec::StreamSort(StreamSortSpec {
            time,
            keys: keys.into_iter().skip(1).collect(),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let mut flow = input.clone();
        flow.stream = self.exchange(input.stream, Partitioning::Global, 1, operator, schema);
        Ok(flow)
    }

    pub(super) async fn stream_limit(&mut self, limit: &Limit) -> Result<Flow> {
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) = (limit.get_skip_type()?, limit.get_fetch_type()?)
        else {
            return Err(refused("LIMIT by an expression", "write a number"));
        };
        if let (LogicalPlan::Sort(sort), Some(fetch)) = (limit.input.as_ref(), fetch) {
            let input = self.flow(&sort.input).await?;
            let keys = self.order_keys(&sort.expr, sort.input.schema(), &input)?;
            return self.first_of_all(input, keys, skip, fetch);
        }
        let input = self.flow(&limit.input).await?;
        if input.is_changelog() {
            return Err(refused(
                "LIMIT over a stream of updates",
                "say with ORDER BY which rows are the first",
            ));
        }
        let schema = Arc::clone(&input.stream.schema);
        let operator = OperatorSpec::Limit(LimitSpec { skip, fetch });
        let mut flow = input.clone();
        flow.stream = self.gather(input.stream, operator, schema);
        Ok(flow)
    }
}
