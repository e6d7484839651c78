//! `'connector' = 'blackhole'`: takes rows and forgets them, those of a changelog too; the count of rows is what
//! remains.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use thalweg_engine::operator::{PreparedSink, SinkConnector, SinkJob, SinkWriter};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{Batch, Result};

use crate::{Options, SinkTable};

/// Makes blackhole sinks.
#[derive(Clone, Copy, Debug)]
pub struct BlackholeConnector;

#[derive(Clone, Copy, Debug)]
struct Blackhole;

/// The table of `CREATE TABLE .. WITH ('connector' = 'blackhole')`.
///
/// # Errors
/// When an option is given that it does not have, or no columns are.
pub fn create_table(
    name: &str,
    columns: SchemaRef,
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    Options::new("blackhole", options).finish()?;
    let sink = SinkSpec {
        connector: "blackhole".into(),
        options: BTreeMap::new(),
        schema: SchemaSpec(Arc::clone(&columns)),
    };
    Ok(Arc::new(SinkTable::try_new(name, columns, sink)?))
}

impl SinkConnector for BlackholeConnector {
    fn name(&self) -> &str {
        "blackhole"
    }

    fn prepare(&self, spec: &SinkSpec, _job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        Options::new("blackhole", &spec.options).finish()?;
        Ok(Arc::new(Blackhole))
    }
}

impl PreparedSink for Blackhole {
    fn max_parallelism(&self) -> Option<usize> {
        None
    }

    fn writer(&self, _subtask: usize, _parallelism: usize) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Blackhole))
    }

    fn commit(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self) {}
}

impl SinkWriter for Blackhole {
    fn write(&mut self, _batch: &Batch) -> Result<()> {
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn next_roll_ms(&self) -> Option<i64> {
        None
    }

    fn roll(&mut self) -> Result<()> {
        Ok(())
    }
}
