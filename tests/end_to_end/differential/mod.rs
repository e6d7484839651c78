//! Random queries over random data: the same rows as DataFusion's own execution, at parallelism 1, 2 and 7.
//!
//! `THALWEG_DIFFERENTIAL_QUERIES` and `THALWEG_DIFFERENTIAL_SEED` run more, or others.

mod data;
mod queries;

use datafusion::execution::context::{SessionConfig as DataFusionConfig, SessionContext};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::answers::{Row, done, session, text};

const QUERIES_PER_SEED: usize = 60;
const DEFAULT_QUERIES: usize = 300;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Rows as a multiset; zeros have no sign, as which of two equal zeros a group shows is a matter of arrival.
fn multiset(mut rows: Vec<Row>) -> Vec<Row> {
    for cell in rows.iter_mut().flatten().flatten() {
        if cell == "-0.0" {
            *cell = "0.0".into();
        }
    }
    rows.sort();
    rows
}

#[test]
fn random_queries_give_what_datafusion_gives() {
    let total = number("THALWEG_DIFFERENTIAL_QUERIES", DEFAULT_QUERIES);
    let first_seed = number("THALWEG_DIFFERENTIAL_SEED", 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut wrong = Vec::new();
    let (mut compared, mut with_rows, mut both_failed) = (0, 0, 0);
    for round in 0..total.div_ceil(QUERIES_PER_SEED) {
        let seed = (first_seed + round) as u64;
        let mut random = StdRng::seed_from_u64(seed);
        let tables = data::tables(&mut random);
        let reference = SessionContext::new_with_config(DataFusionConfig::new().with_target_partitions(1));
        let sessions = [1, 2, 7].map(session);
        for (name, schema, partitions) in &tables {
            let table = || {
                std::sync::Arc::new(
                    datafusion::datasource::MemTable::try_new(schema.clone(), partitions.clone()).unwrap(),
                )
            };
            reference.register_table(*name, table()).unwrap();
            for session in &sessions {
                session.register_table(name, table()).unwrap();
            }
        }
        done(
            &sessions[2],
            "SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_BLOCKING'",
        );
        done(&sessions[1], "SET 'table.optimizer.join.broadcast-threshold' = '0'");
        for _ in 0..QUERIES_PER_SEED.min(total - round * QUERIES_PER_SEED) {
            let sql = queries::query(&mut random);
            let expected = runtime.block_on(async { reference.sql(&sql).await?.collect().await });
            let expected = expected.map(|batches| multiset(text(&batches)));
            compared += 1;
            with_rows += usize::from(expected.as_ref().is_ok_and(|rows| !rows.is_empty()));
            for (session, parallelism) in sessions.iter().zip([1, 2, 7]) {
                let actual = session.execute(&sql).and_then(|outcome| outcome.collect());
                match (actual.map(|batches| multiset(text(&batches))), &expected) {
                    (Ok(actual), Ok(expected)) if actual == *expected => {}
                    (Ok(actual), Ok(expected)) => {
                        let at = actual.iter().zip(expected).position(|(a, e)| a != e);
                        let at = at.unwrap_or(actual.len().min(expected.len()));
                        wrong.push(format!(
                            "seed {seed}, parallelism {parallelism}: {sql}\n  {} rows instead of {}; row {at}: {:?} instead of {:?}",
                            actual.len(),
                            expected.len(),
                            actual.get(at),
                            expected.get(at)
                        ));
                    }
                    (Err(_), Err(_)) => both_failed += 1,
                    (Err(error), Ok(_)) => wrong.push(format!(
                        "seed {seed}, parallelism {parallelism}: {sql}\n  fails: {error}"
                    )),
                    (Ok(_), Err(error)) => {
                        wrong.push(format!(
                            "seed {seed}, parallelism {parallelism}: {sql}\n  only DataFusion fails: {error}"
                        ));
                    }
                }
            }
        }
    }
    println!(
        "{compared} queries, {with_rows} with rows, {} failed on both sides",
        both_failed / 3
    );
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert!(
        with_rows * 2 > compared,
        "only {with_rows} of {compared} queries have rows: the generator is no test"
    );
    assert!(
        both_failed / 3 * 20 < compared,
        "{} of {compared} queries failed on both sides",
        both_failed / 3
    );
}
