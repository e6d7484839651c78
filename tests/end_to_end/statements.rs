//! Statements other than queries, and queries whose answer is worked out by hand.

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use thalweg::{Outcome, Session};

use super::answers::{done, failure, rows, session};

/// Rows of a query as `a|b` lines, NULL as `NULL`.
fn lines(session: &Session, sql: &str) -> Vec<String> {
    let rows = rows(session, sql).unwrap_or_else(|e| panic!("{sql}: {e} {:?}", e.remedy()));
    rows.into_iter()
        .map(|row| {
            row.into_iter()
                .map(|cell| cell.unwrap_or("NULL".into()))
                .collect::<Vec<_>>()
                .join("|")
        })
        .collect()
}

#[test]
fn tables_and_views_in_memory() {
    let session = session(2);
    done(
        &session,
        "CREATE TABLE a AS SELECT * FROM (VALUES (1, 'x'), (2, 'y')) v(n, s)",
    );
    done(&session, "CREATE TABLE IF NOT EXISTS a AS SELECT 1 AS other");
    assert_eq!(lines(&session, "SELECT n, s FROM a ORDER BY n"), ["1|x", "2|y"]);
    assert_eq!(lines(&session, "INSERT INTO a VALUES (3, NULL), (4, 'z')"), ["2"]);
    assert_eq!(
        lines(&session, "INSERT INTO a SELECT n + 10, s FROM a WHERE s IS NOT NULL"),
        ["3"]
    );
    assert_eq!(lines(&session, "SELECT count(*), sum(n) FROM a"), ["7|47"]);
    done(&session, "CREATE VIEW big AS SELECT n FROM a WHERE n > 10");
    assert_eq!(lines(&session, "SELECT * FROM big ORDER BY n"), ["11", "12", "14"]);
    done(&session, "CREATE OR REPLACE TABLE a AS SELECT 5 AS n");
    assert_eq!(lines(&session, "SELECT n FROM a"), ["5"]);
    done(&session, "CREATE TABLE empty (i INT, s VARCHAR NOT NULL)");
    assert_eq!(lines(&session, "SELECT count(*) FROM empty"), ["0"]);
    let (cause, remedy) = failure(&session, "CREATE TABLE a AS SELECT 1 AS n");
    assert_eq!(cause, "there is already a table 'a'");
    assert!(remedy.contains("DROP"));
    done(&session, "DROP VIEW big");
    done(&session, "DROP TABLE a");
    assert_eq!(failure(&session, "SELECT * FROM a").0, "there is no table 'a'");
}

#[test]
fn prepared_statements_take_parameters() {
    let session = session(2);
    done(&session, "PREPARE p(INT, VARCHAR) AS SELECT $1 + 1, $2");
    assert_eq!(lines(&session, "EXECUTE p(41, 'x')"), ["42|x"]);
    done(&session, "DEALLOCATE p");
    assert!(failure(&session, "EXECUTE p(1, 'x')").0.contains("p"));
}

#[test]
fn settings_are_set_shown_and_checked() {
    let session = session(2);
    done(&session, "SET 'parallelism.default' = '3'");
    assert!(lines(&session, "SET").contains(&"parallelism.default|3".to_string()));
    done(&session, "RESET 'parallelism.default'");
    done(&session, "SET datafusion.sql_parser.enable_ident_normalization = false");
    assert_eq!(lines(&session, "SELECT A FROM (VALUES (1)) v(\"A\")"), ["1"]);
    let (cause, remedy) = failure(&session, "SET 'execution.runtime-mode' = 'continuous'");
    assert_eq!(cause, "cannot set 'execution.runtime-mode' to 'continuous'");
    assert_eq!(remedy, "expected batch, streaming or automatic");
}

#[test]
fn the_catalog_can_be_asked() {
    let session = session(2);
    done(&session, "CREATE TABLE a AS SELECT 1 AS n, 'x' AS s");
    assert!(lines(&session, "SHOW TABLES").iter().any(|line| line.contains("|a|")));
    assert_eq!(lines(&session, "DESCRIBE a"), ["n|Int64|YES", "s|Utf8|YES"]);
    assert!(lines(&session, "SHOW COLUMNS FROM a").len() == 2);
}

