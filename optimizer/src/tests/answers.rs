//! What a graph says is what DataFusion answers, at several parallelisms.

use super::interpret::interpret;
use super::{context, lowered, options, register_parquet, rows_of};
use crate::{LoweringOptions, explain};
use datafusion::prelude::SessionContext;

const QUERIES: &[&str] = &[
    "SELECT 1 AS a, 'x' AS b",
    "SELECT * FROM (VALUES (1, 'a'), (2, NULL), (3, 'c')) AS t(x, y) WHERE x > 1",
    "SELECT id, amount FROM orders WHERE amount > 50",
    "SELECT amount FROM orders WHERE id < 20 AND note = 'note 1'",
    "SELECT id + 1 AS next, upper(note) FROM orders WHERE amount IS NULL",
    "SELECT id AS renamed FROM orders WHERE amount > 90",
    "SELECT count(*), sum(amount), min(id), max(note), avg(amount) FROM orders",
    "SELECT count(*), sum(amount) FROM orders WHERE id < 0",
    "SELECT customer, count(*), sum(amount) FROM orders GROUP BY customer",
    "SELECT customer, note, count(*) FILTER (WHERE amount > 50) FROM orders GROUP BY customer, note",
    "SELECT amount % 3 AS m, count(*) FROM orders GROUP BY amount % 3",
    "SELECT 1 AS one, customer, customer + 0 AS again, count(*) FROM orders GROUP BY 1, customer, customer + 0",
    "SELECT count(*) FROM orders GROUP BY 'constant'",
    "SELECT DISTINCT note FROM orders",
    "SELECT count(DISTINCT note), count(DISTINCT customer), sum(amount) FROM orders",
    "SELECT note, count(DISTINCT customer), count(DISTINCT amount) FROM orders GROUP BY note",
    "SELECT customer, count(*) AS c FROM orders GROUP BY customer HAVING count(*) > 8",
    "SELECT note, array_agg(id ORDER BY id DESC) FROM orders GROUP BY note",
    "SELECT note, first_value(id ORDER BY amount DESC, id), last_value(id ORDER BY id) FROM orders GROUP BY note",
    "SELECT note, string_agg(customer::text, ',' ORDER BY id) FROM orders GROUP BY note",
    "SELECT string_agg(id::text, ',' ORDER BY id DESC) FROM orders",
    "SELECT note, nth_value(id, 2 ORDER BY id) FROM orders GROUP BY note",
    "SELECT customer, note, count(*) FROM orders GROUP BY ROLLUP(customer, note)",
    "SELECT customer, note, sum(amount), grouping(customer), grouping(customer, note) FROM orders GROUP BY CUBE(customer, note)",
    "SELECT customer, note, count(*) FROM orders GROUP BY GROUPING SETS ((customer), (note), (), ())",
    "SELECT customer, note, count(*) FROM orders GROUP BY GROUPING SETS ((customer, note), (note))",
    "SELECT a, count(*), sum(a) FROM nothing GROUP BY GROUPING SETS ((a), ())",
    "SELECT a, count(*) FROM nothing GROUP BY GROUPING SETS ((a))",
    "SELECT count(*), max(b) FROM nothing GROUP BY GROUPING SETS (())",
    "SELECT note, string_agg(id::text, ',' ORDER BY id) FROM orders GROUP BY ROLLUP(note)",
    "SELECT o.id, c.name FROM orders o JOIN customers c ON o.customer = c.id",
    "SELECT c.name, o.id FROM customers c JOIN orders o ON o.customer = c.id WHERE o.amount > 10",
    "SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON o.customer = c.id AND c.region = 'region 1'",
    "SELECT o.id, c.name FROM orders o RIGHT JOIN customers c ON o.customer = c.id AND o.amount > 20",
    "SELECT o.id, c.name, c.region FROM orders o FULL JOIN customers c ON o.customer = c.id AND o.amount > c.id * 3",
    "SELECT o.id FROM orders o JOIN customers c ON o.customer + 1 = c.id * 2 AND o.amount < c.id + 50",
    "SELECT id FROM orders WHERE customer IN (SELECT id FROM customers WHERE region = 'region 2')",
    "SELECT id FROM orders WHERE customer NOT IN (SELECT id FROM customers WHERE region = 'region 2')",
    "SELECT id FROM customers WHERE id NOT IN (SELECT customer FROM orders WHERE id > 5 AND id < 30)",
    "SELECT id FROM customers WHERE id NOT IN (SELECT customer FROM orders WHERE customer IS NOT NULL AND id < 30)",
    "SELECT id FROM orders WHERE customer NOT IN (SELECT a FROM nothing)",
    "SELECT name FROM customers c WHERE EXISTS (SELECT 1 FROM orders o WHERE o.customer = c.id AND o.amount > 90)",
    "SELECT name FROM customers c WHERE NOT EXISTS (SELECT 1 FROM orders o WHERE o.customer = c.id AND o.amount > 60)",
    "SELECT id FROM orders WHERE amount > 95 OR customer IN (SELECT id FROM customers WHERE region IS NULL)",
    "SELECT c.id, o.id FROM customers c CROSS JOIN (SELECT id FROM orders WHERE id < 3) o",
    "SELECT c.id, o.id FROM customers c JOIN orders o ON o.amount > c.id * 9 AND o.id < 40",
    "SELECT c.id, o.id FROM customers c LEFT JOIN orders o ON o.amount > c.id * 9 AND o.id < 40",
    "SELECT c.id, o.id FROM customers c RIGHT JOIN orders o ON o.amount > c.id * 9 AND o.id < 40",
    "SELECT c.id, o.id FROM customers c FULL JOIN orders o ON o.amount < c.id * 3",
    "SELECT a.id, b.id FROM orders a JOIN orders b ON a.customer = b.customer AND a.id < b.id AND a.note = b.note",
    "SELECT c.region, count(*) FROM orders o JOIN customers c ON o.customer = c.id GROUP BY c.region",
    "SELECT x.customer, x.n, y.s FROM (SELECT customer, count(*) n FROM orders GROUP BY customer) x JOIN (SELECT customer, sum(amount) s FROM orders GROUP BY customer) y ON x.customer = y.customer",
    "SELECT count(*), sum(length(o.note) + length(c.name)) FROM orders o JOIN customers c ON o.customer = c.id",
    "SELECT c.id, max(octet_length(c.region)), min(length(o.note)) FROM orders o FULL JOIN customers c ON o.customer = c.id AND o.amount > 20 GROUP BY c.id",
    "SELECT length(o.note), count(DISTINCT bit_length(c.region)) FROM orders o LEFT JOIN customers c ON o.customer = c.id GROUP BY length(o.note)",
    "SELECT length(c.name), length(o.note) + length(p.note) FROM orders o JOIN customers c ON o.customer = c.id JOIN orders p ON p.customer = c.id AND p.id < 30",
    "SELECT customer FROM orders INTERSECT SELECT id FROM customers",
    "SELECT id FROM customers EXCEPT SELECT customer FROM orders WHERE amount > 50",
    "SELECT region FROM customers INTERSECT ALL SELECT region FROM customers WHERE id > 3",
    "SELECT id FROM customers UNION ALL SELECT customer FROM orders",
    "SELECT id, name FROM customers UNION SELECT id, note FROM orders",
    "SELECT count(*) FROM (SELECT id FROM customers UNION ALL SELECT id FROM orders UNION ALL SELECT a FROM nothing)",
    "SELECT x.id, x.n FROM (SELECT id, name AS n FROM customers UNION ALL SELECT id, note FROM orders) x JOIN customers c ON x.id = c.id",
    "SELECT id FROM orders WHERE amount > (SELECT avg(amount) FROM orders)",
    "SELECT id, (SELECT max(id) FROM customers) AS m FROM orders WHERE id < 5",
    "SELECT id, amount - (SELECT min(amount) FROM orders WHERE id > (SELECT max(id) FROM customers)) FROM orders",
    "SELECT id FROM orders WHERE amount > (SELECT a FROM nothing)",
    "SELECT name, (SELECT count(*) FROM orders o WHERE o.customer = c.id) FROM customers c",
    "SELECT id, unnest(tags) FROM tags",
    "SELECT id, row_number() OVER (PARTITION BY customer ORDER BY id) FROM orders",
    "SELECT id, sum(amount) OVER (PARTITION BY note ORDER BY id ROWS BETWEEN 2 PRECEDING AND CURRENT ROW), lag(id) OVER (PARTITION BY note ORDER BY id) FROM orders",
    "SELECT id, rank() OVER (ORDER BY amount DESC NULLS LAST, id), count(*) OVER () FROM orders",
    "SELECT id, max(amount) OVER (PARTITION BY note), ntile(4) OVER (PARTITION BY note ORDER BY id) FROM orders",
    "SELECT customer, sum(c) OVER (ORDER BY customer) FROM (SELECT customer, count(*) c FROM orders GROUP BY customer)",
    "SELECT * FROM (SELECT id, row_number() OVER (PARTITION BY customer ORDER BY amount, id) rn FROM orders) WHERE rn <= 2",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT i, name FROM n LEFT JOIN customers c ON c.id = i",
    "SELECT DISTINCT ON (customer) customer, id FROM orders ORDER BY customer, id DESC",
    "SELECT part, sum(price), count(*) FROM lines WHERE id > 500 AND id < 2600 GROUP BY part",
    "SELECT l.id, c.name FROM lines l JOIN customers c ON l.part = c.id WHERE l.price < 20",
    "SELECT count(*) FROM lines",
    "SELECT l.id FROM lines l JOIN lines m ON l.id = m.id + 1 JOIN lines n ON n.id = l.id WHERE m.part = 3",
];

