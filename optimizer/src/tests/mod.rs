//! Queries lowered: the shape of the graphs, and what they say against what DataFusion answers.

mod answers;
mod interpret;
mod runtime_filters;
mod shapes;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::{ScalarValue, TableReference};
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use thalweg_engine::plan::{JobGraph, SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::{LoweringOptions, SinkChangelog, SinkResolver, lower, substitute, uncorrelated_scalar_subqueries};

/// COPY goes to files; INSERT is ours for the table `ours` only.
#[derive(Debug)]
struct TestSinks;

impl SinkResolver for TestSinks {
    fn copy(&self, copy: &CopyTo) -> Result<SinkSpec> {
        Ok(sink(copy.input.schema().inner()))
    }

    fn insert(
        &self,
        table: &TableReference,
        _: &Arc<dyn TableProvider>,
        schema: &SchemaRef,
    ) -> Result<Option<SinkSpec>> {
        Ok((table.table() == "ours").then(|| sink(schema)))
    }

    fn max_writers(&self, _: &SinkSpec) -> Result<Option<usize>> {
        Ok(None)
    }

    fn changelog(&self, _: &SinkSpec) -> Result<SinkChangelog> {
        Ok(SinkChangelog::Insertions)
    }
}

fn sink(schema: &SchemaRef) -> SinkSpec {
    SinkSpec {
        connector: "filesystem".into(),
        options: BTreeMap::new(),
        schema: SchemaSpec(schema.clone()),
    }
}

fn options(parallelism: usize) -> LoweringOptions {
    LoweringOptions::new(parallelism, Arc::new(TestSinks))
}

/// `orders(id, customer, amount, note)` in many batches, `customers(id, name, region)`, `tags(id, tags)`, `nothing(a, b)`,
/// and `ours` and `foreign`, to insert into.
fn context() -> SessionContext {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    let orders: Vec<RecordBatch> = (0..8).map(|part| orders(part * 25, 25)).collect();
    register(&ctx, "orders", orders);
    register(&ctx, "customers", vec![customers(0), customers(10)]);
    register(&ctx, "tags", vec![tags()]);
    let empty = RecordBatch::new_empty(orders_nothing().schema());
    register(&ctx, "nothing", vec![empty]);
    register(&ctx, "ours", vec![orders_nothing()]);
    register(&ctx, "foreign", vec![orders_nothing()]);
    ctx
}

fn register(ctx: &SessionContext, name: &str, batches: Vec<RecordBatch>) {
    let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
    ctx.register_table(name, Arc::new(table)).unwrap();
}

fn batch(columns: Vec<(&str, ArrayRef, bool)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn orders(from: i64, rows: i64) -> RecordBatch {
    let ids = from..from + rows;
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone())), false),
        (
            "customer",
            Arc::new(Int32Array::from_iter(
                ids.clone().map(|id| (id % 11 != 0).then_some((id * 7 % 23) as i32)),
            )),
            true,
        ),
        (
            "amount",
            Arc::new(Int64Array::from_iter(
                ids.clone().map(|id| (id % 13 != 0).then_some(id * 37 % 101)),
            )),
            true,
        ),
        (
            "note",
            Arc::new(StringArray::from_iter_values(ids.map(|id| format!("note {}", id % 5)))),
            false,
        ),
    ])
}

fn customers(from: i32) -> RecordBatch {
    let ids = from..from + 10;
    batch(vec![
        ("id", Arc::new(Int32Array::from_iter_values(ids.clone())), false),
        (
            "name",
            Arc::new(StringArray::from_iter_values(
                ids.clone().map(|id| format!("customer {id}")),
            )),
            false,
        ),
        (
            "region",
            Arc::new(StringArray::from_iter(
                ids.map(|id| (id % 4 != 0).then(|| format!("region {}", id % 3))),
            )),
            true,
        ),
    ])
}

fn tags() -> RecordBatch {
    let lists = (0..6).map(|id| (id != 3).then(|| (0..id).map(Some).collect::<Vec<_>>()));
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..6)), false),
        (
            "tags",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)),
            true,
        ),
    ])
}

fn orders_nothing() -> RecordBatch {
    batch(vec![
        ("a", Arc::new(Int64Array::from(vec![1])), true),
        ("b", Arc::new(StringArray::from(vec!["x"])), true),
    ])
}

/// `lines(id, part, price)` as Parquet: several files, several row groups.
async fn register_parquet(ctx: &SessionContext, dir: &Path) {
    for file in 0..4i64 {
        let ids = file * 1000..(file + 1) * 1000;
        let rows = batch(vec![
            ("id", Arc::new(Int64Array::from_iter_values(ids.clone())), true),
            (
                "part",
                Arc::new(Int64Array::from_iter_values(ids.clone().map(|id| id % 17))),
                true,
            ),
            (
                "price",
                Arc::new(Int64Array::from_iter_values(ids.map(|id| id * 31 % 1000))),
                true,
            ),
        ]);
        let out = std::fs::File::create(dir.join(format!("lines{file}.parquet"))).unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(250))
            .build();
        let mut writer = ArrowWriter::try_new(out, rows.schema(), Some(properties)).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
    }
    let path = dir.to_str().unwrap();
    ctx.register_parquet("lines", path, ParquetReadOptions::default())
        .await
        .unwrap();
}

async fn optimized(ctx: &SessionContext, sql: &str) -> LogicalPlan {
    let state = ctx.state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    state.optimize(&plan).unwrap()
}

/// Lowers `sql`; its scalar subqueries are run first, as the session does.
async fn lowered(ctx: &SessionContext, sql: &str, options: &LoweringOptions) -> Result<JobGraph> {
    let plan = resolve(ctx, optimized(ctx, sql).await, options).await;
    let graph = lower(&plan, &ctx.state(), options).await?;
    graph.validate().map_err(|e| EngineError::Plan(e.to_string()))?;
    Ok(graph)
}

async fn resolve(ctx: &SessionContext, plan: LogicalPlan, options: &LoweringOptions) -> LogicalPlan {
    let mut values = HashMap::new();
    for subquery in uncorrelated_scalar_subqueries(&plan) {
        let inner = Box::pin(resolve(ctx, subquery.subquery.as_ref().clone(), options)).await;
        let graph = lower(&inner, &ctx.state(), options).await.unwrap();
        let rows = interpret::interpret(&graph, ctx.task_ctx()).await;
        let value = rows.iter().find(|batch| batch.num_rows() > 0);
        let value = value.map(|batch| ScalarValue::try_from_array(batch.column(0), 0).unwrap());
        values.insert(subquery, value.unwrap_or(ScalarValue::Null));
    }
    substitute(plan, &values).unwrap()
}

/// The rows as text, in their order.
fn rows_of(batches: &[RecordBatch]) -> Vec<String> {
    let table = pretty_format_batches(batches).unwrap().to_string();
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(1);
    lines
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
        .collect()
}
