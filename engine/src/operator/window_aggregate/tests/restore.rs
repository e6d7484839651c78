//! Cut at any point: checkpoints, whole and built on each other, restored into any number of subtasks, change nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Float64Array, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::functions_aggregate::count;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::lit;
use proptest::prelude::*;

use super::emit::Folded;
use super::model::{
    Filtered, Keys, Row, Step, all, assign, batch, batch_of, decimals, keys, kinds, lines, operator, row, specs, steps,
    sums, windows_of,
};
use super::slices::drained;
use crate::data::Batch;
use crate::operator::harness::{Harness, StoredTable, parts_of};
use crate::operator::window_aggregate::WindowAggregate;
use crate::plan::{
    AggregateMode, Aggregates, EmitSpec, ScalarExpr, SchemaSpec, WindowAggregateSpec, WindowKind, WindowProperty,
    WindowSource, WindowTime,
};

/// The subtasks of one vertex, and the checkpoints of the last that is whole and those that build on it.
struct Cluster {
    spec: WindowAggregateSpec,
    /// The key columns of the input.
    keys: Vec<usize>,
    subtasks: Vec<Harness<WindowAggregate>>,
    chain: Vec<Vec<Vec<StoredTable>>>,
    last: Option<u64>,
    next: u64,
    now: Duration,
    late: u64,
}

impl Cluster {
    fn new(spec: &WindowAggregateSpec, keys: &[usize], parallelism: usize) -> Self {
        let mut cluster = Self {
            spec: spec.clone(),
            keys: keys.to_vec(),
            subtasks: Vec::new(),
            chain: Vec::new(),
            last: None,
            next: 1,
            now: Duration::ZERO,
            late: 0,
        };
        cluster.start(parallelism);
        cluster
    }

    fn start(&mut self, parallelism: usize) {
        self.late = self.late();
        self.subtasks.clear();
        for subtask in 0..parallelism {
            let mut harness = Harness::new(operator(&self.spec));
            (harness.context.subtask, harness.context.parallelism) = (subtask, parallelism);
            harness.context.streaming = true;
            harness.clock.advance(self.now);
            self.subtasks.push(harness);
        }
    }

    fn late(&self) -> u64 {
        let late = |harness: &Harness<_>| harness.context.metrics.late_rows.load(Ordering::Relaxed);
        self.late + self.subtasks.iter().map(late).sum::<u64>()
    }

    fn push(&mut self, batch: &Batch) {
        let parts = parts_of(batch, &self.keys, self.subtasks.len());
        for (harness, part) in self.subtasks.iter_mut().zip(parts) {
            harness.push(0, part).unwrap();
        }
    }

    fn watermark(&mut self, at: i64) {
        for harness in &mut self.subtasks {
            harness.watermark(at).unwrap();
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        for harness in &mut self.subtasks {
            harness.advance(by).unwrap();
        }
    }

    /// Takes a checkpoint that builds on the last one, if it may. One that fails is as if it had never been.
    fn checkpoint(&mut self, builds: bool, fails: bool) {
        let since = self.last.filter(|_| builds);
        let id = self.next;
        self.next += 1;
        let snapshots = self
            .subtasks
            .iter_mut()
            .map(|harness| harness.snapshot(id, since).unwrap());
        let stored: Vec<_> = snapshots.collect();
        for harness in &self.subtasks {
            assert_eq!(harness.context.memory.bytes(), harness.operator.held());
        }
        if fails {
            return;
        }
        if since.is_none() {
            self.chain.clear();
        }
        self.chain.push(stored);
        self.last = Some(id);
    }

    fn restore(&mut self, parallelism: usize) {
        self.start(parallelism);
        for (subtask, harness) in self.subtasks.iter_mut().enumerate() {
            harness.restore((subtask, parallelism), &self.chain).unwrap();
            assert_eq!(harness.context.memory.bytes(), harness.operator.held());
        }
    }

    fn drained(&mut self) -> Vec<Batch> {
        self.subtasks.iter_mut().flat_map(drained).collect()
    }

    fn obey(&mut self, cut: &Cut) {
        self.checkpoint(cut.builds, cut.restores.is_none() && cut.fails);
        if let Some(parallelism) = cut.restores {
            self.restore(parallelism);
        }
    }

    /// After the end nothing is held but for keys that have gone, which two checkpoints later are of no use.
    fn assert_empty(&mut self) {
        for _ in 0..2 {
            self.checkpoint(true, false);
        }
        for harness in &self.subtasks {
            assert_eq!((harness.operator.held(), harness.memory.reserved_bytes()), (0, 0));
        }
    }
}

/// What befalls a cluster between two steps.
#[derive(Clone, Debug)]
struct Cut {
    builds: bool,
    fails: bool,
    restores: Option<usize>,
}

fn parallelisms() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(3), Just(7)]
}

