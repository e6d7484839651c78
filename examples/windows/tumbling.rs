//! Tumbling windows: the sum of the delays of each ten minutes.

use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines, minutes};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::tumbling(minutes(10)))
        .aggregate(vec![sum(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 1, 30, 40),
        ("EWR", 34, 10, 20),
        ("EWR", 40, 0, 10),
        ("JFK", 5, 30, 40),
        ("JFK", 10, 0, 10),
        ("JFK", 20, 10, 20),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
