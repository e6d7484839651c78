//! OVER aggregates in the order of time.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::{
    Expr, Window, WindowFrame, WindowFrameBound, WindowFrameUnits, WindowFunctionDefinition,
};
use thalweg_engine::Result;
use thalweg_engine::plan::{OperatorSpec, OverFrame, OverSpec, SchemaSpec, WindowTime};

use super::flow::Flow;
use super::interval::interval_ms;
use super::refused;
use crate::lower::Lowering;
use crate::properties::{column_index, scalar_exprs};

impl Lowering<'_> {
    pub(super) async fn stream_over(&mut self, window: &Window) -> Result<Flow> {
        let input = self.flow(&window.input).await?;
        let logical = window.input.schema();
        if input.is_changelog() {
            return Err(refused(
                "OVER a stream of updates",
                "use GROUP BY, or ROW_NUMBER() <= n for the first rows",
            ));
        }
        let functions: Vec<&WindowFunction> = window.window_expr.iter().map(function_of).collect::<Result<_>>()?;
        let Some(first) = functions.first() else {
            return Ok(input);
        };
        let time = self.over_time(&first.params, logical, &input)?;
        let mut frames = Vec::new();
        let mut aggregates = Vec::new();
        // Row numbers come last.
        let mut places = Vec::with_capacity(functions.len());
        for function in &functions {
            if function.params.partition_by != first.params.partition_by
                || function.params.order_by != first.params.order_by
            {
                return Err(refused(
                    "OVER windows of several kinds in one SELECT",
                    "nest one SELECT in another",
                ));
            }
            match &function.fun {
                WindowFunctionDefinition::AggregateUDF(udf) => {
                    frames.push(frame_of(&function.params.window_frame)?);
                    places.push(Some(aggregates.len()));
                    aggregates.push(Expr::AggregateFunction(AggregateFunction::new_udf(
                        Arc::clone(udf),
                        function.params.args.clone(),
                        function.params.distinct,
                        function.params.filter.clone(),
                        Vec::new(),
                        function.params.null_treatment,
                    )));
                }
                WindowFunctionDefinition::WindowUDF(udf) if udf.name().eq_ignore_ascii_case("row_number") => {
                    places.push(None);
                }
                WindowFunctionDefinition::WindowUDF(udf) => {
                    return Err(refused(
                        &format!("{}() OVER", udf.name()),
                        "aggregate functions and ROW_NUMBER() are; or SET 'execution.runtime-mode' = 'batch'",
                    ));
                }
            }
        }
        let row_numbers = places.iter().filter(|place| place.is_none()).count();
        let schema = Arc::clone(&input.stream.schema);
        let partition = self.physical_all(&first.params.partition_by, logical)?;
        let functions = self.functions(&aggregates, logical, &schema)?;
        let width = input.width();
        let mut fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        for function in &functions.functions {
            fields.push(function.field().as_ref().clone());
        }
        let number = |index: usize| window.schema.field(width + index).as_ref().clone();
        fields.extend(
            places
                .iter()
                .enumerate()
                .filter(|(_, place)| place.is_none())
                .map(|(index, _)| number(index)),
        );
        let output = Arc::new(Schema::new(fields));
        let operator = OperatorSpec::Over(OverSpec {
            partition_by: scalar_exprs(&partition, &schema),
            time,
            aggregates: functions,
            frames,
            row_numbers,
            ttl_ms: self.options.streaming.state_ttl_ms,
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let mut flow = input.clone();
        flow.stream = self.ship(input.stream, partition, operator, Arc::clone(&output));
        // Back into the order in which they were written, under the names of the logical plan.
        let mut next_number = aggregates.len();
        let outputs = (0..width)
            .chain(places.iter().map(|place| {
                let at = place.unwrap_or_else(|| {
                    next_number += 1;
                    next_number - 1
                });
                width + at
            }))
            .map(|index| crate::properties::column(index, &output))
            .collect();
        self.compute_columns(&[], outputs, window.schema.as_arrow(), flow)
    }

    fn over_time(
        &self,
        params: &WindowFunctionParams,
        logical: &datafusion::common::DFSchema,
        input: &Flow,
    ) -> Result<WindowTime> {
        if let [key] = &params.order_by[..] {
            let by = column_index(&self.physical(&key.expr, logical)?);
            if key.asc
                && let Some(by) = by
            {
                if input.proctimes.contains(&by) {
                    return Ok(WindowTime::Processing);
                }
                if input.rowtimes.contains(&by) {
                    return Ok(WindowTime::Event(by));
                }
            }
        }
        Err(refused(
            "OVER with an order other than ascending time",
            "ORDER BY a column that a WATERMARK is declared for, or PROCTIME(); ROW_NUMBER() <= n works in any order",
        ))
    }
}

fn function_of(expr: &Expr) -> Result<&WindowFunction> {
    match expr {
        Expr::Alias(alias) => function_of(&alias.expr),
        Expr::WindowFunction(function) => Ok(function),
        other => Err(refused(&format!("'{other}'"), "it is no OVER function")),
    }
}

fn frame_of(frame: &WindowFrame) -> Result<OverFrame> {
    let current = |bound: &WindowFrameBound| matches!(bound, WindowFrameBound::CurrentRow);
    let wrong = || {
        refused(
            &format!("the frame {frame}"),
            "frames end at CURRENT ROW and start before it",
        )
    };
    if !current(&frame.end_bound) {
        return Err(wrong());
    }
    match (&frame.units, &frame.start_bound) {
        (WindowFrameUnits::Rows, WindowFrameBound::Preceding(value)) if value.is_null() => Ok(OverFrame::RowsUnbounded),
        (WindowFrameUnits::Rows, WindowFrameBound::Preceding(ScalarValue::UInt64(Some(rows)))) => {
            Ok(OverFrame::Rows(*rows))
        }
        (WindowFrameUnits::Rows, WindowFrameBound::CurrentRow) => Ok(OverFrame::Rows(0)),
        (WindowFrameUnits::Range, WindowFrameBound::Preceding(value)) if value.is_null() => {
            Ok(OverFrame::RangeUnbounded)
        }
        (WindowFrameUnits::Range, WindowFrameBound::Preceding(value)) => {
            interval_ms(value).map(OverFrame::Range).ok_or_else(wrong)
        }
        (WindowFrameUnits::Range, WindowFrameBound::CurrentRow) => Ok(OverFrame::Range(0)),
        _ => Err(wrong()),
    }
}
