//! `'connector' = 'redis'`: a row for each key, as a hash, a JSON text or one text.
//!
//! The columns of the PRIMARY KEY make the key. Writing a row again changes nothing, so a job that goes on from a checkpoint
//! shows every row once, though it may show rows of after the checkpoint before it gets there again (read uncommitted). With
//! `'sink.isolation' = 'read-committed'` the rows of a checkpoint appear together, once it is complete.

mod commands;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};
use std::time::Duration;
use thalweg_engine::operator::{PreparedSink, SinkConnector, SinkJob};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::upsert::{self, Failure, Session, Store, UpsertOptions, UpsertSink};
use crate::{Options, SinkTable};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one batch, or for one checkpoint.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes sinks into Redis. Options: `url`, `sink.key-prefix`, `sink.key-delimiter`, `sink.value-type`, `sink.isolation`,
/// `sink.buffer-flush.max-rows`, `sink.buffer-flush.interval`, `sink.max-retries`.
#[derive(Clone, Copy, Debug)]
pub struct RedisConnector;

/// How a row is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    /// A hash with a field for each column that is not NULL.
    Hash,
    /// A text: the row as a JSON object.
    Json,
    /// A text: the one column that is not of the key.
    Text,
}

/// What is written where.
#[derive(Clone, Debug)]
struct Layout {
    prefix: String,
    delimiter: String,
    value_type: ValueType,
}

#[derive(Clone, Debug)]
struct Redis {
    client: Client,
    layout: Layout,
    upsert: UpsertOptions,
}

impl Redis {
    fn parse(options: &BTreeMap<String, String>) -> Result<Self> {
        let (options, key) = upsert::split_key(options)?;
        let mut options = Options::new("redis", &options);
        let url = options.take("url").unwrap_or_default();
        let prefix = options.take("sink.key-prefix").unwrap_or_default();
        let delimiter = options.take("sink.key-delimiter").unwrap_or_else(|| ":".into());
        if delimiter.is_empty() || delimiter.contains('%') {
            return Err(options.bad_value("sink.key-delimiter", &delimiter, "must be a text without %"));
        }
        let value_type = match options.take("sink.value-type").map(|text| text.trim().to_lowercase()) {
            None => ValueType::Hash,
            Some(text) => match text.as_str() {
                "hash" => ValueType::Hash,
                "json" => ValueType::Json,
                "string" => ValueType::Text,
                _ => return Err(options.bad_value("sink.value-type", &text, "must be hash, json or string")),
            },
        };
        let mut upsert = UpsertOptions::take(&mut options)?;
        upsert.key = key;
        if url.trim().is_empty() {
            return Err(EngineError::Plan(
                "connector 'redis' needs the option 'url': redis://[user:password@]host:port[/database]".into(),
            ));
        }
        // The address is not repeated: it may hold a password.
        let info = url.trim().into_connection_info();
        let info = info.map_err(|e| EngineError::Plan(format!("connector 'redis': option 'url': {e}")))?;
        let client = Client::open(info);
        let client = client.map_err(|e| EngineError::Plan(format!("connector 'redis': option 'url': {e}")))?;
        options.finish()?;
        Ok(Self {
            client,
            layout: Layout {
                prefix,
                delimiter,
                value_type,
            },
            upsert,
        })
    }

