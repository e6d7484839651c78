//! Count windows: the sum of every three delays. The last ones are of fewer.

use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::count(3))
        .aggregate(vec![sum(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 35, 12, 33),
        ("EWR", 40, 1, 8),
        ("JFK", 5, 31, 31),
        ("JFK", 30, 3, 11),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
