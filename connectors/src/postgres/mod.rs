//! `'connector' = 'postgres'`: rows into a table of PostgreSQL.
//!
//! With a PRIMARY KEY rows take the place of those with their key, deletions delete, and writing again changes nothing.
//! Without one rows are added. With `'sink.isolation' = 'read-committed'` the rows of a checkpoint are written in one
//! transaction once it is complete, which also records the checkpoint in the table `thalweg_commits`.

mod session;
mod statements;
mod types;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use thalweg_engine::operator::{PreparedSink, SinkConnector, SinkJob};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::upsert::{self, Failure, Session, Store, UpsertOptions, UpsertSink};
use crate::{Options, SinkTable};
use statements::TableName;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes sinks into PostgreSQL. Options: `url`, `table-name`, `username`, `password`, `sink.isolation`,
/// `sink.buffer-flush.max-rows`, `sink.buffer-flush.interval`, `sink.max-retries`.
#[derive(Clone, Copy, Debug)]
pub struct PostgresConnector;

#[derive(Clone, Debug)]
struct Postgres {
    config: Config,
    table: TableName,
    upsert: UpsertOptions,
    /// The rows as they are sent.
    schema: SchemaRef,
}

impl Postgres {
    fn parse(spec: &SinkSpec) -> Result<Self> {
        let (options, key) = upsert::split_key(&spec.options)?;
        let mut options = Options::new("postgres", &options);
        let url = options.take("url").unwrap_or_default();
        let table = options.take("table-name").unwrap_or_default();
        let username = options.take("username");
        let password = options.take("password");
        let mut upsert = UpsertOptions::take(&mut options)?;
        upsert.key = key;
        if url.trim().is_empty() {
            return Err(EngineError::Plan(
                "connector 'postgres' needs the option 'url': postgresql://host:port/database".into(),
            ));
        }
        let wrong = |why: String| EngineError::Plan(format!("connector 'postgres': option 'url': {why}"));
        let url = url.trim();
        // The address is not repeated: it may hold a password.
        let mut config: Config = url
            .strip_prefix("jdbc:")
            .unwrap_or(url)
            .parse()
            .map_err(|e: tokio_postgres::Error| wrong(session::explain(&e)))?;
        if config.get_hosts().is_empty() {
            return Err(wrong("it names no host; write postgresql://host:port/database".into()));
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(wrong(
                "this build has no TLS; leave sslmode=require out, and reach the server over a network that you trust"
                    .into(),
            ));
        }
        if let Some(username) = username {
            config.user(username);
        }
        if let Some(password) = password {
            config.password(password);
        }
        config.application_name("thalweg");
        config.connect_timeout(CONNECT_TIMEOUT);
        let table = TableName::parse(&table).map_err(|why| options.bad_value("table-name", &table, &why))?;
        options.finish()?;
        Ok(Self {
            config,
            table,
            upsert,
            schema: types::sent_schema(&spec.schema.0)?,
        })
    }
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'postgres')`, with the columns of its primary key.
///
/// # Errors
/// When an option or a column's type is wrong.
pub fn create_table(
    name: &str,
    columns: SchemaRef,
    key: &[String],
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    let sink = SinkSpec {
        connector: "postgres".into(),
        options: upsert::sink_options(options, key)?,
        schema: SchemaSpec(Arc::clone(&columns)),
    };
    Postgres::parse(&sink)?;
    Ok(Arc::new(SinkTable::try_new(name, columns, sink)?))
}

impl SinkConnector for PostgresConnector {
    fn name(&self) -> &str {
        "postgres"
    }

    fn prepare(&self, spec: &SinkSpec, job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        let postgres = Postgres::parse(spec)?;
        let (upsert, schema) = (postgres.upsert.clone(), Arc::clone(&postgres.schema));
        Ok(Arc::new(UpsertSink::try_new(Arc::new(postgres), upsert, schema, job)?))
    }
}

#[async_trait]
impl Store for Postgres {
    fn describe(&self) -> String {
        let host = self.config.get_hosts().first().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        });
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let database = self.config.get_dbname().unwrap_or_default();
        format!("postgres {}:{port}/{database} {}", host.unwrap_or_default(), self.table)
    }

    async fn connect(&self) -> std::result::Result<Box<dyn Session>, Failure> {
        let columns = self.schema.fields().iter().map(|field| field.name().clone()).collect();
        let session = session::PostgresSession::open(&self.config, self.table.clone(), columns).await?;
        Ok(Box::new(session))
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn parse(options: &[(&str, &str)], data_type: DataType) -> std::result::Result<Postgres, String> {
        let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let mut options: BTreeMap<String, String> = options.collect();
        options
            .entry("url".into())
            .or_insert_with(|| "postgresql://me:secret@host:5433/db".into());
        options.entry("table-name".into()).or_insert_with(|| "s.t".into());
        let spec = SinkSpec {
            connector: "postgres".into(),
            options,
            schema: SchemaSpec(Arc::new(Schema::new(vec![Field::new("a", data_type, true)]))),
        };
        Postgres::parse(&spec).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_are_flinks_or_postgres_own() {
        let ours = parse(&[], DataType::Int64).unwrap();
        let jdbc = [
            ("url", "jdbc:postgresql://host:5433/db"),
            ("username", "me"),
            ("password", "secret"),
        ];
        let flinks = parse(&jdbc, DataType::Int64).unwrap();
        for parsed in [ours, flinks] {
            assert_eq!(parsed.describe(), r#"postgres host:5433/db "s"."t""#);
            assert_eq!(parsed.config.get_user(), Some("me"));
            assert_eq!(parsed.config.get_password(), Some("secret".as_bytes()));
        }
    }

    #[test]
    fn what_is_wrong_is_told_when_the_table_is_made() {
        let wrong = |options: &[(&str, &str)]| parse(options, DataType::Int64).unwrap_err();
        assert!(wrong(&[("url", "")]).contains("needs the option 'url'"));
        assert!(wrong(&[("url", "postgresql:///db")]).contains("names no host"));
        assert!(wrong(&[("url", "postgresql://h/db?sslmode=require")]).contains("no TLS"));
        assert!(wrong(&[("table-name", "")]).contains("'table-name'"));
        assert!(wrong(&[("table-name", "a.b.c")]).contains("schema.table"));
        assert!(wrong(&[("sink.bogus", "1")]).contains("no option 'sink.bogus'"));
        let secret = wrong(&[("url", "postgresql://me:secret@h:no/db")]);
        assert!(!secret.contains("secret"), "{secret}");
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
        assert!(parse(&[], list).unwrap_err().contains("column 'a'"));
    }
}
