//! The DataStream API: streaming programs in Rust, on the same runtime as SQL.
//!
//! A [`StreamBuilder`] makes streams of tables, batches or generators; the methods of [`DataStream`], [`KeyedStream`] and
//! [`WindowedStream`] add operators; [`DataStream::print`], [`DataStream::sink_to_table`] and
//! [`DataStream::execute_and_collect`] end the program. Names are those of Flink's API. Functions of the program take whole
//! batches; process functions have a face for single rows as well.
//!
//! A wrong program (an unknown column, types that do not go together, an id given twice) is an error of the method that
//! makes it wrong, before anything runs.
//!
//! ```
//! # fn main() -> thalweg::Result<()> {
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use thalweg::engine::Batch;
//! use thalweg::stream::{WatermarkStrategy, WindowAssigner};
//! # use arrow::array::{Int64Array, TimestampMillisecondArray};
//! # use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
//! # use datafusion::functions_aggregate::expr_fn::sum;
//! # use datafusion::prelude::col;
//! # let time = DataType::Timestamp(TimeUnit::Millisecond, None);
//! # let schema = Arc::new(Schema::new(vec![
//! #     Field::new("key", DataType::Int64, false),
//! #     Field::new("value", DataType::Int64, false),
//! #     Field::new("time", time, false),
//! # ]));
//! # let batch = Batch::try_new(schema.clone(), vec![
//! #     Arc::new(Int64Array::from(vec![1, 1, 2])),
//! #     Arc::new(Int64Array::from(vec![10, 20, 30])),
//! #     Arc::new(TimestampMillisecondArray::from(vec![100, 1900, 200])),
//! # ])?;
//! let session = thalweg::Session::new(thalweg::SessionConfig::default())?;
//! let builder = session.stream();
//! let rows = builder
//!     .from_batches(schema, vec![batch], WatermarkStrategy::monotonous("time"))?
//!     .key_by(&["key"])?
//!     .window(WindowAssigner::tumbling(Duration::from_secs(1)))
//!     .aggregate(vec![sum(col("value")).alias("total")])?
//!     .execute_and_collect()?;
//! assert_eq!(rows.iter().map(Batch::num_rows).sum::<usize>(), 3);
//! # Ok(())
//! # }
//! ```

mod combine;
mod connected;
mod data_stream;
mod graph;
mod join;
mod keyed;
mod map;
mod planning;
mod rolling;
mod source;
mod window;

pub use connected::ConnectedStreams;
pub use data_stream::{DataStream, OutputTag};
pub use join::{CoGroupBuilder, IntervalJoined, JoinBuilder, JoinedWindows};
pub use keyed::KeyedStream;
pub use source::{StreamBuilder, StreamJob, WatermarkStrategy};
pub use thalweg_engine::operator::process::{
    AggregateFunction, AggregatingState, BroadcastState, ColumnState, ListState, MapState, PerRecord, ProcessContext,
    ProcessFunction, RecordContext, RecordFunction, ReducingState, RowView, StateDeclarations, StateValue, States, Ttl,
    ValueState,
};
pub use thalweg_engine::operator::windows::{AccumulationMode, Bounds, WindowContext};
pub use window::{WindowAssigner, WindowEvictor, WindowTrigger, WindowedStream};

use crate::Session;

impl Session {
    /// Begins a streaming program.
    pub fn stream(&self) -> StreamBuilder {
        StreamBuilder::new(self)
    }
}
