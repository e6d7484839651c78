//! The sink of one job.

use std::sync::Arc;

use thalweg_engine::data::without_row_kind;
use thalweg_engine::operator::{Committable, PreparedSink, SinkConnector, SinkJob, SinkWriter};
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::{EngineError, Result};

use crate::kafka::client::{KafkaContext, failed, partitions, producer_config};
use crate::kafka::encode::Encoder;
use crate::kafka::options::{Flavor, Guarantee, Payload};
use crate::kafka::pool::{KafkaProducer, Pool};
use crate::kafka::table::KafkaSpec;
use crate::kafka::transactions::Committable as Transaction;
use crate::kafka::writer::{KafkaWriter, Route, Sender};

/// Makes the sinks of `'connector' = 'kafka'` and `'upsert-kafka'`.
#[derive(Clone, Copy, Debug)]
pub struct KafkaConnector {
    flavor: Flavor,
}

impl KafkaConnector {
    /// Of `'kafka'`.
    pub fn log() -> Self {
        Self { flavor: Flavor::Log }
    }

    /// Of `'upsert-kafka'`.
    pub fn upsert() -> Self {
        Self { flavor: Flavor::Upsert }
    }
}

impl SinkConnector for KafkaConnector {
    fn name(&self) -> &str {
        self.flavor.name()
    }

    fn prepare(&self, spec: &SinkSpec, job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        let columns = without_row_kind(&spec.schema.0);
        let table = Arc::new(KafkaSpec::parse(self.flavor, &columns, &spec.options)?);
        let topic = table.options.sink_topic()?.to_string();
        // To make an encoder is to check the columns; the number of a schema is not known before rows are written.
        Encoder::try_new(&table.options.value, &table.columns.value_schema, None)?;
        if let Some(key) = &table.options.key {
            Encoder::try_new(key, &table.columns.key_schema, None)?;
        }
        let pool = match (table.options.sink.guarantee, &job.checkpointed) {
            (Guarantee::ExactlyOnce, Some(name)) => {
                let prefix = table.options.sink.prefix.clone();
                let prefix = prefix.unwrap_or_else(|| format!("{name}-{topic}"));
                Some(Arc::new(Pool::new(Arc::clone(&table), prefix, job.io.clone())))
            }
            _ => None,
        };
        Ok(Arc::new(KafkaSink { table, topic, pool }))
    }
}

#[derive(Debug)]
struct KafkaSink {
    table: Arc<KafkaSpec>,
    topic: String,
    /// With exactly-once.
    pool: Option<Arc<Pool>>,
}

impl KafkaSink {
    fn is_transactional(&self) -> bool {
        self.table.options.sink.guarantee == Guarantee::ExactlyOnce
    }

    fn pool(&self) -> Result<&Arc<Pool>> {
        self.pool.as_ref().ok_or_else(|| {
            EngineError::Plan(
                "'sink.delivery-guarantee' = 'exactly-once' needs checkpoints, which commit the transactions: set \
                 'execution.checkpointing.interval', or write with 'at-least-once'"
                    .into(),
            )
        })
    }

    /// The number of the schema of the values, where there is a registry.
    fn schema_id(&self) -> Result<Option<u32>> {
        let (Payload::AvroConfluent { subject, .. }, Some(registry)) =
            (&self.table.options.value, &self.table.registry)
        else {
            return Ok(None);
        };
        let subject = subject.clone().unwrap_or_else(|| format!("{}-value", self.topic));
        let schema = crate::kafka::avro::avro_schema(&self.table.columns.value_schema)?;
        registry.register(&subject, &schema.json_string).map(Some)
    }
}

impl PreparedSink for KafkaSink {
    fn max_parallelism(&self) -> Option<usize> {
        None
    }

    fn writer(&self, subtask: usize, _parallelism: usize) -> Result<Box<dyn SinkWriter>> {
        let sender = match self.is_transactional() {
            true => Sender::Transactions {
                pool: Arc::clone(self.pool()?),
                open: None,
            },
            false => {
                let mut config = producer_config(&self.table.options);
                // A retry must not write a record twice or out of order.
                config.set("enable.idempotence", self.is_idempotent().to_string());
                let producer: KafkaProducer = config
                    .create_with_context(KafkaContext::default())
                    .map_err(|e| failed(&format!("topic {}", self.topic), e))?;
                Sender::Plain(Box::new(producer))
            }
        };
        // Also finds out that the topic is not there, before a row is lost.
        let found = partitions(self.table.asking()?.as_ref(), &self.table.options)?;
        let count = found.first().map_or(1, |(_, partitions)| partitions.len());
        let options = &self.table.options;
        let columns = &self.table.columns;
        let key = options
            .key
            .as_ref()
            .map(|key| Encoder::try_new(key, &columns.key_schema, None));
        Ok(Box::new(KafkaWriter {
            value: Encoder::try_new(&options.value, &columns.value_schema, self.schema_id()?)?,
            key: key.transpose()?,
            spec: Arc::clone(&self.table),
            topic: self.topic.clone(),
            subtask,
            sender,
            route: Route::new(options.sink.partitioner, subtask, count),
            sent: (0, 0),
        }))
    }

    fn commit(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self) {}

    fn publish(&self, committables: &[Committable]) -> Result<()> {
        // All are tried: one that is lost does not hold back the others.
        let mut failure = None;
        for committable in committables {
            let published = Transaction::read(committable).and_then(|transaction| self.pool()?.publish(&transaction));
            if let Err(error) = published {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn recover(&self) -> Result<()> {
        match &self.pool {
            Some(pool) => pool.recover(),
            None => Ok(()),
        }
    }

    fn hides_until_published(&self) -> bool {
        self.is_transactional()
    }

    fn is_exactly_once(&self) -> bool {
        // Writing a row of a key again changes nothing.
        self.is_transactional() || self.table.options.flavor == Flavor::Upsert
    }
}

impl KafkaSink {
    /// Whether retries keep the order and write nothing twice: that wants all acknowledgements.
    fn is_idempotent(&self) -> bool {
        let properties = &self.table.options.properties;
        let acks = properties
            .get("acks")
            .or_else(|| properties.get("request.required.acks"));
        self.table.options.sink.guarantee != Guarantee::None
            && acks.is_none_or(|acks| matches!(acks.trim(), "all" | "-1"))
    }
}
