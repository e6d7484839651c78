//! Two streams for one function.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use thalweg_engine::operator::process::{PerRecord, ProcessFunction, ProcessSpec, RecordFunction, StateDeclarations};
use thalweg_engine::plan::{OperatorSpec, ScalarExpr};

use super::DataStream;
use super::graph::Node;
use crate::error::Result;

/// One input: its stream, its keys, whether it is broadcast.
type Side = (DataStream, Vec<ScalarExpr>, bool);

/// Two streams, each with its own columns, for one function: rows of the first come as input 0, of the second as input 1.
#[derive(Clone)]
pub struct ConnectedStreams {
    first: Side,
    second: Side,
}

impl DataStream {
    /// This stream and another for one function whose state is the subtask's.
    ///
    /// # Errors
    /// When the streams are of different programs.
    pub fn connect(&self, other: &DataStream) -> Result<ConnectedStreams> {
        ConnectedStreams::new((self.clone(), Vec::new(), false), (other.clone(), Vec::new(), false))
    }

    /// This stream and another that every subtask gets all of: see [`super::BroadcastState`].
    ///
    /// # Errors
    /// When the streams are of different programs.
    pub fn connect_broadcast(&self, other: &DataStream) -> Result<ConnectedStreams> {
        ConnectedStreams::new((self.clone(), Vec::new(), false), (other.broadcast(), Vec::new(), true))
    }
}

impl ConnectedStreams {
    pub(super) fn new(first: Side, second: Side) -> Result<Self> {
        first.0.check_same_program(&second.0)?;
        Ok(Self { first, second })
    }

    /// A function with state, timers and side outputs.
    ///
    /// # Errors
    /// When two states have one name.
    pub fn process<F: ProcessFunction + 'static>(
        &self,
        states: StateDeclarations,
        output: SchemaRef,
        function: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Result<DataStream> {
        let input = |side: &Side| side.0.process_input(side.1.clone(), side.2);
        let spec = ProcessSpec {
            inputs: vec![input(&self.first), input(&self.second)],
            states,
            function: Arc::new(move |subtask| Box::new(function(subtask))),
            output: Arc::clone(&output),
        };
        let node = Node::new(OperatorSpec::Custom(spec.operator("CoProcess")?), "CoProcess", output)
            .with_input(0, &self.first.0.upstream)
            .with_input(1, &self.second.0.upstream);
        Ok(self.first.0.builder.add(node, None))
    }

    /// The same, a row at a time.
    ///
    /// # Errors
    /// When two states have one name.
    pub fn process_records<F: RecordFunction + 'static>(
        &self,
        states: StateDeclarations,
        output: SchemaRef,
        function: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Result<DataStream> {
        let schema = Arc::clone(&output);
        self.process(states, output, move |subtask| {
            PerRecord::new(function(subtask), Arc::clone(&schema))
        })
    }
}
