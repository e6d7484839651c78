use std::collections::HashSet;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use datafusion::common::JoinType;
use proptest::prelude::*;
use thalweg_memory::MemoryManager;

use super::*;
use crate::operator::harness::Harness;
use crate::operator::runtime_filter::members::Plan;
use crate::operator::runtime_filter::slot::Bounds;
use crate::plan::{BuildFilterSpec, HashJoinSpec, JobGraph, OperatorSpec, ScalarExpr, SchemaSpec, Vertex};

fn schema() -> SchemaRef {
    let column = |name| Field::new(name, DataType::Int64, true);
    Arc::new(Schema::new(vec![column("k"), column("row")]))
}

fn build_spec(id: usize) -> BuildFilterSpec {
    BuildFilterSpec {
        id,
        key: 0,
        broadcast: false,
        estimated_keys: None,
        domain: None,
    }
}

/// A graph of one join in `joins` subtasks that makes `filters`, and one scan that looks at them in `scans` subtasks.
fn graph(filters: Vec<BuildFilterSpec>, joins: usize, scans: usize) -> JobGraph {
    let key = ScalarExpr::column(0, &schema());
    let checks = filters.iter().map(|filter| RuntimeCheckSpec {
        id: filter.id,
        key: key.clone(),
    });
    let filter = RuntimeFilterSpec {
        checks: checks.collect(),
    };
    let join = HashJoinSpec {
        join_type: JoinType::RightSemi,
        build_keys: vec![key.clone()],
        probe_keys: vec![key],
        null_equals_null: false,
        null_aware: false,
        filter: None,
        projection: None,
        runtime_filters: filters,
        build_schema: schema().into(),
        probe_schema: schema().into(),
        schema: schema().into(),
    };
    let mut graph = JobGraph::new("test");
    let mut add = |operator, parallelism| {
        graph.add_vertex(Vertex {
            name: String::new(),
            parallelism,
            chain: vec![operator],
            output_schema: SchemaSpec(schema()),
            estimated_rows: None,
            uids: Vec::new(),
        })
    };
    add(OperatorSpec::RuntimeFilter(filter), scans);
    add(OperatorSpec::HashJoin(join), joins);
    graph
}

/// The operator for the scan of [`graph`], with the registry in its context.
fn harness(filters: &[BuildFilterSpec], joins: usize, memory: &MemoryManager) -> Harness<RuntimeFilter> {
    let graph = graph(filters.to_vec(), joins, 1);
    let OperatorSpec::RuntimeFilter(spec) = &graph.vertices[0].chain[0] else {
        unreachable!()
    };
    let mut harness = Harness::new(RuntimeFilter::new(spec.clone()));
    harness.context.filters = Arc::new(RuntimeFilters::of(&graph, &memory.job()));
    harness
}

/// Brings the keys of one subtask, in batches.
fn bring(harness: &Harness<RuntimeFilter>, filters: &[BuildFilterSpec], subtask: usize, batches: Vec<ArrayRef>) {
    let mut cx = harness.context.part();
    cx.subtask = subtask;
    let mut publisher = Publisher::new(filters);
    for keys in batches {
        publisher.add(&[keys], &cx).unwrap();
    }
    publisher.finish(&cx);
}

fn integers(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values))
}

fn rows(keys: &ArrayRef, first: i64) -> Batch {
    let numbers = integers((0..keys.len() as i64).map(|row| Some(first + row)));
    Batch::try_new(schema(), vec![Arc::clone(keys), numbers]).unwrap()
}

/// The numbers of the rows that came out.
fn survivors(harness: &Harness<RuntimeFilter>) -> Vec<i64> {
    let batches = &harness.output.batches;
    let columns = batches.iter().map(|batch| batch.column(1).as_primitive::<Int64Type>());
    columns.flat_map(|column| column.values().to_vec()).collect()
}

