//! Cut down and set up again.

use super::*;
use crate::operator::keyed::subtasks::{Disturbance, Subtasks, disturbances};

fn make(keys: &[usize], ttl_ms: Option<u64>) -> Normalize {
    let spec = NormalizeSpec {
        keys: keys.to_vec(),
        ttl_ms,
        schema: SchemaSpec(schema()),
    };
    Normalize::new(spec).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn disturbed_upserts_give_the_same(batches in prop::collection::vec((
        prop::collection::vec((0u8..4, prop::option::weighted(0.9, 0i64..9), 0usize..4, 0usize..4), 1..20),
        prop::collection::vec(disturbances(), 0..3),
    ), 1..15), ttl: bool) {
        const TEXTS: [Option<&str>; 4] = [None, Some("a"), Some("a text of more than twelve bytes"), Some("b")];
        const FLOATS: [Option<f64>; 4] = [None, Some(-0.0), Some(0.0), Some(f64::NAN)];
        // A key that is a float comes back as the row had it: -0.0 is not 0.0.
        for keys in [&[0][..], &[1, 0], &[2]] {
            let ttl_ms = ttl.then_some(500);
            let mut subtasks = Subtasks::new(|| make(keys, ttl_ms), keys, &schema());
            for (rows, disturbances) in &batches {
                let rows: Vec<(RowKind, Row)> = rows
                    .iter()
                    .map(|(kind, id, text, f)| (RowKind::from_u8(*kind).unwrap(), (*id, TEXTS[*text], FLOATS[*f])))
                    .collect();
                subtasks.push(&batch(&rows));
                disturbances.iter().for_each(|disturbance| subtasks.disturb(*disturbance));
            }
        }
    }
}

#[test]
fn many_rows_come_back_with_their_texts() {
    let mut subtasks = Subtasks::new(|| make(&[0], None), &[0], &schema());
    let text = |n: i64| -> &'static str { format!("a text that is not inlined, of row {n}").leak() };
    for round in 0..6i64 {
        let rows: Vec<_> = (0..20_000)
            .filter(|id| round == 0 || id % 50 == round)
            .map(|id| (RowKind::Insert, (Some(id), Some(text(id + round)), None)))
            .collect();
        subtasks.push(&batch(&rows));
        subtasks.disturb(match round {
            2 => Disturbance::Restart(3),
            4 => Disturbance::Restart(1),
            _ => Disturbance::Checkpoint,
        });
    }
    assert!(subtasks.deltas >= 5, "{}", subtasks.deltas);
    let (booked, alone) = subtasks.booked();
    assert!(booked * 2 > alone && booked < alone * 2, "{booked} and {alone} bytes");
    let rows: Vec<_> = (0..20_000)
        .map(|id| (RowKind::Delete, (Some(id), None, None)))
        .collect();
    assert_eq!(subtasks.push(&batch(&rows)).num_rows(), 20_000);
}

#[test]
fn dictionaries_come_back_as_dictionaries() {
    use arrow::array::DictionaryArray;
    use arrow::datatypes::Int32Type;
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let schema = with_row_kind(&Schema::new(vec![
        Field::new("value", dictionary.clone(), true),
        Field::new("id", dictionary, true),
    ]));
    let make = || {
        let spec = NormalizeSpec {
            keys: vec![1],
            ttl_ms: None,
            schema: SchemaSpec(Arc::clone(&schema)),
        };
        Normalize::new(spec).unwrap()
    };
    let mut subtasks = Subtasks::new(make, &[1], &schema);
    for round in 0..8 {
        let ids = (0..40).map(|n| (n % 7 != 0).then(|| format!("id {}", (n * round) % 30)));
        let values = (0..40).map(|n| (n % 5 != 0).then(|| format!("value {}", n + round)));
        let ids: DictionaryArray<Int32Type> = ids.collect::<Vec<_>>().iter().map(Option::as_deref).collect();
        let values: DictionaryArray<Int32Type> = values.collect::<Vec<_>>().iter().map(Option::as_deref).collect();
        let kinds = UInt8Array::from_iter_values((0..40).map(|n| if (n + round) % 9 == 0 { 3 } else { 2 }));
        let columns: Vec<ArrayRef> = vec![Arc::new(values), Arc::new(ids), Arc::new(kinds)];
        assert!(
            subtasks
                .push(&Batch::try_new(Arc::clone(&schema), columns).unwrap())
                .num_rows()
                > 0
        );
        subtasks.disturb(match round % 3 {
            0 => Disturbance::Restart(2),
            1 => Disturbance::Checkpoint,
            _ => Disturbance::Restart(3),
        });
    }
}
