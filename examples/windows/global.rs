//! A global window with a trigger and an evictor: every two departures, the sum of the last three delays.

use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::col;
use thalweg::stream::{WindowAssigner, WindowEvictor, WindowTrigger};

use super::flights::{departures, expected, lines};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::global())
        .trigger(WindowTrigger::Count(2))
        .evictor(WindowEvictor::Count(3))
        .aggregate(vec![sum(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 10, 1, 2),
        ("EWR", 35, 12, 33),
        ("EWR", 68, 2, 12),
        ("JFK", 10, 3, 7),
        ("JFK", 25, 7, 31),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
