//! Which plans are narrowed, and that they answer as before.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use arrow::util::pretty::pretty_format_batches;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{ColumnarValue, LogicalPlan, Volatility, create_udf};
use datafusion::physical_plan::collect;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::narrow;

const STRING_TYPES: [DataType; 3] = [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View];

/// `a(k, payload, n)`, `b(k, payload, n)` and `c(k, payload, n)`, whose keys match in part, some of them several times; and
/// `empty`, like them.
fn context(strings: &DataType) -> SessionContext {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    let payloads = [
        Some("plain"),
        None,
        Some(""),
        Some("Ångström"),
        Some("a longer text than fits a view"),
    ];
    let tables = [("a", 0, 12, 5), ("b", 2, 9, 4), ("c", 1, 7, 7), ("empty", 0, 0, 1)];
    for (name, first, rows, modulus) in tables {
        let numbers = first..first + rows;
        let keys = numbers.clone().map(|n| (n % 6 != 5).then_some(n % modulus));
        let texts = numbers.clone().map(|n| payloads[n as usize % payloads.len()]);
        let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("k", Arc::new(keys.collect::<Int32Array>()), true),
            ("payload", cast(&texts, strings).unwrap(), true),
            (
                "n",
                Arc::new(Int64Array::from_iter_values(numbers.map(i64::from))),
                false,
            ),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
        ctx.register_table(name, Arc::new(table)).unwrap();
    }
    ctx
}

async fn optimized(ctx: &SessionContext, sql: &str) -> LogicalPlan {
    let state = ctx.state();
    let plan = state.create_logical_plan(sql).await.unwrap();
    state.optimize(&plan).unwrap()
}