fn cuts() -> impl Strategy<Value = Vec<Option<Cut>>> {
    let cut = (
        any::<bool>(),
        any::<bool>(),
        prop::option::weighted(0.3, parallelisms()),
    );
    let cut = cut.prop_map(|(builds, fails, restores)| Cut {
        builds,
        fails,
        restores,
    });
    prop::collection::vec(prop::option::weighted(0.5, cut), 60)
}

fn sorted(batches: &[Batch]) -> Vec<String> {
    let mut lines = lines(batches);
    lines.sort();
    lines
}

fn columns_of(keys: Keys) -> &'static [usize] {
    match keys {
        Keys::None => &[],
        Keys::One => &[1],
        Keys::Two => &[1, 2],
    }
}

/// Rows as they are, or once per window with its bounds.
fn input(rows: &[Row], attached: Option<WindowKind>) -> Batch {
    let Some(kind) = attached else { return batch(rows) };
    let windows = rows.iter().flat_map(|row| {
        let windows = windows_of(kind, row.time).into_iter();
        windows.map(|window| (row.clone(), window))
    });
    batch_of(&windows.collect::<Vec<_>>())
}

/// Runs undisturbed in one subtask, and cut; returns the outputs and the numbers of late rows of both.
fn compare(
    spec: &WindowAggregateSpec,
    keys: Keys,
    attached: Option<WindowKind>,
    steps: &[Step],
    cuts: &[Option<Cut>],
    parallelism: usize,
) {
    let mut whole = Harness::new(operator(spec));
    let mut cluster = Cluster::new(spec, columns_of(keys), parallelism);
    let mut output = Vec::new();
    for (step, cut) in steps.iter().zip(cuts.iter().cycle()) {
        match step {
            Step::Rows(rows) => {
                whole.push(0, input(rows, attached)).unwrap();
                cluster.push(&input(rows, attached));
            }
            Step::Watermark(watermark) => {
                whole.watermark(*watermark).unwrap();
                cluster.watermark(*watermark);
            }
        }
        output.extend(cluster.drained());
        if let Some(cut) = cut {
            cluster.obey(cut);
            assert!(cluster.drained().is_empty(), "a barrier makes no results");
        }
    }
    assert_eq!(sorted(&output), sorted(&drained(&mut whole)));
    assert_eq!(cluster.late(), whole.context.metrics.late_rows.load(Ordering::Relaxed));
    cluster.assert_empty();
}

