//! Partitions as splits: a consumer for each subtask, a queue for each partition.
//!
//! librdkafka fetches in threads of its own, ahead of the reader as far as `queued.max.messages.kbytes` allows. A batch is what
//! has been fetched since the last one was taken; nothing waits for a batch to fill. A position is the offset of the next
//! record, and where the reading ends if it does: both are resolved when a partition is first opened and noted at once,
//! so that a restart does not ask again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::Count;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use thalweg_engine::operator::{Positioned, SplitId, SplitReader, SplitSource, SplitStream};
use thalweg_engine::{Batch, EngineError, Result};
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

use crate::kafka::client::{KafkaContext, consumer, failed, partitions};
use crate::kafka::options::Topics;
use crate::kafka::rows::Rows;
use crate::kafka::start::{Bound, Partition, Start};
use crate::kafka::table::KafkaSpec;

/// So often a quiet partition is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A batch is not made larger than this many bytes of records.
const BATCH_BYTES: usize = 8 << 20;

/// A table's partitions.
#[derive(Clone)]
pub(super) struct KafkaSource {
    pub(super) spec: Arc<KafkaSpec>,
    pub(super) projection: Vec<usize>,
    pub(super) bad_records: Count,
    /// Whether a partition was opened at a noted position: then those without one have appeared since.
    pub(super) restored: Arc<AtomicBool>,
    /// Whether the partitions that there were at the beginning are known: those that are found later have appeared since.
    pub(super) first: Arc<parking_lot::Mutex<Option<Vec<SplitId>>>>,
}

impl fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaSource({})", self.spec.name())
    }
}

/// The split of a partition. Topics have no `/` in their names. Partitions of one topic go round the subtasks.
pub(super) fn split_of(topic: &str, partition: i32) -> SplitId {
    SplitId {
        name: format!("{topic}/{partition}"),
        ordinal: (xxh3_64(topic.as_bytes()) >> 1).wrapping_add(u64::from(partition.unsigned_abs())),
    }
}

fn partition_of(split: &SplitId) -> Result<(String, i32)> {
    let parsed = split.name.rsplit_once('/').and_then(|(topic, partition)| {
        let partition: i32 = partition.parse().ok()?;
        (!topic.is_empty() && partition >= 0).then(|| (topic.to_string(), partition))
    });
    parsed.ok_or_else(|| EngineError::Plan(format!("'{}' is no partition of a Kafka topic", split.name)))
}

/// The splits that there are now; asks the broker and waits.
pub(super) fn splits(spec: &KafkaSpec, consumer: &BaseConsumer<KafkaContext>) -> Result<Vec<SplitId>> {
    let topics = partitions(consumer, &spec.options)?;
    let splits = topics
        .iter()
        .flat_map(|(topic, partitions)| partitions.iter().map(|partition| split_of(topic, *partition)));
    Ok(splits.collect())
}

impl SplitSource for KafkaSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        let spec = Arc::clone(&self.spec);
        let first = Arc::clone(&self.first);
        Box::pin(async move {
            let found = blocking(move || splits(&spec, spec.asking()?.as_ref())).await?;
            first.lock().get_or_insert_with(|| found.clone());
            Ok(found)
        })
    }

    fn discovery_interval(&self) -> Option<Duration> {
        self.spec.options.source.discovery
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(KafkaReader {
            source: self.clone(),
            consumer: consumer(&self.spec.options)?,
            batch_rows: task.session_config().batch_size().max(1),
        }))
    }
}

/// Runs what blocks beside the I/O runtime's own threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(EngineError::Internal(format!("a question to Kafka: {e}"))),
    }
}

/// Reads the partitions of one subtask.
struct KafkaReader {
    source: KafkaSource,
    consumer: Arc<BaseConsumer<KafkaContext>>,
    batch_rows: usize,
}

impl SplitReader for KafkaReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let (topic, partition) = partition_of(split)?;
        if let Topics::Matching(pattern) = &self.source.spec.options.topics
            && !pattern.is_match(&topic)
        {
            return Err(failed(
                &format!("topic {topic}"),
                "it does not match 'topic-pattern' any more",
            ));
        }
        let place = format!("Kafka topic {topic}, partition {partition}");
        let position = position.map(|position| Position::read(position, &place)).transpose()?;
        if position.is_some() {
            self.source.restored.store(true, Ordering::Relaxed);
        }
        let rows = Rows::try_new(&self.source.spec, &self.source.projection, place)?;
        let opening = Opening {
            source: self.source.clone(),
            consumer: Arc::clone(&self.consumer),
            split: split.clone(),
            topic,
            partition,
            position,
            batch_rows: self.batch_rows,
            rows,
        };
        Ok(stream::try_unfold(State::Opening(Box::new(opening)), next).boxed())
    }

    fn checkpoint_complete(&mut self, positions: &[(SplitId, Vec<u8>)]) {
        let options = &self.source.spec.options;
        // Without a group of the user's there is nobody to tell.
        if !options.source.commits_offsets || !options.properties.contains_key("group.id") {
            return;
        }
        let mut offsets = TopicPartitionList::new();
        for (split, position) in positions {
            let noted = partition_of(split).and_then(|at| Ok((at, Position::read(position, &split.name)?)));
            let added = noted
                .map_err(|e| e.to_string())
                .and_then(|((topic, partition), position)| {
                    let offset = Offset::Offset(position.next);
                    let added = offsets.add_partition_offset(&topic, partition, offset);
                    added.map_err(|e| e.to_string())
                });
            if let Err(error) = added {
                tracing::warn!("Kafka: cannot commit an offset to the consumer group: {error}");
            }
        }
        if offsets.count() > 0
            && let Err(error) = self.consumer.commit(&offsets, CommitMode::Async)
        {
            tracing::warn!("Kafka: cannot commit offsets to the consumer group: {error}");
        }
    }
}