/// The columns of strings that joins put out, lowest join last.
fn joined_strings(plan: &LogicalPlan) -> Vec<String> {
    let mut found = Vec::new();
    plan.apply(|node| {
        if let LogicalPlan::Join(join) = node {
            let columns = join.schema.iter().zip(join.schema.columns());
            let strings = columns.filter(|((_, field), _)| STRING_TYPES.contains(field.data_type()));
            found.extend(strings.map(|(_, column)| column.flat_name()));
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    found
}

/// The rows of a plan run as it is, sorted as text, under their names and types.
async fn answer(ctx: &SessionContext, plan: &LogicalPlan) -> (Vec<Field>, Vec<String>) {
    let physical = DefaultPhysicalPlanner::default()
        .create_physical_plan(plan, &ctx.state())
        .await
        .unwrap();
    let schema = physical.schema();
    let batches = collect(physical, ctx.task_ctx()).await.unwrap();
    let text = pretty_format_batches(&batches).unwrap().to_string();
    let mut rows: Vec<String> = text.lines().map(str::to_string).collect();
    rows.sort();
    (
        schema.fields().iter().map(|field| field.as_ref().clone()).collect(),
        rows,
    )
}

/// Narrows the plan of `sql`, and finds it to have the answer and the schema that it had.
async fn narrowed(ctx: &SessionContext, sql: &str) -> LogicalPlan {
    let plan = optimized(ctx, sql).await;
    let narrowed = narrow(&plan).unwrap();
    let narrowed = narrowed.unwrap_or_else(|| panic!("{sql} was left alone\n{}", plan.display_indent()));
    let text = format!("{sql}\n{}\n{}", plan.display_indent(), narrowed.display_indent());
    let (before, after) = (plan.schema(), narrowed.schema());
    assert_eq!(before.as_arrow().fields(), after.as_arrow().fields(), "{text}");
    assert!(before.iter().map(|f| f.0).eq(after.iter().map(|f| f.0)), "{text}");
    assert_eq!(answer(ctx, &plan).await, answer(ctx, &narrowed).await, "{text}");
    assert!(narrow(&narrowed).unwrap().is_none(), "not done at once: {text}");
    narrowed
}

/// No join of the narrowed plan carries a string.
async fn all_narrowed(sqls: &[&str]) {
    for strings in &STRING_TYPES {
        let ctx = context(strings);
        for sql in sqls {
            let plan = narrowed(&ctx, sql).await;
            assert!(joined_strings(&plan).is_empty(), "{sql}\n{}", plan.display_indent());
        }
    }
}

async fn left_alone(sqls: &[&str]) {
    let ctx = context(&DataType::Utf8View);
    for sql in sqls {
        let plan = optimized(&ctx, sql).await;
        assert!(
            !joined_strings(&plan).is_empty(),
            "nothing to refuse: {}",
            plan.display_indent()
        );
        let narrowed = narrow(&plan).unwrap();
        assert!(narrowed.is_none(), "{sql}\n{}", plan.display_indent());
    }
}

#[tokio::test]
async fn lengths_are_taken_below_the_join() {
    let ctx = context(&DataType::Utf8);
    let sql = "SELECT count(*), sum(length(a.payload) + length(b.payload)) FROM a JOIN b ON a.k = b.k";
    let plan = narrowed(&ctx, sql).await;
    let text = plan.display_indent().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let below_aggregate = [
        "Projection: __measure_1, __measure_2",
        "Inner Join: a.k = b.k",
        "Projection: a.k, character_length(a.payload) AS __measure_1",
        "TableScan: a projection=[k, payload]",
        "Projection: b.k, character_length(b.payload) AS __measure_2",
        "TableScan: b projection=[k, payload]",
    ];
    assert!(lines.ends_with(&below_aggregate), "{text}");
    assert_eq!(text.matches("character_length").count(), 2, "{text}");
}

#[tokio::test]
async fn every_join_type_is_narrowed() {
    let mut sqls = Vec::new();
    for kind in ["INNER", "LEFT", "RIGHT", "FULL"] {
        sqls.push(format!(
            "SELECT a.n, b.n, length(a.payload), octet_length(b.payload) FROM a {kind} JOIN b ON a.k = b.k"
        ));
        sqls.push(format!(
            "SELECT a.n, coalesce(length(b.payload), -1) FROM a {kind} JOIN b ON a.k = b.k AND a.n < b.n"
        ));
        sqls.push(format!(
            "SELECT sum(bit_length(a.payload)), count(length(empty.payload)) FROM a {kind} JOIN empty ON a.k = empty.k"
        ));
    }
    for kind in ["SEMI", "ANTI"] {
        sqls.push(format!(
            "SELECT a.n, length(a.payload) FROM a LEFT {kind} JOIN b ON a.k = b.k"
        ));
        sqls.push(format!(
            "SELECT b.n, length(b.payload) FROM a RIGHT {kind} JOIN b ON a.k = b.k"
        ));
    }
    sqls.push("SELECT sum(length(a.payload) * length(b.payload)) FROM a CROSS JOIN b".into());
    sqls.push("SELECT length(a.payload) FROM a WHERE a.n > 8 OR a.k IN (SELECT k FROM b)".into());
    sqls.push("SELECT length(a.payload) FROM a WHERE a.k NOT IN (SELECT k FROM b WHERE k IS NOT NULL)".into());
    all_narrowed(&sqls.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn measures_pass_through_what_only_carries_the_column() {
    all_narrowed(&[
        "SELECT sum(length(a.payload)) FROM a JOIN b ON a.k = b.k JOIN c ON b.k = c.k",
        "SELECT sum(length(a.payload) + length(b.payload) + length(c.payload)) FROM a JOIN b ON a.k = b.k LEFT JOIN c ON b.n = c.n",
        "SELECT length(s.p), s.n FROM (SELECT a.payload AS p, b.n, b.k FROM a JOIN b ON a.k = b.k) s JOIN c ON s.k = c.k",
        "SELECT length(s.payload) FROM a LEFT JOIN b ON a.k = b.k JOIN (SELECT * FROM c WHERE payload <> 'plain') s ON a.k = s.k",
        "SELECT length(a.payload) FROM a LEFT JOIN b ON a.k = b.k WHERE a.n > coalesce(b.n, 3)",
        "SELECT length(b.payload), a.n FROM a LEFT JOIN b ON a.k = b.k WHERE length(b.payload) > a.n OR b.n IS NULL",
        "SELECT x.l FROM (SELECT length(a.payload) AS l, a.k FROM a JOIN b ON a.k = b.k) x JOIN c ON x.k = c.k",
    ])
    .await;
}

#[tokio::test]
async fn measures_end_in_any_expression() {
    all_narrowed(&[
        "SELECT length(a.payload), length(a.payload) + 1, octet_length(a.payload), bit_length(a.payload) FROM a JOIN b ON a.k = b.k",
        "SELECT length(a.payload) AS l, count(*) FROM a JOIN b ON a.k = b.k GROUP BY length(a.payload)",
        "SELECT a.n, max(char_length(b.payload)) FILTER (WHERE octet_length(b.payload) > 3) FROM a JOIN b ON a.k = b.k GROUP BY a.n",
        "SELECT a.k, array_agg(b.n ORDER BY length(a.payload), b.n) FROM a JOIN b ON a.k = b.k GROUP BY a.k",
        "SELECT a.n FROM a JOIN b ON a.k = b.k ORDER BY length(b.payload), a.n",
        "SELECT length(a.payload) FROM a JOIN b ON a.k = b.k ORDER BY octet_length(a.payload) DESC, length(b.payload), a.n LIMIT 100",
        "SELECT length(s.payload) FROM (SELECT a.payload, a.n FROM a JOIN b ON a.k = b.k ORDER BY a.n LIMIT 1000) s WHERE s.n <> 4",
        "SELECT CASE WHEN a.n > 4 THEN length(b.payload) ELSE 0 END FROM a LEFT JOIN b ON a.k = b.k",
        "SELECT a.k, b.n, sum(length(a.payload)) FROM a JOIN b ON a.k = b.k GROUP BY ROLLUP(a.k, b.n)",
        "SELECT length(a.payload) FROM a JOIN b ON a.k = b.k UNION ALL SELECT length(b.payload) FROM b JOIN c ON b.k = c.k",
        "SELECT DISTINCT length(a.payload) FROM a JOIN b ON a.k = b.k",
        "SELECT rank() OVER (ORDER BY s.l, s.n), s.n FROM (SELECT length(a.payload) AS l, b.n FROM a JOIN b ON a.k = b.k) s",
    ])
    .await;
}

#[tokio::test]
async fn a_column_that_is_wanted_whole_stays() {
    left_alone(&[
        "SELECT a.payload, length(a.payload) FROM a JOIN b ON a.k = b.k",
        "SELECT a.payload FROM a JOIN b ON a.k = b.k",
        "SELECT length(a.payload), upper(a.payload) FROM a JOIN b ON a.k = b.k",
        "SELECT length(upper(a.payload)) FROM a JOIN b ON a.k = b.k",
        "SELECT length(a.payload || b.payload) FROM a JOIN b ON a.k = b.k",
        "SELECT length(a.payload), min(a.n) FROM a JOIN b ON a.k = b.k GROUP BY a.payload",
        "SELECT sum(length(a.payload)), min(a.payload) FROM a JOIN b ON a.k = b.k",
        "SELECT sum(length(a.payload)) FILTER (WHERE a.payload > 'm') FROM a JOIN b ON a.k = b.k",
        "SELECT length(a.payload), length(b.payload) FROM a JOIN b ON a.payload = b.payload",
        "SELECT length(a.payload) FROM a JOIN b ON a.k = b.k AND a.payload < b.payload",
        "SELECT length(b.payload) FROM a LEFT JOIN b ON a.k = b.k WHERE b.payload IS NULL OR a.n = 1",
        "SELECT length(a.payload) FROM a JOIN b ON a.k = b.k ORDER BY a.payload, a.n",
        "SELECT length(s.payload) FROM (SELECT DISTINCT a.payload FROM a JOIN b ON a.k = b.k) s",
        "SELECT length(s.payload), s.r FROM (SELECT a.payload, rank() OVER (ORDER BY a.n) AS r FROM a JOIN b ON a.k = b.k) s",
        "SELECT length(s.p) FROM (SELECT a.payload AS p FROM a JOIN b ON a.k = b.k UNION ALL SELECT payload FROM c) s",
        "SELECT length(a.payload) + (SELECT max(n) FROM c) FROM a JOIN b ON a.k = b.k",
        "SELECT length(a.payload), count(*) FROM a JOIN b ON a.k = b.k GROUP BY ROLLUP(length(a.payload))",
    ])
    .await;
}

#[tokio::test]
async fn columns_are_judged_one_by_one() {
    let ctx = context(&DataType::Utf8View);
    for (sql, left) in [
        (
            "SELECT a.payload, length(b.payload) FROM a JOIN b ON a.k = b.k",
            "a.payload",
        ),
        (
            "SELECT length(a.payload), b.payload FROM a FULL JOIN b ON a.k = b.k",
            "b.payload",
        ),
        (
            "SELECT length(a.payload), reverse(b.payload) FROM a JOIN b ON a.k = b.k",
            "b.payload",
        ),
    ] {
        let plan = narrowed(&ctx, sql).await;
        assert_eq!(joined_strings(&plan), [left], "{}", plan.display_indent());
    }
    // Below the join that compares it a column must be whole, above it need not be: it is measured where it was joined.
    let sql = "SELECT length(a.payload), a.n FROM a JOIN b ON a.payload = b.payload JOIN c ON a.k = c.k";
    let plan = narrowed(&ctx, sql).await;
    let text = plan.display_indent().to_string();
    let (top, measured) = (text.find("a.k = c.k"), text.find("character_length(a.payload)"));
    let compared = text.find("a.payload = b.payload");
    assert!(top < measured && measured < compared && top.is_some(), "{text}");
}

#[tokio::test]
async fn columns_of_one_name_keep_the_names_that_an_alias_gave_them() {
    let ctx = context(&DataType::Utf8View);
    let from = "FROM (SELECT a.payload, b.payload, b.n FROM a JOIN b ON a.k = b.k) AS s";
    for (sql, left) in [
        (r#"SELECT length(s.payload), s."payload:1", s.n"#, vec!["b.payload"]),
        (r#"SELECT s.payload, length(s."payload:1"), s.n"#, vec!["a.payload"]),
        (r#"SELECT length(s.payload), octet_length(s."payload:1")"#, vec![]),
    ] {
        let plan = narrowed(&ctx, &format!("{sql} {from}")).await;
        assert_eq!(joined_strings(&plan), left, "{}", plan.display_indent());
    }
}

#[tokio::test]
async fn a_name_that_is_taken_is_not_used() {
    let ctx = context(&DataType::Utf8View);
    let sql = "SELECT s.__measure_1, length(a.payload) FROM a JOIN (SELECT k, n AS __measure_1 FROM b) s ON a.k = s.k";
    let plan = narrowed(&ctx, sql).await;
    let text = plan.display_indent().to_string();
    assert!(text.contains("AS __measure__1"), "{text}");
    assert!(joined_strings(&plan).is_empty(), "{text}");
}

#[tokio::test]
async fn a_function_that_only_has_the_name_is_not_moved() {
    let ctx = context(&DataType::Utf8View);
    let answer = Arc::new(|_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(42i32.into())));
    let arguments = vec![DataType::Utf8View];
    let function = create_udf("length", arguments, DataType::Int32, Volatility::Immutable, answer);
    ctx.register_udf(function);
    let plan = optimized(&ctx, "SELECT length(a.payload) FROM a LEFT JOIN b ON a.k = b.k").await;
    assert!(narrow(&plan).unwrap().is_none(), "{}", plan.display_indent());
}

#[tokio::test]
async fn plans_without_joins_are_left_alone() {
    let ctx = context(&DataType::Utf8View);
    for sql in [
        "SELECT length(payload) FROM a",
        "SELECT sum(length(payload)) FROM (SELECT * FROM a WHERE n > 3 LIMIT 5)",
        "SELECT 1",
        "SELECT a.n + b.n FROM a JOIN b ON a.k = b.k",
        "SELECT length(CAST(a.n AS VARCHAR)) FROM a JOIN b ON a.k = b.k",
    ] {
        let plan = optimized(&ctx, sql).await;
        assert!(narrow(&plan).unwrap().is_none(), "{}", plan.display_indent());
    }
}
