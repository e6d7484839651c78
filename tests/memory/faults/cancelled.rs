//! A query that ends while its spill files are there, because it is cancelled or its result is dropped.

use std::time::Duration;

use super::{PATIENCE, Setup, assert_none, spilling, when_spilled};
use crate::cell::Cell;

/// How long the end may take: an operator looks whether to end at each batch.
const PROMPTLY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum End {
    Cancel,
    Drop,
}

#[test]
fn a_query_that_ends_in_mid_spill_leaves_nothing() {
    let _alone = crate::alone();
    let mut failed = Vec::new();
    // DISTINCT hands on groups as they appear: with nobody reading, it may wait for its reader before it has to spill.
    let waits_to_spill = |cell: &Cell| !cell.to_string().starts_with("distinct");
    for cell in spilling(1).into_iter().filter(waits_to_spill) {
        let ends = [End::Cancel, End::Drop];
        let error = |end: &End| {
            end_in_mid_spill(cell, *end)
                .err()
                .map(|error| format!("{end:?}, {cell}: {error}"))
        };
        failed.extend(ends.iter().find_map(error));
    }
    assert_none(&failed);
}

fn end_in_mid_spill(cell: Cell, end: End) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(cell, folder.path());
    let (watcher, spilled) = when_spilled(folder.path());
    let mut rows = setup.start()?;
    // The result is larger than what waits for its reader: the query cannot be over when there is a file.
    let is_spilling = spilled.recv_timeout(PATIENCE).is_ok();
    watcher.stop();
    if !is_spilling {
        let error = rows.find_map(Result::err);
        return Err(format!("nothing was spilled in {PATIENCE:?}: {error:?}"));
    }
    let asked = crate::now();
    if let End::Cancel = end {
        rows.canceller().cancel();
        match rows.find_map(Result::err) {
            Some(error) if error.is_cancelled() => {}
            other => return Err(format!("it ended with {other:?}")),
        }
    }
    drop(rows);
    let took = asked.elapsed();
    setup.after()?;
    if took > PROMPTLY {
        return Err(format!("it took {took:?}"));
    }
    let again = setup.run()?;
    if again != setup.expected {
        return Err(format!("run again, it gives {again:?}, not {:?}", setup.expected));
    }
    setup.after()
}
