//! Transactions that a checkpoint holds, and those that none does.
//!
//! A committable names a transaction exactly: a transactional id and its producer's id and epoch serve many transactions one
//! after the other, the time of the beginning tells them apart. What to do with one is decided by [`fate`] from what the
//! coordinator says, and nothing else; so publishing may be repeated, by whatever process.

use serde::{Deserialize, Serialize};
use thalweg_engine::operator;
use thalweg_engine::{EngineError, Result};

use crate::kafka::wire::{Cluster, Described, Ended};

/// The coordinator is looked at so often, when it changes its mind in between.
const LOOKS: usize = 20;
/// So many are fenced side by side.
const FENCING_LANES: usize = 8;

/// A transaction that has been flushed, to be committed with its checkpoint. In checkpoints it is JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Committable {
    pub(super) transactional_id: String,
    pub(super) producer_id: i64,
    pub(super) epoch: i16,
    /// When it began, in milliseconds.
    pub(super) start_ms: i64,
}

impl Committable {
    pub(super) fn write(&self) -> Result<operator::Committable> {
        serde_json::to_vec(self).map_err(|e| EngineError::Internal(format!("a committable of Kafka: {e}")))
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| {
            EngineError::BadInput(format!(
                "the checkpoint holds no transaction of Kafka's but '{}': {e}",
                String::from_utf8_lossy(bytes)
            ))
        })
    }
}

/// What is to be done with a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// To be committed.
    Commit,
    /// It is committed.
    Done,
    /// It was committed, for others came after it with the same id.
    MovedOn,
    /// The coordinator is about to decide.
    Wait,
    /// It was aborted: its rows will never be seen.
    Lost,
}

/// What is to be done with `wanted` when its coordinator says this.
pub(super) fn fate(wanted: &Committable, found: Option<&Described>) -> Fate {
    let Some(found) = found else {
        // Ids are forgotten a week after their last transaction ended, however it ended.
        return Fate::Lost;
    };
    let same_producer = found.producer_id == wanted.producer_id && found.epoch == wanted.epoch;
    let same_start = found.start_ms == wanted.start_ms;
    // A coordinator that aborts by itself raises the epoch by one, and may forget the beginning.
    let just_after = found.producer_id == wanted.producer_id
        && (found.epoch == wanted.epoch || Some(found.epoch) == wanted.epoch.checked_add(1));
    let forgot_start = found.start_ms < 0;
    match found.state.as_str() {
        "Ongoing" if same_producer && same_start => Fate::Commit,
        "PrepareCommit" | "CompleteCommit" if same_start => Fate::Done,
        "PrepareAbort" | "CompleteAbort" | "PrepareEpochFence" if same_start || forgot_start && just_after => {
            Fate::Lost
        }
        "PrepareEpochFence" | "Dead" => Fate::Wait,
        // Nothing was ever begun with this epoch, says a coordinator that must have lost its log.
        "Empty" if same_producer => Fate::Lost,
        _ => Fate::MovedOn,
    }
}