#[test]
fn rows_pass_until_the_last_subtask_has_told_what_it_holds() {
    let memory = MemoryManager::new(64 << 20);
    let filters = [build_spec(3)];
    let mut harness = harness(&filters, 2, &memory);
    let keys = integers([Some(1), None, Some(7), Some(9), Some(100)]);
    harness.push(0, rows(&keys, 0)).unwrap();
    bring(&harness, &filters, 1, vec![integers([Some(7), None])]);
    harness.push(0, rows(&keys, 10)).unwrap();
    bring(&harness, &filters, 0, vec![integers([Some(1)]), integers([])]);
    harness.push(0, rows(&keys, 20)).unwrap();
    harness.end(0).unwrap();
    assert_eq!(survivors(&harness), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 22]);
}

#[test]
fn an_empty_build_side_lets_nothing_through() {
    let memory = MemoryManager::new(64 << 20);
    let filters = [build_spec(0)];
    for brought in [vec![], vec![integers([None, None])]] {
        let mut harness = harness(&filters, 1, &memory);
        bring(&harness, &filters, 0, brought);
        let extremes = integers([Some(i64::MIN), Some(i64::MAX), Some(0), None]);
        harness.push(0, rows(&extremes, 0)).unwrap();
        harness.end(0).unwrap();
        assert!(survivors(&harness).is_empty());
    }
}

#[test]
fn of_a_broadcast_build_side_the_first_subtask_tells() {
    let memory = MemoryManager::new(64 << 20);
    let filters = [BuildFilterSpec {
        broadcast: true,
        ..build_spec(0)
    }];
    let mut harness = harness(&filters, 3, &memory);
    let all = || vec![integers([Some(5)])];
    bring(&harness, &filters, 2, all());
    harness.push(0, rows(&integers([Some(6)]), 0)).unwrap();
    bring(&harness, &filters, 0, all());
    harness.push(0, rows(&integers([Some(6), Some(5)]), 10)).unwrap();
    bring(&harness, &filters, 1, all());
    harness.end(0).unwrap();
    assert_eq!(survivors(&harness), [0, 11]);
}

#[test]
fn a_row_must_pass_every_filter() {
    let memory = MemoryManager::new(64 << 20);
    let filters = [build_spec(0), build_spec(1)];
    let mut harness = harness(&filters, 1, &memory);
    let keys = integers((0..10).map(Some));
    bring(&harness, &filters[..1], 0, vec![integers((0..5).map(Some))]);
    harness.push(0, rows(&keys, 0)).unwrap();
    bring(&harness, &filters[1..], 0, vec![integers((3..9).map(Some))]);
    harness.push(0, rows(&keys, 10)).unwrap();
    harness.end(0).unwrap();
    assert_eq!(survivors(&harness), [0, 1, 2, 3, 4, 13, 14]);
}

#[test]
fn a_filter_that_nobody_makes_drops_nothing() {
    let mut harness = harness(&[build_spec(0)], 1, &MemoryManager::new(usize::MAX));
    harness.context.filters = Arc::default();
    harness.push(0, rows(&integers([Some(1), None]), 0)).unwrap();
    harness.end(0).unwrap();
    assert_eq!(survivors(&harness), [0, 1]);
}

#[test]
fn the_last_reader_gives_the_memory_back() {
    let memory = MemoryManager::new(64 << 20);
    let filters = [build_spec(0)];
    let many = || vec![integers((0..100_000).map(|key| Some(key * 1_000_003)))];
    let mut first = harness(&filters, 1, &memory);
    bring(&first, &filters, 0, many());
    assert!(memory.reserved_bytes() > 0);
    first.push(0, rows(&integers([Some(1)]), 0)).unwrap();
    assert!(survivors(&first).is_empty());
    first.end(0).unwrap();
    assert_eq!(memory.reserved_bytes(), 0);

    // A scan that has ended before the build side leaves nothing to make a filter for.
    let mut second = harness(&filters, 1, &memory);
    second.end(0).unwrap();
    bring(&second, &filters, 0, many());
    assert_eq!(memory.reserved_bytes(), 0);
}

