//! Which joins tell which scans what they hold.

use thalweg_engine::plan::{JobGraph, OperatorSpec, decode_job_graph, encode_job_graph};

use super::{context, lowered, options, register_parquet};
use crate::{LoweringOptions, explain};

/// Filters wherever they may be, all joins hashed.
fn everywhere(parallelism: usize) -> LoweringOptions {
    let mut options = options(parallelism);
    options.runtime_filter_min_rows = 0;
    options.broadcast_threshold_bytes = 0;
    options
}

/// Each look at a filter as `table.column`, in the order of the filters.
fn checks(graph: &JobGraph) -> Vec<String> {
    let mut found = Vec::new();
    for vertex in &graph.vertices {
        let [OperatorSpec::Scan(scan), rest @ ..] = &vertex.chain[..] else {
            continue;
        };
        for operator in rest {
            if let OperatorSpec::RuntimeFilter(filter) = operator {
                for check in &filter.checks {
                    let key = check.key.to_string();
                    let column = key.split('@').next().unwrap().to_string();
                    let table = scan.table.trim_end_matches('?').to_string();
                    found.push((check.id, format!("{table}.{column}")));
                }
            }
        }
    }
    found.sort();
    let made: usize = joins(graph).map(|join| join.runtime_filters.len()).sum();
    let mut ids: Vec<usize> = found.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    assert_eq!(
        made,
        ids.len(),
        "a filter without a maker or a reader:\n{}",
        explain(graph)
    );
    found.into_iter().map(|(_, text)| text).collect()
}

fn joins(graph: &JobGraph) -> impl Iterator<Item = &thalweg_engine::plan::HashJoinSpec> {
    let operators = graph.vertices.iter().flat_map(|vertex| &vertex.chain);
    operators.filter_map(|operator| match operator {
        OperatorSpec::HashJoin(join) => Some(join),
        _ => None,
    })
}

async fn checks_of(sql: &str) -> Vec<String> {
    let graph = lowered(&context(), sql, &everywhere(2)).await.unwrap();
    println!("{}", explain(&graph));
    checks(&graph)
}

#[tokio::test]
async fn a_join_that_keeps_its_probe_rows_filters_none() {
    // The build side is the smaller one, `customers`.
    let join = |kind: &str| format!("SELECT * FROM orders o {kind} JOIN customers c ON o.customer = c.id");
    assert_eq!(checks_of(&join("INNER")).await, ["orders.customer"]);
    assert_eq!(checks_of(&join("RIGHT")).await, ["orders.customer"]);
    assert!(checks_of(&join("LEFT")).await.is_empty());
    assert!(checks_of(&join("FULL")).await.is_empty());
    let subquery = |test: &str| {
        format!("SELECT id FROM orders o WHERE {test} (SELECT 1 FROM customers c WHERE c.id = o.customer)")
    };
    assert_eq!(checks_of(&subquery("EXISTS")).await, ["orders.customer"]);
    assert!(checks_of(&subquery("NOT EXISTS")).await.is_empty());
    let reverse = |test: &str| {
        format!("SELECT id FROM customers c WHERE {test} (SELECT 1 FROM orders o WHERE c.id = o.customer)")
    };
    assert_eq!(checks_of(&reverse("EXISTS")).await, ["orders.customer"]);
    assert_eq!(checks_of(&reverse("NOT EXISTS")).await, ["orders.customer"]);
    let marked = "SELECT id FROM customers c WHERE c.id > 15 OR c.id IN (SELECT customer FROM orders)";
    for check in checks_of(marked).await {
        assert_eq!(check, "orders.customer");
    }
}

#[tokio::test]
async fn nulls_that_match_are_never_dropped() {
    let sql = "SELECT customer FROM orders INTERSECT SELECT id FROM customers";
    assert!(checks_of(sql).await.is_empty());
    let sql = "SELECT * FROM orders o JOIN customers c ON o.customer IS NOT DISTINCT FROM c.id";
    assert!(checks_of(sql).await.is_empty());
    let sql = "SELECT id FROM orders WHERE customer NOT IN (SELECT id FROM customers)";
    assert!(checks_of(sql).await.is_empty());
}

/// One row: the build side of whatever it is joined with.
const SMALL: &str = "(VALUES (3)) small(id)";

