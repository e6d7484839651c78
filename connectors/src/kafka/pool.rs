//! Producers of transactions.
//!
//! A producer has one transaction at a time. One whose transaction waits for its checkpoint cannot take other rows, so a subtask
//! has as many as checkpoints are under way, usually two, and uses them again and again: to begin anew costs some
//! questions to the coordinator. All that is asked blocks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use thalweg_engine::{EngineError, Result};
use tokio::runtime::Handle;

use crate::kafka::client::{KafkaContext, failed, producer_config, servers};
use crate::kafka::table::KafkaSpec;
use crate::kafka::transactions::{Committable, Fate, abort_all, finish, lost, transactional_id};
use crate::kafka::wire::{Cluster, Described};

/// So long a step of a transaction may take.
const STEP: Duration = Duration::from_secs(60);
/// The longest that brokers allow, unless told otherwise.
const TRANSACTION_TIMEOUT_MS: &str = "900000";

pub(super) type KafkaProducer = BaseProducer<KafkaContext>;

/// A producer with its transactional id.
pub(super) struct Transactional {
    pub(super) id: String,
    pub(super) producer: KafkaProducer,
    subtask: usize,
    producer_id: i64,
    epoch: i16,
}

/// The producers of one sink.
pub(super) struct Pool {
    spec: Arc<KafkaSpec>,
    prefix: String,
    io: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By subtask.
    free: HashMap<usize, Vec<Transactional>>,
    /// How many a subtask has.
    made: HashMap<usize, usize>,
    /// With a transaction that waits for its checkpoint, by transactional id.
    prepared: HashMap<String, (Committable, Transactional)>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.prefix)
    }
}

impl Pool {
    /// Of producers whose ids begin with `prefix`.
    pub(super) fn new(spec: Arc<KafkaSpec>, prefix: String, io: Handle) -> Self {
        Self {
            spec,
            prefix,
            io,
            state: Mutex::default(),
        }
    }

    fn cluster(&self) -> Cluster {
        Cluster::new(servers(&self.spec.options.properties))
    }

    fn describe(&self, id: &str) -> Result<Described> {
        let found = self.io.block_on(async { self.cluster().describe(id).await })?;
        found.ok_or_else(|| failed(&format!("transaction '{id}'"), "its coordinator does not know it"))
    }

    /// A producer with a new transaction.
    ///
    /// # Errors
    /// When the brokers refuse.
    pub(super) fn begin(&self, subtask: usize) -> Result<Transactional> {
        let free = self.state.lock().free.get_mut(&subtask).and_then(Vec::pop);
        let producer = match free {
            Some(producer) => producer,
            None => self.make(subtask)?,
        };
        let place = format!("transaction '{}'", producer.id);
        producer
            .producer
            .begin_transaction()
            .map_err(|e| failed(&place, told("cannot begin", &e)))?;
        Ok(producer)
    }

