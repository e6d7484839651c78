//! What a runtime does with a sink.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::runtime_env::RuntimeEnv;
use thalweg::{Session, SessionConfig};
use thalweg_engine::data::with_row_kind;
use thalweg_engine::operator::{Committable, PreparedSink, SinkJob, SinkWriter};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::time::SystemClock;
use tokio::runtime::Handle;

/// A key, and a value that may be NULL.
pub(crate) fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("v", DataType::Utf8, true),
    ]))
}

/// Changes of a table: `+I` 0, `-U` 1, `+U` 2, `-D` 3.
pub(crate) fn changes(rows: &[(u8, i64, Option<&str>)]) -> RecordBatch {
    let k: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)));
    let v: ArrayRef = Arc::new(StringArray::from_iter(rows.iter().map(|row| row.2)));
    let kinds: ArrayRef = Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.0)));
    RecordBatch::try_new(with_row_kind(&columns()), vec![k, v, kinds]).unwrap()
}

/// A sink as a table's `WITH (..)` and key say.
pub(crate) fn spec(connector: &str, schema: SchemaRef, key: &[&str], options: &[(&str, &str)]) -> SinkSpec {
    let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    let mut spec = SinkSpec {
        connector: connector.into(),
        options: options.collect(),
        schema: SchemaSpec(schema),
    };
    if !key.is_empty() {
        spec.options
            .insert("primary-key".into(), format!("[\"{}\"]", key.join("\",\"")));
    }
    spec
}

/// The sink of a run of the job `job`.
pub(crate) fn sink(spec: &SinkSpec, job: &str) -> thalweg_engine::Result<Arc<dyn PreparedSink>> {
    let job = SinkJob {
        job: "run".into(),
        io: Handle::current(),
        runtime: Arc::new(RuntimeEnv::default()),
        clock: Arc::new(SystemClock::new()),
        endless: true,
        checkpointed: Some(job.into()),
    };
    let connectors = thalweg_connectors::sinks();
    let connector = connectors.iter().find(|connector| connector.name() == spec.connector);
    connector.unwrap().prepare(spec, &job)
}

/// Writes rows and prepares a checkpoint.
pub(crate) fn checkpoint(
    writer: &mut dyn SinkWriter,
    number: u64,
    rows: &[(u8, i64, Option<&str>)],
) -> Vec<Committable> {
    if !rows.is_empty() {
        writer.write(&changes(rows)).unwrap();
    }
    writer.prepare(number).unwrap()
}

/// A session that streams, with several writers.
pub(crate) fn streaming() -> Session {
    let session = Session::new(SessionConfig {
        parallelism: 3,
        ..SessionConfig::default()
    });
    let session = session.unwrap();
    run(&session, "SET 'execution.runtime-mode' = 'streaming'");
    session
}

/// Executes a statement to its end.
pub(crate) fn run(session: &Session, sql: &str) {
    if let thalweg::Outcome::Rows(result) = session.execute(sql).unwrap() {
        result.for_each(|batch| drop(batch.unwrap()));
    }
}
