//! Every join type against a naive join over rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::*;
use arrow::datatypes::*;
use datafusion::common::{JoinType, ScalarValue};
use proptest::prelude::*;

use super::HashJoin;
use super::naive::{JOIN_TYPES, cells, full_schema, less_filter, naive, texts};
use crate::data::Batch;
use crate::operator::harness::Harness;
use crate::operator::{Operator, ReadNext};
use crate::plan::{HashJoinSpec, ScalarExpr};

/// A type of key column, and the values that small numbers stand for in it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Dense,
    Sparse,
    Small,
    Unsigned,
    Float,
    HalfFloat,
    Flag,
    Date,
    Time,
    Text,
    TextView,
    Bytes,
    FixedBytes,
    Dictionary,
    Decimal,
    BigDecimal,
    Interval,
    List,
    Struct,
    FloatList,
}
use Kind::*;

const KEYS: &[&[Kind]] = &[
    &[Dense],
    &[Sparse],
    &[Small],
    &[Unsigned],
    &[Float],
    &[HalfFloat],
    &[Flag],
    &[Date],
    &[Time],
    &[Text],
    &[TextView],
    &[Bytes],
    &[FixedBytes],
    &[Dictionary],
    &[Decimal],
    &[BigDecimal],
    &[Interval],
    &[List],
    &[Struct],
    &[FloatList],
    &[Small, Small],
    &[Date, Flag, Small],
    &[Sparse, Dense],
    &[Sparse, Small, Flag],
    &[Dense, Text],
    &[Text, Dictionary, Float],
    &[Decimal, Dense],
];

fn float(v: u8) -> f64 {
    match v {
        0 => 0.0,
        1 => -0.0,
        2 => f64::NAN,
        3 => -f64::NAN,
        v => f64::from(v) / 3.0,
    }
}

fn text(v: u8) -> String {
    match v {
        0 => String::new(),
        v if v % 2 == 0 => format!("a longer text than a view holds inline {v}"),
        v => v.to_string(),
    }
}

/// Equal for values that are equal as keys.
fn class(kind: Kind, v: u8) -> u8 {
    match kind {
        Float | HalfFloat | FloatList if v < 4 => v / 2 * 2,
        Flag => v % 2,
        _ => v,
    }
}

fn key_array(kind: Kind, values: &[Option<u8>]) -> ArrayRef {
    let values = values.iter().copied();
    match kind {
        Dense => Arc::new(Int64Array::from_iter(values.map(|v| v.map(|v| i64::from(v) - 3)))),
        Sparse => Arc::new(Int64Array::from_iter(
            values.map(|v| v.map(|v| (i64::from(v) - 3) * (i64::MAX / 260))),
        )),
        Small => Arc::new(Int32Array::from_iter(values.map(|v| v.map(|v| -i32::from(v))))),
        Unsigned => Arc::new(UInt64Array::from_iter(
            values.map(|v| v.map(|v| u64::MAX - u64::from(v))),
        )),
        Float => Arc::new(Float64Array::from_iter(values.map(|v| v.map(float)))),
        HalfFloat => {
            let floats: Float64Array = values.map(|v| v.map(float)).collect();
            arrow::compute::cast(&floats, &DataType::Float16).unwrap()
        }
        Flag => Arc::new(BooleanArray::from_iter(values.map(|v| v.map(|v| v % 2 == 1)))),
        Date => Arc::new(Date32Array::from_iter(values.map(|v| v.map(|v| i32::from(v) + 10_000)))),
        Time => Arc::new(TimestampMicrosecondArray::from_iter(
            values.map(|v| v.map(|v| i64::from(v) << 50)),
        )),
        Text => Arc::new(StringArray::from_iter(values.map(|v| v.map(text)))),
        TextView => Arc::new(StringViewArray::from_iter(values.map(|v| v.map(text)))),
        Bytes => Arc::new(BinaryArray::from_iter(values.map(|v| v.map(text)))),
        FixedBytes => {
            let values = values.map(|v| v.map(|v| [v; 5]));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, 5).unwrap())
        }
        Dictionary => {
            let texts: StringArray = values.map(|v| v.map(text)).collect();
            let data_type = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
            arrow::compute::cast(&texts, &data_type).unwrap()
        }
        Decimal => Arc::new(Decimal128Array::from_iter(
            values.map(|v| v.map(|v| i128::from(v) << 70)),
        )),
        BigDecimal => Arc::new(Decimal256Array::from_iter(
            values.map(|v| v.map(|v| i256::from_i128(i128::from(v) - 2))),
        )),
        Interval => Arc::new(IntervalMonthDayNanoArray::from_iter(values.map(|v| {
            v.map(|v| IntervalMonthDayNano::new(i32::from(v % 2), -i32::from(v / 2), i64::from(v)))
        }))),
        List => Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(values.map(|v| {
            v.map(|v| (0..v).map(|i| (i % 3 != 2).then_some(i32::from(i))).collect::<Vec<_>>())
        }))),
        Struct => {
            let values: Vec<_> = values.collect();
            let nulls = values.iter().map(Option::is_some).collect::<Vec<_>>().into();
            let fields = Fields::from(vec![
                Field::new("x", DataType::Int64, true),
                Field::new("y", DataType::Utf8, true),
            ]);
            let columns = vec![key_array(Dense, &values), key_array(Text, &values)];
            Arc::new(StructArray::new(fields, columns, Some(nulls)))
        }
        FloatList => Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(
            values.map(|v| v.map(|v| vec![Some(float(v))])),
        )),
    }
}