/// In two steps: what partial aggregations hold leaves before the barrier.
fn compare_in_two(kind: WindowKind, keys: Keys, functions: &[Filtered], steps: &[Step], cuts: &[Option<Cut>]) {
    let specs = specs(assign(kind), keys.names(), functions, None);
    let mut whole = Harness::new(operator(&specs.single));
    let mut partial = Cluster::new(&specs.partial, &[], 1);
    let of_states: Vec<usize> = (0..keys.names().len()).collect();
    let mut last = Cluster::new(&specs.last, &of_states, 2);
    let mut output = Vec::new();
    for (step, cut) in steps.iter().zip(cuts.iter().cycle()) {
        match step {
            Step::Rows(rows) => {
                whole.push(0, batch(rows)).unwrap();
                partial.push(&batch(rows));
            }
            Step::Watermark(watermark) => {
                whole.watermark(*watermark).unwrap();
                partial.watermark(*watermark);
                partial.drained().iter().for_each(|states| last.push(states));
                last.watermark(*watermark);
            }
        }
        if let Some(cut) = cut {
            partial.checkpoint(cut.builds, false);
            assert!(partial.chain.iter().flatten().all(Vec::is_empty), "it has no state");
            if cut.restores.is_some() {
                let states = partial.drained();
                partial.start(1);
                states.iter().for_each(|states| last.push(states));
            }
            partial.drained().iter().for_each(|states| last.push(states));
            output.extend(last.drained());
            last.obey(cut);
        }
        output.extend(last.drained());
    }
    assert_eq!(sorted(&output), sorted(&drained(&mut whole)));
    last.assert_empty();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn cut_windows_are_as_whole_ones(
        kind in kinds(),
        keys in keys(),
        steps in steps(100, 150),
        cuts in cuts(),
        parallelism in parallelisms(),
        which in 0usize..3,
    ) {
        let functions = vec![sums(), all(), decimals()].swap_remove(which);
        let spec = specs(assign(kind), keys.names(), &functions, None).single;
        compare(&spec, keys, None, &steps, &cuts, parallelism);
    }

    #[test]
    fn cut_windows_without_functions_and_attached_ones(
        kind in kinds(),
        keys in keys(),
        steps in steps(100, 150),
        cuts in cuts(),
        parallelism in parallelisms(),
    ) {
        let spec = specs(assign(kind), keys.names(), &[], None).single;
        compare(&spec, keys, None, &steps, &cuts, parallelism);
        // One window per end, whose start is told.
        let tumble = WindowKind::Tumble { size_ms: 30, offset_ms: 7 };
        let window = WindowSource::Attached { start: Some(4), end: 5 };
        let spec = specs(window, keys.names(), &all(), None).single;
        compare(&spec, keys, Some(tumble), &steps, &cuts, parallelism);
    }

    #[test]
    fn cut_windows_in_two_steps_are_as_whole_ones(
        kind in kinds(),
        keys in keys(),
        steps in steps(100, 150),
        cuts in cuts(),
        wide in any::<bool>(),
    ) {
        let functions = if wide { all() } else { sums() };
        compare_in_two(kind, keys, &functions, &steps, &cuts);
    }

    #[test]
    fn cut_sessions_are_as_whole_ones(
        gap_ms in 1i64..90,
        keys in keys(),
        steps in steps(100, 150),
        cuts in cuts(),
        parallelism in parallelisms(),
        which in 0usize..3,
    ) {
        let functions = vec![Vec::new(), all(), decimals()].swap_remove(which);
        let spec = specs(assign(WindowKind::Session { gap_ms }), keys.names(), &functions, None).single;
        compare(&spec, keys, None, &steps, &cuts, parallelism);
    }

    #[test]
    fn cut_changelogs_add_up_to_the_same(
        kind in kinds(),
        keys in keys(),
        steps in steps(150, 200),
        cuts in cuts(),
        parallelism in parallelisms(),
        early_ms in prop::option::of(0u64..40),
        late_ms in prop::option::of(0u64..40),
        allowed_lateness_ms in 0i64..120,
        wide in any::<bool>(),
    ) {
        let functions = if wide { all() } else { sums() };
        let emit = EmitSpec { early_ms, late_ms, allowed_lateness_ms };
        let spec = specs(assign(kind), keys.names(), &functions, Some(emit)).single;
        let mut whole = Harness::new(operator(&spec));
        let mut cluster = Cluster::new(&spec, columns_of(keys), parallelism);
        let (mut expected, mut folded) = (Folded::default(), Folded::default());
        for (step, cut) in steps.iter().zip(cuts.iter().cycle()) {
            match step {
                Step::Rows(rows) => {
                    whole.push(0, batch(rows)).unwrap();
                    cluster.push(&batch(rows));
                }
                Step::Watermark(watermark) => {
                    let by = Duration::from_millis(13);
                    whole.advance(by).unwrap();
                    cluster.advance(by);
                    whole.watermark(*watermark).unwrap();
                    cluster.watermark(*watermark);
                }
            }
            expected.take(&drained(&mut whole));
            folded.take(&cluster.drained());
            if let Some(cut) = cut {
                cluster.obey(cut);
            }
        }
        prop_assert_eq!(folded.lines(), expected.lines());
        cluster.assert_empty();
    }
}

