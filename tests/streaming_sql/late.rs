//! Late rows: behind a watermark that has passed the end of their windows. A stream cannot wait for them: it drops and
//! counts them. Batch mode, where all rows are there, keeps them.

use super::changelog::{difference, run, session, set, streaming};

const TABLE: &str = "CREATE TABLE events (id INT, ts TIMESTAMP(3), v INT, WATERMARK FOR ts AS ts) \
     WITH ('connector' = 'filesystem', 'path' = '$DATA/late.csv', 'format' = 'csv', 'csv.header' = 'true')";
const PER_WINDOW: &str = "SELECT window_start, count(*), sum(v) \
     FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY window_start, window_end";

fn events(parallelism: usize) -> thalweg::Session {
    let settings = [
        ("pipeline.auto-watermark-interval", "0"),
        ("execution.batch-size", "1"),
        ("execution.buffer-timeout", "0"),
    ];
    let session = session(parallelism, &settings);
    let data = super::cases::folder("data");
    super::changelog::done(&session, &TABLE.replace("$DATA", &data.display().to_string()));
    session
}

fn rows(cells: &[&str]) -> super::changelog::Rows {
    let row = |cell: &&str| cell.split('|').map(str::to_string).collect();
    cells.iter().map(|cell| (row(cell), 1)).collect()
}

#[test]
fn streams_drop_and_count_late_rows_and_batch_keeps_them() {
    for parallelism in [1, 2] {
        let session = events(parallelism);
        streaming(&session);
        let streamed = run(&session, PER_WINDOW).unwrap().unwrap().folded().unwrap();
        // Of each window what came before the first row at or after its end: the rows at :03 and :14 are late.
        let on_time = rows(&[
            "2024-03-01T12:00:00|1|1",
            "2024-03-01T12:00:10|2|1010",
            "2024-03-01T12:00:20|1|10000",
        ]);
        assert_eq!(difference(&streamed, &on_time), None, "parallelism {parallelism}");
        let analyzed = run(&session, &format!("EXPLAIN ANALYZE {PER_WINDOW}"))
            .unwrap()
            .unwrap();
        let text = format!("{:?}", analyzed.batches);
        assert!(text.contains("late_rows=2"), "{text}");

        set(&session, "execution.runtime-mode", "batch");
        let all = run(&session, PER_WINDOW).unwrap().unwrap().folded().unwrap();
        let every = rows(&[
            "2024-03-01T12:00:00|2|101",
            "2024-03-01T12:00:10|3|101010",
            "2024-03-01T12:00:20|1|10000",
        ]);
        assert_eq!(difference(&all, &every), None);
    }
}

#[test]
fn nothing_is_late_that_the_watermark_waits_for() {
    let session = events(2);
    streaming(&session);
    super::changelog::done(
        &session,
        &TABLE
            .replace("events", "patient")
            .replace("AS ts)", "AS ts - INTERVAL '11' SECOND)")
            .replace("$DATA", &super::cases::folder("data").display().to_string()),
    );
    let query = PER_WINDOW.replace("events", "patient");
    let streamed = run(&session, &query).unwrap().unwrap().folded().unwrap();
    let total: i64 = streamed.keys().map(|row| row[1].parse::<i64>().unwrap()).sum();
    assert_eq!(total, 6, "{streamed:?}");
    let analyzed = run(&session, &format!("EXPLAIN ANALYZE {query}")).unwrap().unwrap();
    assert!(!format!("{:?}", analyzed.batches).contains("late_rows"));
}