#[test]
fn without_memory_only_the_bounds_count() {
    for budget in [0, 1 << 10, 64 << 10] {
        let memory = MemoryManager::new(budget);
        let filters = [build_spec(0)];
        let mut harness = harness(&filters, 1, &memory);
        let brought = (0..50).map(|part| integers((0..1000).map(|key| Some(1_000_000 + (part * 1000 + key) * 1013))));
        bring(&harness, &filters, 0, brought.collect());
        assert!(memory.peak_bytes() <= budget);
        let keys = integers([Some(999_999), Some(1_000_000), Some(1_000_001), Some(900_000_000)]);
        harness.push(0, rows(&keys, 0)).unwrap();
        harness.end(0).unwrap();
        assert_eq!(survivors(&harness), [1, 2], "budget {budget}");
    }
}

#[test]
fn a_crowded_filter_is_given_up() {
    // A sixty-fourth of the budget: 64 KiB for 400,000 keys that spread over a wide range.
    let memory = MemoryManager::new(4 << 20);
    let filters = [build_spec(0)];
    let harness = harness(&filters, 1, &memory);
    let brought = (0..400).map(|part| integers((0..1000).map(|key| Some((part * 1000 + key) * 1_000_003))));
    bring(&harness, &filters, 0, brought.collect());
    assert_eq!(memory.reserved_bytes(), 0);
    assert!(harness.context.filters.slot(0).unwrap().published().is_some());
}

#[test]
fn equal_keys_of_every_type_pass_and_strangers_do_not() {
    let types = [
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt8,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        DataType::Date32,
        DataType::Date64,
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Time64(TimeUnit::Nanosecond),
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Duration(TimeUnit::Second),
        DataType::Decimal32(6, 1),
        DataType::Decimal64(12, 2),
        DataType::Decimal128(20, 3),
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Binary,
        DataType::LargeBinary,
        DataType::BinaryView,
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
    ];
    let of_type = |values: Vec<Option<i64>>, data_type: &DataType| {
        let numbers = integers(values);
        let way: &[DataType] = match data_type {
            DataType::Date32 | DataType::Time32(_) => &[DataType::Int32],
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::Dictionary(_, _) => {
                &[DataType::Utf8]
            }
            _ => &[],
        };
        let start = way.iter().fold(numbers, |array, step| cast(&array, step).unwrap());
        cast(&start, data_type).unwrap()
    };
    for data_type in types {
        assert!(RuntimeFilterSpec::supports(&data_type), "{data_type}");
        let memory = MemoryManager::new(64 << 20);
        let filters = [build_spec(0)];
        let harness = harness(&filters, 1, &memory);
        let built = of_type(vec![Some(3), None, Some(40), Some(77)], &data_type);
        bring(&harness, &filters, 0, vec![built]);
        let published = harness.context.filters.slot(0).unwrap().published().unwrap();
        let mut words = Vec::new();
        let probe = of_type(
            vec![Some(40), Some(41), Some(3), Some(100), Some(77), Some(2)],
            &data_type,
        );
        let nulls = words_of(&probe, &mut words).unwrap();
        assert_eq!(nulls.map_or(0, |nulls| nulls.null_count()), 0);
        let kept: Vec<bool> = published.select(&words).iter().collect();
        assert_eq!(kept, [true, false, true, false, true, false], "{data_type}");
        let nulls = words_of(&new_null_array(&data_type, 3), &mut words).unwrap();
        assert_eq!(nulls.map(|nulls| nulls.null_count()), Some(3), "{data_type}");
    }
    for data_type in [DataType::Float64, DataType::Boolean, DataType::Null] {
        assert!(!RuntimeFilterSpec::supports(&data_type));
        assert!(words_of(&new_null_array(&data_type, 1), &mut Vec::new()).is_err());
    }
}

