//! Random queries over random data: streaming mode, folded, gives what batch mode gives, which another test compares
//! with DataFusion.
//!
//! `THALWEG_DIFFERENTIAL_QUERIES` and `THALWEG_DIFFERENTIAL_SEED` run more, or others.

#[path = "../end_to_end/differential/data.rs"]
mod data;
#[path = "../end_to_end/differential/queries.rs"]
mod queries;

use std::sync::Arc;

use datafusion::datasource::MemTable;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::changelog::{Rows, difference, rows_of, run, session, set};

const QUERIES_PER_SEED: usize = 60;
const DEFAULT_QUERIES: usize = 240;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Zeros have no sign: which of two equal zeros a group shows is a matter of arrival.
fn unsigned_zeros(rows: Rows) -> Rows {
    let mut same = Rows::new();
    for (row, count) in rows {
        let cell = |cell: String| if cell == "-0" { "0".to_string() } else { cell };
        *same.entry(row.into_iter().map(cell).collect()).or_insert(0) += count;
    }
    same
}

#[test]
fn random_queries_give_what_batch_mode_gives() {
    let total = number("THALWEG_DIFFERENTIAL_QUERIES", DEFAULT_QUERIES);
    let first_seed = number("THALWEG_DIFFERENTIAL_SEED", 1);
    let (mut same, mut with_rows, mut refused, mut failed) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    for round in 0..total.div_ceil(QUERIES_PER_SEED) {
        let seed = (first_seed + round) as u64;
        let mut random = StdRng::seed_from_u64(seed);
        let tables = data::tables(&mut random);
        let parallelism = [1, 2, 5][round % 3];
        let batch_size = ["3", "8192", "64"][round % 3];
        let session = session(parallelism, &[("execution.batch-size", batch_size)]);
        for (name, schema, partitions) in &tables {
            let table = MemTable::try_new(schema.clone(), partitions.clone()).unwrap();
            session.register_table(name, Arc::new(table)).unwrap();
        }
        for _ in 0..QUERIES_PER_SEED.min(total - round * QUERIES_PER_SEED) {
            // Batch mode counts 0.0 and -0.0 as two distinct values.
            let sql = queries::query(&mut random).replace("count(DISTINCT f)", "count(DISTINCT k)");
            set(&session, "execution.runtime-mode", "batch");
            let expected = run(&session, &sql).map(|rows| unsigned_zeros(rows_of(&rows.unwrap().batches)));
            set(&session, "execution.runtime-mode", "streaming");
            let actual = run(&session, &sql).map(|rows| rows.unwrap().folded().map(unsigned_zeros));
            let place = format!("seed {seed}, parallelism {parallelism}, batches of {batch_size}: {sql}");
            match (actual, expected) {
                (Ok(Ok(actual)), Ok(expected)) => match difference(&actual, &expected) {
                    None => {
                        same += 1;
                        with_rows += usize::from(!expected.is_empty());
                    }
                    // A stream has no row before the first, also of the empty grouping set.
                    Some(_)
                        if actual.is_empty()
                            && (sql.contains("ROLLUP") || sql.contains("CUBE") || sql.contains("SETS")) =>
                    {
                        refused += 1;
                    }
                    Some(difference) => wrong.push(format!("{place}\n  {difference}")),
                },
                (Ok(Err(why)), _) => wrong.push(format!("{place}\n  {why}")),
                (Err(error), Ok(_)) if is_refusal(&error.to_string()) => refused += 1,
                (Err(_), Err(_)) => failed += 1,
                (Err(error), Ok(_)) => wrong.push(format!("{place}\n  fails: {error}")),
                (Ok(Ok(_)), Err(error)) => wrong.push(format!("{place}\n  only batch mode fails: {error}")),
            }
        }
    }
    println!("{same} the same, {with_rows} of them with rows, {refused} refused, {failed} failed in both modes");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same * 2 > total && with_rows * 2 > same, "the generator is no test");
    assert!(failed * 20 < total, "{failed} of {total} failed in both modes");
}

/// Refused when it was planned: never answered wrongly.
fn is_refusal(message: &str) -> bool {
    message.contains("is not supported on streams") || message.contains("cannot take rows back")
}
