//! Which strategies are chosen, what is chained, what is not done twice.

use thalweg_engine::plan::{ExchangeMode, JobGraph, OperatorSpec, decode_job_graph, encode_job_graph};

use super::{context, lowered, options, register_parquet};
use crate::{explain, lower};

fn chains(graph: &JobGraph) -> Vec<String> {
    graph.vertices.iter().map(|vertex| vertex.name.clone()).collect()
}

fn count(graph: &JobGraph, name: &str) -> usize {
    let operators = graph.vertices.iter().flat_map(|vertex| &vertex.chain);
    operators.filter(|operator| operator.name() == name).count()
}

fn edges(graph: &JobGraph, kind: &str) -> usize {
    let kinds = graph.edges.iter().map(|edge| format!("{:?}", edge.partitioning));
    kinds.filter(|text| text.starts_with(kind)).count()
}

async fn shape(sql: &str, parallelism: usize) -> JobGraph {
    lowered(&context(), sql, &options(parallelism)).await.unwrap()
}

#[tokio::test]
async fn row_wise_operators_share_a_vertex() {
    let graph = shape(
        "SELECT customer, sum(amount + 1) FROM orders WHERE id > 3 GROUP BY customer",
        2,
    )
    .await;
    assert_eq!(chains(&graph)[0], "Scan orders -> Filter -> PartialAggregate");
    assert_eq!(chains(&graph)[1], "FinalAggregate");
    assert_eq!(edges(&graph, "Hash"), 1);
}

#[tokio::test]
async fn one_subtask_needs_one_vertex() {
    let graph = shape(
        "SELECT note, count(*) c FROM orders GROUP BY note ORDER BY c LIMIT 2",
        1,
    )
    .await;
    assert_eq!(graph.vertices.len(), 1, "{}", explain(&graph));
}

#[tokio::test]
async fn a_join_carries_lengths_where_only_they_are_wanted() {
    let sql = "SELECT sum(length(o.note) + length(c.name)) FROM customers c JOIN orders o ON o.customer = c.id";
    let text = explain(&shape(sql, 2).await);
    let join = text.find("HashJoin").unwrap();
    for measure in ["character_length(note", "character_length(name"] {
        let places: Vec<usize> = text.match_indices(measure).map(|(place, _)| place).collect();
        assert!(matches!(places[..], [place] if place > join), "{measure}\n{text}");
    }
}

#[tokio::test]
async fn small_sides_are_broadcast_and_large_ones_hashed() {
    let sql = "SELECT o.id, c.name FROM customers c JOIN orders o ON o.customer = c.id";
    let graph = shape(sql, 2).await;
    assert_eq!(edges(&graph, "Broadcast"), 1, "{}", explain(&graph));
    let mut options = options(2);
    options.broadcast_threshold_bytes = 0;
    let graph = lowered(&context(), sql, &options).await.unwrap();
    assert_eq!(
        (edges(&graph, "Broadcast"), edges(&graph, "Hash")),
        (0, 2),
        "{}",
        explain(&graph)
    );
    let full = shape(
        "SELECT o.id, c.name FROM customers c FULL JOIN orders o ON o.customer = c.id",
        2,
    )
    .await;
    assert_eq!(
        edges(&full, "Broadcast"),
        0,
        "unmatched build rows must be emitted once"
    );
}

#[tokio::test]
async fn a_join_drops_columns_itself() {
    let graph = shape(
        "SELECT c.name, o.id FROM orders o JOIN customers c ON o.customer = c.id",
        2,
    )
    .await;
    assert_eq!(count(&graph, "Project"), 0, "{}", explain(&graph));
}

#[tokio::test]
async fn a_filter_drops_columns_itself() {
    let graph = shape("SELECT id FROM orders WHERE amount > 3", 2).await;
    assert_eq!(count(&graph, "Project"), 0, "{}", explain(&graph));
}

#[tokio::test]
async fn partitioning_is_used_again() {
    let mut options = options(2);
    options.broadcast_threshold_bytes = 0;
    let sql = "SELECT x.customer, n, s FROM (SELECT customer, count(*) n FROM orders GROUP BY customer) x \
               JOIN (SELECT customer, sum(amount) s FROM orders GROUP BY customer) y ON x.customer = y.customer";
    let graph = lowered(&context(), sql, &options).await.unwrap();
    assert_eq!(
        (edges(&graph, "Hash"), edges(&graph, "Forward")),
        (2, 2),
        "{}",
        explain(&graph)
    );
    let sql = "SELECT o.customer, count(*) FROM orders o JOIN customers c ON o.customer = c.id GROUP BY o.customer";
    let graph = lowered(&context(), sql, &options).await.unwrap();
    assert_eq!(
        (edges(&graph, "Hash"), count(&graph, "Aggregate")),
        (2, 1),
        "{}",
        explain(&graph)
    );
}

#[tokio::test]
async fn windows_of_one_order_sort_once() {
    let sql = "SELECT id, row_number() OVER (PARTITION BY note ORDER BY id), sum(amount) OVER (PARTITION BY note ORDER BY id), \
               max(amount) OVER (PARTITION BY note) FROM orders";
    let graph = shape(sql, 2).await;
    assert_eq!(
        (count(&graph, "Sort"), edges(&graph, "Hash")),
        (1, 1),
        "{}",
        explain(&graph)
    );
}

