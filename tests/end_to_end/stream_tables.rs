//! What is declared of a table of a stream, and what plans over it look like in batch mode.

use thalweg::{Session, StreamTable};

use super::answers::{done, failure, rows, session};

const CLICKS: &str = "CREATE TABLE clicks (id BIGINT, c AS id + 1, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND, \
     PRIMARY KEY (id) NOT ENFORCED) WITH ('connector' = 'datagen', 'number-of-rows' = '1000', \
     'fields.id.kind' = 'sequence', 'fields.id.start' = '1', 'fields.id.end' = '1000', 'scan.watermark.idle-timeout' = '2 s')";

fn flights(session: &Session) {
    let sql = format!(
        "CREATE TABLE flights (at AS CAST(time_hour AS TIMESTAMP(3)), WATERMARK FOR at AS at) \
         WITH ('connector' = 'filesystem', 'path' = '{}/examples/data/flights.parquet', 'format' = 'parquet')",
        env!("CARGO_MANIFEST_DIR")
    );
    done(session, &sql);
}

#[test]
fn what_was_declared_can_be_asked() {
    let session = session(2);
    done(&session, CLICKS);
    assert_eq!(session.primary_key_of("clicks").unwrap(), ["id"]);
    let table = session.stream_table("clicks").unwrap().unwrap();
    let definition = StreamTable::of(table.as_ref()).unwrap().definition();
    assert_eq!(definition.rowtime.as_deref(), Some("ts"));
    assert_eq!(definition.computed, ["c"]);
    assert_eq!(definition.idle_timeout_ms, Some(2000));
    assert_eq!(definition.options.get("connector").map(String::as_str), Some("datagen"));
    assert!(!definition.options.contains_key("scan.watermark.idle-timeout"));
    let shown = rows(&session, "SHOW CREATE TABLE clicks").unwrap();
    assert_eq!(shown[0].last().unwrap().as_deref(), Some(CLICKS));
    done(&session, "CREATE TABLE plain (a INT)");
    assert!(session.stream_table("plain").unwrap().is_none());
    assert!(session.primary_key_of("plain").unwrap().is_empty());
    assert!(session.primary_key_of("nothing").is_err());
}

#[test]
fn a_connector_reads_its_columns_and_the_rest_is_computed() {
    let session = session(3);
    done(&session, CLICKS);
    let counted = rows(&session, "SELECT count(*), sum(c - id), max(c) FROM clicks").unwrap();
    assert_eq!(
        counted,
        [[Some("1000".into()), Some("1000".into()), Some("1001".into())]]
    );
}

#[test]
fn filters_reach_the_file_below_a_watermark_and_a_window() {
    let session = session(2);
    flights(&session);
    let sql = "SELECT window_start, count(*) FROM TUMBLE(TABLE flights, DESCRIPTOR(at), INTERVAL '1' DAY) \
               WHERE carrier = 'UA' AND distance > 1000 GROUP BY window_start";
    let plan = session.explain(sql).unwrap();
    let scan = plan.lines().find(|line| line.contains("Scan")).unwrap();
    assert!(!scan.contains("dep_delay"), "{plan}");
    assert!(plan.contains("WindowAssign TUMBLE(size=86400000 ms) of at"), "{plan}");
    let place = |part: &str| {
        plan.find(part)
            .unwrap_or_else(|| panic!("{part} is missing in\n{plan}"))
    };
    // The root is at the top.
    assert!(place("WindowAssign") < place("carrier"), "{plan}");
    let windowed = rows(&session, &format!("SELECT sum(n), count(*) FROM ({sql}) q(w, n)")).unwrap();
    let plain = rows(
        &session,
        "SELECT count(*), count(DISTINCT date_trunc('day', time_hour)) FROM flights WHERE carrier = 'UA' AND distance > 1000",
    );
    assert_eq!(windowed, plain.unwrap());
}

#[test]
fn sessions_meet_by_key_and_windows_keep_their_place() {
    let session = session(2);
    flights(&session);
    let plan = session
        .explain("SELECT count(*) FROM SESSION(TABLE flights PARTITION BY tailnum, DESCRIPTOR(at), INTERVAL '3' HOUR)")
        .unwrap();
    assert!(plan.contains("Exchange Hash(tailnum"), "{plan}");
    assert!(
        plan.contains("SessionAssign gap=10800000 ms of at by=[tailnum"),
        "{plan}"
    );
}

#[test]
fn windows_and_the_clock_survive_the_way_through_bytes() {
    let session = session(2);
    done(&session, "SET 'thalweg.serialize-job-graphs' = 'true'");
    flights(&session);
    let calls = [
        "HOP(TABLE flights, DESCRIPTOR(at), INTERVAL '1' DAY, INTERVAL '2' DAY)",
        "CUMULATE(TABLE flights, DESCRIPTOR(at), INTERVAL '12' HOUR, INTERVAL '1' DAY)",
        "SESSION(TABLE flights PARTITION BY carrier, DESCRIPTOR(at), INTERVAL '12' HOUR)",
    ];
    let total = |sql: &str| {
        rows(&session, sql).unwrap()[0][0]
            .clone()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let flights = total("SELECT count(*) FROM flights");
    let windowed = calls.map(|call| {
        total(&format!(
            "SELECT count(*) FROM {call} WHERE window_start <= at AND at <= window_time AND PROCTIME() > at"
        ))
    });
    let mornings = total("SELECT count(*) FROM flights WHERE extract(hour FROM at) < 12");
    // Two hops, and one or two of two steps.
    assert_eq!(windowed, [2 * flights, flights + mornings, flights]);
}

#[test]
fn sets_cannot_be_explained_yet() {
    let session = session(1);
    let set = "EXECUTE STATEMENT SET BEGIN INSERT INTO a VALUES (1); END";
    assert_eq!(
        session.explain(set).unwrap_err().to_string(),
        "only one query or INSERT can be explained"
    );
    let (cause, remedy) = failure(
        &session,
        "SELECT * FROM TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY)",
    );
    assert_eq!((cause.as_str(), remedy.is_empty()), ("there is no table 't'", false));
}
