//! Rows per second and core. Run by hand, optimized:
//! `cargo test --release -p thalweg-engine --lib operator::keyed::timing -- --ignored --nocapture`

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, StringViewArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::functions_aggregate::{count, min_max, sum};
use datafusion::logical_expr::AggregateUDF;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::{Column, lit};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::data::{Batch, Result, Watermark, with_row_kind};
use crate::operator::group_aggregate::GroupAggregate;
use crate::operator::harness::Harness;
use crate::operator::normalize::Normalize;
use crate::operator::rank::rank;
use crate::operator::{Collector, Operator};
use crate::plan::{Aggregates, GroupAggregateSpec, NormalizeSpec, RankSpec, ScalarExpr, SchemaSpec, SortKey};

const ROWS: usize = 4_000_000;
const KEYS: i64 = 100_000;
const BATCH: usize = 8192;

/// Counts rows.
#[derive(Default)]
struct Counted(usize);

impl Collector for Counted {
    fn collect(&mut self, batch: Batch) -> Result<()> {
        self.0 += batch.num_rows();
        Ok(())
    }
    fn watermark(&mut self, _watermark: Watermark) -> Result<()> {
        Ok(())
    }
    fn collect_side(&mut self, _tag: usize, _batch: Batch) -> Result<()> {
        Ok(())
    }
    fn is_done(&self) -> bool {
        false
    }
}

struct Any(Box<dyn Operator>);

impl Operator for Any {
    fn on_batch(
        &mut self,
        port: usize,
        batch: Batch,
        cx: &mut crate::operator::Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        self.0.on_batch(port, batch, cx, out)
    }
    fn on_end(&mut self, port: usize, cx: &mut crate::operator::Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_end(port, cx, out)
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, false),
        Field::new("v", DataType::Int64, false),
        Field::new("time", DataType::Int64, false),
        Field::new("text", DataType::Utf8View, false),
    ]))
}

fn batches() -> Vec<Batch> {
    let mut random = StdRng::seed_from_u64(1);
    let mut batch = |start: usize| {
        let rows = BATCH.min(ROWS - start);
        let keys = (0..rows).map(|_| random.random_range(0..KEYS));
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
        let values = (0..rows).map(|_| random.random_range(0..1_000_000));
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
        let times = (0..rows).map(|row| ((start + row) / 10) as i64);
        let times: ArrayRef = Arc::new(Int64Array::from_iter_values(times));
        let texts = (0..rows).map(|row| format!("https://www.nexmark.com/item.htm?query={row}"));
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts));
        Batch::try_new(schema(), vec![keys, values, times, texts]).unwrap()
    };
    (0..ROWS).step_by(BATCH).map(&mut batch).collect()
}

/// The same as upserts.
fn upserts(batches: &[Batch]) -> Vec<Batch> {
    let upsert = |batch: &Batch| {
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(UInt8Array::from(vec![2; batch.num_rows()])));
        Batch::try_new(with_row_kind(&schema()), columns).unwrap()
    };
    batches.iter().map(upsert).collect()
}

#[expect(clippy::disallowed_methods, reason = "a timing is of the wall clock")]
fn time(what: &str, batches: &[Batch], operator: impl Fn() -> Box<dyn Operator>) {
    let mut best = Duration::MAX;
    let mut counted = Counted::default();
    let mut bytes = 0;
    for _ in 0..3 {
        let mut harness = Harness::new(Any(operator()));
        counted = Counted::default();
        let start = std::time::Instant::now();
        for batch in batches {
            let cx = &mut harness.context;
            harness.operator.on_batch(0, batch.clone(), cx, &mut counted).unwrap();
        }
        best = best.min(start.elapsed());
        bytes = harness.memory.reserved_bytes();
    }
    let rate = ROWS as f64 / best.as_secs_f64() / 1e6;
    println!("{what}: {rate:.2} M rows/s, {} rows out, {} MB", counted.0, bytes >> 20);
}

fn function(udf: Arc<AggregateUDF>, argument: Option<usize>) -> Arc<AggregateFunctionExpr> {
    let argument = match argument {
        Some(index) => Arc::new(Column::new(schema().field(index).name(), index)) as _,
        None => lit(1i64),
    };
    let name = udf.name().to_string();
    let builder = AggregateExprBuilder::new(udf, vec![argument])
        .schema(schema())
        .alias(name);
    Arc::new(builder.build().unwrap())
}

fn aggregation(update_before: bool, takes_back: bool) -> GroupAggregateSpec {
    let functions = vec![
        function(count::count_udaf(), None),
        function(sum::sum_udaf(), Some(1)),
        function(min_max::max_udaf(), Some(1)),
    ];
    let key = schema().field(0).clone();
    let results = functions.iter().map(|function| function.field().as_ref().clone());
    let output = Schema::new([key].into_iter().chain(results).collect::<Vec<_>>());
    GroupAggregateSpec {
        group_by: vec![ScalarExpr::column(0, &schema())],
        aggregates: Aggregates {
            filters: vec![None; functions.len()],
            functions,
            input: schema(),
        },
        input_schema: SchemaSpec(if takes_back { with_row_kind(&schema()) } else { schema() }),
        update_before,
        ttl_ms: None,
        schema: SchemaSpec(with_row_kind(&output)),
    }
}

fn ranking(column: usize, last: usize, by_time: bool, update_before: bool) -> RankSpec {
    RankSpec {
        partition_by: vec![ScalarExpr::column(0, &schema())],
        order_by: vec![SortKey {
            expr: ScalarExpr::column(column, &schema()),
            descending: true,
            nulls_first: false,
        }],
        first: 1,
        last,
        number: false,
        window_end: None,
        by_time,
        input_schema: SchemaSpec(schema()),
        update_before,
        ttl_ms: None,
        schema: SchemaSpec(with_row_kind(&schema())),
    }
}

#[test]
#[ignore = "a timing"]
fn rates() {
    let batches = batches();
    let upserts = upserts(&batches);
    for update_before in [true, false] {
        time(
            &format!("COUNT, SUM, MAX, update_before {update_before}"),
            &batches,
            || Box::new(GroupAggregate::new(aggregation(update_before, false)).unwrap()),
        );
    }
    time("COUNT, SUM, MAX of a changelog", &upserts, || {
        Box::new(GroupAggregate::new(aggregation(true, true)).unwrap())
    });
    for update_before in [true, false] {
        time(
            &format!("last row by time, update_before {update_before}"),
            &batches,
            || rank(&ranking(2, 1, true, update_before)).unwrap(),
        );
    }
    time("top 1", &batches, || rank(&ranking(1, 1, false, true)).unwrap());
    time("top 10", &batches, || rank(&ranking(1, 10, false, true)).unwrap());
    let mut changelog = ranking(1, 10, false, true);
    changelog.input_schema = SchemaSpec(with_row_kind(&schema()));
    time("top 10 of a changelog", &upserts, || rank(&changelog).unwrap());
    time("normalize", &upserts, || {
        let spec = NormalizeSpec {
            keys: vec![0],
            ttl_ms: None,
            schema: SchemaSpec(with_row_kind(&schema())),
        };
        Box::new(Normalize::new(spec).unwrap())
    });
}
