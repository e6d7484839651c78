//! Timings against DataFusion's own two-phase aggregation. Run by hand, optimized:
//! `cargo test --release -p thalweg-engine --lib operator::aggregate::tests::timing -- --ignored --nocapture`

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray, StringViewArray};
use arrow::datatypes::{Field, Schema};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::functions_aggregate::{count, sum};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::{ExecutionPlan, collect};
use futures::executor::block_on;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::reference::{Filtered, column, cut, function, plain, run, run_in_two, specs};
use crate::data::Batch;

const ROWS: usize = 6_000_000;

#[expect(clippy::disallowed_methods, reason = "a timing is of the wall clock")]
fn timed<R>(work: impl Fn() -> R) -> (Duration, R) {
    let once = || {
        let start = std::time::Instant::now();
        let result = work();
        (start.elapsed(), result)
    };
    let (first, result) = once();
    ((0..2).map(|_| once().0).fold(first, Duration::min), result)
}

fn datafusion(keys: &[&str], functions: &[Filtered], batches: &[Batch]) -> usize {
    let schema = batches[0].schema();
    let source = MemorySourceConfig::try_new_exec(&[batches.to_vec()], Arc::clone(&schema), None).unwrap();
    let by =
        |schema| PhysicalGroupBy::new_single(keys.iter().map(|key| (column(key, schema), key.to_string())).collect());
    let all: Vec<_> = functions.iter().map(|(f, _)| Arc::clone(f)).collect();
    let none = vec![None; all.len()];
    let exec =
        |mode, by, input, schema| AggregateExec::try_new(mode, by, all.clone(), none.clone(), input, schema).unwrap();
    let partial = Arc::new(exec(AggregateMode::Partial, by(&schema), source, Arc::clone(&schema)));
    let states = partial.schema();
    let last = Arc::new(exec(AggregateMode::Final, by(&states), partial, schema));
    block_on(collect(last, Arc::new(TaskContext::default())))
        .unwrap()
        .iter()
        .map(Batch::num_rows)
        .sum()
}

fn compare(what: &str, keys: &[(&str, ArrayRef)], values: &[(&str, ArrayRef)]) {
    let columns = || keys.iter().chain(values);
    let fields: Vec<Field> = columns()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let batch = Batch::try_new(
        Arc::new(Schema::new(fields)),
        columns().map(|(_, array)| Arc::clone(array)).collect(),
    );
    let batches = cut(&batch.unwrap(), 8192);
    let schema = batches[0].schema();
    let mut functions: Vec<Filtered> = values
        .iter()
        .map(|(name, _)| plain(function(sum::sum_udaf(), name, &schema)))
        .collect();
    functions.push(plain(function(count::count_udaf(), values[0].0, &schema)));
    let names: Vec<&str> = keys.iter().map(|(name, _)| *name).collect();
    let specs = specs(&names, &functions, &schema);
    let rows = |batches: Vec<Batch>| batches.iter().map(Batch::num_rows).sum::<usize>();
    let (single, groups) = timed(|| rows(run(&specs.single, batches.clone()).unwrap()));
    let (two, in_two) = timed(|| rows(run_in_two(&specs, &batches, 1).unwrap()));
    let (theirs, by_them) = timed(|| datafusion(&names, &functions, &batches));
    assert_eq!((groups, groups), (in_two, by_them));
    println!("{what}: {groups} groups, single {single:?}, two steps {two:?}, DataFusion two steps {theirs:?}");
}

#[test]
#[ignore = "a timing, not a check; the command is at the top of this file"]
fn against_datafusion() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut numbers = |below: i64| -> Vec<i64> { (0..ROWS).map(|_| rng.random_range(0..below)).collect() };
    let (four, many, most) = (numbers(4), numbers(1_500_000), numbers(10_000_000));
    let money: ArrayRef = {
        let cents = Decimal128Array::from_iter_values(most.iter().map(|n| i128::from(*n)));
        Arc::new(cents.with_precision_and_scale(15, 2).unwrap())
    };
    let floats: ArrayRef = Arc::new(Float64Array::from_iter_values(most.iter().map(|n| *n as f64)));
    let flag = |letters: &'static [&'static str], by: i64| -> ArrayRef {
        Arc::new(StringViewArray::from_iter_values(
            four.iter().map(|n| letters[(*n / by) as usize % letters.len()]),
        ))
    };
    let values = [("money", Arc::clone(&money)), ("floats", Arc::clone(&floats))];
    compare(
        "q1",
        &[("a", flag(&["A", "R"], 1)), ("b", flag(&["F", "O"], 2))],
        &values,
    );
    let integers = |numbers: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(numbers.to_vec())) };
    compare("few integers", &[("k", integers(&four))], &values);
    compare(
        "1.5M integers",
        &[("k", integers(&many))],
        &[("floats", Arc::clone(&floats))],
    );
    compare(
        "most integers",
        &[("k", integers(&most))],
        &[("floats", Arc::clone(&floats))],
    );
    compare(
        "two integers",
        &[("k", integers(&many)), ("l", integers(&four))],
        &[("floats", Arc::clone(&floats))],
    );
    let text: ArrayRef = Arc::new(StringArray::from_iter_values(
        many.iter().map(|n| format!("customer#{n:09}")),
    ));
    compare(
        "1.5M strings",
        &[("k", Arc::clone(&text))],
        &[("floats", Arc::clone(&floats))],
    );
    let view: ArrayRef = Arc::new(StringViewArray::from_iter_values(
        many.iter().map(|n| format!("customer#{n:09}")),
    ));
    compare("1.5M views", &[("k", view)], &[("floats", Arc::clone(&floats))]);
    compare(
        "string and integer",
        &[("k", text), ("l", integers(&four))],
        &[("floats", floats)],
    );
}
