//! A lookup table is read to its end before the stream that looks things up in it.

use super::changelog::{run, session, streaming};

/// More than the channels of a subtask hold.
const ROWS: usize = 1_200_000;

#[test]
fn a_table_is_looked_up_in_itself() {
    for parallelism in [1, 2] {
        let session = session(parallelism, &[]);
        streaming(&session);
        let create = format!(
            "CREATE TABLE t (k BIGINT, v BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '{ROWS}', \
             'fields.k.kind' = 'sequence', 'fields.k.start' = '1', 'fields.k.end' = '{ROWS}')"
        );
        run(&session, &create).unwrap();
        let query = "SELECT a.k FROM (SELECT k, v, PROCTIME() AS pt FROM t) a \
                     JOIN t FOR SYSTEM_TIME AS OF a.pt AS b ON a.k = b.k WHERE a.v = b.v";
        let found = run(&session, query).unwrap().unwrap();
        let rows: usize = found.batches.iter().map(|batch| batch.num_rows()).sum();
        assert_eq!(rows, ROWS, "parallelism {parallelism}");
    }
}
