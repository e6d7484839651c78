//! Delta windows: a delay that differs by more than ten minutes from the first of the window begins a new one.

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::col;
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::delta(col("delay"), 10.0))
        .aggregate(vec![count(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 2, 1, 2),
        ("EWR", 2, 8, 12),
        ("EWR", 2, 16, 33),
        ("JFK", 4, 3, 31),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
