//! What DataFusion's rules may and may not do around our nodes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::Column;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, LogicalPlanBuilder, col, lit};
use thalweg_engine::plan::WindowKind;

use super::*;

const HOP: WindowKind = WindowKind::Hop {
    size_ms: 10,
    slide_ms: 5,
    offset_ms: 0,
};

fn scan(name: &str) -> LogicalPlan {
    let millis = DataType::Timestamp(TimeUnit::Millisecond, None);
    let fields = vec![
        Field::new("k", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
        Field::new("wide", DataType::Utf8, true),
        Field::new("ts", millis, true),
    ];
    let table = MemTable::try_new(Arc::new(Schema::new(fields)), vec![vec![]]).unwrap();
    let source = provider_as_source(Arc::new(table));
    LogicalPlanBuilder::scan(name, source, None).unwrap().build().unwrap()
}

fn watermarked(name: &str) -> LogicalPlan {
    let time = Column::new(Some(name), "ts");
    as_plan(WatermarkNode::try_new(Arc::new(scan(name)), time.clone(), Expr::Column(time), None).unwrap())
}

fn windows(window: WindowKind, partition_by: Vec<Expr>) -> LogicalPlanBuilder {
    let time = Column::new(Some("t"), "ts");
    let node = WindowTvf::try_new(Arc::new(scan("t")), window, time, partition_by).unwrap();
    LogicalPlanBuilder::from(as_plan(node))
}

fn optimized(plan: LogicalPlan) -> String {
    let optimized = SessionContext::new().state().optimize(&plan).unwrap();
    tidy_temporal_joins(optimized).unwrap().display_indent().to_string()
}

/// The line of a plan that holds `part`.
fn line<'p>(plan: &'p str, part: &str) -> &'p str {
    plan.lines()
        .find(|line| line.contains(part))
        .unwrap_or_else(|| panic!("{part} is missing in\n{plan}"))
}

#[test]
fn windows_read_only_the_columns_that_are_wanted() {
    let plan = windows(HOP, vec![])
        .project(vec![col("t.v"), col("window_end")])
        .unwrap();
    let text = optimized(plan.build().unwrap());
    assert!(line(&text, "TableScan").contains("projection=[v, ts]"), "{text}");
    let session = WindowKind::Session { gap_ms: 5 };
    let plan = windows(session, vec![col("t.k")])
        .project(vec![col("window_start")])
        .unwrap();
    let text = optimized(plan.build().unwrap());
    assert!(line(&text, "TableScan").contains("projection=[k, ts]"), "{text}");
}

#[test]
fn filters_on_the_rows_go_below_windows_and_those_on_windows_stay() {
    let filter = col("t.v").gt(lit(5i64)).and(col("window_start").lt(col("t.ts")));
    let text = optimized(windows(HOP, vec![]).filter(filter).unwrap().build().unwrap());
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert!(
        lines[0].starts_with("Filter") && lines[0].contains("window_start"),
        "{text}"
    );
    assert!(!lines[0].contains("Int64(5)"), "{text}");
    assert!(lines[1].starts_with("WindowTvf: HOP(size=10 ms, slide=5 ms)"), "{text}");
    assert!(
        text[text.find("WindowTvf").unwrap()..].contains("t.v > Int64(5)"),
        "{text}"
    );
}

#[test]
fn filters_on_anything_but_the_keys_stay_above_sessions() {
    let session = WindowKind::Session { gap_ms: 5 };
    let filter = col("t.v").gt(lit(5i64)).and(col("t.k").eq(lit(7i64)));
    let text = optimized(
        windows(session, vec![col("t.k")])
            .filter(filter)
            .unwrap()
            .build()
            .unwrap(),
    );
    let (above, below) = text.split_at(text.find("WindowTvf").unwrap());
    assert!(
        above.contains("t.v > Int64(5)") && !above.contains("Int64(7)"),
        "{text}"
    );
    assert!(
        below.contains("t.k = Int64(7)") && !below.contains("Int64(5)"),
        "{text}"
    );
}

#[test]
fn filters_stay_above_watermarks_until_those_are_taken_out() {
    let filtered = LogicalPlanBuilder::from(watermarked("t"))
        .filter(col("t.v").gt(lit(5i64)))
        .unwrap()
        .project(vec![col("t.k")])
        .unwrap()
        .build()
        .unwrap();
    let text = optimized(filtered.clone());
    let (above, below) = text.split_at(text.find("Watermark").unwrap());
    assert!(
        above.contains("t.v > Int64(5)") && !below.contains("t.v > Int64(5)"),
        "{text}"
    );
    assert!(line(&text, "TableScan").contains("projection=[k, v, ts]"), "{text}");
    let text = optimized(without_watermarks(filtered).unwrap());
    assert!(!text.contains("Watermark") && !text.contains("ts]"), "{text}");
}