#[test]
fn explain_shows_operators_and_exchanges_and_analyze_what_they_did() {
    let session = session(2);
    let data = format!("{}/examples/data", env!("CARGO_MANIFEST_DIR"));
    let sql = format!(
        "SELECT a.name, count(*) FROM '{data}/flights.parquet' f JOIN '{data}/airlines.parquet' a USING (carrier) \
         WHERE f.distance > (SELECT avg(distance) FROM '{data}/flights.parquet') GROUP BY a.name ORDER BY 2 DESC LIMIT 3"
    );
    let plan = lines(&session, &format!("EXPLAIN {sql}")).join("\n");
    for part in [
        "HashJoin",
        "PartialAggregate",
        "FinalAggregate",
        "Exchange Hash",
        "Broadcast",
        "TopN",
        "scalar subquery 1",
    ] {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    assert_eq!(session.explain(&sql).unwrap().lines().next(), Some("job_graph"));
    let analyzed = lines(&session, &format!("EXPLAIN ANALYZE {sql}")).join("\n");
    assert!(
        analyzed.contains("rows_out=336776") || analyzed.contains("rows_in=336776"),
        "{analyzed}"
    );
    assert!(analyzed.contains("busy="), "{analyzed}");
}

#[test]
fn recursive_queries_and_lateral_and_nested_values() {
    let session = session(3);
    let fibonacci =
        "WITH RECURSIVE f(a, b) AS (SELECT 0, 1 UNION ALL SELECT b, a + b FROM f WHERE b < 50) SELECT a FROM f";
    assert_eq!(
        lines(&session, fibonacci),
        ["0", "1", "1", "2", "3", "5", "8", "13", "21", "34"]
    );
    let nested = "SELECT unnest([1, 2, 3]) AS i, [1, 2][2], named_struct('a', 7)['a']";
    assert_eq!(lines(&session, nested), ["1|2|7", "2|2|7", "3|2|7"]);
    done(&session, "CREATE TABLE t AS VALUES (1), (2)");
    done(
        &session,
        "CREATE TABLE u AS SELECT * FROM (VALUES (1, 10), (2, 20), (3, 30)) v(k, x)",
    );
    let lateral = "SELECT t.column1, l.x FROM t, LATERAL (SELECT u.x FROM u WHERE u.k = t.column1) l ORDER BY 1";
    assert_eq!(lines(&session, lateral), ["1|10", "2|20"]);
}

#[test]
fn not_in_knows_three_values() {
    let session = session(2);
    done(
        &session,
        "CREATE TABLE l AS SELECT * FROM (VALUES (1), (2), (NULL)) v(a)",
    );
    done(&session, "CREATE TABLE r AS SELECT * FROM (VALUES (2), (NULL)) v(a)");
    done(&session, "CREATE TABLE none AS SELECT * FROM r WHERE a > 5");
    assert!(lines(&session, "SELECT a FROM l WHERE a NOT IN (SELECT a FROM r)").is_empty());
    assert_eq!(
        lines(
            &session,
            "SELECT a FROM l WHERE a NOT IN (SELECT a FROM r WHERE a IS NOT NULL)"
        ),
        ["1"]
    );
    assert_eq!(
        lines(&session, "SELECT count(*) FROM l WHERE a NOT IN (SELECT a FROM none)"),
        ["3"]
    );
    assert_eq!(lines(&session, "SELECT a FROM l WHERE a IN (SELECT a FROM r)"), ["2"]);
}

#[test]
fn grouping_over_nothing() {
    let session = session(2);
    done(&session, "CREATE TABLE t (a INT, b INT)");
    assert_eq!(lines(&session, "SELECT count(*), sum(a) FROM t"), ["0|NULL"]);
    assert!(lines(&session, "SELECT b, count(*) FROM t GROUP BY b").is_empty());
    assert_eq!(lines(&session, "SELECT a, b FROM t ORDER BY a LIMIT 5").len(), 0);
}

#[test]
fn a_scalar_subquery_of_several_rows_is_an_error() {
    let session = session(2);
    let (cause, remedy) = failure(&session, "SELECT (SELECT x FROM (VALUES (1), (2)) v(x))");
    assert_eq!(cause, "a scalar subquery returned more than one row");
    assert!(remedy.contains("LIMIT 1"));
    assert_eq!(
        lines(&session, "SELECT (SELECT x FROM (VALUES (1), (2)) v(x) WHERE x > 5)"),
        ["NULL"]
    );
}

#[test]
fn what_is_not_supported_says_so() {
    let session = session(2);
    done(&session, "CREATE TABLE t AS SELECT 1 AS a");
    for (sql, part) in [
        ("BEGIN TRANSACTION", "begin transaction"),
        ("CREATE TEMPORARY TABLE x AS SELECT 1", "temporary tables not supported"),
        ("CREATE INDEX i ON t (a)", "not supported"),
    ] {
        let (cause, remedy) = failure(&session, sql);
        assert!(cause.to_lowercase().contains(part), "{sql}: {cause}");
        assert!(!remedy.is_empty(), "{sql}: {cause} has no remedy");
    }
}

#[test]
fn an_object_store_is_read_and_written_by_its_url() {
    let session = session(2);
    let store = Arc::new(InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let place = "in/a.csv".into();
    let put = store.put(&place, PutPayload::from_static(b"n,s\n1,x\n2,y\n"));
    runtime.block_on(put).unwrap();
    session.register_object_store(
        &"memory://bucket".parse().unwrap(),
        Arc::clone(&store) as Arc<dyn ObjectStore>,
    );
    done(
        &session,
        "CREATE EXTERNAL TABLE a STORED AS CSV LOCATION 'memory://bucket/in/' OPTIONS ('format.has_header' 'true')",
    );
    assert_eq!(lines(&session, "SELECT n, s FROM a ORDER BY n"), ["1|x", "2|y"]);
    assert_eq!(
        lines(
            &session,
            "COPY (SELECT n + 1 AS m FROM a) TO 'memory://bucket/out/b.parquet'"
        ),
        ["2"]
    );
    done(
        &session,
        "CREATE EXTERNAL TABLE b STORED AS PARQUET LOCATION 'memory://bucket/out/b.parquet'",
    );
    assert_eq!(lines(&session, "SELECT sum(m) FROM b"), ["5"]);
    let names = runtime
        .block_on(futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None)))
        .unwrap();
    assert_eq!(names.len(), 2, "staged objects stay behind: {names:?}");
}

#[test]
fn dropping_an_outcome_ends_its_query() {
    let session = session(3);
    done(
        &session,
        "CREATE TABLE g (i BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '1000000000')",
    );
    let Outcome::Rows(mut result) = session.execute("SELECT i FROM g").unwrap() else {
        panic!("no rows")
    };
    assert!(result.next().unwrap().unwrap().num_rows() > 0);
    drop(result);
    assert_eq!(session.memory().reserved_bytes(), 0);
}