/// Keys that are NaN of any kind, zeros of both signs, NULL.
#[test]
fn odd_keys_come_back_as_one_group_each() {
    let millisecond = DataType::Timestamp(TimeUnit::Millisecond, None);
    let input: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Float64, true),
        Field::new("ts", millisecond.clone(), false),
    ]));
    let output = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Float64, true),
        Field::new("count", DataType::Int64, false),
        Field::new("end", millisecond, false),
    ]));
    let count = AggregateExprBuilder::new(count::count_udaf(), vec![lit(1i64)]);
    let count = count.schema(Arc::clone(&input)).alias("count").build().unwrap();
    for window in [
        WindowKind::Tumble {
            size_ms: 20,
            offset_ms: 0,
        },
        WindowKind::Hop {
            size_ms: 20,
            slide_ms: 10,
            offset_ms: 0,
        },
        WindowKind::Session { gap_ms: 10 },
    ] {
        let spec = WindowAggregateSpec {
            mode: AggregateMode::Single,
            window: WindowSource::Assign {
                window,
                time: WindowTime::Event(1),
            },
            group_by: vec![ScalarExpr::column(0, &input)],
            aggregates: Aggregates {
                functions: vec![Arc::new(count.clone())],
                filters: vec![None],
                input: Arc::clone(&input),
            },
            properties: vec![WindowProperty::End],
            emit: None,
            schema: SchemaSpec(Arc::clone(&output)),
        };
        let odd = [
            Some(f64::NAN),
            Some(-f64::NAN),
            None,
            Some(0.0),
            Some(-0.0),
            Some(f64::INFINITY),
            Some(1.5),
            None,
        ];
        let rows = |time: i64| {
            let times = TimestampMillisecondArray::from(vec![time; odd.len()]);
            let keys = Float64Array::from(odd.to_vec());
            Batch::try_new(Arc::clone(&input), vec![Arc::new(keys), Arc::new(times)]).unwrap()
        };
        let mut whole = Harness::new(operator(&spec));
        let mut cluster = Cluster::new(&spec, &[0], 3);
        let mut cut = Vec::new();
        for (time, parallelism) in [(12, 2), (14, 7), (15, 1), (19, 3)] {
            whole.push(0, rows(time)).unwrap();
            cluster.push(&rows(time));
            cluster.checkpoint(true, false);
            cluster.restore(parallelism);
        }
        whole.watermark(i64::MAX).unwrap();
        cluster.watermark(i64::MAX);
        cut.extend(cluster.drained());
        assert_eq!(sorted(&cut), sorted(&drained(&mut whole)), "{window:?}");
    }
}

fn rows_of(stored: &[Vec<StoredTable>], table: &str) -> (usize, usize) {
    let tables = stored.iter().flatten().filter(|stored| stored.spec.name == table);
    let count = |batches: &[Batch]| batches.iter().map(Batch::num_rows).sum::<usize>();
    tables.fold((0, 0), |(rows, deleted), stored| {
        (rows + count(&stored.rows), deleted + count(&stored.deleted))
    })
}

#[test]
fn only_slices_that_have_changed_are_written_again() {
    let hop = WindowKind::Hop {
        size_ms: 100,
        slide_ms: 10,
        offset_ms: 0,
    };
    let spec = specs(assign(hop), &["k"], &all(), None).single;
    let mut cluster = Cluster::new(&spec, &[1], 1);
    let of = |time: i64| (0..50).map(|key| row(key, time, 1)).collect::<Vec<_>>();
    for slice in 0..8 {
        cluster.push(&batch(&of(slice * 10)));
    }
    cluster.watermark(39);
    cluster.checkpoint(true, false);
    assert_eq!(rows_of(&cluster.chain[0], "slices"), (400, 0));
    // One of the closed slices and one of the open ones; that which goes is told, that which has come is written.
    cluster.push(&batch(&[row(1, 35, 1), row(1, 75, 1)]));
    cluster.push(&batch(&of(95)[..5]));
    cluster.watermark(99);
    cluster.checkpoint(true, false);
    assert_eq!(rows_of(&cluster.chain[1], "slices"), (50 + 50 + 5, 50));
    cluster.checkpoint(true, false);
    assert_eq!(rows_of(&cluster.chain[2], "slices"), (0, 0), "nothing has changed");
    cluster.restore(2);
    cluster.drained();
    cluster.watermark(109);
    let sums: usize = cluster.drained().iter().map(Batch::num_rows).sum();
    assert_eq!(sums, 50);
}

