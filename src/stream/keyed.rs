//! [`KeyedStream`]: a stream whose rows of equal keys meet.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Expr;
use thalweg_engine::operator::process::{
    ListState, PerRecord, ProcessFunction, RecordContext, RecordFunction, RowView, StateDeclarations,
};
use thalweg_engine::plan::{Partitioning, ScalarExpr};

use super::connected::ConnectedStreams;
use super::join::IntervalJoined;
use super::planning::{Planned, column_index};
use super::rolling::{RollingFunction, RollingKind};
use super::{DataStream, WindowAssigner, WindowedStream};
use crate::error::{Error, Result};

/// A stream whose rows of equal keys meet in one subtask. Functions on it have state per key.
#[derive(Clone)]
pub struct KeyedStream {
    pub(super) stream: DataStream,
    pub(super) keys: Vec<Planned>,
}

impl KeyedStream {
    pub(super) fn new(stream: &DataStream, exprs: Vec<Expr>) -> Result<Self> {
        if exprs.is_empty() {
            return Err(Error::statement("there is no key")
                .with_remedy("name columns, or use window_all(..) and process(..) without a key"));
        }
        let session = &stream.builder.session;
        let keys = exprs.into_iter().map(|expr| session.plan_expr(expr, &stream.schema));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let partitioning = Partitioning::Hash(keys.iter().map(|key| key.expr.clone()).collect());
        Ok(Self {
            stream: stream.partitioned(partitioning),
            keys,
        })
    }

    /// The columns of the stream.
    pub fn schema(&self) -> SchemaRef {
        self.stream.schema()
    }

    pub(super) fn key_exprs(&self) -> Vec<ScalarExpr> {
        self.keys.iter().map(|key| key.expr.clone()).collect()
    }

    pub(super) fn key_fields(&self) -> Vec<Field> {
        self.keys.iter().map(|key| key.field.clone()).collect()
    }

    /// Windows per key.
    pub fn window(&self, assigner: WindowAssigner) -> WindowedStream {
        WindowedStream::new(self.stream.clone(), self.keys.clone(), assigner)
    }

    /// Windows of so many rows per key.
    pub fn count_window(&self, rows: u64) -> WindowedStream {
        self.window(WindowAssigner::count(rows))
    }

