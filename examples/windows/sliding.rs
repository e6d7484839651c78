//! Sliding windows: every ten minutes, the departures of the last twenty.

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines, minutes};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::sliding(minutes(20), minutes(10)))
        .aggregate(vec![count(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 1, 20, 40),
        ("EWR", 1, 30, 50),
        ("EWR", 2, 10, 30),
        ("EWR", 3, -10, 10),
        ("EWR", 5, 0, 20),
        ("JFK", 1, 10, 30),
        ("JFK", 1, 20, 40),
        ("JFK", 1, 30, 50),
        ("JFK", 2, -10, 10),
        ("JFK", 3, 0, 20),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