#[test]
fn timers_of_processing_time_come_back() {
    for kind in [
        WindowKind::Hop {
            size_ms: 20,
            slide_ms: 10,
            offset_ms: 0,
        },
        WindowKind::Session { gap_ms: 10 },
    ] {
        let window = WindowSource::Assign {
            window: kind,
            time: WindowTime::Processing,
        };
        let spec = specs(window, &["k"], &sums()[..1], None).single;
        let mut whole = Harness::new(operator(&spec));
        let mut cluster = Cluster::new(&spec, &[1], 2);
        let mut cut = Vec::new();
        let ms = Duration::from_millis;
        for (turn, parallelism) in [1usize, 3, 1, 2, 7, 2].into_iter().enumerate() {
            let rows: Vec<_> = (0..10).map(|key| row(key % (turn as i32 + 3), 0, 0)).collect();
            whole.push(0, batch(&rows)).unwrap();
            cluster.push(&batch(&rows));
            whole.advance(ms(7)).unwrap();
            cluster.advance(ms(7));
            cut.extend(cluster.drained());
            cluster.checkpoint(turn % 2 == 0, false);
            cluster.restore(parallelism);
            cut.extend(cluster.drained());
        }
        whole.advance(ms(100)).unwrap();
        cluster.advance(ms(100));
        cut.extend(cluster.drained());
        assert_eq!(sorted(&cut), sorted(&drained(&mut whole)), "{kind:?}");
        assert!(cut.len() > 1);
    }
}

#[test]
fn slices_of_another_grid_are_refused_by_name() {
    let tumble = |size_ms| WindowKind::Tumble { size_ms, offset_ms: 0 };
    let spec = specs(assign(tumble(10)), &["k"], &sums(), None).single;
    let mut cluster = Cluster::new(&spec, &[1], 1);
    cluster.push(&batch(&[row(1, 3, 1)]));
    cluster.checkpoint(false, false);
    let other = specs(assign(tumble(5)), &["k"], &sums(), None).single;
    let mut harness = Harness::new(operator(&other));
    let error = harness.restore((0, 1), &cluster.chain).unwrap_err().to_string();
    assert!(
        error.contains("slices of 10 ms") && error.contains("slices of 5 ms") && error.contains("keep the windows"),
        "{error}"
    );
}

/// A subtask that is handed key groups of another that was ahead does not tell of a window twice, nor forget one.
#[test]
fn the_least_progress_counts() {
    let hop = WindowKind::Hop {
        size_ms: 20,
        slide_ms: 10,
        offset_ms: 0,
    };
    let spec = specs(assign(hop), &["k"], &sums()[..1], None).single;
    let mut cluster = Cluster::new(&spec, &[1], 2);
    let rows: Vec<_> = (0..8).map(|key| row(key, 5, 1)).collect();
    cluster.push(&batch(&rows));
    cluster.subtasks[0].watermark(9).unwrap();
    let mut output = cluster.drained();
    assert!(!output.is_empty());
    cluster.checkpoint(true, false);
    cluster.restore(1);
    cluster.checkpoint(true, false);
    cluster.restore(3);
    cluster.watermark(30);
    output.extend(cluster.drained());
    let expected: Vec<String> = (0..8)
        .flat_map(|key| [format!("{key}|1|-10|10|9"), format!("{key}|1|0|20|19")])
        .collect();
    assert_eq!(sorted(&output), expected);
}