    /// A function with state per key, timers and side outputs.
    ///
    /// # Errors
    /// When two states have one name.
    pub fn process<F: ProcessFunction + 'static>(
        &self,
        states: StateDeclarations,
        output: SchemaRef,
        function: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Result<DataStream> {
        let make = move |subtask: usize| Box::new(function(subtask)) as Box<dyn ProcessFunction>;
        self.stream
            .process_keyed(self.key_exprs(), states, output, Arc::new(make))
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

    /// Folds the rows of each key: `function` makes one row of what it has made so far and the next row. Each row is
    /// followed by what it makes.
    ///
    /// # Errors
    /// Never, so far.
    pub fn reduce(
        &self,
        function: impl Fn(&[ScalarValue], &[ScalarValue]) -> thalweg_engine::Result<Vec<ScalarValue>>
        + Send
        + Sync
        + 'static,
    ) -> Result<DataStream> {
        let mut states = StateDeclarations::new();
        let so_far = states.list::<ScalarValue>("reduced");
        let function: Arc<ReduceFunction> = Arc::new(function);
        self.process_records(states, self.schema(), move |_| Reduce {
            so_far,
            function: Arc::clone(&function),
        })
    }

    fn rolling(&self, kind: RollingKind, column: Option<&str>) -> Result<DataStream> {
        let schema = self.schema();
        let column = column.map(|name| column_index(name, &schema)).transpose()?;
        let (name, input) = match column {
            Some(index) => (
                schema.field(index).name().clone(),
                schema.field(index).data_type().clone(),
            ),
            None => ("count".to_string(), DataType::Int64),
        };
        if !input.is_numeric() {
            return Err(Error::statement(format!(
                "'{name}' is {input}, {kind:?} works on numbers"
            )));
        }
        let exact = input.is_integer();
        let result = if exact { DataType::Int64 } else { DataType::Float64 };
        let mut fields = self.key_fields();
        fields.push(Field::new(name, result, true));
        let output: SchemaRef = Arc::new(Schema::new(fields));
        let mut states = StateDeclarations::new();
        let (integer, float) = (states.value::<i64>("integer"), states.value::<f64>("float"));
        let keys = self.key_exprs();
        let schema = Arc::clone(&output);
        self.process(states, output, move |_| RollingFunction {
            kind,
            column,
            exact,
            integer,
            float,
            keys: keys.clone(),
            schema: Arc::clone(&schema),
        })
    }

    /// The sum of a column over the rows of the key so far, after each row: the key and the sum, an integer or a float. NULL
    /// adds nothing.
    ///
    /// # Errors
    /// When there is no such column of numbers.
    pub fn sum(&self, column: &str) -> Result<DataStream> {
        self.rolling(RollingKind::Sum, Some(column))
    }

    /// The least value of a column so far, as [`Self::sum`].
    ///
    /// # Errors
    /// When there is no such column of numbers.
    pub fn min(&self, column: &str) -> Result<DataStream> {
        self.rolling(RollingKind::Min, Some(column))
    }

    /// The greatest value of a column so far, as [`Self::sum`].
    ///
    /// # Errors
    /// When there is no such column of numbers.
    pub fn max(&self, column: &str) -> Result<DataStream> {
        self.rolling(RollingKind::Max, Some(column))
    }

    /// How many rows the key has had, after each row.
    ///
    /// # Errors
    /// Never, so far.
    pub fn count(&self) -> Result<DataStream> {
        self.rolling(RollingKind::Count, None)
    }

    /// This stream and another whose keys are of the same types, for one function with one state per key.
    ///
    /// # Errors
    /// When the types of the keys differ.
    pub fn connect(&self, other: &KeyedStream) -> Result<ConnectedStreams> {
        self.check_keys(other)?;
        ConnectedStreams::new(
            (self.stream.clone(), self.key_exprs(), false),
            (other.stream.clone(), other.key_exprs(), false),
        )
    }

    /// This stream and another that every subtask gets all of: see [`super::BroadcastState`].
    ///
    /// # Errors
    /// When the streams are of different programs.
    pub fn connect_broadcast(&self, other: &DataStream) -> Result<ConnectedStreams> {
        ConnectedStreams::new(
            (self.stream.clone(), self.key_exprs(), false),
            (other.broadcast(), Vec::new(), true),
        )
    }

    /// Rows of this stream with those of another of equal keys whose times are near.
    ///
    /// # Errors
    /// When the types of the keys differ.
    pub fn interval_join(&self, other: &KeyedStream) -> Result<IntervalJoined> {
        self.check_keys(other)?;
        Ok(IntervalJoined::new(self.clone(), other.clone()))
    }

    pub(super) fn check_keys(&self, other: &KeyedStream) -> Result<()> {
        self.stream.check_same_program(&other.stream)?;
        let types = |stream: &KeyedStream| -> Vec<DataType> {
            let keys = stream.keys.iter();
            keys.map(|key| key.field.data_type().clone()).collect()
        };
        let (left, right) = (types(self), types(other));
        if left == right {
            return Ok(());
        }
        Err(Error::statement(format!(
            "the keys of the two streams differ in type: {left:?} and {right:?}"
        ))
        .with_remedy("cast one of them in key_by_exprs(..)"))
    }
}

type ReduceFunction = dyn Fn(&[ScalarValue], &[ScalarValue]) -> thalweg_engine::Result<Vec<ScalarValue>> + Send + Sync;

struct Reduce {
    so_far: ListState<ScalarValue>,
    function: Arc<ReduceFunction>,
}

impl RecordFunction for Reduce {
    fn on_record(
        &mut self,
        _port: usize,
        row: RowView<'_>,
        cx: &mut RecordContext<'_, '_>,
    ) -> thalweg_engine::Result<()> {
        let batch: &RecordBatch = row.batch();
        let values = (0..batch.num_columns()).map(|column| row.scalar(column));
        let values = values.collect::<thalweg_engine::Result<Vec<_>>>()?;
        let key = cx.key();
        let so_far = self.so_far.take(cx.states(), key)?;
        let reduced = if so_far.is_empty() {
            values
        } else {
            (self.function)(&so_far, &values)?
        };
        for value in &reduced {
            self.so_far.push(cx.states(), key, value.clone())?;
        }
        cx.emit(reduced)
    }
}
