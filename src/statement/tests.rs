//! Flink's statements, well and badly formed.

use datafusion::sql::parser::Statement as DFStatement;

use super::*;

fn plain(sql: &str) -> String {
    match parse(sql).unwrap_or_else(|e| panic!("{sql}: {e}")) {
        Statement::Plain(statement) => statement.to_string(),
        other => panic!("{sql}: {other:?}"),
    }
}

fn table(sql: &str) -> (String, TableClauses) {
    match parse(sql).unwrap_or_else(|e| panic!("{sql}: {e}")) {
        Statement::CreateTable { statement, clauses } => (statement.to_string(), *clauses),
        other => panic!("{sql}: {other:?}"),
    }
}

fn failure(sql: &str) -> String {
    match parse(sql) {
        Err(error) => {
            assert!(error.remedy().is_some_and(|remedy| !remedy.is_empty()));
            error.to_string()
        }
        Ok(parsed) => panic!("{sql}: {parsed:?}"),
    }
}

#[test]
fn window_functions_become_calls_that_the_parser_takes() {
    let tumble = "SELECT * FROM TUMBLE((SELECT * FROM t), DESCRIPTOR(ts), INTERVAL '10' SECOND)";
    for sql in [
        "SELECT * FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
        "SELECT * FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))",
        "SELECT * FROM TUMBLE(TABLE (SELECT * FROM t), DESCRIPTOR(ts), INTERVAL '10' SECOND)",
        "SELECT * FROM TUMBLE((SELECT * FROM t), DESCRIPTOR(ts), INTERVAL '10' SECOND)",
    ] {
        assert_eq!(plain(sql), tumble, "{sql}");
    }
    let lower = plain(
        "select * from table ( hop ( table /* c */ a.\"B\" , descriptor(ts), interval '1' day, interval '2' day)) x",
    );
    assert!(lower.contains("(SELECT * FROM a.\"B\"), descriptor(ts)"), "{lower}");
    assert!(
        lower.ends_with(" x") && !lower.to_lowercase().contains("table"),
        "{lower}"
    );
}

#[test]
fn named_arguments_partitions_and_nesting() {
    assert_eq!(
        plain("SELECT * FROM TUMBLE(DATA => TABLE t, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '1' HOUR)"),
        "SELECT * FROM TUMBLE(DATA => (SELECT * FROM t), TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '1' HOUR)"
    );
    let session =
        "SELECT * FROM SESSION((SELECT * FROM t), PARTITION_BY => DESCRIPTOR(a, b), DESCRIPTOR(ts), INTERVAL '1' HOUR)";
    assert_eq!(
        plain("SELECT * FROM SESSION(TABLE t PARTITION BY (a, b), DESCRIPTOR(ts), INTERVAL '1' HOUR)"),
        session
    );
    assert_eq!(
        plain("SELECT * FROM SESSION((SELECT * FROM t) PARTITION BY a, DESCRIPTOR(ts), INTERVAL '1' HOUR)"),
        session.replace("a, b", "a")
    );
    let nested = plain(
        "SELECT * FROM TUMBLE(TABLE (SELECT * FROM TABLE(HOP(TABLE t, DESCRIPTOR(a), INTERVAL '1' DAY, INTERVAL '2' DAY))), DESCRIPTOR(b), INTERVAL '1' DAY)",
    );
    assert!(
        nested.contains("TUMBLE((SELECT * FROM HOP((SELECT * FROM t), DESCRIPTOR(a)"),
        "{nested}"
    );
}

#[test]
fn words_that_only_look_like_windows_are_left_alone() {
    for sql in [
        "SELECT hop, session, tumble FROM t AS hop",
        "SELECT \"TUMBLE\"(a) FROM session",
        "SELECT emit FROM t AS emit",
        "SELECT 'TUMBLE(TABLE t)'",
        "SELECT * FROM changes AS version",
    ] {
        assert_eq!(plain(sql), sql);
    }
}

#[test]
fn table_versions_only_where_they_are_written() {
    // The parser's own text has the alias before the version.
    assert_eq!(
        plain("SELECT * FROM l JOIN r FOR SYSTEM_TIME AS OF l.ts AS x ON l.k = x.k"),
        "SELECT * FROM l JOIN r AS x FOR SYSTEM_TIME AS OF l.ts ON l.k = x.k"
    );
    assert_eq!(
        plain("SELECT * FROM l version JOIN r at ON true"),
        "SELECT * FROM l version JOIN r at ON true"
    );
}