#[test]
fn strings_pass_by_value_whatever_their_encoding() {
    let memory = MemoryManager::new(64 << 20);
    let filters = [build_spec(0)];
    let harness = harness(&filters, 1, &memory);
    let built: ArrayRef = Arc::new(StringArray::from(vec![
        "",
        "a long string that does not lie in its view",
        "b",
    ]));
    bring(&harness, &filters, 0, vec![cast(&built, &DataType::Utf8View).unwrap()]);
    let published = harness.context.filters.slot(0).unwrap().published().unwrap();
    let mut words = Vec::new();
    words_of(&built, &mut words).unwrap();
    assert_eq!(published.select(&words).count_set_bits(), 3);
}

#[test]
fn a_check_that_drops_little_pauses() {
    let mut trial = Trial::default();
    for round in 0..TRIAL_BATCHES {
        assert!(trial.is_on(), "{round}");
        trial.note(100, 91);
    }
    let skipped = std::iter::repeat_with(|| trial.is_on()).take_while(|on| !on).count();
    assert_eq!(skipped, PAUSE_BATCHES);
    for _ in 0..3 * TRIAL_BATCHES {
        assert!(trial.is_on(), "one in ten is enough");
        trial.note(100, 90);
    }
}

#[test]
fn few_strangers_pass_a_bloom_filter() {
    let plan = Plan {
        keys: 50_000,
        domain: None,
        most_bytes: 1 << 20,
    };
    let members = plan.make();
    let words: Vec<i64> = (0..50_000).map(|key| key * 3).collect();
    members.insert(&words);
    let members::Members::Bloom(bloom) = &members else {
        panic!("no domain, no bitmap")
    };
    assert!(words.iter().all(|word| bloom.contains(*word)));
    let strangers = words.iter().filter(|word| bloom.contains(**word + 1)).count();
    assert!(strangers < 50_000 / 20, "{strangers} of 50000");
    assert!(!members.is_crowded(50_000));
}

/// How the keys of one case lie.
fn keys() -> impl Strategy<Value = Vec<i64>> {
    let dense = prop::collection::vec(-500..500i64, 0..2000);
    let spread = prop::collection::vec(any::<i64>(), 0..2000);
    let edges = prop::collection::vec(prop::sample::select(vec![i64::MIN, -1, 0, 1, i64::MAX]), 0..5);
    prop_oneof![dense, spread, edges]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_key_is_ever_dropped(
        built in keys(),
        probed in keys(),
        parts in 1..4usize,
        batch_rows in 1..700usize,
        budget in prop::sample::select(vec![0usize, 5 << 10, 20 << 10, 200 << 10, 64 << 20]),
        estimated_keys in prop::option::of(0..1_000_000u64),
        domain in prop::option::of(prop::sample::select(vec![(-500, 499), (0, 10), (i64::MIN, i64::MAX), (7, 7)])),
    ) {
        let memory = MemoryManager::new(budget);
        let filters = [BuildFilterSpec { estimated_keys, domain, ..build_spec(0) }];
        let harness = harness(&filters, parts, &memory);
        for part in 0..parts {
            let mine: Vec<i64> = built.iter().copied().skip(part).step_by(parts).collect();
            let batches = mine.chunks(batch_rows).map(|chunk| integers(chunk.iter().copied().map(Some)));
            bring(&harness, &filters, part, batches.collect());
        }
        prop_assert!(memory.peak_bytes() <= budget);
        let published = harness.context.filters.slot(0).unwrap().published().unwrap();
        let selected = published.select(&built);
        prop_assert_eq!(selected.count_set_bits(), built.len());
        let mut bounds = Bounds::NONE;
        bounds.widen(&built);
        let set: HashSet<i64> = built.iter().copied().collect();
        let strangers: Vec<i64> = probed.into_iter().filter(|key| !set.contains(key)).collect();
        let passed: Vec<i64> = published.select(&strangers).set_indices().map(|row| strangers[row]).collect();
        match bounds.range() {
            None => prop_assert!(passed.is_empty()),
            Some((least, greatest)) => prop_assert!(passed.iter().all(|key| (least..=greatest).contains(key))),
        }
        if budget == 64 << 20 {
            prop_assert!(passed.len() <= 5 + strangers.len() / 8, "{} of {}", passed.len(), strangers.len());
        }
    }
}
