//! One cell: runs its query and checks everything that must hold.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use thalweg::{Canceller, Outcome, QueryResult, Session, SessionConfig};
use thalweg_memory::MemoryManager;

use crate::allocator::{Excess, Watch, live_bytes};
use crate::digest::{Digest, OrderCheck};
use crate::models::Pair;
use crate::operators::Operator;
use crate::provider::Generated;
use crate::relation::{Relation, Shape};
use crate::spill_watch::{Seen, Watcher, left, spill_files};

/// What may be allocated beyond what is reserved: plans, sources, and what is on its way from one to the other.
pub(crate) const HEADROOM_BYTES: i64 = 64 << 20;
/// What may be reserved beyond the budget: the little without which nothing can go on, in each of the operators.
pub(crate) const SLACK_BYTES: usize = 24 << 20;
/// What may be allocated after a cell that was not before it (caches of the libraries).
const LEAK_BYTES: i64 = 8 << 20;
/// When a query is cancelled because it seems to hang, and when the process is aborted because that did not help.
const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(30);
const LOOK_PERIOD: Duration = Duration::from_millis(3);
const ROOMY_BYTES: usize = 16 << 30;

/// A point of the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) operator: &'static Operator,
    pub(crate) shape: Shape,
    pub(crate) budget_bytes: usize,
    pub(crate) parallelism: usize,
    pub(crate) blocking: bool,
    pub(crate) data_bytes: u64,
    pub(crate) seed: u64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = self.budget_bytes >> 20;
        write!(
            f,
            "{}, {:?}, {budget} MB, parallelism {}",
            self.operator.name, self.shape, self.parallelism
        )?;
        if self.blocking {
            write!(f, ", blocking")?;
        }
        write!(f, ", {} MB of data, seed {}", self.data_bytes >> 20, self.seed)
    }
}

/// What a cell did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) excess: Excess,
    /// Reserved beyond the budget.
    pub(crate) over_budget_bytes: usize,
    pub(crate) spilled: Seen,
    pub(crate) elapsed: Duration,
}

/// Whether `THALWEG_MATRIX` has this value.
pub(crate) fn mode_is(mode: &str) -> bool {
    std::env::var("THALWEG_MATRIX").is_ok_and(|value| value == mode)
}

/// A session with a budget.
pub(crate) fn session(budget_bytes: usize, parallelism: usize, spill_directory: &Path) -> Session {
    Session::new(SessionConfig {
        parallelism,
        memory_bytes: budget_bytes,
        spill_directory: spill_directory.to_path_buf(),
        ..SessionConfig::default()
    })
    .unwrap()
}

/// Makes the relations the tables `t` and `u`.
pub(crate) fn register(session: &Session, pair: &Pair) {
    let table = |relation: &Relation| Arc::new(Generated(Arc::new(relation.clone())));
    session.register_table("t", table(&pair.t)).unwrap();
    session.register_table("u", table(&pair.u)).unwrap();
}

/// The error as a user sees it.
pub(crate) fn text_of(error: &thalweg::Error) -> String {
    let remedy = error.remedy().map(|remedy| format!("; help: {remedy}"));
    format!("{error}{}", remedy.unwrap_or_default())
}

/// Starts a query.
pub(crate) fn start(session: &Session, sql: &str) -> Result<QueryResult, String> {
    match session.execute(sql).map_err(|error| text_of(&error))? {
        Outcome::Rows(rows) => Ok(rows),
        Outcome::Done(text) => Err(format!("no rows but '{text}'")),
    }
}

/// Reads a result to its end without keeping it.
pub(crate) fn digest(rows: &mut QueryResult, order: &mut OrderCheck) -> Result<Digest, String> {
    let mut digest = Digest::default();
    for batch in rows {
        let batch = batch.map_err(|error| text_of(&error))?;
        digest.add_batch(&batch)?;
        order.add_batch(&batch)?;
    }
    Ok(digest)
}

