//! What must hold when spilling goes wrong.

mod cancelled;
mod concurrent;
mod damaged;
mod disk_full;
mod killed;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use thalweg::{QueryResult, Session};

use crate::cell::{Cell, register, session, start, text_of};
use crate::digest::{Digest, OrderCheck};
use crate::models::Pair;
use crate::operators::{AGGREGATIONS, JOINS, NESTED_LOOPS, Operator, SORTS, WINDOWS};
use crate::relation::{Shape, prepare};
use crate::spill_watch::{Watcher, spill_files};

const MB: usize = 1 << 20;
/// How long a query may take to spill for the first time.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_PERIOD: Duration = Duration::from_millis(1);

/// A query that spills: each kind of operator that can, and a blocking exchange.
fn spilling(seed: u64) -> Vec<Cell> {
    let cell = |operator: &'static Operator| Cell {
        operator,
        shape: Shape::Uniform,
        budget_bytes: 8 * MB,
        parallelism: 2,
        blocking: false,
        data_bytes: 40 * MB as u64,
        seed,
    };
    let mut cells: Vec<Cell> = [
        &SORTS[0],
        &SORTS[5],
        &JOINS[0],
        &JOINS[4],
        &NESTED_LOOPS[0],
        &AGGREGATIONS[1],
        &AGGREGATIONS[3],
        &WINDOWS[0],
    ]
    .map(cell)
    .into();
    // Here the exchange spills and the join need not: texts as offsets and as views.
    cells.extend([Shape::Sorted, Shape::Uniform].map(|shape| Cell {
        shape,
        budget_bytes: 32 * MB,
        blocking: true,
        data_bytes: 24 * MB as u64,
        ..cell(&JOINS[0])
    }));
    cells
}

/// A cell with a session and a spill directory of its own.
struct Setup {
    cell: Cell,
    pair: Pair,
    expected: Digest,
    session: Session,
    folder: PathBuf,
}

impl Setup {
    fn new(cell: Cell, folder: &Path) -> Self {
        prepare();
        let pair = cell.relations();
        let expected = (cell.operator.model)(&pair);
        let session = session(cell.budget_bytes, cell.parallelism, folder);
        register(&session, &pair);
        if cell.blocking {
            let set = "SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_BLOCKING'";
            session.execute(set).unwrap();
        }
        Self {
            cell,
            pair,
            expected,
            session,
            folder: folder.to_path_buf(),
        }
    }

    fn start(&self) -> Result<QueryResult, String> {
        start(&self.session, &(self.cell.operator.sql)(&self.pair))
    }

    /// Runs the query to its end.
    fn run(&self) -> Result<Digest, String> {
        let mut order = OrderCheck::new((self.cell.operator.order)(&self.pair));
        let mut rows = self.start()?;
        let guard = crate::cell::Guard::start(rows.canceller(), self.cell.to_string());
        let digest = crate::cell::digest(&mut rows, &mut order);
        drop(rows);
        guard.stop();
        digest
    }

    /// What is wrong after a query: bytes still reserved, files still there, a session that is of no use any more.
    fn after(&self) -> Result<(), String> {
        let (reserved, files) = (self.session.memory().reserved_bytes(), spill_files(&self.folder).len());
        if reserved > 0 || files > 0 {
            return Err(format!(
                "{reserved} bytes are still reserved, {files} spill files are left"
            ));
        }
        let rows = start(&self.session, "SELECT count(*) FROM t")?.collect::<Result<Vec<_>, _>>();
        let mut counted = Digest::default();
        for batch in rows.map_err(|error| text_of(&error))? {
            counted.add_batch(&batch)?;
        }
        if counted != crate::models::count(self.pair.t.rows as usize) {
            return Err(format!("afterwards, counting gives {counted:?}"));
        }
        Ok(())
    }
}

/// Tells when there is a spill file below a directory.
fn when_spilled(folder: &Path) -> (Watcher<bool>, Receiver<()>) {
    let (tell, told) = channel();
    let watcher = Watcher::start(folder, LOOK_PERIOD, false, move |is_told, files| {
        if !*is_told && files.iter().any(|(_, bytes)| *bytes > 0) {
            *is_told = true;
            let _ = tell.send(());
        }
    });
    (watcher, told)
}

#[track_caller]
fn assert_none(failed: &[String]) {
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
