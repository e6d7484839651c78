//! Redis.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};

use crate::jobs::{changes, checkpoint, columns, run, sink, spec, streaming};
use crate::services::redis::Redis;

/// The fields of a hash, in the order of their names.
fn hash(redis: &Redis, key: &str) -> Vec<(String, String)> {
    let text = redis.cli(&["HGETALL", key]);
    let lines: Vec<&str> = text.lines().collect();
    let mut fields: Vec<(String, String)> = lines
        .chunks_exact(2)
        .map(|pair| (pair[0].to_string(), pair[1].to_string()))
        .collect();
    fields.sort();
    fields
}

fn field(name: &str, value: &str) -> (String, String) {
    (name.to_string(), value.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_replace_rows_and_a_replay_changes_nothing() {
    let Some(redis) = Redis::start() else { return };
    let url = redis.url();
    let spec = spec("redis", columns(), &["k"], &[("url", &url), ("sink.key-prefix", "t:")]);
    let sink1 = sink(&spec, "job").unwrap();
    assert!(sink1.is_exactly_once());
    let mut writer = sink1.writer(0, 1).unwrap();
    let rows = [
        (0, 1, Some("a")),
        (0, 2, Some("b")),
        (1, 1, Some("a")),
        (2, 1, None),
        (0, 3, Some("c")),
        (3, 3, Some("c")),
    ];
    assert!(checkpoint(writer.as_mut(), 1, &rows).is_empty());
    let expected = |redis: &Redis| {
        assert_eq!(
            hash(redis, "t:1"),
            [field("k", "1")],
            "a field that is NULL now is gone"
        );
        assert_eq!(hash(redis, "t:2"), [field("k", "2"), field("v", "b")]);
        assert_eq!(redis.cli(&["EXISTS", "t:3"]), "0");
    };
    expected(&redis);
    // The process dies after more rows; the next one reads them again.
    checkpoint(writer.as_mut(), 2, &[(3, 2, Some("b"))]);
    assert_eq!(redis.cli(&["EXISTS", "t:2"]), "0");
    drop((writer, sink1));
    let sink2 = sink(&spec, "job").unwrap();
    sink2.recover().unwrap();
    checkpoint(sink2.writer(0, 1).unwrap().as_mut(), 2, &rows);
    expected(&redis);
    assert_eq!(redis.cli(&["DBSIZE"]), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_may_be_texts_or_json() {
    let Some(redis) = Redis::start() else { return };
    let url = redis.url();
    let write = |value_type: &str, key: &[&str], batch: &RecordBatch| {
        let options = [
            ("url", url.as_str()),
            ("sink.value-type", value_type),
            ("sink.key-prefix", value_type),
        ];
        let sink = sink(&spec("redis", batch.schema(), key, &options), "job").unwrap();
        let mut writer = sink.writer(0, 1).unwrap();
        writer.write(batch).unwrap();
        writer.prepare(1).unwrap();
    };
    let a: ArrayRef = Arc::new(StringArray::from(vec!["x:y", "x"]));
    let b: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let c: ArrayRef = Arc::new(StringArray::from(vec![Some("é\n\"q\""), None]));
    let batch = RecordBatch::try_from_iter([("a", a), ("b", b), ("c", c)]).unwrap();
    write("json", &["a", "b"], &batch);
    assert_eq!(
        redis.cli(&["--raw", "GET", "jsonx%3Ay:1"]),
        r#"{"a":"x:y","b":1,"c":"é\n\"q\""}"#
    );
    assert_eq!(redis.cli(&["--raw", "GET", "jsonx:2"]), r#"{"a":"x","b":2,"c":null}"#);
    write("string", &["a", "b"], &batch);
    assert_eq!(redis.cli(&["--raw", "GET", "stringx%3Ay:1"]), "é\n\"q\"");
    assert_eq!(redis.cli(&["EXISTS", "stringx:2"]), "0", "NULL is no text");
    let k: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"\x01\xff"]));
    let v: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"\x00\xfe"]));
    write(
        "string",
        &["k"],
        &RecordBatch::try_from_iter([("k", k), ("v", v)]).unwrap(),
    );
    let value = redis.cli(&[
        "EVAL",
        "return redis.call('GET', 'string\\1\\255') == '\\0\\254' and 1 or 0",
        "0",
    ]);
    assert_eq!(value, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_rows_appear_together_and_once() {
    let Some(mut redis) = Redis::start() else { return };
    let url = redis.url();
    let options = [
        ("url", url.as_str()),
        ("sink.isolation", "read-committed"),
        ("sink.max-retries", "0"),
    ];
    let spec = spec("redis", columns(), &["k"], &options);
    let sink1 = sink(&spec, "job").unwrap();
    sink1.recover().unwrap();
    let mut writers = [sink1.writer(0, 2).unwrap(), sink1.writer(1, 2).unwrap()];
    let mut one = checkpoint(writers[0].as_mut(), 1, &[(0, 1, Some("a")), (0, 2, Some("b"))]);
    one.extend(checkpoint(writers[1].as_mut(), 1, &[(0, 3, Some("c"))]));
    let two = checkpoint(writers[0].as_mut(), 2, &[(3, 1, Some("a"))]);
    assert_eq!(redis.cli(&["DBSIZE"]), "0");
    // The server is away when it should be published: an error, and nothing is lost.
    redis.kill();
    let error = sink1.publish(&one).unwrap_err().to_string();
    assert!(error.contains("redis 127.0.0.1:"), "{error}");
    redis.restart();
    drop((writers, sink1));
    let sink2 = sink(&spec, "job").unwrap();
    sink2.publish(&one).unwrap();
    assert_eq!(redis.cli(&["DBSIZE"]), "4", "three rows and the marks");
    sink2.publish(&two).unwrap();
    assert_eq!(redis.cli(&["EXISTS", "1"]), "0");
    // Again, also what is older: nothing changes.
    sink2.publish(&one).unwrap();
    sink2.publish(&[one, two].concat()).unwrap();
    assert_eq!(
        (redis.cli(&["EXISTS", "1"]), redis.cli(&["DBSIZE"])),
        ("0".into(), "3".into())
    );
    // The next run counts anew.
    let three = checkpoint(sink2.writer(0, 1).unwrap().as_mut(), 1, &[(0, 4, Some("d"))]);
    sink2.publish(&three).unwrap();
    assert_eq!(hash(&redis, "4"), [field("k", "4"), field("v", "d")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_connects_again_when_the_server_comes_back() {
    let Some(mut redis) = Redis::start() else { return };
    let url = redis.url();
    let options = [("url", url.as_str()), ("sink.max-retries", "8")];
    let sink = sink(&spec("redis", columns(), &["k"], &options), "job").unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    checkpoint(writer.as_mut(), 1, &[(0, 1, Some("a"))]);
    redis.kill();
    let waiting = std::thread::spawn(move || {
        writer
            .write(&changes(&[(0, 2, Some("b"))]))
            .and_then(|()| writer.prepare(2))
    });
    redis.restart();
    waiting.join().unwrap().unwrap();
    assert_eq!(hash(&redis, "1"), [field("k", "1"), field("v", "a")]);
    assert_eq!(hash(&redis, "2"), [field("k", "2"), field("v", "b")]);
    redis.kill();
    let options = [("url", url.as_str()), ("sink.max-retries", "0")];
    let away = crate::jobs::sink(&spec("redis", columns(), &["k"], &options), "job").unwrap();
    assert!(away.writer(0, 1).is_err(), "told before a row is read");
}

#[test]
fn a_changing_result_ends_as_its_rows() {
    let Some(redis) = Redis::start() else { return };
    let session = streaming();
    let url = redis.url();
    run(
        &session,
        &format!(
            "CREATE TABLE counts (flag STRING, n BIGINT, PRIMARY KEY (flag) NOT ENFORCED) WITH ('connector' = 'redis', \
             'url' = '{url}', 'sink.key-prefix' = 'c/', 'sink.buffer-flush.max-rows' = '1')"
        ),
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
    let counts: i64 = (0..7)
        .map(|flag| redis.cli(&["HGET", &format!("c/{flag}"), "n"]).parse::<i64>().unwrap())
        .sum();
    assert_eq!((counts, redis.cli(&["DBSIZE"])), (5000, "7".into()));
    // Two writers of one key would overwrite one another in any order.
    run(
        &session,
        "CREATE TABLE many (x BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '5000', 'splits' = '3')",
    );
    let plan = session
        .explain("INSERT INTO counts SELECT CAST(x % 7 AS STRING), x FROM many")
        .unwrap();
    let between = plan.split("Sink").nth(1).and_then(|below| below.split("Scan").next());
    assert!(between.unwrap_or_default().contains("Exchange Hash(flag@0)"), "{plan}");
    // Rows that the key does not tell apart would hide one another.
    let error = session.execute("INSERT INTO counts SELECT 'x', COUNT(*) FROM ticks GROUP BY x % 7");
    let error = error.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("PRIMARY KEY of the sink 'counts'"), "{error}");
}