impl Cell {
    /// Runs the cell.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub(crate) fn run(&self) -> (Report, Result<(), String>) {
        let mut report = Report::default();
        let started = crate::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.check(&mut report)));
        report.elapsed = started.elapsed();
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            Err(format!("panicked: {}", text.unwrap_or("?")))
        });
        (report, result)
    }

    fn check(&self, report: &mut Report) -> Result<(), String> {
        let pair = self.relations();
        let expected = (self.operator.model)(&pair);
        let folder = tempfile::tempdir().unwrap();
        let is_roomy = mode_is("roomy");
        let budget = if is_roomy { ROOMY_BYTES } else { self.budget_bytes };
        let baseline = live_bytes();
        let session = session(budget, self.parallelism, folder.path());
        let result = self.query(&session, &pair, folder.path(), baseline, report);
        report.over_budget_bytes = session.memory().peak_bytes().saturating_sub(budget);
        let mut wrong = Vec::new();
        let was_cut_short = result.is_err();
        match result {
            Ok(digest) if digest != expected => wrong.push(format!("gave {digest:?}, not {expected:?}")),
            Ok(_) => {}
            Err(error) => wrong.push(error),
        }
        let reserved = session.memory().reserved_bytes();
        if reserved != 0 {
            wrong.push(format!("{reserved} bytes are still reserved"));
        }
        let files = spill_files(folder.path());
        if !files.is_empty() {
            wrong.push(format!("{} spill files are left after the query", files.len()));
        }
        drop(session);
        if !left(folder.path()).is_empty() {
            wrong.push(format!("the session left {:?}", left(folder.path())));
        }
        let leaked = live_bytes() - baseline;
        if leaked > LEAK_BYTES {
            wrong.push(format!("{leaked} bytes are allocated that were not before"));
        }
        let must_spill = (self.operator.held_bytes)(&pair) >= 2 * self.budget_bytes as u64;
        if !is_roomy {
            self.check_bytes(report, must_spill && !was_cut_short, &mut wrong);
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("; "))
        }
    }

    fn check_bytes(&self, report: &Report, must_spill: bool, wrong: &mut Vec<String>) {
        if report.excess.worst_bytes > HEADROOM_BYTES {
            wrong.push(format!("more is allocated than reserved: {:?}", report.excess));
        }
        if report.over_budget_bytes > SLACK_BYTES {
            wrong.push(format!(
                "{} bytes were reserved beyond the budget",
                report.over_budget_bytes
            ));
        }
        if must_spill && report.spilled.files == 0 {
            wrong.push("nothing was spilled".into());
        }
    }

    /// The tables of the cell.
    pub(crate) fn relations(&self) -> Pair {
        let payload_bytes = if mode_is("full") { 200 } else { 1000 };
        self.operator
            .relations(self.shape, self.data_bytes, payload_bytes, self.seed)
    }

    fn query(
        &self,
        session: &Session,
        pair: &Pair,
        folder: &Path,
        baseline: i64,
        report: &mut Report,
    ) -> Result<Digest, String> {
        register(session, pair);
        if self.blocking {
            let set = session.execute("SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_BLOCKING'");
            set.map_err(|error| text_of(&error))?;
        }
        let mut order = OrderCheck::new((self.operator.order)(pair));
        let watched = Watched::start(session.memory(), folder, baseline);
        let result = start(session, &(self.operator.sql)(pair)).and_then(|mut rows| {
            let guard = Guard::start(rows.canceller(), self.to_string());
            let result = digest(&mut rows, &mut order);
            drop(rows);
            guard.stop();
            result
        });
        (report.excess, report.spilled) = watched.stop();
        result
    }
}

/// Watches bytes and spill files during a query.
struct Watched {
    bytes: Watch,
    files: Watcher<Seen>,
}

impl Watched {
    fn start(memory: &MemoryManager, folder: &Path, baseline: i64) -> Self {
        let bytes = Watch::start(memory, baseline);
        let files = Watcher::start(folder, LOOK_PERIOD, Seen::default(), |seen, files| {
            Watch::look();
            let bytes = files.iter().map(|(_, bytes)| bytes).sum();
            seen.files = seen.files.max(files.len());
            seen.bytes = seen.bytes.max(bytes);
        });
        Self { bytes, files }
    }

    fn stop(self) -> (Excess, Seen) {
        let files = self.files.stop();
        (self.bytes.stop(), files)
    }
}

/// Cancels a query that hangs.
pub(crate) struct Guard(Sender<()>);

impl Guard {
    pub(crate) fn start(canceller: Canceller, name: String) -> Self {
        let (stop, stopped): (_, Receiver<()>) = channel();
        std::thread::spawn(move || {
            if stopped.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            eprintln!("{name}: no end after {PATIENCE:?}; cancelled");
            canceller.cancel();
            if stopped.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name}: no end {GRACE:?} after it was cancelled: a deadlock");
                std::process::abort();
            }
        });
        Self(stop)
    }

    pub(crate) fn stop(self) {
        drop(self.0);
    }
}
