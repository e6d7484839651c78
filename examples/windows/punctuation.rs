//! Punctuated windows: one ends with each departure that is late by more than fifteen minutes.

use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::{col, lit};
use thalweg::stream::WindowAssigner;

use super::flights::{departures, expected, lines};

/// Runs the program and checks its answer.
pub(super) fn run() -> thalweg::Result<()> {
    let results = departures()?
        .key_by(&["airport"])?
        .window(WindowAssigner::punctuation(col("delay").gt(lit(15))))
        .aggregate(vec![count(col("delay"))])?;
    let answer = expected(&[
        ("EWR", 1, 12, 12),
        ("EWR", 2, 16, 33),
        ("EWR", 3, 1, 8),
        ("JFK", 1, 31, 31),
        ("JFK", 3, 3, 11),
    ]);
    assert_eq!(lines(&results)?, answer);
    Ok(())
}
