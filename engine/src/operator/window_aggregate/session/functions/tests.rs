//! The functions with vectors of their own do what DataFusion's accumulators do.

use arrow::array::{Decimal128Array, Float64Array, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{Field, Schema};
use datafusion::functions_aggregate::{average, count, min_max, sum};
use datafusion::logical_expr::AggregateUDF;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::Column;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Update(Vec<(u32, Option<i32>, bool)>),
    Merge(u32, u32),
    Take(Vec<u32>),
}

const SLOTS: u32 = 6;

fn step() -> impl Strategy<Value = Step> {
    let row = (0..SLOTS, prop::option::weighted(0.8, -9i32..10), any::<bool>());
    prop_oneof![
        prop::collection::vec(row, 0..20).prop_map(Step::Update),
        (0..SLOTS, 1..SLOTS).prop_map(|(into, by)| Step::Merge(into, (into + by) % SLOTS)),
        prop::sample::subsequence((0..SLOTS).collect::<Vec<_>>(), 1..4).prop_map(Step::Take),
    ]
}

fn array(values: Vec<Option<i32>>, data_type: &DataType) -> ArrayRef {
    match data_type {
        DataType::Decimal128(precision, scale) => {
            let values = values
                .into_iter()
                .map(|value| value.map(|value| i128::from(value) * 37));
            let array = Decimal128Array::from_iter(values).with_precision_and_scale(*precision, *scale);
            Arc::new(array.unwrap())
        }
        DataType::UInt64 => Arc::new(UInt64Array::from_iter(
            values.into_iter().map(|value| value.map(|value| (value + 9) as u64)),
        )),
        DataType::Float64 => Arc::new(Float64Array::from_iter(
            values
                .into_iter()
                .map(|value| value.map(|value| f64::from(value) / 4.0)),
        )),
        DataType::Utf8 => Arc::new(StringArray::from_iter(
            values.into_iter().map(|value| value.map(|value| value.to_string())),
        )),
        other => {
            let numbers: ArrayRef = Arc::new(
                values
                    .into_iter()
                    .map(|value| value.map(i64::from))
                    .collect::<Int64Array>(),
            );
            cast(&numbers, other).unwrap()
        }
    }
}

fn same(udf: Arc<AggregateUDF>, data_type: &DataType, filtered: bool, steps: &[Step]) {
    let schema = Arc::new(Schema::new(vec![Field::new("v", data_type.clone(), true)]));
    let builder = AggregateExprBuilder::new(Arc::clone(&udf), vec![Arc::new(Column::new("v", 0))]);
    let function = Arc::new(builder.schema(schema).alias("f").build().unwrap());
    let mut own = own(udf.name(), data_type, function.field().data_type()).expect("a function with vectors");
    let mut generic = Generic::new(function);
    own.grow(SLOTS as usize);
    generic.grow(SLOTS as usize);
    let all = Step::Take((0..SLOTS).collect());
    for step in steps.iter().chain([&all]) {
        match step {
            Step::Update(rows) => {
                let slots: Vec<u32> = rows.iter().map(|row| row.0).collect();
                let input = Input {
                    values: vec![array(rows.iter().map(|row| row.1).collect(), data_type)],
                    filter: filtered.then(|| rows.iter().map(|row| Some(row.2)).collect()),
                };
                own.update(&input, &slots).unwrap();
                generic.update(&input, &slots).unwrap();
            }
            Step::Merge(into, from) => {
                own.merge(*into, *from).unwrap();
                generic.merge(*into, *from).unwrap();
            }
            Step::Take(slots) => {
                assert_eq!(
                    &own.take(slots).unwrap(),
                    &generic.take(slots).unwrap(),
                    "{} of {data_type}",
                    udf.name()
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn as_the_accumulators_of_datafusion(steps in prop::collection::vec(step(), 1..20), filtered in any::<bool>()) {
        use arrow::datatypes::TimeUnit;
        let decimal = DataType::Decimal128(12, 2);
        let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        for data_type in [&DataType::Int64, &DataType::Utf8, &decimal] {
            same(count::count_udaf(), data_type, filtered, &steps);
        }
        for data_type in [&DataType::Int64, &DataType::UInt64, &DataType::Float64, &decimal] {
            same(sum::sum_udaf(), data_type, filtered, &steps);
        }
        for data_type in [&DataType::Int16, &DataType::UInt64, &DataType::Float64, &decimal, &time, &DataType::Date32] {
            same(min_max::min_udaf(), data_type, filtered, &steps);
            same(min_max::max_udaf(), data_type, filtered, &steps);
        }
        same(average::avg_udaf(), &DataType::Float64, filtered, &steps);
    }
}