#[test]
fn columns_that_are_computed_and_watermarks() {
    let (rest, clauses) = table(
        "CREATE TABLE IF NOT EXISTS t (a INT NOT NULL COMMENT 'x', c AS a < 5 AND a > 2, b VARCHAR(3), \
         `Ts` TIMESTAMP(3), WATERMARK FOR `Ts` AS `Ts` - INTERVAL '5' SECOND, PRIMARY KEY (a, b) NOT ENFORCED) \
         COMMENT 'of it' PARTITIONED BY (b) WITH ('connector' = 'x')",
    );
    assert!(
        rest.starts_with("CREATE TABLE IF NOT EXISTS t (a INT NOT NULL, b VARCHAR(3), `Ts` TIMESTAMP(3))"),
        "{rest}"
    );
    assert!(
        rest.contains("WITH ('connector' = 'x')") && !rest.contains("COMMENT"),
        "{rest}"
    );
    let columns: Vec<String> = clauses
        .columns
        .iter()
        .map(|column| match column {
            ColumnClause::Physical(name) => name.to_string(),
            ColumnClause::Computed(name, expr) => format!("{name}={expr}"),
        })
        .collect();
    assert_eq!(columns, ["a", "c=a < 5 AND a > 2", "b", "`Ts`"]);
    let (column, expr) = clauses.watermark.unwrap();
    assert_eq!(
        (column.to_string(), expr.to_string()),
        ("`Ts`".into(), "`Ts` - INTERVAL '5' SECOND".into())
    );
    let key: Vec<String> = clauses.primary_key.iter().map(ToString::to_string).collect();
    assert_eq!(key, ["a", "b"]);
}

