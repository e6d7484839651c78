//! Against a map of the last rows, and by hand.

mod snapshots;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringViewArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use proptest::prelude::*;

use super::*;
use crate::data::with_row_kind;
use crate::operator::harness::Harness;
use crate::operator::keyed::folded::{Folded, changes, lines};
use crate::plan::SchemaSpec;

type Row = (Option<i64>, Option<&'static str>, Option<f64>);

fn schema() -> SchemaRef {
    with_row_kind(&Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("text", DataType::Utf8View, true),
        Field::new("f", DataType::Float64, true),
    ]))
}

fn batch(rows: &[(RowKind, Row)]) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter(rows.iter().map(|(_, row)| row.0))),
        Arc::new(StringViewArray::from_iter(rows.iter().map(|(_, row)| row.1))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|(_, row)| row.2))),
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|(kind, _)| *kind as u8))),
    ];
    Batch::try_new(schema(), columns).unwrap()
}

fn harness(ttl_ms: Option<u64>) -> Harness<Normalize> {
    let spec = NormalizeSpec {
        keys: vec![0],
        ttl_ms,
        schema: SchemaSpec(schema()),
    };
    Harness::new(Normalize::new(spec).unwrap())
}

fn pushed(harness: &mut Harness<Normalize>, rows: &[(RowKind, Row)]) -> Vec<String> {
    harness.push(0, batch(rows)).unwrap();
    changes(&harness.take(&schema()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_last_rows_are_what_is_there(batches in prop::collection::vec(
        prop::collection::vec((0u8..4, prop::option::weighted(0.9, 0i64..6), 0usize..4), 1..20), 1..20
    )) {
        const TEXTS: [Option<&str>; 4] = [None, Some("a"), Some("a text of more than twelve bytes"), Some("b")];
        let mut harness = harness(None);
        let (mut folded, mut model) = (Folded::default(), BTreeMap::new());
        for rows in batches {
            let rows: Vec<(RowKind, Row)> = rows
                .into_iter()
                .map(|(kind, id, text)| {
                    let kind = RowKind::from_u8(kind).unwrap();
                    // Deletions come with the key only.
                    let text = TEXTS[text].filter(|_| kind.is_addition());
                    (kind, (id, text, text.map(|text| text.len() as f64 / 2.0)))
                })
                .collect();
            harness.push(0, batch(&rows)).unwrap();
            folded.fold(&harness.take(&schema()));
            for (at, (kind, row)) in rows.iter().enumerate() {
                let line = lines(&split_row_kind(&batch(&rows[at..=at])).unwrap().0).remove(0);
                if kind.is_addition() {
                    model.insert(row.0, line);
                } else {
                    model.remove(&row.0);
                }
            }
            prop_assert_eq!(&folded, &Folded::of(model.values().cloned()));
            prop_assert_eq!(harness.operator.store.len(), model.len());
        }
    }
}

#[test]
fn repeated_rows_are_dropped_and_deletions_are_completed() {
    use RowKind::{Delete, Insert, UpdateAfter, UpdateBefore};
    let mut harness = harness(None);
    let row = |id, text| (Some(id), Some(text), Some(0.5));
    assert_eq!(
        pushed(&mut harness, &[(UpdateAfter, row(1, "a")), (Insert, row(2, "b"))]),
        ["+I 1|a|0.5", "+I 2|b|0.5"]
    );
    assert_eq!(pushed(&mut harness, &[(Insert, row(1, "a"))]), Vec::<String>::new());
    assert_eq!(
        pushed(&mut harness, &[(Insert, row(1, "x")), (Insert, row(1, "c"))]),
        ["-U 1|a|0.5", "+U 1|c|0.5"]
    );
    let log = [(Delete, (Some(1), None, None)), (Delete, (Some(3), None, None))];
    assert_eq!(pushed(&mut harness, &log), ["-D 1|c|0.5"]);
    let log = [(UpdateBefore, row(2, "b")), (UpdateAfter, row(2, "d"))];
    assert_eq!(pushed(&mut harness, &log), ["-U 2|b|0.5", "+U 2|d|0.5"]);
    let log = [
        (Insert, row(4, "d")),
        (Delete, row(4, "d")),
        (Delete, row(2, "d")),
        (Insert, row(2, "d")),
    ];
    assert_eq!(pushed(&mut harness, &log), Vec::<String>::new());
}

#[test]
fn a_key_is_forgotten_when_its_time_is_over() {
    use RowKind::{Delete, Insert};
    let mut harness = harness(Some(1000));
    let row = |id, text| (Some(id), Some(text), None);
    pushed(&mut harness, &[(Insert, row(1, "a")), (Insert, row(2, "a"))]);
    harness.advance(Duration::from_millis(900)).unwrap();
    // A repeated row is an access.
    assert_eq!(pushed(&mut harness, &[(Insert, row(1, "a"))]), Vec::<String>::new());
    harness.advance(Duration::from_millis(500)).unwrap();
    assert_eq!(harness.operator.store.len(), 1);
    assert_eq!(pushed(&mut harness, &[(Delete, row(2, "a"))]), Vec::<String>::new());
    assert_eq!(
        pushed(&mut harness, &[(Insert, row(1, "b"))]),
        ["-U 1|a|NULL", "+U 1|b|NULL"]
    );
    harness.clock.advance(Duration::from_millis(1000));
    assert_eq!(pushed(&mut harness, &[(Insert, row(1, "c"))]), ["+I 1|c|NULL"]);
    harness.advance(Duration::from_millis(3000)).unwrap();
    assert_eq!((harness.operator.store.len(), harness.operator.next_timer()), (0, None));
}

#[test]
fn many_keys_that_come_and_go_leave_nothing() {
    let mut harness = harness(None);
    let mut folded = Folded::default();
    for round in 0..20i64 {
        for kind in [RowKind::Insert, RowKind::Delete] {
            let rows = (round * 2000..(round + 1) * 2000).map(|id| (kind, (Some(id), Some("text"), None)));
            harness.push(0, batch(&rows.collect::<Vec<_>>())).unwrap();
            folded.fold(&harness.take(&schema()));
        }
    }
    assert_eq!(folded, Folded::default());
    assert!(harness.operator.index.len() <= 4000);
    assert_eq!(harness.operator.store.len(), 0);
}