/// One row of a side: its key columns' values and one for the residual condition.
type Row = (Vec<Option<u8>>, Option<i32>);

/// A batch of one side: keys, the number of the row, the value of the condition, a text.
fn side_batch(kinds: &[Kind], prefix: &str, rows: &[(usize, Row)]) -> Batch {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (k, kind) in kinds.iter().enumerate() {
        let values: Vec<_> = rows.iter().map(|(_, (keys, _))| keys[k]).collect();
        columns.push(key_array(*kind, &values));
        fields.push(Field::new(
            format!("{prefix}_k{k}"),
            columns[k].data_type().clone(),
            true,
        ));
    }
    columns.push(Arc::new(UInt32Array::from_iter_values(
        rows.iter().map(|(id, _)| *id as u32),
    )));
    fields.push(Field::new(format!("{prefix}_id"), DataType::UInt32, false));
    columns.push(Arc::new(Int32Array::from_iter(rows.iter().map(|(_, (_, v))| *v))));
    fields.push(Field::new(format!("{prefix}_v"), DataType::Int32, true));
    let texts = rows
        .iter()
        .map(|(id, _)| (id % 4 != 0).then(|| format!("{prefix} row number {id}")));
    columns.push(Arc::new(StringViewArray::from_iter(texts)));
    fields.push(Field::new(format!("{prefix}_text"), DataType::Utf8View, true));
    Batch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn side_batches(kinds: &[Kind], prefix: &str, rows: &[Row], batch_rows: usize) -> Vec<Batch> {
    let numbered: Vec<_> = rows.iter().cloned().enumerate().collect();
    numbered
        .chunks(batch_rows.max(1))
        .map(|rows| side_batch(kinds, prefix, rows))
        .collect()
}

#[derive(Clone, Debug)]
struct Case {
    kinds: &'static [Kind],
    build: Vec<Row>,
    probe: Vec<Row>,
    null_equals_null: bool,
    filtered: bool,
    project: u8,
    batch_size: usize,
    batch_rows: usize,
}

impl Case {
    fn spec(&self, join_type: JoinType) -> HashJoinSpec {
        let build_schema = side_batch(self.kinds, "b", &[]).schema();
        let probe_schema = side_batch(self.kinds, "p", &[]).schema();
        let full = full_schema(join_type, &build_schema, &probe_schema);
        let width = full.fields().len();
        let projection = match self.project {
            0 => None,
            1 => Some((0..width).rev().collect()),
            2 => Some(vec![width - 1]),
            3 => Some(vec![]),
            _ => Some((0..width).step_by(2).collect::<Vec<_>>()),
        };
        let schema = match &projection {
            None => full,
            Some(columns) => full.project(columns).unwrap(),
        };
        HashJoinSpec {
            join_type,
            build_keys: (0..self.kinds.len())
                .map(|k| ScalarExpr::column(k, &build_schema))
                .collect(),
            probe_keys: (0..self.kinds.len())
                .map(|k| ScalarExpr::column(k, &probe_schema))
                .collect(),
            null_equals_null: self.null_equals_null,
            null_aware: false,
            filter: self.filtered.then(|| less_filter(&build_schema, &probe_schema)),
            projection,
            runtime_filters: vec![],
            build_schema: build_schema.into(),
            probe_schema: probe_schema.into(),
            schema: Arc::new(schema).into(),
        }
    }

    fn matches(&self, b: usize, p: usize) -> bool {
        let ((build_keys, build_v), (probe_keys, probe_v)) = (&self.build[b], &self.probe[p]);
        let equal = self
            .kinds
            .iter()
            .zip(build_keys.iter().zip(probe_keys))
            .all(|(kind, pair)| match pair {
                (Some(b), Some(p)) => class(*kind, *b) == class(*kind, *p),
                (None, None) => self.null_equals_null,
                _ => false,
            });
        equal && (!self.filtered || matches!((build_v, probe_v), (Some(b), Some(p)) if b < p))
    }

    fn expected(&self, spec: &HashJoinSpec) -> Vec<String> {
        let build = side_batches(self.kinds, "b", &self.build, self.batch_rows);
        let probe = side_batches(self.kinds, "p", &self.probe, self.batch_rows);
        let widths = (spec.build_schema.0.fields().len(), spec.probe_schema.0.fields().len());
        let projection = spec.projection.as_deref();
        let matches = |b, p| self.matches(b, p);
        naive(
            spec.join_type,
            &cells(&build),
            &cells(&probe),
            widths,
            projection,
            matches,
        )
    }

    fn check(&self, join_type: JoinType) {
        let spec = self.spec(join_type);
        let build = side_batches(self.kinds, "b", &self.build, self.batch_rows);
        let probe = side_batches(self.kinds, "p", &self.probe, self.batch_rows);
        let expected = self.expected(&spec);
        // In memory, and with next to none.
        for budget in [usize::MAX, 500] {
            let mut harness = Harness::with_memory(HashJoin::new(spec.clone()).unwrap(), budget);
            harness.context.batch_size = self.batch_size;
            let output = harness.run(vec![build.clone(), probe.clone()]).unwrap();
            assert!(
                output.iter().all(|batch| batch.num_rows() <= self.batch_size),
                "a batch is too large"
            );
            assert!(output.iter().all(|batch| batch.schema() == spec.schema.0));
            assert_eq!(
                texts(&output),
                expected,
                "{join_type} within {budget} bytes of {self:?}"
            );
        }
    }
}

fn row(columns: usize, distinct: u8) -> impl Strategy<Value = Row> {
    let key = prop_oneof![1 => Just(None), 7 => (0..distinct).prop_map(Some)];
    let value = prop_oneof![1 => Just(None), 4 => (-3..4i32).prop_map(Some)];
    (prop::collection::vec(key, columns), value)
}

fn case() -> impl Strategy<Value = Case> {
    (0..KEYS.len(), 1..40u8, 0..3usize).prop_flat_map(|(kinds, distinct, size)| {
        let kinds = KEYS[kinds];
        let rows = [0..2usize, 0..12, 0..60][size].clone();
        let distinct = if kinds.len() > 1 { distinct.min(4) } else { distinct };
        let side = || prop::collection::vec(row(kinds.len(), distinct), rows.clone());
        (
            side(),
            side(),
            any::<bool>(),
            any::<bool>(),
            0..5u8,
            1..20usize,
            1..30usize,
        )
            .prop_map(
                move |(build, probe, null_equals_null, filtered, project, batch_size, batch_rows)| Case {
                    kinds,
                    build,
                    probe,
                    null_equals_null,
                    filtered,
                    project,
                    batch_size,
                    batch_rows,
                },
            )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_join(case in case(), join_type in 0..JOIN_TYPES.len()) {
        case.check(JOIN_TYPES[join_type]);
    }
}

/// Rows with one key each.
fn keyed(keys: impl IntoIterator<Item = Option<u8>>) -> Vec<Row> {
    keys.into_iter()
        .enumerate()
        .map(|(i, key)| (vec![key], Some(i as i32 % 5)))
        .collect()
}

fn plain_case(build: Vec<Row>, probe: Vec<Row>) -> Case {
    Case {
        kinds: &[Dense],
        build,
        probe,
        null_equals_null: false,
        filtered: false,
        project: 0,
        batch_size: 10,
        batch_rows: 16,
    }
}

fn of_kinds(kinds: &'static [Kind], flags: usize) -> Case {
    let rows = |shift: u8| -> Vec<Row> {
        let key = |i: u8| (i % 9 != 8).then_some((i * 5 + shift) % 7);
        (0..25u8)
            .map(|i| ((0..kinds.len()).map(|_| key(i)).collect(), Some(i32::from(i) % 3)))
            .collect()
    };
    let mut case = plain_case(rows(0), rows(2));
    (case.kinds, case.null_equals_null, case.filtered) = (kinds, flags & 1 == 1, flags & 2 == 2);
    case
}

#[test]
fn every_key_type_joins_in_every_way() {
    for kinds in KEYS {
        for flags in 0..4 {
            let case = of_kinds(kinds, flags);
            JOIN_TYPES.iter().for_each(|join_type| case.check(*join_type));
        }
    }
}

/// Somebody is short of memory in the middle of the probe side.
fn check_evicted(case: &Case, join_type: JoinType) {
    let spec = case.spec(join_type);
    let budget = 1 << 30;
    let mut harness = Harness::with_memory(HashJoin::new(spec.clone()).unwrap(), budget);
    harness.context.batch_size = case.batch_size;
    for batch in side_batches(case.kinds, "b", &case.build, case.batch_rows) {
        harness.push(0, batch).unwrap();
    }
    harness.end(0).unwrap();
    let mut probe = side_batches(case.kinds, "p", &case.probe, case.batch_rows).into_iter();
    harness.push(1, probe.next().unwrap()).unwrap();
    let held = harness.context.memory.bytes();
    let mut other = harness.context.memory.sibling();
    let mut rest = harness.context.memory.pinned_sibling();
    rest.grow(budget - held);
    assert!(other.try_grow(held / 4).is_err());
    assert!(harness.context.memory.must_spill());
    for batch in probe {
        harness.push(1, batch).unwrap();
    }
    let stays = matches!(join_type, JoinType::Left | JoinType::Full | JoinType::LeftMark);
    let spilled = harness.context.metrics.spilled_bytes.load(Ordering::Relaxed);
    // Of these there may be nothing left to write.
    let settled = matches!(join_type, JoinType::LeftSemi | JoinType::LeftAnti);
    assert!(settled || (spilled == 0) == stays, "{join_type}");
    drop((other, rest));
    harness.end(1).unwrap();
    assert_eq!(harness.memory.reserved_bytes(), 0);
    let expected = case.expected(&spec);
    assert_eq!(texts(&harness.output.batches), expected, "{join_type} of {case:?}");
}

#[test]
fn a_table_makes_room_while_it_is_probed() {
    for (number, kinds) in KEYS.iter().enumerate() {
        let case = of_kinds(kinds, number % 4);
        JOIN_TYPES.iter().for_each(|join_type| check_evicted(&case, *join_type));
    }
    for flags in 0..4 {
        let case = of_kinds(&[Dense], flags);
        JOIN_TYPES.iter().for_each(|join_type| check_evicted(&case, *join_type));
    }
}

#[test]
fn empty_sides_and_unique_keys_and_a_hot_key() {
    let unique = || keyed((0..50).map(Some));
    let hot = || keyed((0..70).map(|i| Some(if i % 10 == 0 { i } else { 7 })));
    let nulls = || keyed([None, None]);
    let sides: [fn() -> Vec<Row>; 2] = [|| vec![], || keyed([Some(3)])];
    for join_type in JOIN_TYPES {
        for filtered in [false, true] {
            for (build, probe) in [
                (sides[0](), sides[0]()),
                (sides[0](), unique()),
                (unique(), sides[0]()),
                (unique(), unique()),
                (sides[1](), hot()),
                (hot(), sides[1]()),
                (hot(), hot()),
                (unique(), hot()),
                (nulls(), unique()),
                (unique(), nulls()),
            ] {
                for kinds in [&[Dense] as &'static [Kind], &[Sparse], &[Text], &[Decimal]] {
                    let mut case = plain_case(build.clone(), probe.clone());
                    (case.filtered, case.kinds) = (filtered, kinds);
                    case.check(join_type);
                }
            }
        }
    }
}

fn not_in(build: Vec<Row>, probe: Vec<Row>) -> Vec<String> {
    let case = plain_case(build, probe);
    let mut spec = case.spec(JoinType::RightAnti);
    spec.null_aware = true;
    spec.projection = Some(vec![0]);
    spec.schema = Arc::new(spec.schema.0.project(&[0]).unwrap()).into();
    let build = side_batches(case.kinds, "b", &case.build, 16);
    let probe = side_batches(case.kinds, "p", &case.probe, 16);
    let mut harness = Harness::new(HashJoin::new(spec).unwrap());
    for batch in build {
        harness.push(0, batch).unwrap();
    }
    harness.end(0).unwrap();
    if harness.operator.is_done() {
        return vec![];
    }
    for batch in probe {
        harness.push(1, batch).unwrap();
    }
    harness.end(1).unwrap();
    texts(&harness.output.batches)
}

#[test]
fn not_in_knows_null() {
    let probe = || keyed([Some(4), None, Some(5)]);
    assert_eq!(not_in(vec![], probe()), ["1", "2", "NULL"]);
    assert_eq!(not_in(keyed([Some(4)]), probe()), ["2"]);
    assert_eq!(not_in(keyed([Some(4), None]), probe()), Vec::<String>::new());
    assert_eq!(not_in(keyed([None]), probe()), Vec::<String>::new());
}

#[test]
fn reads_the_build_side_first_and_stops_when_nothing_can_come() {
    for join_type in JOIN_TYPES {
        let mut harness = Harness::new(HashJoin::new(plain_case(vec![], vec![]).spec(join_type)).unwrap());
        assert_eq!(harness.operator.reads_next(), ReadNext::Only(0));
        assert!(!harness.operator.is_done());
        harness.end(0).unwrap();
        assert_eq!(harness.operator.reads_next(), ReadNext::Only(1));
        let goes_on = matches!(
            join_type,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        );
        assert_eq!(harness.operator.is_done(), !goes_on, "{join_type}");
    }
}

#[test]
fn one_probe_row_with_many_matches_comes_in_bounded_batches() {
    let mut case = plain_case(keyed((0..200).map(|_| Some(1))), keyed([Some(1), Some(1)]));
    case.batch_size = 16;
    for (project, rows) in [(0, 400), (3, 400)] {
        case.project = project;
        case.check(JoinType::Inner);
        let mut harness = Harness::new(HashJoin::new(case.spec(JoinType::Inner)).unwrap());
        harness.context.batch_size = case.batch_size;
        let inputs = vec![
            side_batches(&[Dense], "b", &case.build, 64),
            side_batches(&[Dense], "p", &case.probe, 64),
        ];
        let output = harness.run(inputs).unwrap();
        assert_eq!(output.iter().map(Batch::num_rows).sum::<usize>(), rows);
        assert_eq!(output.len(), rows / 16);
    }
}

#[test]
fn small_outputs_are_gathered_up() {
    let mut case = plain_case(keyed([Some(1)]), keyed((0..200).map(|i| Some(i % 20))));
    (case.batch_rows, case.batch_size) = (20, 8);
    let mut harness = Harness::new(HashJoin::new(case.spec(JoinType::Inner)).unwrap());
    harness.context.batch_size = case.batch_size;
    let inputs = vec![
        side_batches(&[Dense], "b", &case.build, 64),
        side_batches(&[Dense], "p", &case.probe, 20),
    ];
    let sizes: Vec<_> = harness.run(inputs).unwrap().iter().map(Batch::num_rows).collect();
    assert_eq!(sizes, [8, 2]);
}

#[test]
fn slices_of_one_buffer_are_booked_once() {
    let case = plain_case(keyed((0..250).map(Some)), vec![]);
    let whole = side_batch(
        &[Dense],
        "b",
        &case.build.iter().cloned().enumerate().collect::<Vec<_>>(),
    );
    let mut harness = Harness::new(HashJoin::new(case.spec(JoinType::Inner)).unwrap());
    harness.push(0, whole.slice(0, 10)).unwrap();
    let first = harness.context.memory.bytes();
    for start in (10..250).step_by(10) {
        harness.push(0, whole.slice(start, 10)).unwrap();
    }
    assert!(harness.context.memory.bytes() < first + first / 10);
}

#[test]
fn bounds_of_the_build_keys() {
    let bounds = |kinds: &'static [Kind], keys: &[Option<u8>]| {
        let mut case = plain_case(keyed(keys.iter().copied()), vec![]);
        case.kinds = kinds;
        let mut harness = Harness::new(HashJoin::new(case.spec(JoinType::Inner)).unwrap());
        for batch in side_batches(kinds, "b", &case.build, 64) {
            harness.push(0, batch).unwrap();
        }
        harness.end(0).unwrap();
        harness.operator.build_bounds()
    };
    let keys = [Some(9), None, Some(2)];
    assert_eq!(
        bounds(&[Dense], &keys),
        Some((ScalarValue::from(-1i64), ScalarValue::from(6i64)))
    );
    let dates = (ScalarValue::Date32(Some(10_002)), ScalarValue::Date32(Some(10_009)));
    assert_eq!(bounds(&[Date], &keys), Some(dates));
    assert_eq!(bounds(&[Text], &keys), None);
    assert_eq!(bounds(&[Unsigned], &keys), None);
    assert_eq!(bounds(&[Dense], &[None]), None);
}