#[tokio::test]
async fn a_key_is_followed_through_joins_groups_and_unions() {
    let sql =
        format!("SELECT g.id FROM (SELECT id, sum(amount) FROM orders GROUP BY id) g JOIN {SMALL} ON g.id = small.id");
    assert_eq!(checks_of(&sql).await, ["orders.id"]);
    let sql = format!(
        "SELECT u.k FROM (SELECT id k FROM orders UNION ALL SELECT id FROM tags) u JOIN {SMALL} ON u.k = small.id"
    );
    let mut found = checks_of(&sql).await;
    found.sort();
    assert_eq!(found, ["orders.id", "tags.id"]);
    // The key is one of the join below, and so lies on both of its sides; that join looks for itself, too.
    let two = |kind: &str, key: &str| {
        format!(
            "SELECT x.k FROM (SELECT {key} k, o.amount, t.tags FROM orders o {kind} JOIN tags t ON o.id = t.id) x \
             JOIN {SMALL} ON x.k = small.id"
        )
    };
    let mut found = checks_of(&two("LEFT", "o.id")).await;
    found.sort();
    assert_eq!(found, ["orders.id", "tags.id"]);
    let mut found = checks_of(&two("INNER", "t.id")).await;
    found.sort();
    assert_eq!(found, ["orders.id", "orders.id", "tags.id"]);
}

#[tokio::test]
async fn a_key_is_not_followed_through_what_counts_rows() {
    for inner in [
        "SELECT id FROM orders LIMIT 10",
        "SELECT id FROM orders ORDER BY amount LIMIT 10",
        "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY amount) r FROM orders) WHERE r < 10",
        "SELECT max(id) id FROM orders GROUP BY note",
        "SELECT id + 0 AS id FROM orders",
        "SELECT id FROM orders GROUP BY ROLLUP(id)",
    ] {
        let sql = format!("SELECT * FROM ({inner}) o JOIN {SMALL} ON o.id = small.id");
        assert!(!checks_of(&sql).await.contains(&"orders.id".to_string()), "{inner}");
    }
}

#[tokio::test]
async fn estimates_decide() {
    let ctx = context();
    let dir = tempfile::tempdir().unwrap();
    register_parquet(&ctx, dir.path()).await;
    let mut options = options(2);
    options.runtime_filter_min_rows = 1000;
    let sql = |filter: &str| format!("SELECT l.price FROM lines l JOIN orders o ON l.id = o.id {filter}");
    let selective = lowered(&ctx, &sql("WHERE o.amount = 5"), &options).await.unwrap();
    assert_eq!(checks(&selective), ["lines.id"], "{}", explain(&selective));
    let text = explain(&selective);
    assert!(text.contains("RuntimeFilter #0 id@"), "{text}");
    assert!(text.contains(" builds #0 id@"), "{text}");
    // 200 orders of a key that has 4000 values in lines.
    let of_few = lowered(&ctx, &sql(""), &options).await.unwrap();
    assert_eq!(checks(&of_few), ["lines.id"], "{}", explain(&of_few));
    options.runtime_filter_min_rows = 5000;
    let small = lowered(&ctx, &sql("WHERE o.amount = 5"), &options).await.unwrap();
    assert!(checks(&small).is_empty(), "{}", explain(&small));
    options.runtime_filter_min_rows = 1000;
    let all = "SELECT l.price FROM lines l JOIN lines m ON l.id = m.id";
    let all = lowered(&ctx, all, &options).await.unwrap();
    assert!(checks(&all).is_empty(), "{}", explain(&all));
    options.runtime_filters = false;
    let off = lowered(&ctx, &sql("WHERE o.amount = 5"), &options).await.unwrap();
    assert!(checks(&off).is_empty());
}

#[tokio::test]
async fn scans_that_end_before_the_join_starts_look_at_nothing() {
    let ctx = context();
    let sql = "SELECT o.id FROM orders o JOIN customers c ON o.customer = c.id WHERE c.name = 'customer 3'";
    let mut options = everywhere(2);
    options.blocking_exchanges = true;
    let hashed = lowered(&ctx, sql, &options).await.unwrap();
    assert!(checks(&hashed).is_empty(), "{}", explain(&hashed));
    // A broadcast build side is complete when the scan of the probe side starts.
    options.broadcast_threshold_bytes = 1 << 20;
    let broadcast = lowered(&ctx, sql, &options).await.unwrap();
    assert_eq!(checks(&broadcast), ["orders.customer"], "{}", explain(&broadcast));
    assert!(joins(&broadcast).all(|join| join.runtime_filters.iter().all(|filter| filter.broadcast)));
}

#[tokio::test]
async fn filters_survive_serialization() {
    let ctx = context();
    let dir = tempfile::tempdir().unwrap();
    register_parquet(&ctx, dir.path()).await;
    let sql = "SELECT a.price FROM lines a JOIN lines b ON a.id = b.part WHERE b.price = 31";
    let graph = lowered(&ctx, sql, &everywhere(2)).await.unwrap();
    assert!(!checks(&graph).is_empty());
    let again = decode_job_graph(&encode_job_graph(&graph).unwrap(), ctx.task_ctx()).unwrap();
    assert_eq!(explain(&again), explain(&graph));
}
