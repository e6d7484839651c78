//! INSERT and COPY: which changelog a sink takes.

use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::logical_expr::{DmlStatement, WriteOp};
use thalweg_engine::data::is_changelog;
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::{EngineError, Result};

use super::flow::Flow;
use crate::SinkChangelog;
use crate::lower::Lowering;

impl Lowering<'_> {
    pub(super) async fn stream_insert(&mut self, dml: &DmlStatement) -> Result<Flow> {
        let WriteOp::Insert(_) = &dml.op else {
            return Err(EngineError::Plan(format!(
                "{} on table '{}' is not supported; write the wanted rows to a new table with INSERT",
                dml.op, dml.table_name
            )));
        };
        let input = self.flow(&dml.input).await?;
        let provider = source_as_provider(&dml.target)?;
        let sink = self
            .options
            .sink_resolver
            .insert(&dml.table_name, &provider, &input.stream.schema)?;
        match sink {
            Some(sink) => self.write_stream(sink, &dml.table_name.to_string(), input),
            None if input.is_changelog() => Err(takes_no_updates(&dml.table_name.to_string())),
            None => {
                let bounded = input.bounded;
                Ok(Flow::new(self.dml(dml, input.stream).await?, bounded))
            }
        }
    }

    pub(super) async fn stream_copy(&mut self, copy: &CopyTo) -> Result<Flow> {
        let input = self.flow(&copy.input).await?;
        let sink = self.options.sink_resolver.copy(copy)?;
        self.write_stream(sink, &copy.output_url, input)
    }

    fn write_stream(&mut self, sink: SinkSpec, table: &str, input: Flow) -> Result<Flow> {
        if input.is_changelog() && self.options.sink_resolver.changelog(&sink)? == SinkChangelog::Insertions {
            return Err(takes_no_updates(table));
        }
        let key = self.options.sink_resolver.key(&sink)?;
        // A row of the result that changes its key leaves the sink by its old form, which tells only its own key's row.
        if input.is_changelog() && !key.is_empty() && !input.keys.iter().any(|own| own.iter().all(|c| key.contains(c)))
        {
            return Err(hides_rows(table));
        }
        // The formats of changelogs want the kind of every row.
        let input = if is_changelog(&sink.schema.0) {
            self.as_changelog(input)
        } else {
            input
        };
        let bounded = input.bounded;
        Ok(Flow::new(self.write_to(sink, input.stream)?, bounded))
    }
}

fn hides_rows(table: &str) -> EngineError {
    EngineError::Plan(format!(
        "several rows of the changing result may have the same PRIMARY KEY of the sink '{table}': nothing in the query says that it \
         tells them apart; GROUP BY columns of that key, or keep one row of each with ROW_NUMBER() OVER (PARTITION BY ..) = 1"
    ))
}

fn takes_no_updates(table: &str) -> EngineError {
    EngineError::Plan(format!(
        "the sink '{table}' takes insertions only, but the query also updates and takes back rows it has given; \
         use a sink that takes a changelog (print, blackhole, debezium-json, redis and postgres with a PRIMARY KEY), or aggregate in windows"
    ))
}