const ORDERED: &[&str] = &[
    "SELECT id, amount FROM orders ORDER BY amount DESC NULLS LAST, id",
    "SELECT id, amount FROM orders ORDER BY amount, id DESC LIMIT 10",
    "SELECT id FROM orders ORDER BY note, id LIMIT 7 OFFSET 5",
    "SELECT customer, count(*) c FROM orders GROUP BY customer ORDER BY c DESC, customer LIMIT 3",
    "SELECT id, name FROM customers UNION ALL SELECT id, note FROM orders ORDER BY id, name",
    "SELECT id, row_number() OVER (PARTITION BY note ORDER BY id) rn FROM orders ORDER BY rn, id",
    "SELECT id FROM orders ORDER BY abs(id - 100), id LIMIT 5",
    "SELECT id FROM lines ORDER BY price, id LIMIT 12",
    "SELECT id FROM (SELECT id FROM orders ORDER BY id LIMIT 20) ORDER BY id DESC OFFSET 3",
];

async fn everything(options: &LoweringOptions) {
    let dir = tempfile::tempdir().unwrap();
    let ctx = context();
    register_parquet(&ctx, dir.path()).await;
    for sql in QUERIES {
        check(&ctx, sql, options, false).await;
    }
    for sql in ORDERED {
        check(&ctx, sql, options, true).await;
    }
}

