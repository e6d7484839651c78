//! A landmark window: the departures since minute five, told every ten minutes in which there were any.

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{MINUTE_MS, departures, expected, lines, minutes};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::landmark(5 * MINUTE_MS, minutes(10)))
        .aggregate(vec![count(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 2, 5, 15),
        ("EWR", 3, 5, 25),
        ("EWR", 4, 5, 35),
        ("JFK", 2, 5, 15),
        ("JFK", 3, 5, 35),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
