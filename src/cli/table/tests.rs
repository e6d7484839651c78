use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use proptest::prelude::*;

use super::*;

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn render(batch: &RecordBatch, width: Option<usize>) -> String {
    let mut table = Table::new(batch.schema_ref(), width);
    let mut out = Vec::new();
    table.batch(batch, &mut out).unwrap();
    let summary = Summary {
        rows: batch.num_rows() as u64,
        elapsed: Some(Duration::from_millis(120)),
        cut: false,
    };
    table.end(&summary, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn numbers_right_text_left_null_named() {
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("carrier", strings(&["AA", "Ünited"]), true),
        (
            "n",
            Arc::new(Int64Array::from(vec![Some(12345), None])) as ArrayRef,
            true,
        ),
    ])
    .unwrap();
    let expected = "\
┌─────────┬───────┐
│ carrier │     n │
├─────────┼───────┤
│ AA      │ 12345 │
│ Ünited  │  NULL │
└─────────┴───────┘
2 rows in 0.12 s
";
    assert_eq!(render(&batch, None), expected);
    assert_eq!(render(&batch, Some(80)), expected);
}

#[test]
fn wide_cells_are_cut_on_a_terminal_and_whole_elsewhere() {
    let long = "x".repeat(100);
    let batch = RecordBatch::try_from_iter([("a", strings(&[&long])), ("b", strings(&["short"]))]).unwrap();
    let narrow = render(&batch, Some(40));
    assert!(narrow.contains(&format!("│ {}… │ short │", "x".repeat(27))), "{narrow}");
    assert!(render(&batch, None).contains(&long));
}

#[test]
fn columns_give_way_in_the_middle() {
    let columns = (0..20).map(|i| (format!("column_number_{i}"), strings(&["a value of some length"])));
    let text = render(&RecordBatch::try_from_iter(columns).unwrap(), Some(80));
    let header = text.lines().nth(1).unwrap();
    assert!(
        header.contains("│ column_numb… │") && header.contains("│ … │"),
        "{text}"
    );
    assert!(text.ends_with("1 row in 0.12 s (5 of 20 columns shown)\n"), "{text}");
    assert!(
        text.lines()
            .take(5)
            .all(|line| line.width() == 79 || line.width() == 80),
        "{text}"
    );
}

#[test]
fn width_is_counted_in_terminal_cells() {
    let batch = RecordBatch::try_from_iter([("名前", strings(&["東京都", "ab", "👩‍👩‍👧 family", "e\u{301}"]))]).unwrap();
    let text = render(&batch, None);
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[..lines.len() - 1]
            .iter()
            .all(|line| line.width() == lines[0].width()),
        "{text}"
    );
}

#[test]
fn cutting_keeps_characters_whole() {
    assert_eq!(cut_to("東京都", 5), "東京…");
    assert_eq!(cut_to("東京都", 4), "東…");
    assert_eq!(cut_to("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
    assert_eq!(cut_to("👩‍👩‍👧👩‍👩‍👧", 3), "👩‍👩‍👧…");
    assert_eq!(cut_to("abc", 1), "…");
}

#[test]
fn control_characters_cannot_reach_the_terminal() {
    let batch = RecordBatch::try_from_iter([("a\tb", strings(&["\u{1b}[31mred\nline"]))]).unwrap();
    let text = render(&batch, Some(80));
    assert!(
        text.contains(r"│ a\tb") && text.contains(r"│ \u{1b}[31mred\nline │"),
        "{text}"
    );
}

#[test]
fn an_empty_result_shows_its_columns() {
    let text = render(&RecordBatch::try_from_iter([("a", strings(&[]))]).unwrap(), Some(80));
    assert_eq!(text, "┌───┐\n│ a │\n├───┤\n└───┘\n0 rows in 0.12 s\n");
}

#[test]
fn rows_are_held_up_to_the_sample_and_then_stream() {
    let few = RecordBatch::try_from_iter([("a", strings(&["1"; 999]))]).unwrap();
    let one = few.slice(0, 1);
    let mut table = Table::new(few.schema_ref(), Some(80));
    let mut out = Vec::new();
    table.batch(&few, &mut out).unwrap();
    assert!(out.is_empty());
    table.batch(&one, &mut out).unwrap();
    let printed = out.len();
    assert!(printed > 0);
    table.batch(&one, &mut out).unwrap();
    assert!(out.len() > printed);
}

#[test]
fn a_slow_result_is_shown_when_it_settles() {
    let one = RecordBatch::try_from_iter([("a", strings(&["1"]))]).unwrap();
    let mut table = Table::new(one.schema_ref(), Some(80));
    let mut out = Vec::new();
    table.settle(&mut out).unwrap();
    table.batch(&one, &mut out).unwrap();
    assert!(out.is_empty());
    table.settle(&mut out).unwrap();
    assert!(!out.is_empty());
}

#[test]
fn later_cells_keep_to_the_columns_of_the_sample_on_a_terminal() {
    let short = RecordBatch::try_from_iter([("a", strings(&["1"; 1000]))]).unwrap();
    let long = RecordBatch::try_from_iter([("a", strings(&["longer"]))]).unwrap();
    for (width, expected) in [(Some(80), "│ … │\n"), (None, "│ longer │\n")] {
        let mut table = Table::new(short.schema_ref(), width);
        table.batch(&short, &mut Vec::new()).unwrap();
        let mut out = Vec::new();
        table.batch(&long, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn a_number_is_not_cut() {
    let short = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1; 1000])) as ArrayRef)]).unwrap();
    let long = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![12345])) as ArrayRef)]).unwrap();
    let mut table = Table::new(short.schema_ref(), Some(80));
    table.batch(&short, &mut Vec::new()).unwrap();
    let mut out = Vec::new();
    table.batch(&long, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "│ 12345 │\n");
}

proptest! {
    #[test]
    fn a_layout_never_exceeds_the_terminal(
        wanted in prop::collection::vec((0usize..60, 0usize..200, any::<bool>()), 1..30),
        terminal in 30usize..200,
    ) {
        let columns: Vec<_> =
            wanted.iter().map(|&(header, cells, numeric)| Column { header, cells, numeric }).collect();
        let layout = layout::fit(&columns, Some(terminal));
        let width = 1 + layout.slots.iter().map(|slot| slot.width() + 3).sum::<usize>();
        prop_assert!(width <= terminal, "{width} > {terminal}: {layout:?}");
        let shown = layout.slots.iter().filter(|slot| matches!(slot, Slot::Column { .. })).count();
        prop_assert_eq!(shown + layout.hidden, columns.len());
        prop_assert!(shown >= 1);
    }
}
