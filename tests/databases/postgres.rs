//! PostgreSQL.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
    Time64MicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray, UInt64Array,
};
use thalweg_engine::plan::SinkSpec;

use crate::jobs::{changes, checkpoint, columns, run, sink, spec, streaming};
use crate::services::postgres::Postgres;

const READ_COMMITTED: (&str, &str) = ("sink.isolation", "read-committed");

fn table(postgres: &Postgres, key: &[&str], more: &[(&str, &str)]) -> SinkSpec {
    let url = postgres.url();
    let mut options = vec![("url", url.as_str()), ("table-name", "public.t")];
    options.extend(more);
    spec("postgres", columns(), key, &options)
}

fn rows(postgres: &Postgres) -> Vec<String> {
    let text = postgres.sql("SELECT k, v FROM t ORDER BY k, v");
    text.lines().map(str::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_replace_rows_and_a_replay_changes_nothing() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql("CREATE TABLE t (k BIGINT PRIMARY KEY, v VARCHAR(10), other INT DEFAULT 7)");
    let spec = table(&postgres, &["k"], &[]);
    let sink1 = sink(&spec, "job").unwrap();
    assert!(sink1.is_exactly_once());
    sink1.recover().unwrap();
    let mut writer = sink1.writer(0, 1).unwrap();
    let changes = [
        (0, 1, Some("a")),
        (0, 2, Some("b")),
        (1, 1, Some("a")),
        (2, 1, None),
        (0, 3, Some("c")),
        (3, 3, None),
    ];
    assert!(checkpoint(writer.as_mut(), 1, &changes).is_empty());
    assert_eq!(rows(&postgres), ["1|NULL", "2|b"]);
    checkpoint(writer.as_mut(), 2, &[(3, 2, Some("b")), (0, 3, Some("d"))]);
    assert_eq!(rows(&postgres), ["1|NULL", "3|d"]);
    drop((writer, sink1));
    let sink2 = sink(&spec, "job").unwrap();
    checkpoint(sink2.writer(0, 1).unwrap().as_mut(), 1, &changes);
    assert_eq!(rows(&postgres), ["1|NULL", "2|b"]);
    assert_eq!(postgres.sql("SELECT DISTINCT other FROM t"), "7");
    assert_eq!(
        postgres.sql("SELECT to_regclass('thalweg_commits')"),
        "NULL",
        "nothing else was made"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_rows_appear_together_and_once() {
    let Some(mut postgres) = Postgres::start() else { return };
    postgres.sql("CREATE TABLE t (k BIGINT, v TEXT); CREATE UNIQUE INDEX ON t (k)");
    for key in [&["k"][..], &[]] {
        postgres.sql("TRUNCATE t");
        let spec = table(&postgres, key, &[READ_COMMITTED, ("sink.max-retries", "0")]);
        let sink1 = sink(&spec, "job").unwrap();
        assert!(sink1.is_exactly_once());
        sink1.recover().unwrap();
        let mut writers = [sink1.writer(0, 2).unwrap(), sink1.writer(1, 2).unwrap()];
        let mut one = checkpoint(writers[0].as_mut(), 1, &[(0, 1, Some("a")), (0, 2, Some("b"))]);
        one.extend(checkpoint(writers[1].as_mut(), 1, &[(0, 3, Some("c"))]));
        let two = checkpoint(writers[1].as_mut(), 2, &[(0, 4, Some("d"))]);
        assert!(checkpoint(writers[0].as_mut(), 2, &[]).is_empty());
        assert!(rows(&postgres).is_empty());
        postgres.kill();
        let error = sink1.publish(&one).unwrap_err().to_string();
        assert!(error.contains("postgres 127.0.0.1:"), "{error}");
        postgres.restart();
        drop((writers, sink1));
        // Another process publishes, several times.
        let sink2 = sink(&spec, "job").unwrap();
        sink2.publish(&one).unwrap();
        assert_eq!(rows(&postgres), ["1|a", "2|b", "3|c"]);
        sink2.recover().unwrap();
        sink2.publish(&one).unwrap();
        sink2.publish(&[two.clone(), one.clone()].concat()).unwrap();
        sink2.publish(&two).unwrap();
        assert_eq!(rows(&postgres), ["1|a", "2|b", "3|c", "4|d"]);
        let next = checkpoint(sink2.writer(0, 1).unwrap().as_mut(), 1, &[(0, 5, Some("e"))]);
        sink2.publish(&next).unwrap();
        assert_eq!(rows(&postgres).len(), 5);
    }
    // One that cannot be written: the whole checkpoint is not, and its mark is not recorded.
    let spec = table(&postgres, &[], &[READ_COMMITTED]);
    let sink = sink(&spec, "job").unwrap();
    let mut writers = [sink.writer(0, 2).unwrap(), sink.writer(1, 2).unwrap()];
    let mut both = checkpoint(writers[0].as_mut(), 1, &[(0, 8, Some("x"))]);
    both.extend(checkpoint(writers[1].as_mut(), 1, &[(0, 1, Some("twice"))]));
    let error = sink.publish(&both).unwrap_err().to_string();
    assert!(error.contains("duplicate key") && error.contains("(k)=(1)"), "{error}");
    assert_eq!(rows(&postgres).len(), 5);
    postgres.sql("DELETE FROM t WHERE k = 1");
    sink.publish(&both).unwrap();
    assert_eq!(rows(&postgres), ["1|twice", "2|b", "3|c", "4|d", "5|e", "8|x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_connects_again_when_the_server_comes_back() {
    let Some(mut postgres) = Postgres::start() else { return };
    postgres.sql("CREATE TABLE t (k BIGINT PRIMARY KEY, v TEXT)");
    let sink1 = sink(&table(&postgres, &["k"], &[("sink.max-retries", "8")]), "job").unwrap();
    let mut writer = sink1.writer(0, 1).unwrap();
    checkpoint(writer.as_mut(), 1, &[(0, 1, Some("a"))]);
    postgres.kill();
    let waiting = std::thread::spawn(move || {
        writer
            .write(&changes(&[(0, 2, Some("b"))]))
            .and_then(|()| writer.prepare(2))
    });
    postgres.restart();
    waiting.join().unwrap().unwrap();
    assert_eq!(rows(&postgres), ["1|a", "2|b"]);
    postgres.kill();
    let away = sink(&table(&postgres, &["k"], &[("sink.max-retries", "0")]), "job").unwrap();
    assert!(away.writer(0, 1).is_err(), "told before a row is read");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_table_is_told_before_a_row_is_read() {
    let Some(postgres) = Postgres::start() else { return };
    let error = |spec: &SinkSpec| {
        sink(spec, "job")
            .unwrap()
            .writer(0, 1)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    let spec = table(&postgres, &["k"], &[]);
    assert!(
        error(&spec).contains(r#"there is no table "public"."t""#),
        "{}",
        error(&spec)
    );
    postgres.sql("CREATE TABLE t (k BIGINT, w TEXT)");
    assert!(
        error(&spec).contains("no column 'v'; its columns are: k, w"),
        "{}",
        error(&spec)
    );
    // Without a constraint there is no conflict to find.
    postgres.sql("ALTER TABLE t RENAME w TO v");
    let sink = sink(&spec, "job").unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&changes(&[(0, 1, Some("a"))])).unwrap();
    let message = writer.prepare(1).unwrap_err().to_string();
    assert!(message.contains("PRIMARY KEY or UNIQUE"), "{message}");
}

/// Two rows of every type: one of values, one of NULL.
fn every_type() -> RecordBatch {
    let day = 86_400_000;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int32Array::from(vec![1, 2]))),
        ("a_bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("a_byte", Arc::new(Int8Array::from(vec![Some(-8), None]))),
        ("a_short", Arc::new(Int16Array::from(vec![Some(i16::MIN), None]))),
        ("a_long", Arc::new(Int64Array::from(vec![Some(i64::MAX), None]))),
        ("a_ulong", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
        ("a_real", Arc::new(Float32Array::from(vec![Some(1.5), None]))),
        ("a_double", Arc::new(Float64Array::from(vec![Some(f64::NAN), None]))),
        (
            "a_decimal",
            Arc::new(
                Decimal128Array::from(vec![Some(-1234567), None])
                    .with_precision_and_scale(20, 3)
                    .unwrap(),
            ),
        ),
        ("a_text", Arc::new(StringViewArray::from(vec![Some("é'\"\\\n"), None]))),
        ("a_char", Arc::new(StringArray::from(vec![Some("ab"), None]))),
        (
            "a_json",
            Arc::new(LargeStringArray::from(vec![Some(r#"{"b": [1, null]}"#), None])),
        ),
        (
            "a_uuid",
            Arc::new(StringArray::from(vec![
                Some("00112233-4455-6677-8899-aabbccddeeff"),
                None,
            ])),
        ),
        ("a_mood", Arc::new(StringArray::from(vec![Some("fine"), None]))),
        (
            "a_bytes",
            Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\x00\xff"), None])),
        ),
        ("a_date", Arc::new(Date32Array::from(vec![Some(-1), None]))),
        (
            "a_time",
            Arc::new(Time64MicrosecondArray::from(vec![Some(3_661_000_001), None])),
        ),
        (
            "a_stamp",
            Arc::new(TimestampNanosecondArray::from(vec![Some(1_000_000_001_500), None])),
        ),
        (
            "a_zoned",
            Arc::new(TimestampMillisecondArray::from(vec![Some(-day), None]).with_timezone("Europe/Berlin")),
        ),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql(
        "CREATE TYPE mood AS ENUM ('fine', 'bad'); \
         CREATE TABLE t (id INT, a_bool BOOL, a_byte SMALLINT, a_short SMALLINT, a_long BIGINT, a_ulong NUMERIC, a_real REAL, \
         a_double DOUBLE PRECISION, a_decimal NUMERIC(20, 3), a_text TEXT, a_char CHAR(4), a_json JSONB, a_uuid UUID, \
         a_mood mood, a_bytes BYTEA, a_date DATE, a_time TIME, a_stamp TIMESTAMP, a_zoned TIMESTAMPTZ, PRIMARY KEY (id))",
    );
    let batch = every_type();
    let url = postgres.url();
    for isolation in ["read-uncommitted", "read-committed"] {
        postgres.sql("TRUNCATE t");
        let options = [
            ("url", url.as_str()),
            ("table-name", "t"),
            ("sink.isolation", isolation),
        ];
        let sink = sink(&spec("postgres", batch.schema(), &["id"], &options), "job").unwrap();
        let mut writer = sink.writer(0, 1).unwrap();
        writer.write(&batch).unwrap();
        let prepared = writer.prepare(1).unwrap();
        sink.publish(&prepared).unwrap();
        let got = postgres.sql("SELECT * FROM t WHERE id = 1");
        let expected = "1|t|-8|-32768|9223372036854775807|18446744073709551615|1.5|NaN|-1234.567|é'\"\\\n|ab  |{\"b\": [1, null]}|\
             00112233-4455-6677-8899-aabbccddeeff|fine|\\x00ff|1969-12-31|01:01:01.000001|1970-01-01 00:16:40.000001|\
             1969-12-31 00:00:00+00";
        assert_eq!(got, expected);
        let nulls = postgres.sql(
            "SELECT num_nulls(a_bool, a_byte, a_short, a_long, a_ulong, a_real, a_double, a_decimal, a_text, \
             a_char, a_json, a_uuid, a_mood, a_bytes, a_date, a_time, a_stamp, a_zoned) FROM t WHERE id = 2",
        );
        assert_eq!(nulls, "18");
    }
    // A text that is no JSON is an error, not NULL.
    let k: ArrayRef = Arc::new(Int32Array::from(vec![3]));
    let json: ArrayRef = Arc::new(StringArray::from(vec!["{"]));
    let bad = RecordBatch::try_from_iter([("id", k), ("a_json", json)]).unwrap();
    let options = [("url", url.as_str()), ("table-name", "t")];
    let sink = sink(&spec("postgres", bad.schema(), &["id"], &options), "job").unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&bad).unwrap();
    let error = writer.prepare(1).unwrap_err().to_string();
    assert!(error.contains("invalid input syntax for type json"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_several_columns_and_types_are_found() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql("CREATE TABLE t (k INT, v UUID, PRIMARY KEY (k, v))");
    let sink = sink(&table(&postgres, &["k", "v"], &[]), "job").unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    let (a, b) = (
        "00000000-0000-0000-0000-00000000000a",
        "00000000-0000-0000-0000-00000000000b",
    );
    checkpoint(writer.as_mut(), 1, &[(0, 1, Some(a)), (0, 1, Some(b)), (0, 2, Some(a))]);
    checkpoint(writer.as_mut(), 2, &[(3, 1, Some(b)), (0, 2, Some(a))]);
    assert_eq!(rows(&postgres), [format!("1|{a}"), format!("2|{a}")]);
    let error = writer.write(&changes(&[(0, 1, None)])).unwrap_err().to_string();
    assert!(error.contains("'v'") && error.contains("NULL"), "{error}");
}

#[test]
fn sql_writes_batches_and_changing_results() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.sql("CREATE TABLE counts (flag TEXT PRIMARY KEY, n BIGINT); CREATE TABLE log (x BIGINT)");
    let session = streaming();
    let url = postgres.url();
    run(
        &session,
        &format!(
            "CREATE TABLE counts (flag STRING, n BIGINT, PRIMARY KEY (flag) NOT ENFORCED) WITH ('connector' = 'postgres', \
             'url' = '{url}', 'table-name' = 'counts', 'sink.buffer-flush.max-rows' = '10')"
        ),
    );
    run(
        &session,
        &format!("CREATE TABLE log (x BIGINT) WITH ('connector' = 'postgres', 'url' = '{url}', 'table-name' = 'log')"),
    );
    run(
        &session,
        "CREATE TABLE ticks (x BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '5000', \
         'fields.x.kind' = 'sequence', 'fields.x.start' = '1', 'fields.x.end' = '5000')",
    );
    run(
        &session,
        "INSERT INTO counts SELECT CAST(x % 7 AS STRING), COUNT(*) FROM ticks GROUP BY x % 7",
    );
    assert_eq!(postgres.sql("SELECT count(*), sum(n) FROM counts"), "7|5000");
    run(&session, "INSERT INTO log SELECT x FROM ticks");
    assert_eq!(postgres.sql("SELECT count(*), sum(x) FROM log"), "5000|12502500");
    let error = session
        .execute("INSERT INTO log SELECT COUNT(*) FROM ticks")
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    assert!(
        error.contains("takes insertions only") && error.contains("PRIMARY KEY"),
        "{error}"
    );
    // Bounded rows that shall be seen together are written at the end.
    run(&session, "SET 'execution.runtime-mode' = 'batch'");
    run(
        &session,
        &format!(
            "CREATE TABLE together (x BIGINT) WITH ('connector' = 'postgres', 'url' = '{url}', 'table-name' = 'log', \
             'sink.isolation' = 'read-committed')"
        ),
    );
    run(
        &session,
        "INSERT INTO together SELECT x FROM (VALUES (1), (2)) AS t (x)",
    );
    assert_eq!(postgres.sql("SELECT count(*) FROM log"), "5002");
}
