//! Sources: tables, their watermarks, and windows as tables.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::Constraint;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, UserDefinedLogicalNodeCore};
use thalweg_engine::plan::{
    AssignWatermarkSpec, OperatorSpec, ScalarExpr, SchemaSpec, StreamScanSpec, WatermarkSpec, WindowAssignSpec,
    WindowKind, WindowTime,
};
use thalweg_engine::{EngineError, Result};

use super::flow::{Flow, WindowColumns, pull};
use super::refused;
use crate::logical::{WatermarkNode, WindowTvf};
use crate::lower::Lowering;
use crate::properties::Stream;

impl Lowering<'_> {
    pub(super) async fn stream_scan(&mut self, scan: &TableScan) -> Result<Flow> {
        let mut stream = self.table_scan(scan).await?;
        let bounded = self.as_stream(&mut stream);
        // Filters that the source applied are applied once more: they are cheap, and the walk need not know.
        stream.handled_filters.clear();
        let mut flow = Flow::new(stream, bounded);
        flow.keys = primary_key(scan).into_iter().collect();
        // A filter on a column that is not read was applied by the provider itself.
        let read = |filter: &&Expr| {
            let columns = filter.column_refs();
            columns
                .into_iter()
                .all(|column| scan.projected_schema.has_column(column))
        };
        let filters = scan.filters.iter().filter(read).cloned();
        if let Some(filter) = datafusion::logical_expr::utils::conjunction(filters) {
            flow = self.keep(&filter, &scan.projected_schema, flow)?;
        }
        Ok(flow)
    }

    /// Lets the scan that `stream` is read its splits side by side; whether it ends.
    fn as_stream(&mut self, stream: &mut Stream) -> bool {
        let mut bounded = true;
        for tail in &stream.tails {
            let vertex = &mut self.graph.vertices[*tail];
            if let Some(OperatorSpec::Scan(scan)) = vertex.chain.first_mut() {
                scan.stream.get_or_insert_with(StreamScanSpec::default);
                bounded &= !scan.plan.0.properties().boundedness.is_unbounded();
                let splits = scan.plan.0.properties().partitioning.partition_count();
                // A subtask without a split has nothing to do.
                vertex.parallelism = vertex.parallelism.min(splits.max(1));
                stream.parallelism = vertex.parallelism;
            }
        }
        bounded
    }

    pub(super) async fn stream_watermark(&mut self, node: &WatermarkNode) -> Result<Flow> {
        let mut flow = self.flow(node.input()).await?;
        let rowtime = node.input().schema().index_of_column(node.rowtime())?;
        let spec = |expr: ScalarExpr, lowering: &Self| WatermarkSpec {
            expr,
            idle_timeout_ms: node.idle_timeout_ms().or(lowering.options.streaming.idle_timeout_ms),
            interval_ms: lowering.options.streaming.watermark_interval_ms,
            max_drift_ms: lowering.options.streaming.max_drift_ms,
        };
        flow.rowtimes = vec![rowtime];
        if let Some((vertex, expr)) = self.at_source(node, &flow)? {
            let spec = spec(expr, self);
            if let Some(OperatorSpec::Scan(scan)) = self.graph.vertices[vertex].chain.first_mut() {
                let stream = scan.stream.get_or_insert_with(StreamScanSpec::default);
                let same = stream
                    .watermark
                    .as_ref()
                    .is_none_or(|known| format!("{:?}", known.expr) == format!("{:?}", spec.expr));
                if same {
                    stream.watermark = Some(spec);
                    return Ok(flow);
                }
            }
        }
        let expr = ScalarExpr::new(
            self.physical(node.expr(), node.input().schema())?,
            Arc::clone(&flow.stream.schema),
        );
        let operator = OperatorSpec::AssignWatermark(AssignWatermarkSpec {
            watermark: spec(expr, self),
        });
        let schema = Arc::clone(&flow.stream.schema);
        flow.stream = self.chain(flow.stream, operator, schema);
        Ok(flow)
    }

    /// The watermark over the batches of the scan below, when only computed columns are in between: it is then kept per
    /// split.
    fn at_source(&self, node: &WatermarkNode, flow: &Flow) -> Result<Option<(usize, ScalarExpr)>> {
        let [vertex] = flow.stream.tails[..] else {
            return Ok(None);
        };
        let chain = &self.graph.vertices[vertex].chain;
        let row_wise = |operator: &OperatorSpec| matches!(operator, OperatorSpec::Project(_) | OperatorSpec::Filter(_));
        if !matches!(chain.first(), Some(OperatorSpec::Scan(_))) || !chain.iter().skip(1).all(row_wise) {
            return Ok(None);
        }
        let mut expr = node.expr().clone();
        let mut below = node.input();
        loop {
            match below {
                LogicalPlan::TableScan(scan) => {
                    let Some(OperatorSpec::Scan(spec)) = chain.first() else {
                        return Ok(None);
                    };
                    let physical = self.physical(&expr, &scan.projected_schema)?;
                    return Ok(Some((vertex, ScalarExpr::new(physical, spec.plan.0.schema()))));
                }
                LogicalPlan::Projection(projection) => {
                    let Some(pulled) = pull(&expr, below) else {
                        return Ok(None);
                    };
                    expr = pulled;
                    below = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    let Some(pulled) = pull(&expr, below) else {
                        return Ok(None);
                    };
                    expr = pulled;
                    below = &alias.input;
                }
                _ => return Ok(None),
            }
        }
    }

    /// A window's rows one by one, where no aggregation above takes the windows in itself.
    pub(super) async fn stream_window_tvf(&mut self, node: &WindowTvf) -> Result<Flow> {
        let flow = self.flow(node.input()).await?;
        let time = window_time(node, &flow)?;
        if matches!(node.window(), WindowKind::Session { .. }) {
            return Err(refused(
                "SESSION without an aggregation",
                "group by window_start, window_end and the columns of its PARTITION BY",
            ));
        }
        if flow.is_changelog() {
            return Err(refused(
                "a window over a stream of updates",
                "aggregate without windows, or deduplicate into insertions first",
            ));
        }
        let width = flow.width();
        let appended = node.schema().fields().iter().skip(width).cloned();
        let fields: Vec<Arc<Field>> = flow.stream.schema.fields().iter().cloned().chain(appended).collect();
        let schema = Arc::new(Schema::new(fields));
        let operator = OperatorSpec::WindowAssign(WindowAssignSpec {
            window: node.window(),
            time,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let mut output = flow.clone();
        output.stream = self.chain(flow.stream, operator, schema);
        output.stream.ordering.clear();
        output.keys.clear();
        // Watermarks say nothing of windows of processing time.
        output.window = matches!(time, WindowTime::Event(_)).then_some(WindowColumns {
            start: Some(width),
            end: width + 1,
        });
        Ok(output)
    }
}

/// By which time a window goes.
///
/// # Errors
/// When its column is no time attribute.
pub(super) fn window_time(node: &WindowTvf, flow: &Flow) -> Result<WindowTime> {
    let column = node.input().schema().index_of_column(node.time())?;
    if flow.proctimes.contains(&column) {
        return Ok(WindowTime::Processing);
    }
    if flow.rowtimes.contains(&column) {
        return Ok(WindowTime::Event(column));
    }
    Err(EngineError::Plan(format!(
        "the window's time column {} is not a time attribute on a stream; declare WATERMARK FOR it in the table, or use PROCTIME()",
        node.time()
    )))
}

/// The type of a window's bounds by this time.
pub(super) fn bound_type(time: WindowTime, schema: &Schema) -> DataType {
    let zone = match time {
        WindowTime::Event(column) => match schema.field(column).data_type() {
            DataType::Timestamp(_, zone) => zone.clone(),
            _ => None,
        },
        WindowTime::Processing => None,
    };
    DataType::Timestamp(TimeUnit::Millisecond, zone)
}

/// Whether `expr` is exactly a column of `plan`, and which.
pub(super) fn column_of(expr: &Expr, plan: &LogicalPlan) -> Option<usize> {
    match expr {
        Expr::Column(column) => plan.schema().maybe_index_of_column(column),
        Expr::Alias(alias) => column_of(&alias.expr, plan),
        _ => None,
    }
}

/// The columns of the table's primary key, where all of them are read.
fn primary_key(scan: &TableScan) -> Option<Vec<usize>> {
    let constraints = scan.source.constraints()?;
    let key = constraints.iter().find_map(|constraint| match constraint {
        Constraint::PrimaryKey(key) => Some(key),
        Constraint::Unique(_) => None,
    })?;
    key.iter()
        .map(|column| match &scan.projection {
            Some(read) => read.iter().position(|index| index == column),
            None => Some(*column),
        })
        .collect()
}