#[test]
fn keys_of_one_column_and_named_keys() {
    let key = |sql| {
        table(sql)
            .1
            .primary_key
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(key("CREATE TABLE t (a INT PRIMARY KEY NOT ENFORCED, b INT)"), ["a"]);
    assert_eq!(
        key("CREATE OR REPLACE TABLE t (a INT, CONSTRAINT c PRIMARY KEY (a) NOT ENFORCED)"),
        ["a"]
    );
    // One that is to be enforced is the parser's.
    assert!(matches!(
        parse("CREATE TABLE t (a INT, PRIMARY KEY (a))"),
        Ok(Statement::Plain(_))
    ));
    assert!(
        failure("CREATE TABLE t (a INT PRIMARY KEY NOT ENFORCED, PRIMARY KEY (a) NOT ENFORCED)")
            .contains("two primary keys")
    );
}

#[test]
fn metadata_columns() {
    let (rest, clauses) = table(
        "CREATE TABLE t (a INT, ts TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL, o BIGINT METADATA, k STRING NOT NULL METADATA VIRTUAL)",
    );
    assert!(rest.contains("o BIGINT, k STRING NOT NULL"), "{rest}");
    let metadata: Vec<_> = clauses
        .metadata
        .iter()
        .map(|column| (column.name.value.as_str(), column.key.as_deref(), column.is_virtual))
        .collect();
    let expected = [("ts", Some("timestamp"), true), ("o", None, false), ("k", None, true)];
    assert_eq!(metadata, expected);
    assert!(failure("CREATE TABLE t (a INT METADATA FROM key)").contains("names no key"));
    assert!(failure("CREATE TABLE t (a INT METADATA VIRTUAL NOW)").contains("'NOW' was not expected"));
}

#[test]
fn types_of_flink() {
    let (rest, clauses) = table(
        "CREATE TABLE t (a ROW<x INT, y ARRAY<ROW<z STRING NOT NULL>>>, b BYTES, c MAP<STRING, ROW(d DECIMAL(23, 3), e DOUBLE)>, f TIMESTAMP_LTZ(3), g INT)",
    );
    assert_eq!(clauses.columns.len(), 5);
    assert_eq!(
        rest,
        "CREATE TABLE t (a STRUCT<x INT, y ARRAY<STRUCT<z STRING>>>, b BYTEA, \
         c STRUCT<__map_key STRING, __map_value STRUCT<d DECIMAL(23,3), e DOUBLE>>, \
         f STRUCT<__local_time TIMESTAMP(3)>, g INT)"
    );
    let (rest, _) = table("CREATE TABLE t (f TIMESTAMP(3) WITH LOCAL TIME ZONE NOT NULL)");
    assert_eq!(rest, "CREATE TABLE t (f STRUCT<__local_time TIMESTAMP(3)> NOT NULL)");
    assert!(failure("CREATE TABLE t (a MULTISET<INT>)").contains("MULTISET"));
}

#[test]
fn plain_tables_stay_plain() {
    for sql in [
        "CREATE TABLE t (a INT, b STRING, c TIMESTAMP(3), d DECIMAL(23, 3), e ARRAY<INT>) WITH ('connector' = 'x')",
        "CREATE TABLE t AS SELECT 1 AS a",
        "CREATE VIEW v AS SELECT 1",
        "CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION 'x'",
    ] {
        assert!(matches!(parse(sql), Ok(Statement::Plain(_))), "{sql}");
    }
}

#[test]
fn watermarks_that_are_not_complete() {
    assert!(failure("CREATE TABLE t (ts TIMESTAMP(3), WATERMARK FOR ts)").contains("not complete"));
    assert!(failure("CREATE TABLE t (ts TIMESTAMP(3), WATERMARK FOR AS ts)").contains("not complete"));
    assert!(failure("CREATE TABLE t (ts TIMESTAMP(3), WATERMARK FOR r.ts AS ts)").contains("a field of a row"));
    assert!(failure("CREATE TABLE t (ts TIMESTAMP(3), WATERMARK FOR ts AS)").contains("syntax error"));
    assert!(
        failure("CREATE TABLE t (a TIMESTAMP(3), WATERMARK FOR a AS a, WATERMARK FOR a AS a)")
            .contains("two WATERMARK")
    );
    assert!(failure("CREATE TABLE t (a INT, c AS a +)").contains("syntax error"));
}

#[test]
fn statement_sets() {
    let Ok(Statement::Set(inserts)) = parse(
        "EXECUTE STATEMENT SET BEGIN\nINSERT INTO a SELECT CASE WHEN x THEN 1 END FROM t;;\nINSERT INTO b SELECT * FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY);\nEND;",
    ) else {
        panic!("no set");
    };
    assert_eq!(inserts.len(), 2);
    assert!(inserts.iter().all(|insert| matches!(insert, DFStatement::Statement(_))));
    assert!(inserts[1].to_string().contains("(SELECT * FROM t)"));
    assert!(failure("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1;").contains("has no END"));
    assert!(failure("EXECUTE STATEMENT SET BEGIN END").contains("is empty"));
    assert!(failure("EXECUTE STATEMENT SET BEGIN SELECT 1; END").contains("is no INSERT"));
    assert!(failure("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1; END; SELECT 2").contains("more than one"));
    assert_eq!(plain("EXECUTE p(1)"), "EXECUTE p(1)");
}

#[test]
fn what_is_refused() {
    for emit in ["CHANGES", "FINAL", "ON WINDOW CLOSE", "AFTER WATERMARK", "STREAM"] {
        assert_eq!(
            failure(&format!("SELECT * FROM t EMIT {emit}")),
            "EMIT is not supported"
        );
    }
    assert_eq!(
        plain("SELECT * FROM t JOIN u emit ON true"),
        "SELECT * FROM t JOIN u emit ON true"
    );
    assert_eq!(
        failure("SELECT CURRENT_WATERMARK(ts) FROM t"),
        "CURRENT_WATERMARK is not supported"
    );
}

#[test]
fn syntax_errors_keep_their_place() {
    assert_eq!(
        failure("SELECT *\nFROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY)\nWHERE )"),
        "syntax error at line 3, column 7: Expected: an expression, found: )"
    );
}

#[test]
fn the_types_that_were_meant() {
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    let millis = DataType::Timestamp(TimeUnit::Millisecond, None);
    let local = DataType::Struct(vec![Field::new("__local_time", millis, true)].into());
    let key = Field::new("__map_key", DataType::Utf8, true);
    let map = DataType::Struct(vec![key, Field::new("__map_value", local.clone(), true)].into());
    let list = DataType::List(Field::new("item", local, true).into());
    let schema = Schema::new(vec![Field::new("m", map, true), Field::new("l", list, false)]);
    let restored = restore(&schema, Some("Europe/Berlin"));
    let zoned = DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into()));
    let entries = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", zoned.clone(), true),
    ];
    let entries = Field::new("entries", DataType::Struct(entries.into()), false);
    let expected = Schema::new(vec![
        Field::new("m", DataType::Map(entries.into(), false), true),
        Field::new("l", DataType::List(Field::new("item", zoned, true).into()), false),
    ]);
    assert_eq!(restored, expected);
}