#[tokio::test]
async fn a_window_over_many_rows_in_one_subtask_is_spread() {
    // The first window needs all rows in one subtask; of an unknown or large number of rows the second must not stay there.
    let sql = "SELECT row_number() OVER (PARTITION BY x ORDER BY x), sum(x) OVER (ORDER BY x) FROM \
               (SELECT a.id * b.id * c.id AS x FROM orders a, orders b, orders c)";
    let graph = shape(sql, 2).await;
    assert_eq!(edges(&graph, "Hash"), 1, "{}", explain(&graph));
}

#[tokio::test]
async fn top_n_is_local_first() {
    let graph = shape("SELECT id FROM orders ORDER BY amount LIMIT 3", 2).await;
    assert_eq!(
        (count(&graph, "TopN"), count(&graph, "Merge")),
        (1, 1),
        "{}",
        explain(&graph)
    );
}

#[tokio::test]
async fn blocking_exchanges_where_rows_are_redistributed() {
    let mut options = options(2);
    options.blocking_exchanges = true;
    let graph = lowered(
        &context(),
        "SELECT customer, count(*) FROM orders GROUP BY customer",
        &options,
    )
    .await
    .unwrap();
    let modes: Vec<ExchangeMode> = graph.edges.iter().map(|edge| edge.mode).collect();
    assert_eq!(modes, [ExchangeMode::Blocking, ExchangeMode::Pipelined]);
}

#[tokio::test]
async fn parquet_is_split_and_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = context();
    register_parquet(&ctx, dir.path()).await;
    let graph = lowered(&ctx, "SELECT price FROM lines WHERE id < 300", &options(2))
        .await
        .unwrap();
    let OperatorSpec::Scan(scan) = &graph.vertices[0].chain[0] else {
        panic!("{}", explain(&graph))
    };
    let plan = format!("{:?}", scan.plan);
    assert!(plan.contains("pruning_predicate"), "{plan}");
    let mut rows = 0;
    for split in 0..scan.plan.0.properties().output_partitioning().partition_count() {
        let stream = scan.plan.0.execute(split, ctx.task_ctx()).unwrap();
        let batches = datafusion::physical_plan::common::collect(stream).await.unwrap();
        rows += batches.iter().map(|batch| batch.num_rows()).sum::<usize>();
    }
    assert!(
        rows <= 500,
        "row groups of 250 rows: two hold ids below 300, {rows} rows were read"
    );
}

#[tokio::test]
async fn graphs_over_files_survive_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = context();
    register_parquet(&ctx, dir.path()).await;
    for sql in [
        "SELECT part, sum(price) FILTER (WHERE id > 7), count(DISTINCT id) FROM lines WHERE id > 500 GROUP BY part ORDER BY part LIMIT 3",
        "SELECT l.id FROM lines l JOIN lines m ON l.id = m.id AND l.price < m.part LEFT JOIN lines n ON n.price > m.id",
        "SELECT part, price, count(*), grouping(part) FROM lines GROUP BY ROLLUP(part, price)",
        "SELECT id, row_number() OVER (PARTITION BY part ORDER BY id), avg(price) OVER (ORDER BY id) FROM lines",
        "SELECT id FROM lines WHERE part NOT IN (SELECT price FROM lines) UNION ALL SELECT 5",
        "SELECT string_agg(part::text, ',' ORDER BY id), array_agg(id ORDER BY price DESC) FROM lines",
    ] {
        let graph = lowered(&ctx, sql, &options(2)).await.unwrap();
        let bytes = encode_job_graph(&graph).unwrap();
        let back = decode_job_graph(&bytes, ctx.task_ctx()).unwrap();
        assert_eq!(explain(&back), explain(&graph), "{sql}");
        back.validate().unwrap();
        let (there, here) = (
            super::interpret::interpret(&back, ctx.task_ctx()).await,
            super::interpret::interpret(&graph, ctx.task_ctx()).await,
        );
        let (mut there, mut here) = (super::rows_of(&there), super::rows_of(&here));
        there.sort();
        here.sort();
        assert_eq!(there, here, "{sql}");
    }
}

#[tokio::test]
async fn what_cannot_be_lowered_says_so() {
    let ctx = context();
    let plan = super::optimized(
        &ctx,
        "SELECT id FROM orders WHERE amount > (SELECT avg(amount) FROM orders)",
    )
    .await;
    let error = lower(&plan, &ctx.state(), &options(2)).await.unwrap_err().to_string();
    assert!(error.contains("scalar subquery"), "{error}");
    let plan = super::optimized(&ctx, "DELETE FROM ours WHERE a = 1").await;
    let error = lower(&plan, &ctx.state(), &options(2)).await.unwrap_err().to_string();
    assert!(error.contains("ours"), "{error}");
    let plan = super::optimized(&ctx, "CREATE VIEW v AS SELECT 1").await;
    let error = lower(&plan, &ctx.state(), &options(2)).await.unwrap_err().to_string();
    assert!(error.contains("CreateView"), "{error}");
}

#[tokio::test]
async fn explain_reads_from_the_root() {
    let graph = shape(
        "SELECT note, count(*) FROM orders WHERE id > 3 GROUP BY note ORDER BY note",
        2,
    )
    .await;
    let text = explain(&graph);
    assert!(text.starts_with("Collect"), "{text}");
    assert!(text.contains("Exchange Hash(note@0) pipelined 2 -> 2"), "{text}");
    assert!(text.contains("Scan orders"), "{text}");
}