    fn make(&self, subtask: usize) -> Result<Transactional> {
        let slot = {
            let mut state = self.state.lock();
            let made = state.made.entry(subtask).or_default();
            *made += 1;
            *made - 1
        };
        let id = transactional_id(&self.prefix, subtask, slot);
        let place = format!("transaction '{id}'");
        let mut config = producer_config(&self.spec.options);
        config.set("transactional.id", &id);
        if !self.spec.options.properties.contains_key("transaction.timeout.ms") {
            config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS);
        }
        let producer: KafkaProducer = config
            .create_with_context(KafkaContext::default())
            .map_err(|e| failed(&place, e))?;
        persist(|| producer.init_transactions(STEP)).map_err(|e| {
            let remedy = match &e {
                KafkaError::Transaction(e) if e.code() == RDKafkaErrorCode::InvalidTransactionTimeout => {
                    "; set 'properties.transaction.timeout.ms' to at most the brokers' transaction.max.timeout.ms"
                }
                _ => "",
            };
            failed(&place, format!("{}{remedy}", told("cannot register", &e)))
        })?;
        let found = self.describe(&id)?;
        Ok(Transactional {
            id,
            producer,
            subtask,
            producer_id: found.producer_id,
            epoch: found.epoch,
        })
    }

    /// Flushes a producer's transaction, which waits here for [`Self::publish`] from now on.
    ///
    /// # Errors
    /// When a row could not be delivered, or another producer has taken the transactional id over.
    pub(super) fn prepare(&self, transactional: Transactional) -> Result<Committable> {
        let id = transactional.id.clone();
        flush(&transactional.producer, &format!("transaction '{id}'"))?;
        let found = self.describe(&id)?;
        let is_ours = found.producer_id == transactional.producer_id && found.epoch == transactional.epoch;
        if !is_ours || found.state != "Ongoing" {
            return Err(failed(
                &format!("transaction '{id}'"),
                format!(
                    "another producer has taken it over, or it took longer than 'properties.transaction.timeout.ms' (it is \
                     {}); if two jobs write with the same 'sink.transactional-id-prefix', give each its own",
                    found.state
                ),
            ));
        }
        let committable = Committable {
            transactional_id: id.clone(),
            producer_id: found.producer_id,
            epoch: found.epoch,
            start_ms: found.start_ms,
        };
        let mut state = self.state.lock();
        state.prepared.insert(id, (committable.clone(), transactional));
        Ok(committable)
    }

    /// Commits what was prepared, here or in another process.
    ///
    /// # Errors
    /// When it cannot be committed now, or is lost.
    pub(super) fn publish(&self, wanted: &Committable) -> Result<()> {
        let prepared = {
            let mut state = self.state.lock();
            match state.prepared.remove(&wanted.transactional_id) {
                Some((held, transactional)) if held == *wanted => Some(transactional),
                Some(other) => {
                    state.prepared.insert(wanted.transactional_id.clone(), other);
                    None
                }
                None => None,
            }
        };
        if let Some(transactional) = prepared {
            match persist(|| transactional.producer.commit_transaction(STEP)) {
                Ok(()) => {
                    let mut state = self.state.lock();
                    state.free.entry(transactional.subtask).or_default().push(transactional);
                    return Ok(());
                }
                // What has become of it is the coordinator's to say; the producer is not used again.
                Err(error) => tracing::warn!("Kafka: transaction '{}': {error}", wanted.transactional_id),
            }
        }
        let fate = self.io.block_on(async { finish(&mut self.cluster(), wanted).await })?;
        match fate {
            Fate::Lost if self.spec.options.sink.passes_lost => {
                tracing::error!("{}; passed over as 'sink.lost-transactions' says", lost(wanted));
                Ok(())
            }
            Fate::Lost => Err(lost(wanted)),
            _ => Ok(()),
        }
    }

    /// Aborts what earlier runs left, and makes those of them fail that still run.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub(super) fn recover(&self) -> Result<()> {
        let servers = servers(&self.spec.options.properties);
        let count = self.io.block_on(abort_all(servers, &self.prefix))?;
        tracing::debug!("Kafka: {count} producers of '{}' are fenced", self.prefix);
        Ok(())
    }
}

/// What an error of a producer is, in words.
fn told(what: &str, error: &KafkaError) -> String {
    let is_fenced = matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch)
    );
    match is_fenced {
        true => {
            format!("{what}: another producer has taken it over: the job runs a second time, or has been started anew")
        }
        false => format!("{what}: {error}"),
    }
}

/// Tries again as long as the error says so, for a while.
fn persist(mut step: impl FnMut() -> std::result::Result<(), KafkaError>) -> std::result::Result<(), KafkaError> {
    const TRIES: usize = 3;
    for _ in 1..TRIES {
        match step() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() => {}
            other => return other,
        }
    }
    step()
}

/// Waits until everything that was sent is delivered.
///
/// # Errors
/// When something could not be.
pub(super) fn flush(producer: &KafkaProducer, place: &str) -> Result<()> {
    // A record that cannot be delivered is given up after `message.timeout.ms`: this ends.
    let flushed = producer.flush(rdkafka::util::Timeout::Never);
    check_delivery(producer, place)?;
    flushed.map_err(|e| failed(place, told("cannot deliver", &e)))
}

/// Fails when a record could not be delivered.
///
/// # Errors
/// The first such failure.
pub(super) fn check_delivery(producer: &KafkaProducer, place: &str) -> Result<()> {
    use rdkafka::producer::Producer as _;
    match producer.context().take_undelivered() {
        None => Ok(()),
        Some(why) => match producer.client().fatal_error() {
            None => Err(failed(place, format!("cannot deliver: {why}"))),
            Some((_, fatal)) => Err(failed(place, format!("cannot deliver: {why}; {fatal}"))),
        },
    }
}

/// The error of a sink that is used in a wrong order.
pub(super) fn misused(what: &str) -> EngineError {
    EngineError::Internal(format!("the Kafka sink: {what}"))
}
