//! Cumulating windows: the departures since the hour began, told every twenty minutes.

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines, minutes};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::cumulate(minutes(20), minutes(60)))
        .aggregate(vec![count(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 5, 0, 20),
        ("EWR", 6, 0, 40),
        ("EWR", 6, 0, 60),
        ("JFK", 3, 0, 20),
        ("JFK", 4, 0, 40),
        ("JFK", 4, 0, 60),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