async fn check(ctx: &SessionContext, sql: &str, options: &LoweringOptions, ordered: bool) {
    let expected = ctx.sql(sql).await.unwrap().collect().await.unwrap();
    let graph = lowered(ctx, sql, options).await.unwrap();
    let got = interpret(&graph, ctx.task_ctx()).await;
    let (mut expected, mut got) = (rows_of(&expected), rows_of(&got));
    if !ordered {
        expected.sort();
        got.sort();
    }
    assert_eq!(got, expected, "{sql}\n{}", explain(&graph));
}

#[tokio::test]
async fn one_subtask() {
    everything(&options(1)).await;
}

#[tokio::test]
async fn two_subtasks() {
    everything(&options(2)).await;
}

#[tokio::test]
async fn many_subtasks_and_no_broadcast() {
    let mut options = options(5);
    options.broadcast_threshold_bytes = 0;
    everything(&options).await;
}

#[tokio::test]
async fn limits_without_an_order_count_right() {
    let ctx = context();
    for (sql, rows) in [
        ("SELECT id FROM orders LIMIT 17", 17),
        ("SELECT id FROM orders LIMIT 17 OFFSET 190", 10),
        ("SELECT id FROM orders OFFSET 150", 50),
        ("SELECT id FROM orders LIMIT 0", 0),
    ] {
        let graph = lowered(&ctx, sql, &options(3)).await.unwrap();
        let got: usize = interpret(&graph, ctx.task_ctx())
            .await
            .iter()
            .map(|batch| batch.num_rows())
            .sum();
        assert_eq!(got, rows, "{sql}");
    }
}

#[tokio::test]
async fn writes_count_their_rows() {
    let ctx = context();
    for sql in [
        "COPY (SELECT id, note FROM orders) TO '/nowhere/out.csv' STORED AS CSV",
        "INSERT INTO ours SELECT id, note FROM orders",
        "INSERT INTO foreign SELECT id, note FROM orders",
    ] {
        let graph = lowered(&ctx, sql, &options(2)).await.unwrap();
        let got = interpret(&graph, ctx.task_ctx()).await;
        assert_eq!(rows_of(&got), ["|200|"], "{sql}");
    }
}

#[tokio::test]
async fn describe_lists_columns() {
    let ctx = context();
    let graph = lowered(&ctx, "DESCRIBE customers", &options(2)).await.unwrap();
    let got = rows_of(&interpret(&graph, ctx.task_ctx()).await);
    assert_eq!(got, ["|id|Int32|NO|", "|name|Utf8|NO|", "|region|Utf8|YES|"]);
}
