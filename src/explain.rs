//! EXPLAIN and EXPLAIN ANALYZE.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::LogicalPlan;
use thalweg_engine::plan::{JobGraph, OperatorSpec};
use thalweg_engine::runtime::JobMetrics;

use crate::error::Result;
use crate::result::QueryResult;
use crate::session::Session;

impl Session {
    /// The plans of a query as text: the optimized logical plan, the job graph, and those of its scalar subqueries.
    pub(crate) fn explain_plan(&self, plan: &LogicalPlan) -> Result<Vec<(String, String)>> {
        let streaming = self.is_streaming(plan)?;
        let optimized = self.optimize(plan, streaming)?;
        let mut rows = vec![("logical_plan".to_string(), optimized.display_indent().to_string())];
        self.explain_jobs(optimized, streaming, "job_graph", &mut rows)?;
        Ok(rows)
    }

    fn explain_jobs(
        &self,
        optimized: LogicalPlan,
        streaming: bool,
        title: &str,
        rows: &mut Vec<(String, String)>,
    ) -> Result<()> {
        let subqueries = thalweg_optimizer::uncorrelated_scalar_subqueries(&optimized);
        let mut values = std::collections::HashMap::new();
        let mut inner = Vec::new();
        for (index, subquery) in subqueries.into_iter().enumerate() {
            // Its answer must be complete, which only batch mode's is.
            let plan = self.optimize(&subquery.subquery, false)?;
            let data_type = plan.schema().field(0).data_type().clone();
            let title = format!("{title}, scalar subquery {}", index + 1);
            self.explain_jobs(plan, false, &title, &mut inner)?;
            values.insert(subquery, ScalarValue::try_new_null(&data_type)?);
        }
        let plan = thalweg_optimizer::substitute(optimized, &values)?;
        let graph = self.lower(&plan, streaming)?;
        rows.push((title.to_string(), thalweg_optimizer::explain(&graph)));
        rows.extend(inner);
        Ok(())
    }

    /// Runs a query and gives its job graph with what each operator did.
    #[expect(clippy::disallowed_methods, reason = "the time that a user waits is the machine's")]
    pub(crate) fn explain_analyze(&self, plan: LogicalPlan) -> Result<Vec<(String, String)>> {
        let start = Instant::now();
        let streaming = self.is_streaming(&plan)?;
        let optimized = self.optimize(&plan, streaming)?;
        let resolved = self.resolve_scalar_subqueries(optimized, streaming)?;
        let mut job = self.submit(&resolved, streaming)?;
        let (graph, metrics) = (Arc::clone(job.graph()), Arc::clone(job.metrics()));
        let mut rows = 0;
        for batch in &mut job {
            rows += batch?.num_rows();
        }
        let mut text = annotate(&graph, &metrics);
        text.push_str(&format!("{rows} rows in {:.3} s\n", start.elapsed().as_secs_f64()));
        Ok(vec![("job_graph with metrics".to_string(), text)])
    }

    /// Rows of `SET` as a result.
    pub(crate) fn setting_rows(rows: Vec<(String, String)>) -> Result<QueryResult> {
        Self::text_rows(["key", "value"], rows)
    }

    /// Rows of `EXPLAIN` as a result.
    pub(crate) fn plan_rows(rows: Vec<(String, String)>) -> Result<QueryResult> {
        Self::text_rows(["plan_type", "plan"], rows)
    }

    fn text_rows(names: [&str; 2], rows: Vec<(String, String)>) -> Result<QueryResult> {
        let fields = names.map(|name| Field::new(name, DataType::Utf8, false));
        let schema: SchemaRef = Arc::new(Schema::new(fields.to_vec()));
        let (types, plans): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(types)), Arc::new(StringArray::from(plans))];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        Ok(QueryResult::ready(schema, vec![batch]))
    }
}

/// The job graph as EXPLAIN shows it, with a line of metrics under each operator.
fn annotate(graph: &JobGraph, metrics: &JobMetrics) -> String {
    let text = thalweg_optimizer::explain_with(graph, &|vertex, place| {
        if matches!(graph.vertices[vertex].chain[place], OperatorSpec::Collect(_)) {
            return None;
        }
        let operator = metrics.operator(vertex, place);
        let mut line = format!(
            "rows_in={} rows_out={} batches={} busy={:.1}ms",
            operator.rows_in,
            operator.rows_out,
            operator.batches_out,
            operator.busy_ns as f64 / 1e6
        );
        if operator.peak_memory_bytes > 0 {
            line.push_str(&format!(" peak_memory={}", bytes(operator.peak_memory_bytes)));
        }
        if operator.spilled_bytes > 0 {
            line.push_str(&format!(" spilled={}", bytes(operator.spilled_bytes)));
        }
        if operator.late_rows > 0 {
            line.push_str(&format!(" late_rows={}", operator.late_rows));
        }
        if operator.bad_records > 0 {
            line.push_str(&format!(" bad_records={}", operator.bad_records));
        }
        Some(line)
    });
    match metrics.exchange_spilled_bytes() {
        0 => text,
        spilled => format!("{text}blocking exchanges spilled {}\n", bytes(spilled)),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}