#[test]
fn temporal_joins_keep_both_times_whatever_is_selected() {
    let table = TemporalTable::new(Arc::new(watermarked("r")), Column::new(Some("l"), "ts"));
    assert_eq!(table.version_time(), Some(&Column::new(Some("r"), "ts")));
    let right = LogicalPlanBuilder::from(as_plan(table))
        .alias("x")
        .unwrap()
        .build()
        .unwrap();
    let joined = LogicalPlanBuilder::from(scan("l"))
        .join_on(right, JoinType::Left, [col("l.k").eq(col("x.k"))])
        .unwrap()
        .project(vec![col("x.v")])
        .unwrap()
        .build()
        .unwrap();
    let bound = bind_temporal_joins(joined).unwrap();
    let optimized = SessionContext::new().state().optimize(&bound).unwrap();
    let text = optimized.display_indent().to_string();
    let mut found = None;
    optimized
        .apply(|node| {
            if let LogicalPlan::Join(join) = node {
                found = join.filter.as_ref().and_then(split_temporal);
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
    assert_eq!(found, Some((col("l.ts"), None)), "{text}");
    assert!(line(&text, "TableScan: r").contains("projection=[k, v, ts]"), "{text}");
}

#[test]
fn an_inner_temporal_join_keeps_its_mark_also_when_it_was_written_with_commas() {
    let right = |table| {
        let table = TemporalTable::new(Arc::new(table), Column::new_unqualified("ts"));
        LogicalPlanBuilder::from(as_plan(table))
            .alias("x")
            .unwrap()
            .build()
            .unwrap()
    };
    let filter = || {
        let keys = col("l.k").eq(col("x.k"));
        keys.and(col("l.v").gt(lit(3i64))).and(col("x.v").lt(lit(7i64)))
    };
    let left = || {
        let columns = vec![col("l.k"), col("l.v"), col("l.ts")];
        LogicalPlanBuilder::from(scan("l")).project(columns).unwrap()
    };
    for (table, mark) in [
        (watermarked("r"), "temporal_at(l.ts, x.ts)"),
        (scan("r"), "temporal_at(l.ts, x.k)"),
    ] {
        let joined = left()
            .join_on(right(table.clone()), JoinType::Inner, [filter()])
            .unwrap();
        let crossed = left().cross_join(right(table)).unwrap().filter(filter()).unwrap();
        for plan in [joined, crossed] {
            let plan = plan.project(vec![col("x.v")]).unwrap().build().unwrap();
            let bound = bind_temporal_joins(plan).unwrap();
            // As when the plan is a view's.
            let text = optimized(bind_temporal_joins(bound).unwrap());
            let join = line(&text, "Join");
            assert!(join.contains("l.k = x.k") && join.contains(mark), "{text}");
            assert_eq!(text.matches("temporal_at").count(), 1, "{text}");
            // The table's rows must not be filtered before they are versions.
            let below = &text[text.find("TemporalTable").unwrap()..];
            assert!(!below.contains("Int64(7)"), "{text}");
        }
    }
}

#[test]
fn a_temporal_table_without_its_join_is_refused() {
    let table = || TemporalTable::new(Arc::new(scan("r")), Column::new(Some("l"), "nothing"));
    let error = bind_temporal_joins(as_plan(table())).unwrap_err().strip_backtrace();
    assert!(error.contains("elsewhere than at the right side of a join"), "{error}");
    let join = |join_type| {
        let right = as_plan(table());
        let joined = LogicalPlanBuilder::from(scan("l")).join_on(right, join_type, [col("l.k").eq(col("r.k"))]);
        bind_temporal_joins(joined.unwrap().build().unwrap())
            .unwrap_err()
            .strip_backtrace()
    };
    assert!(join(JoinType::Inner).contains("has no such column"));
    assert!(join(JoinType::Full).contains("FULL JOIN"));
}

#[test]
fn what_cannot_be_a_window_is_refused() {
    let windows = |window, time: &str, keys| {
        let built = WindowTvf::try_new(Arc::new(scan("t")), window, Column::new(Some("t"), time), keys);
        built.unwrap_err().strip_backtrace()
    };
    let odd = WindowKind::Hop {
        size_ms: 10,
        slide_ms: 3,
        offset_ms: 0,
    };
    assert!(windows(odd, "ts", vec![]).contains("not a multiple of the slide"));
    assert!(windows(HOP, "wide", vec![]).contains("'wide', which is Utf8, not a TIMESTAMP"));
    assert!(windows(HOP, "ts", vec![col("t.k")]).contains("HOP does not take PARTITION BY"));
    let twice = WindowTvf::try_new(
        Arc::new(self::windows(HOP, vec![]).build().unwrap()),
        HOP,
        Column::new(Some("t"), "ts"),
        vec![],
    );
    assert!(
        twice
            .unwrap_err()
            .strip_backtrace()
            .contains("has a column 'window_start' already")
    );
}