    /// The rows as they are kept, with dictionaries as their values.
    fn schema(&self, rows: &Schema) -> Result<SchemaRef> {
        if self.upsert.key.is_empty() {
            return Err(EngineError::Plan(
                "connector 'redis' needs a PRIMARY KEY (..) NOT ENFORCED: its columns make the keys".into(),
            ));
        }
        let mut values = 0;
        let fields = rows.fields().iter().map(|field| {
            let name = field.name();
            let is_key = self.upsert.key.contains(name);
            let data_type = match field.data_type() {
                DataType::Dictionary(_, value) => value.as_ref().clone(),
                other => other.clone(),
            };
            values += usize::from(!is_key);
            if data_type.is_nested() && (is_key || self.layout.value_type != ValueType::Json) {
                return Err(EngineError::Plan(format!(
                    "connector 'redis': column '{name}' of type {data_type} has no form as one text; take it apart, or keep \
                     rows as JSON with 'sink.value-type' = 'json' (a column of the key must be flat)"
                )));
            }
            if data_type.is_binary() && self.layout.value_type == ValueType::Json && !is_key {
                return Err(EngineError::Plan(format!(
                    "connector 'redis': column '{name}' of type {data_type} has no form in JSON; encode it as text, or keep \
                     rows as hashes"
                )));
            }
            Ok(field.as_ref().clone().with_data_type(data_type))
        });
        let fields = fields.collect::<Result<Vec<_>>>()?;
        if self.layout.value_type == ValueType::Text && values != 1 {
            return Err(EngineError::Plan(format!(
                "connector 'redis': 'sink.value-type' = 'string' keeps the one column that is not of the key, and there are \
                 {values}; use hash or json"
            )));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'redis')`, with the columns of its primary key.
///
/// # Errors
/// When an option or a column's type is wrong, or there is no key.
pub fn create_table(
    name: &str,
    columns: SchemaRef,
    key: &[String],
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    let options = upsert::sink_options(options, key)?;
    Redis::parse(&options)?.schema(&columns)?;
    let sink = SinkSpec {
        connector: "redis".into(),
        options,
        schema: SchemaSpec(Arc::clone(&columns)),
    };
    Ok(Arc::new(SinkTable::try_new(name, columns, sink)?))
}

impl SinkConnector for RedisConnector {
    fn name(&self) -> &str {
        "redis"
    }

    fn prepare(&self, spec: &SinkSpec, job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        let redis = Redis::parse(&spec.options)?;
        let schema = redis.schema(&spec.schema.0)?;
        let upsert = redis.upsert.clone();
        Ok(Arc::new(UpsertSink::try_new(Arc::new(redis), upsert, schema, job)?))
    }
}

#[async_trait]
impl Store for Redis {
    fn describe(&self) -> String {
        format!("redis {}", self.client.get_connection_info().addr())
    }

    async fn connect(&self) -> std::result::Result<Box<dyn Session>, Failure> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = connection.map_err(session::failure)?;
        Ok(Box::new(session::RedisSession::new(connection, self.layout.clone())))
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Fields};

    use super::*;

    fn schema(options: &[(&str, &str)], columns: &[(&str, DataType)]) -> std::result::Result<SchemaRef, String> {
        let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let mut options: BTreeMap<String, String> = options.collect();
        options
            .entry("url".into())
            .or_insert_with(|| "redis://127.0.0.1:6379/3".into());
        let fields = columns
            .iter()
            .map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
        let rows = Schema::new(fields.collect::<Vec<_>>());
        Redis::parse(&options)
            .and_then(|redis| redis.schema(&rows))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_a_remedy() {
        let key = ("primary-key", r#"["k"]"#);
        let k = ("k", DataType::Int64);
        let nested = (
            "v",
            DataType::Struct(Fields::from(vec![Field::new("x", DataType::Int32, true)])),
        );
        assert!(
            schema(&[], std::slice::from_ref(&k))
                .unwrap_err()
                .contains("PRIMARY KEY")
        );
        assert!(
            schema(&[key], &[k.clone(), nested.clone()])
                .unwrap_err()
                .contains("'json'")
        );
        assert!(schema(&[key, ("sink.value-type", "json")], &[k.clone(), nested]).is_ok());
        let text = ("sink.value-type", "string");
        assert!(
            schema(&[key, text], std::slice::from_ref(&k))
                .unwrap_err()
                .contains("there are 0")
        );
        assert!(schema(&[key, text], &[k.clone(), ("v", DataType::Binary)]).is_ok());
        let wrong = |option| schema(&[key, option], std::slice::from_ref(&k)).unwrap_err();
        assert!(wrong(("sink.value-type", "list")).contains("hash, json or string"));
        assert!(wrong(("sink.isolation", "serializable")).contains("read-committed"));
        assert!(wrong(("sink.ttl", "1 s")).contains("no option 'sink.ttl'"));
        assert!(wrong(("url", " ")).contains("needs the option 'url'"));
        let password = wrong(("url", "http://user:secret@host"));
        assert!(password.contains("'url'") && !password.contains("secret"), "{password}");
    }
}
