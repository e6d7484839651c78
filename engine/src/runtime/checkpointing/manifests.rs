//! From what subtasks wrote to a manifest, and what a chain of deltas is built on.

use std::collections::BTreeMap;

use crate::checkpoint::WrittenTable;
use crate::checkpoint::coordinator::{Task, base_of};
use crate::checkpoint::manifest::{
    CheckpointKind, MANIFEST_VERSION, Manifest, OperatorState, StoredRun, StoredScope, TableState,
};
use crate::operator::Committable;
use crate::state::{MAX_PARALLELISM, Scope};

/// An operator that a manifest tells about.
#[derive(Clone, Debug)]
pub(super) struct KnownOperator {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) vertex: usize,
    pub(super) parallelism: usize,
}

/// What is known of a checkpoint under way.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) triggered_ms: i64,
    pub(super) since: Option<u64>,
    /// The tasks that have passed the barrier.
    pub(super) acknowledged: std::collections::BTreeSet<Task>,
    pub(super) tables: Vec<(Task, WrittenTable)>,
}

/// The manifest's contents that are not the tables.
pub(super) struct Heading<'a> {
    pub(super) job: &'a str,
    pub(super) checkpoint: u64,
    pub(super) kind: CheckpointKind,
    pub(super) duration_ms: u64,
    pub(super) finished: bool,
}

/// Puts a manifest together; `last` is the newest complete one, on which deltas build.
///
/// # Errors
/// When the parts do not fit together: some of a table are deltas and others are not, or what a delta builds on is
/// not there. Everything must be written then.
pub(super) fn manifest(
    heading: &Heading<'_>,
    operators: &[KnownOperator],
    finished: &dyn Fn(usize) -> bool,
    parts: &Parts,
    committables: &[(u64, String, Committable)],
    last: Option<&Manifest>,
) -> Result<Manifest, String> {
    let mut states = Vec::with_capacity(operators.len());
    for operator in operators {
        let mut tables: BTreeMap<&str, Vec<&(Task, WrittenTable)>> = BTreeMap::new();
        for part in parts.tables.iter().filter(|(_, table)| table.operator == operator.id) {
            tables.entry(&part.1.spec.name).or_default().push(part);
        }
        let tables = tables
            .into_values()
            .map(|written| table(heading.checkpoint, &operator.id, &written, last))
            .collect::<Result<Vec<_>, _>>()?;
        let own = committables.iter().filter(|(_, id, _)| *id == operator.id);
        states.push(OperatorState {
            id: operator.id.clone(),
            name: operator.name.clone(),
            parallelism: operator.parallelism,
            finished: finished(operator.vertex),
            tables,
            committables: own.map(|(_, _, bytes)| hex(bytes)).collect(),
        });
    }
    Ok(Manifest {
        version: MANIFEST_VERSION,
        job: heading.job.to_string(),
        checkpoint: heading.checkpoint,
        kind: heading.kind,
        triggered_ms: parts.triggered_ms,
        duration_ms: heading.duration_ms,
        max_parallelism: MAX_PARALLELISM,
        finished: heading.finished,
        operators: states,
    })
}

fn table(
    checkpoint: u64,
    operator: &str,
    written: &[&(Task, WrittenTable)],
    last: Option<&Manifest>,
) -> Result<TableState, String> {
    let (_, first) = written[0];
    let since = first.since;
    if written.iter().any(|(_, table)| table.since != since) {
        return Err(format!(
            "subtasks wrote table '{}' of operator '{operator}' in different ways",
            first.spec.name
        ));
    }
    let run = StoredRun {
        checkpoint,
        since,
        parts: written
            .iter()
            .filter(|(_, table)| table.part.rows + table.part.deleted > 0)
            .map(|(_, table)| table.part.clone())
            .collect(),
    };
    let mut runs = Vec::new();
    if let Some(since) = since {
        let before = last.and_then(|last| last.operators.iter().find(|state| state.id == operator));
        let before = before.and_then(|state| state.tables.iter().find(|table| table.name == first.spec.name));
        let before = before.map_or(&[][..], |table| table.runs.as_slice());
        runs.extend(before.iter().filter(|run| run.checkpoint <= since).cloned());
        if runs.last().is_none_or(|run| run.checkpoint != since) {
            return Err(format!(
                "table '{}' of operator '{operator}' has nothing of checkpoint {since} to build on",
                first.spec.name
            ));
        }
    }
    runs.push(run);
    Ok(TableState {
        name: first.spec.name.clone(),
        version: first.spec.version,
        scope: match first.spec.scope {
            Scope::Keyed(_) => StoredScope::Keyed,
            Scope::Union => StoredScope::Union,
            Scope::Broadcast => StoredScope::Broadcast,
        },
        unique: first.spec.unique,
        runs,
    })
}

/// On which checkpoint the next one should build.
pub(super) fn base(last: &Manifest) -> Option<u64> {
    let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
    let tables = || last.operators.iter().flat_map(|operator| &operator.tables);
    // Tables that are written whole each time tell nothing.
    let longest = tables().map(|table| table.runs.len()).max()?;
    let chained =
        |table: &&crate::checkpoint::manifest::TableState| table.unique > 0 && (longest == 1 || table.runs.len() > 1);
    for run in tables().filter(chained).flat_map(|table| &table.runs) {
        *bytes.entry(run.checkpoint).or_default() += run
            .parts
            .iter()
            .map(|part| part.length + part.deleted_length)
            .sum::<u64>();
    }
    let chain: Vec<(u64, u64)> = bytes.into_iter().collect();
    let intervals = chain.last()?.0.saturating_sub(chain.first()?.0);
    let deltas: u64 = chain.iter().skip(1).map(|(_, bytes)| bytes).sum();
    // As much as changed in an interval so far.
    let expected = deltas.checked_div(intervals).unwrap_or(0);
    if chain.len() == 1 && chain[0].1 == 0 {
        return None;
    }
    base_of(&chain, expected)
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal digits.
pub(super) fn unhex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || digits.len() % 2 == 1 {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok())
        .collect()
}