/// How far a partition is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// The offset of the next record.
    next: i64,
    /// The offset before which the reading ends.
    end: Option<i64>,
}

impl Position {
    /// As text, so that whoever looks into a checkpoint can read it.
    fn write(self) -> Vec<u8> {
        match self.end {
            None => self.next.to_string().into_bytes(),
            Some(end) => format!("{}..{end}", self.next).into_bytes(),
        }
    }

    fn read(bytes: &[u8], place: &str) -> Result<Self> {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let number = |text: &str| i64::from_str(text).ok().filter(|offset| *offset >= 0);
        let read = match text.split_once("..") {
            None => number(text).map(|next| Self { next, end: None }),
            Some((next, end)) => number(next)
                .zip(number(end))
                .map(|(next, end)| Self { next, end: Some(end) }),
        };
        read.ok_or_else(|| EngineError::BadInput(format!("{place}: '{text}' is no position: an offset, as 42")))
    }
}

enum State {
    Opening(Box<Opening>),
    Reading(Box<Reading>),
}

async fn next(state: State) -> Result<Option<(Positioned, State)>> {
    match state {
        State::Opening(opening) => {
            let reading = blocking(move || opening.open()).await?;
            let noted = Positioned {
                batch: Batch::new_empty(reading.rows.schema()),
                position: reading.position.write(),
            };
            Ok(Some((noted, State::Reading(Box::new(reading)))))
        }
        State::Reading(mut reading) => {
            let read = reading.next().await?;
            Ok(read.map(|read| (read, State::Reading(reading))))
        }
    }
}

/// A partition of which it is not known yet where to begin.
struct Opening {
    source: KafkaSource,
    consumer: Arc<BaseConsumer<KafkaContext>>,
    split: SplitId,
    topic: String,
    partition: i32,
    position: Option<Position>,
    batch_rows: usize,
    rows: Rows,
}

impl Opening {
    /// What a partition that has appeared since holds is new as a whole.
    fn appeared_since(&self) -> bool {
        let unknown = |first: &Vec<SplitId>| !first.contains(&self.split);
        self.source.restored.load(Ordering::Relaxed) || self.source.first.lock().as_ref().is_some_and(unknown)
    }

    /// Asks where to begin and to end, and begins. Blocks.
    fn open(self) -> Result<Reading> {
        let options = &self.source.spec.options;
        let asked = Partition {
            consumer: &self.consumer,
            topic: &self.topic,
            partition: self.partition,
        };
        let reset = options.properties.get("auto.offset.reset").map(String::as_str);
        let position = match self.position {
            Some(position) => position,
            None => {
                let start = match self.appeared_since() {
                    true => &Start::Earliest,
                    false => &options.source.start,
                };
                let end = asked.end(&options.source.bound)?;
                Position {
                    next: asked.start(start, reset)?,
                    end,
                }
            }
        };
        let available = match position.end {
            Some(_) => asked.range()?.1,
            None => 0,
        };
        let place = format!("topic {}, partition {}", self.topic, self.partition);
        let queue = self.consumer.split_partition_queue(&self.topic, self.partition);
        let Some(mut queue) = queue else {
            return Err(failed(&place, "it has no queue"));
        };
        let woken = Arc::new(Notify::new());
        let waker = Arc::clone(&woken);
        queue.set_nonempty_callback(move || waker.notify_one());
        let mut assigned = TopicPartitionList::new();
        let begun = assigned
            .add_partition_offset(&self.topic, self.partition, Offset::Offset(position.next))
            .and_then(|()| self.consumer.incremental_assign(&assigned));
        begun.map_err(|e| failed(&place, format!("cannot begin at offset {}: {e}", position.next)))?;
        Ok(Reading {
            queue,
            consumer: self.consumer,
            topic: self.topic,
            partition: self.partition,
            woken,
            position,
            ends_at_eof: position.end.is_some_and(|end| available >= end),
            ended: position.end.is_some_and(|end| position.next >= end),
            batch_rows: self.batch_rows,
            rows: self.rows,
            bad_records: self.source.bad_records,
        })
    }
}

