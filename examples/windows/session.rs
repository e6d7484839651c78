//! Sessions: departures less than six minutes apart belong together.

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines, minutes};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::session(minutes(6)))
        .aggregate(vec![count(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 1, 33, 39),
        ("EWR", 2, 1, 8),
        ("EWR", 3, 8, 22),
        ("JFK", 1, 31, 37),
        ("JFK", 3, 3, 17),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