/// Commits a transaction, unless it is committed. Whether it was lost is for the caller to judge.
///
/// # Errors
/// When the coordinator cannot be asked.
pub(super) async fn finish(cluster: &mut Cluster, wanted: &Committable) -> Result<Fate> {
    let id = &wanted.transactional_id;
    let mut refusal = None;
    for _ in 0..LOOKS {
        let found = cluster.describe(id).await?;
        match fate(wanted, found.as_ref()) {
            Fate::Commit => match cluster.commit(id, wanted.producer_id, wanted.epoch).await? {
                Ended::Committed => return Ok(Fate::Done),
                // It was ended, or timed out, in between: the coordinator knows.
                Ended::Refused(why) => refusal = Some(why),
            },
            Fate::Wait => {}
            fate => {
                if fate == Fate::MovedOn {
                    tracing::info!("Kafka: transaction '{id}' was ended before: {found:?}");
                }
                return Ok(fate);
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let why = refusal.map_or_else(String::new, |why| format!(": {why}"));
    Err(EngineError::BadInput(format!(
        "Kafka: transaction '{id}' cannot be committed; its coordinator does not decide{why}"
    )))
}

/// The error of a lost transaction.
pub(super) fn lost(wanted: &Committable) -> EngineError {
    EngineError::BadInput(format!(
        "Kafka: the transaction '{}' of the checkpoint was aborted or forgotten before it was committed: its rows are lost. \
         It probably took longer from the checkpoint to here than 'properties.transaction.timeout.ms' allows; raise that \
         (and transaction.max.timeout.ms of the brokers). To go on without these rows, or when you know that they were \
         committed, set 'sink.lost-transactions' = 'ignore'",
        wanted.transactional_id
    ))
}

/// The transactional id of a producer of a subtask.
pub(super) fn transactional_id(prefix: &str, subtask: usize, slot: usize) -> String {
    format!("{prefix}-{subtask}-{slot}")
}

/// Whether an id is one of [`transactional_id`]s with this prefix, of whatever subtask.
pub(super) fn is_ours(prefix: &str, id: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let rest = id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    rest.and_then(|rest| rest.split_once('-'))
        .is_some_and(|(subtask, slot)| is_number(subtask) && is_number(slot))
}

/// Aborts all transactions of this prefix and fences their producers, also those that are only waiting.
///
/// # Errors
/// When the cluster cannot be asked.
pub(super) async fn abort_all(servers: &str, prefix: &str) -> Result<usize> {
    let mut ids = Cluster::new(servers).ids().await?;
    ids.retain(|id| is_ours(prefix, id));
    // A job does not go on before this is over.
    let lanes = ids.chunks(ids.len().div_ceil(FENCING_LANES).max(1)).map(async |lane| {
        let mut cluster = Cluster::new(servers);
        for id in lane {
            cluster.fence(id).await?;
        }
        Ok::<(), EngineError>(())
    });
    futures::future::try_join_all(lanes).await?;
    Ok(ids.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Committable {
        Committable {
            transactional_id: "job-t-0-0".into(),
            producer_id: 7,
            epoch: 3,
            start_ms: 1000,
        }
    }

    fn found(state: &str, producer_id: i64, epoch: i16, start_ms: i64) -> Described {
        Described {
            state: state.into(),
            producer_id,
            epoch,
            start_ms,
        }
    }

    #[test]
    fn every_state_of_a_transaction_has_its_fate() {
        let cases = [
            (found("Ongoing", 7, 3, 1000), Fate::Commit),
            (found("PrepareCommit", 7, 3, 1000), Fate::Done),
            (found("CompleteCommit", 7, 3, 1000), Fate::Done),
            // The same producer's next one must not be committed in its place.
            (found("Ongoing", 7, 3, 2000), Fate::MovedOn),
            (found("CompleteCommit", 7, 3, 2000), Fate::MovedOn),
            (found("CompleteAbort", 7, 3, 2000), Fate::MovedOn),
            // Another process has the id.
            (found("Empty", 7, 4, -1), Fate::MovedOn),
            (found("Ongoing", 7, 5, 3000), Fate::MovedOn),
            (found("Empty", 8, 0, -1), Fate::MovedOn),
            // It timed out.
            (found("PrepareAbort", 7, 4, 1000), Fate::Lost),
            (found("CompleteAbort", 7, 4, 1000), Fate::Lost),
            (found("CompleteAbort", 7, 4, -1), Fate::Lost),
            (found("CompleteAbort", 7, 3, 1000), Fate::Lost),
            (found("CompleteAbort", 7, 6, -1), Fate::MovedOn),
            (found("Empty", 7, 3, -1), Fate::Lost),
            (found("PrepareEpochFence", 7, 9, 2000), Fate::Wait),
            (found("Dead", 7, 3, 1000), Fate::Wait),
        ];
        for (found, expected) in cases {
            assert_eq!(fate(&wanted(), Some(&found)), expected, "{found:?}");
        }
        assert_eq!(fate(&wanted(), None), Fate::Lost);
    }

    #[test]
    fn committables_are_read_back_and_others_refused() {
        assert_eq!(Committable::read(&wanted().write().unwrap()).unwrap(), wanted());
        assert!(
            Committable::read(b"part-0.parquet")
                .unwrap_err()
                .to_string()
                .contains("part-0")
        );
    }

    #[test]
    fn ids_of_another_job_are_not_ours() {
        assert!(is_ours("job-t", &transactional_id("job-t", 12, 3)));
        for other in [
            "job-t",
            "job-t-1",
            "job-t-1-",
            "job-t-1-2-3",
            "job-t-a-1",
            "job-t2-1-2",
            "job-1-2",
        ] {
            assert!(!is_ours("job-t", other), "{other}");
        }
    }
}
