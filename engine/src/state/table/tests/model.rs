//! Random programs, at any budget, cut anywhere.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Keys of one step: a stretch of the numbers, now and then with NULL.
#[derive(Clone, Debug)]
struct Stretch {
    start: i64,
    step: i64,
    rows: i64,
}

impl Stretch {
    fn keys(&self) -> Vec<Option<i64>> {
        let key = |row: i64| match (self.start + row * self.step) % 6000 {
            77 => None,
            key => Some(key),
        };
        (0..self.rows).map(key).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(Stretch, i64),
    Remove(Stretch),
    Get(Stretch),
    Settle,
    /// Whether it builds on the one before.
    Snapshot(bool),
    /// Everything is lost but the checkpoints.
    Fail,
}

fn stretch() -> impl Strategy<Value = Stretch> {
    (0..6000i64, 1..40i64, 1..1500i64).prop_map(|(start, step, rows)| Stretch { start, step, rows })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (stretch(), any::<i32>()).prop_map(|(keys, number)| Step::Put(keys, i64::from(number))),
        3 => stretch().prop_map(Step::Remove),
        2 => stretch().prop_map(Step::Get),
        4 => Just(Step::Settle),
        2 => any::<bool>().prop_map(Step::Snapshot),
        1 => Just(Step::Fail),
    ]
}

type Model = BTreeMap<Option<i64>, i64>;

fn check(table: &mut KeyedTable, model: &Model) {
    let wanted: Vec<_> = model.iter().map(|(key, number)| (*key, Some(*number))).collect();
    assert_eq!(pairs(table.rows()), wanted);
}

fn run(steps: Vec<Step>, budget_bytes: usize) {
    let mut disk = Disk::new(budget_bytes);
    let (mut table, mut model) = (table(None), Model::new());
    let mut chain: Vec<(Written, Model)> = Vec::new();
    for step in steps {
        match step {
            Step::Put(stretch, number) => {
                let keys = stretch.keys();
                let numbers: Vec<i64> = (0..keys.len() as i64).map(|row| number + row).collect();
                put(&mut table, &keys, &numbers);
                model.extend(keys.into_iter().zip(numbers));
            }
            Step::Remove(stretch) => {
                remove(&mut table, &stretch.keys());
                stretch.keys().iter().for_each(|key| {
                    model.remove(key);
                });
            }
            Step::Get(stretch) => {
                let keys = stretch.keys();
                let wanted: Vec<_> = keys.iter().map(|key| model.get(key).copied()).collect();
                assert_eq!(get(&mut table, &keys), wanted);
            }
            Step::Settle => {
                disk.settle(&mut table);
            }
            Step::Snapshot(builds) => {
                let checkpoint = chain.len() as u64 + 1;
                let since = Some(checkpoint - 1).filter(|since| builds && *since > 0);
                let frozen = snapshot(&mut table, checkpoint, since);
                assert_eq!(frozen.since, since, "it knows since when");
                // What happens before the rows are drawn is not in them.
                put(&mut table, &some(0..50), &[1; 50]);
                remove(&mut table, &some(50..60));
                disk.settle(&mut table);
                chain.push((written(frozen), model.clone()));
                model.extend((0..50).map(|key| (Some(key), 1)));
                (50..60).for_each(|key| {
                    model.remove(&Some(key));
                });
            }
            Step::Fail => {
                let Some((_, then)) = chain.last() else { continue };
                model = then.clone();
                disk = Disk::new(budget_bytes);
                let runs: Vec<_> = chain.iter().map(|(run, _)| run.clone()).collect();
                table = restored(&runs, None, 0, &mut disk);
                check(&mut table, &model);
            }
        }
    }
    check(&mut table, &model);
    drop(table);
    let Disk {
        memory, reservation, ..
    } = disk;
    drop(reservation);
    assert_eq!(memory.reserved_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_table_is_a_map(steps in prop::collection::vec(step(), 1..30)) {
        run(steps.clone(), usize::MAX);
        run(steps.clone(), 300 << 10);
        run(steps, 1);
    }
}