/// A partition that is being read.
struct Reading {
    queue: PartitionQueue<KafkaContext>,
    consumer: Arc<BaseConsumer<KafkaContext>>,
    topic: String,
    partition: i32,
    woken: Arc<Notify>,
    position: Position,
    /// Whether the end of the partition is at or behind the end of the reading: what follows the last row may be marks of
    /// transactions, which are not seen.
    ends_at_eof: bool,
    ended: bool,
    batch_rows: usize,
    rows: Rows,
    bad_records: Count,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Positioned>> {
        loop {
            if let Some(read) = self.fetched()? {
                return Ok(Some(read));
            }
            if self.ended {
                return Ok(None);
            }
            // The callback is made when an empty queue gets something, so the queue must have been seen empty before this. Now
            // and then it is looked at anyway: errors and answers to commits come to another queue.
            let _ = tokio::time::timeout(LOOK, self.woken.notified()).await;
        }
    }

    /// The rows of what has been fetched; `None` when that is nothing.
    fn fetched(&mut self) -> Result<Option<Positioned>> {
        // Serves what is not a record: errors, answers to commits.
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            Some(Err(error)) => tracing::warn!("Kafka: {error}"),
            Some(Ok(record)) => {
                let place = format!("topic {}, partition {}", record.topic(), record.partition());
                return Err(EngineError::Internal(format!(
                    "Kafka: {place}: a record came outside of its queue"
                )));
            }
        }
        let mut records: Vec<BorrowedMessage<'_>> = Vec::new();
        let mut bytes = 0;
        while !self.ended && records.len() < self.batch_rows && bytes < BATCH_BYTES {
            match self.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(record)) if self.position.end.is_some_and(|end| record.offset() >= end) => self.ended = true,
                Some(Ok(record)) => {
                    bytes += record.payload_len() + record.key_len();
                    self.ended = self.position.end.is_some_and(|end| record.offset() + 1 >= end);
                    records.push(record);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.ended = self.ends_at_eof,
                Some(Err(error)) => return Err(lost(&self.topic, self.partition, self.position.next, &error)),
            }
        }
        let Some(last) = records.last() else {
            return Ok(None);
        };
        self.position.next = last.offset() + 1;
        let before = self.rows.bad_records();
        let batch = self.rows.decode(&records)?;
        self.bad_records.add((self.rows.bad_records() - before) as usize);
        Ok(Some(Positioned {
            batch,
            position: self.position.write(),
        }))
    }
}

fn lost(topic: &str, partition: i32, offset: i64, error: &KafkaError) -> EngineError {
    use rdkafka::types::RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
    let is_gone = matches!(error.rdkafka_error_code(), Some(AutoOffsetReset | OffsetOutOfRange));
    let remedy = match is_gone {
        true => {
            "; the topic does not hold it (any more): its retention is too short or it was made anew; to go on with what \
                 is there, set 'properties.auto.offset.reset' = 'earliest'"
        }
        false => "",
    };
    failed(
        &format!("topic {topic}, partition {partition}, offset {offset}"),
        format!("cannot read: {error}{remedy}"),
    )
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut assigned = TopicPartitionList::new();
        assigned.add_partition(&self.topic, self.partition);
        if let Err(error) = self.consumer.incremental_unassign(&assigned) {
            tracing::debug!("Kafka: topic {}, partition {}: {error}", self.topic, self.partition);
        }
    }
}

/// Whether a source ends.
pub(super) fn is_bounded(spec: &KafkaSpec) -> bool {
    spec.options.source.bound != Bound::None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_splits_are_read_back() {
        for position in [Position { next: 0, end: None }, Position { next: 7, end: Some(42) }] {
            assert_eq!(Position::read(&position.write(), "").unwrap(), position);
        }
        for wrong in [&b""[..], b"-1", b"x", b"1..", b"1..x", b"\xff"] {
            assert!(
                Position::read(wrong, "here")
                    .unwrap_err()
                    .to_string()
                    .starts_with("here: ")
            );
        }
        assert_eq!(
            partition_of(&split_of("a.b-c_d", 3)).unwrap(),
            ("a.b-c_d".to_string(), 3)
        );
        for wrong in ["a", "a/", "/1", "a/-1", "a/b"] {
            let split = SplitId {
                name: wrong.into(),
                ordinal: 0,
            };
            assert!(partition_of(&split).is_err(), "{wrong}");
        }
    }

    #[test]
    fn partitions_of_a_topic_go_round_the_subtasks() {
        let first = split_of("t", 0).ordinal;
        for partition in 0..7 {
            assert_eq!(
                split_of("t", partition).ordinal - first,
                u64::from(partition.unsigned_abs())
            );
        }
    }
}
