//! For tests: the subtasks of an operator, which are cut down and set up again, beside one that is left alone.

use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use proptest::prelude::*;

use super::folded::changes;
use crate::data::Batch;
use crate::operator::Operator;
use crate::operator::harness::{Harness, StoredTable, parts_of};

/// What happens between two batches.
#[derive(Clone, Copy, Debug)]
pub(in crate::operator) enum Disturbance {
    Nothing,
    /// A checkpoint; every third is whole, the others build on the last.
    Checkpoint,
    /// A checkpoint that comes to nothing; on which the next does not build. Whole or not.
    Failed(bool),
    /// A checkpoint out of which so many new subtasks are made.
    Restart(usize),
    /// Time goes by, in milliseconds.
    Wait(u64),
}

/// Any disturbance.
pub(in crate::operator) fn disturbances() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        3 => Just(Disturbance::Nothing),
        3 => Just(Disturbance::Checkpoint),
        1 => any::<bool>().prop_map(Disturbance::Failed),
        3 => prop::sample::select(vec![1usize, 2, 3, 7]).prop_map(Disturbance::Restart),
        1 => (0u64..700).prop_map(Disturbance::Wait),
    ]
}

/// The subtasks, and the checkpoints so far.
pub(in crate::operator) struct Subtasks<O: Operator, F: Fn() -> O> {
    make: F,
    keys: Vec<usize>,
    schema: SchemaRef,
    alone: Harness<O>,
    harnesses: Vec<Harness<O>>,
    /// By number, from 1 on; a failed one is empty.
    stored: Vec<Vec<Vec<StoredTable>>>,
    last: Option<u64>,
    watermark: i64,
    /// How many tables have been written as deltas.
    pub(in crate::operator) deltas: usize,
}

impl<O: Operator, F: Fn() -> O> Subtasks<O, F> {
    /// One subtask, whose input is partitioned by these columns, with output of this schema.
    pub(in crate::operator) fn new(make: F, keys: &[usize], schema: &SchemaRef) -> Self {
        Self {
            alone: Harness::new(make()),
            harnesses: vec![Harness::new(make())],
            make,
            keys: keys.to_vec(),
            schema: SchemaRef::clone(schema),
            stored: Vec::new(),
            last: None,
            watermark: i64::MIN,
            deltas: 0,
        }
    }

    /// Hands a batch to its subtasks. Gives back what came out, after it has been compared.
    pub(in crate::operator) fn push(&mut self, batch: &Batch) -> Batch {
        self.alone.push(0, batch.clone()).unwrap();
        let parts = parts_of(batch, &self.keys, self.harnesses.len());
        for (harness, part) in self.harnesses.iter_mut().zip(parts) {
            harness.push(0, part).unwrap();
        }
        self.compared()
    }

    /// Lets event time go on.
    pub(in crate::operator) fn watermark(&mut self, at_ms: i64) -> Batch {
        self.watermark = at_ms;
        self.alone.watermark(at_ms).unwrap();
        self.harnesses
            .iter_mut()
            .for_each(|harness| harness.watermark(at_ms).unwrap());
        self.compared()
    }

    /// Ends the input.
    pub(in crate::operator) fn end(&mut self) -> Batch {
        self.alone.end(0).unwrap();
        // The subtask without a key is the first.
        let enders = if self.keys.is_empty() { 1 } else { self.harnesses.len() };
        self.harnesses[..enders]
            .iter_mut()
            .for_each(|harness| harness.end(0).unwrap());
        self.compared()
    }

    pub(in crate::operator) fn disturb(&mut self, disturbance: Disturbance) {
        match disturbance {
            Disturbance::Nothing => {}
            Disturbance::Checkpoint => self.checkpoint(),
            Disturbance::Failed(whole) => {
                let (number, since) = (self.stored.len() as u64 + 1, self.last.filter(|_| !whole));
                for harness in &mut self.harnesses {
                    harness.snapshot(number, since).unwrap();
                }
                self.stored.push(Vec::new());
            }
            Disturbance::Restart(parallelism) => {
                self.checkpoint();
                self.restart(parallelism);
            }
            Disturbance::Wait(ms) => {
                for harness in self.harnesses.iter_mut().chain([&mut self.alone]) {
                    harness.advance(Duration::from_millis(ms)).unwrap();
                }
                assert_eq!(self.compared().num_rows(), 0, "a timer had output");
            }
        }
    }

    fn checkpoint(&mut self) {
        let number = self.stored.len() as u64 + 1;
        let since = self.last.filter(|_| !number.is_multiple_of(3));
        let mut tables = Vec::new();
        for harness in &mut self.harnesses {
            let before = harness.memory.reserved_bytes();
            let stored = harness.snapshot(number, since).unwrap();
            assert_eq!(harness.memory.reserved_bytes(), before, "a snapshot is still booked");
            self.deltas += stored.iter().filter(|table| table.since.is_some()).count();
            tables.push(stored);
        }
        // A table is whole in all subtasks or in none.
        let kinds: Vec<_> = tables.iter().map(|tables| self.stored_kinds(tables)).collect();
        assert!(kinds.windows(2).all(|pair| pair[0] == pair[1]), "{kinds:?}");
        self.stored.push(tables);
        self.last = Some(number);
    }

    fn stored_kinds(&self, tables: &[StoredTable]) -> Vec<(String, Option<u64>)> {
        let kind = |table: &StoredTable| (table.spec.name.clone(), table.since);
        tables.iter().map(kind).collect()
    }

    fn restart(&mut self, parallelism: usize) {
        let now = self.alone.clock.as_ref();
        let now_ms = u64::try_from(crate::time::Clock::now_ms(now)).unwrap();
        self.harnesses = (0..parallelism)
            .map(|subtask| {
                let mut harness = Harness::new((self.make)());
                let behind = now_ms - u64::try_from(crate::time::Clock::now_ms(harness.clock.as_ref())).unwrap();
                harness.clock.advance(Duration::from_millis(behind));
                harness.restore((subtask, parallelism), &self.stored).unwrap();
                if self.watermark > i64::MIN {
                    harness.watermark(self.watermark).unwrap();
                }
                assert!(harness.output.batches.is_empty(), "restored state was handed on");
                harness
            })
            .collect();
    }

    /// What has come out of the subtasks: the same changes as out of the one that is left alone.
    fn compared(&mut self) -> Batch {
        let parts: Vec<Batch> = self
            .harnesses
            .iter_mut()
            .map(|harness| harness.take(&self.schema))
            .collect();
        let output = concat_batches(&self.schema, &parts).unwrap();
        let sorted = |batch: &Batch| {
            let mut lines = changes(batch);
            lines.sort_unstable();
            lines
        };
        let expected = self.alone.take(&self.schema);
        assert_eq!(sorted(&output), sorted(&expected));
        output
    }

    /// Bytes that the subtasks have booked, and those of the one that is left alone.
    pub(in crate::operator) fn booked(&self) -> (usize, usize) {
        let booked = self.harnesses.iter().map(|harness| harness.memory.reserved_bytes());
        (booked.sum(), self.alone.memory.reserved_bytes())
    }

    /// How many there are.
    pub(in crate::operator) fn parallelism(&self) -> usize {
        self.harnesses.len()
    }

    /// The stored tables of the last checkpoint.
    pub(in crate::operator) fn last_stored(&self) -> &[Vec<StoredTable>] {
        self.stored.last().map_or(&[], Vec::as_slice)
    }
}
