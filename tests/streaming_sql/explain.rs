//! EXPLAIN in streaming mode: which operators run, and which of them hand on a changelog.

use thalweg::Session;

use super::changelog::{done, run, session, streaming};

fn tables(parallelism: usize) -> Session {
    let session = session(parallelism, &[]);
    let data = super::cases::folder("data");
    let ddl = std::fs::read_to_string(data.join("tables.slt")).unwrap();
    for statement in ddl.split("statement ok\n").skip(1) {
        done(&session, &statement.replace("$DATA", &data.display().to_string()));
    }
    streaming(&session);
    session
}

/// The job graph without estimates.
fn graph(session: &Session, sql: &str) -> String {
    let plan = session.explain(sql).unwrap();
    let (_, graph) = plan.split_once("job_graph").unwrap();
    let estimate = regex::Regex::new(", about [0-9]+ rows").unwrap();
    let graph = estimate.replace_all(graph, "");
    let lines: Vec<&str> = graph.lines().skip(1).collect();
    lines.join("\n").trim_end().to_string()
}

#[track_caller]
fn explains(sql: &str, expected: &str) {
    assert_eq!(
        graph(&tables(2), sql),
        expected.trim_start_matches('\n').trim_end(),
        "{sql}"
    );
}

#[test]
fn windows_give_insertions() {
    explains(
        "SELECT item, count(*) FROM TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '10' SECOND)) \
         GROUP BY item, window_start, window_end",
        r"
Collect  [parallelism 1]
  Exchange Global pipelined 2 -> 1
    Project item, count(Int64(1))@3 AS count(*)  [parallelism 2]
      Project item, window_start, window_end, count(Int64(1))
        FinalWindowAggregate TUMBLE(size=10000 ms) by event time #0 by=[item@0] count(Int64(1))
          Exchange Hash(item@0) pipelined 1 -> 2
            PartialWindowAggregate TUMBLE(size=10000 ms) by event time #0 by=[item@1] count(Int64(1))  [parallelism 1]
              Scan bids [ts, item] splits=1",
    );
}

#[test]
fn groups_that_change_give_a_changelog() {
    explains(
        "SELECT max(total) FROM (SELECT item, sum(price) AS total FROM bids GROUP BY item) t",
        r"
Collect  [parallelism 1]
  GroupAggregate by=[] max(t.total) changelog
    Exchange Global pipelined 2 -> 1
      Project sum(bids.price)@1 AS total, $row_kind  [parallelism 2]
        GroupAggregate by=[item@0] sum(bids.price) changelog
          Exchange Hash(item@0) pipelined 1 -> 2
            Project item, price  [parallelism 1]
              Scan bids [ts, item, price] splits=1",
    );
}

#[test]
fn a_join_changes_when_a_side_does() {
    explains(
        "SELECT o.id, t.paid FROM orders o \
         LEFT JOIN (SELECT customer, sum(paid) AS paid FROM payments GROUP BY customer) t ON o.customer = t.customer",
        r"
Collect  [parallelism 1]
  Exchange Global pipelined 2 -> 1
    Project id, paid, $row_kind  [parallelism 2]
      StreamJoin Left on customer@1 = customer@0 changelog
        Exchange Hash(customer@1) pipelined 1 -> 2
          Project id, customer  [parallelism 1]
            Scan orders [id, ts, customer] splits=1
        Exchange Hash(customer@0) pipelined 2 -> 2
          Project customer, sum(payments.paid)@1 AS paid, $row_kind  [parallelism 2]
            GroupAggregate by=[customer@0] sum(payments.paid) changelog
              Exchange Hash(customer@0) pipelined 1 -> 2
                Project customer, paid  [parallelism 1]
                  Scan payments [ts, customer, paid] splits=1",
    );
}

/// Which operator a query needs, and whether the result has a column of row kinds.
#[test]
fn operators_and_the_kind_of_result() {
    let session = tables(2);
    let near = "p.ts BETWEEN o.ts AND o.ts + INTERVAL '5' SECOND";
    let first = |order: &str| {
        format!(
            "SELECT id, item FROM (SELECT *, row_number() OVER (PARTITION BY item ORDER BY {order}) AS n FROM bids) b \
             WHERE n = 1"
        )
    };
    let queries = [
        ("SELECT id FROM orders".to_string(), "Scan", false),
        (
            "SELECT o.id FROM orders o JOIN payments p ON o.customer = p.customer".into(),
            "StreamJoin Inner",
            false,
        ),
        (
            "SELECT o.id FROM orders o LEFT JOIN payments p ON o.customer = p.customer".into(),
            "StreamJoin Left",
            true,
        ),
        (
            format!("SELECT o.id, p.id FROM orders o LEFT JOIN payments p ON o.customer = p.customer AND {near}"),
            "IntervalJoin Left",
            false,
        ),
        ("SELECT DISTINCT item FROM bids".into(), "GroupAggregate", false),
        (
            "SELECT item, count(*) FROM bids GROUP BY item".into(),
            "GroupAggregate",
            true,
        ),
        (first("price DESC"), "Rank 1..1", true),
        (first("ts DESC"), "Deduplicate", true),
        (
            "SELECT id, sum(price) OVER (PARTITION BY item ORDER BY ts) FROM bids".into(),
            "Over",
            false,
        ),
        ("SELECT id FROM bids ORDER BY ts".into(), "StreamSort", false),
        ("SELECT id FROM bids ORDER BY price LIMIT 3".into(), "Rank", true),
        (
            "SELECT o.id FROM orders o JOIN rates FOR SYSTEM_TIME AS OF o.ts AS r ON o.currency = r.currency".into(),
            "TemporalJoin",
            false,
        ),
    ];
    for (sql, operator, changes) in queries {
        let graph = graph(&session, &sql);
        assert!(graph.contains(operator), "{sql}\n{graph}");
        assert_eq!(graph.contains("changelog"), changes, "{sql}\n{graph}");
        let result = run(&session, &sql).unwrap().unwrap();
        assert_eq!(result.is_changelog(), changes, "{sql}");
        assert!(!result.folded().unwrap().is_empty(), "{sql}");
    }
}
