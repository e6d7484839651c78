//! Windows of a program: which, when they fire, what they forget, what is computed.

mod slices;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::logical_expr::Expr;
use thalweg_engine::data::with_row_kind;
use thalweg_engine::operator::windows::{self, AccumulationMode, WindowBufferSpec, WindowContext, WindowFunction};
use thalweg_engine::plan::{OperatorSpec, WindowKind, WindowProperty, WindowTime};

use super::graph::Node;
use super::planning::Planned;
use super::source::millis;
use super::{DataStream, OutputTag};
use crate::error::{Error, Result};

#[derive(Clone, Debug)]
enum Kind {
    Tumbling(Duration),
    Sliding(Duration, Duration),
    Cumulate(Duration, Duration),
    Session(Duration),
    Count { size: u64, slide: Option<u64> },
    Global,
    Punctuation(Box<Expr>),
    Landmark { start_ms: i64, step: Duration },
    Delta(Box<Expr>, f64),
    Custom(Arc<dyn windows::Assigner>),
}

/// Which windows a row is in. In event time when the stream has one, unless [`Self::processing_time`] is said.
#[derive(Clone, Debug)]
pub struct WindowAssigner {
    kind: Kind,
    offset_ms: i64,
    timeout: Option<Duration>,
    processing: bool,
}

impl WindowAssigner {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            offset_ms: 0,
            timeout: None,
            processing: false,
        }
    }

    /// Windows of one size, one after the other.
    pub fn tumbling(size: Duration) -> Self {
        Self::of(Kind::Tumbling(size))
    }

    /// Windows of one size that start every `slide`.
    pub fn sliding(size: Duration, slide: Duration) -> Self {
        Self::of(Kind::Sliding(size, slide))
    }

    /// Windows of one start that grow by `step` up to `max`.
    pub fn cumulate(step: Duration, max: Duration) -> Self {
        Self::of(Kind::Cumulate(step, max))
    }

    /// Rows no two of which, one after the other, are `gap` or more apart.
    pub fn session(gap: Duration) -> Self {
        Self::of(Kind::Session(gap))
    }

    /// Windows of so many rows, in the order in which they come. The last one, which may have fewer, leaves at the end
    /// of the input.
    pub fn count(size: u64) -> Self {
        Self::of(Kind::Count { size, slide: None })
    }

    /// The last `size` rows, with every `slide` of them.
    pub fn sliding_count(size: u64, slide: u64) -> Self {
        Self::of(Kind::Count {
            size,
            slide: Some(slide),
        })
    }

    /// One window for all rows, which fires when its trigger says so, or at the end of the input.
    pub fn global() -> Self {
        Self::of(Kind::Global)
    }

    /// Windows that end with each row for which `closes` is true.
    pub fn punctuation(closes: Expr) -> Self {
        Self::of(Kind::Punctuation(Box::new(closes)))
    }

    /// One window from `start_ms` (since the epoch) on, which tells of all since then every `step` of event time.
    pub fn landmark(start_ms: i64, step: Duration) -> Self {
        Self::of(Kind::Landmark { start_ms, step })
    }

    /// A row whose `value` is more than `threshold` away from that of the window's first begins a new window.
    pub fn delta(value: Expr, threshold: f64) -> Self {
        Self::of(Kind::Delta(Box::new(value), threshold))
    }

    /// An assigner of the program.
    pub fn custom(assigner: Arc<dyn windows::Assigner>) -> Self {
        Self::of(Kind::Custom(assigner))
    }

    /// Windows start at multiples of their size (or slide) plus this.
    pub fn offset_ms(mut self, offset_ms: i64) -> Self {
        self.offset_ms = offset_ms;
        self
    }

    /// A count window whose first row is so old, in processing time, leaves as it is.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The windows are of the time at which rows come.
    pub fn processing_time(mut self) -> Self {
        self.processing = true;
        self
    }

    /// Whether the windows are spans of time.
    fn is_timed(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Count { .. } | Kind::Global | Kind::Punctuation(_) | Kind::Delta(_, _)
        )
    }

    fn check(&self) -> Result<()> {
        let tumbles = matches!(self.kind, Kind::Count { slide: None, .. });
        if self.timeout.is_some() && !tumbles {
            return Err(Error::statement("only count windows that do not slide have a timeout"));
        }
        let has_offset = matches!(
            self.kind,
            Kind::Tumbling(_) | Kind::Sliding(_, _) | Kind::Cumulate(_, _)
        );
        if self.offset_ms != 0 && !has_offset {
            return Err(Error::statement(
                "only tumbling, sliding and cumulating windows have an offset",
            ));
        }
        Ok(())
    }

    /// The windows of event time that a window join takes.
    pub(super) fn kind_of_time(&self) -> Result<WindowKind> {
        self.check()?;
        let remedy = "co_group(..) takes windows of any kind";
        match self.kind_of_slices()? {
            Some(kind) if !self.processing && !matches!(kind, WindowKind::Session { .. }) => {
                kind.check()
                    .map_err(|wrong| Error::statement(wrong).with_remedy(remedy))?;
                Ok(kind)
            }
            _ => Err(Error::unsupported(
                "a window join is in tumbling, sliding (by a part of their size) or cumulating windows of event time",
            )
            .with_remedy(remedy)),
        }
    }

    fn plan(&self, stream: &DataStream) -> Result<Planning> {
        self.check()?;
        let (session, schema) = (&stream.builder.session, &stream.schema);
        let offset = self.offset_ms;
        let default = |is_event: bool| -> Arc<dyn windows::Trigger> {
            if is_event {
                Arc::new(windows::EventTime)
            } else {
                Arc::new(windows::ProcessingTime)
            }
        };
        let time = match stream.time.filter(|_| !self.processing) {
            Some(column) => WindowTime::Event(column),
            None if self.processing || !self.is_timed() => WindowTime::Processing,
            None => {
                return Err(Error::statement("a window in event time needs a stream that has one")
                    .with_remedy("give the source a WatermarkStrategy, or say processing_time() of the window"));
            }
        };
        let is_event = matches!(time, WindowTime::Event(_));
        let global = || Arc::new(windows::Global) as Arc<dyn windows::Assigner>;
        let (assigner, trigger, evictor): Parts = match &self.kind {
            Kind::Tumbling(size) => (
                Arc::new(windows::Tumbling::new(millis(*size)?, offset)?),
                default(is_event),
                None,
            ),
            Kind::Sliding(size, slide) => (
                Arc::new(windows::Sliding::new(millis(*size)?, millis(*slide)?, offset)?),
                default(is_event),
                None,
            ),
            Kind::Cumulate(step, max) => (
                Arc::new(windows::Cumulate::new(millis(*step)?, millis(*max)?, offset)?),
                default(is_event),
                None,
            ),
            Kind::Session(gap) => (Arc::new(windows::Session::new(millis(*gap)?)?), default(is_event), None),
            Kind::Custom(assigner) => (Arc::clone(assigner), default(is_event), None),
            Kind::Global => (global(), Arc::new(windows::Never), None),
            Kind::Count { size, slide: None } => {
                let trigger: Arc<dyn windows::Trigger> = match self.timeout {
                    Some(timeout) => Arc::new(windows::CountOrTimeout {
                        count: at_least_one(*size)?,
                        timeout_ms: millis(timeout)?,
                    }),
                    None => Arc::new(windows::Purging(Arc::new(windows::Count(at_least_one(*size)?)))),
                };
                (global(), trigger, None)
            }
            Kind::Count {
                size,
                slide: Some(slide),
            } => {
                let size = usize::try_from(at_least_one(*size)?).unwrap_or(usize::MAX);
                (
                    global(),
                    Arc::new(windows::Count(at_least_one(*slide)?)),
                    Some(Arc::new(windows::KeepLast(size))),
                )
            }
            Kind::Punctuation(closes) => {
                let condition = session.plan_typed(closes.as_ref().clone(), schema, &DataType::Boolean)?;
                (global(), Arc::new(windows::Punctuation { condition }), None)
            }
            Kind::Landmark { start_ms, step } => {
                if !is_event {
                    return Err(Error::statement("a landmark window is of event time"));
                }
                let step_ms = positive(*step)?;
                (
                    Arc::new(windows::Landmark { start_ms: *start_ms }),
                    Arc::new(windows::LandmarkSteps { step_ms }),
                    None,
                )
            }
            Kind::Delta(value, threshold) => {
                let value = session.plan_number(value.as_ref().clone(), schema)?;
                let threshold = *threshold;
                (global(), Arc::new(windows::DeltaClose { value, threshold }), None)
            }
        };
        Ok(Planning {
            assigner,
            trigger,
            evictor,
            time,
        })
    }
}

type Parts = (
    Arc<dyn windows::Assigner>,
    Arc<dyn windows::Trigger>,
    Option<Arc<dyn windows::Evictor>>,
);

struct Planning {
    assigner: Arc<dyn windows::Assigner>,
    trigger: Arc<dyn windows::Trigger>,
    evictor: Option<Arc<dyn windows::Evictor>>,
    time: WindowTime,
}

fn at_least_one(count: u64) -> Result<u64> {
    if count > 0 {
        return Ok(count);
    }
    Err(Error::statement("a window of no rows never fires"))
}

fn positive(duration: Duration) -> Result<i64> {
    match millis(duration)? {
        0 => Err(Error::statement("an interval of a window must be above 0 ms")),
        ms => Ok(ms),
    }
}

/// When a window fires.
#[derive(Clone, Debug)]
pub enum WindowTrigger {
    /// When event time has passed its end, then with each late row. The default in event time.
    EventTime,
    /// When the clock has passed its end. The default in processing time.
    ProcessingTime,
    /// Never: global windows then leave at the end of the input.
    Never,
    /// With every so many rows.
    Count(u64),
    /// At every multiple of an interval in event time that follows a row, and at the window's end.
    ContinuousEventTime(Duration),
    /// At every multiple of an interval in processing time that follows a row.
    ContinuousProcessingTime(Duration),
    /// When a value is more than a threshold away from the one at the last firing.
    Delta(Box<Expr>, f64),
    /// Early, on time and late.
    EarlyLate {
        /// So long after the first row that is in no firing yet, in processing time.
        early: Option<Duration>,
        /// With every so many late rows.
        late_count: u64,
    },
    /// As another one, and the window then forgets its rows.
    Purging(Box<WindowTrigger>),
    /// A trigger of the program.
    Custom(Arc<dyn windows::Trigger>),
}

impl WindowTrigger {
    fn plan(&self, stream: &DataStream) -> Result<Arc<dyn windows::Trigger>> {
        let session = &stream.builder.session;
        Ok(match self {
            WindowTrigger::EventTime => Arc::new(windows::EventTime),
            WindowTrigger::ProcessingTime => Arc::new(windows::ProcessingTime),
            WindowTrigger::Never => Arc::new(windows::Never),
            WindowTrigger::Count(count) => Arc::new(windows::Count(at_least_one(*count)?)),
            WindowTrigger::ContinuousEventTime(interval) => Arc::new(windows::ContinuousEventTime {
                interval_ms: positive(*interval)?,
            }),
            WindowTrigger::ContinuousProcessingTime(interval) => Arc::new(windows::ContinuousProcessingTime {
                interval_ms: positive(*interval)?,
            }),
            WindowTrigger::Delta(value, threshold) => Arc::new(windows::Delta {
                value: session.plan_number(value.as_ref().clone(), &stream.schema)?,
                threshold: *threshold,
            }),
            WindowTrigger::EarlyLate { early, late_count } => Arc::new(windows::EarlyLate {
                early_ms: early.map(millis).transpose()?,
                late_count: at_least_one(*late_count)?,
            }),
            WindowTrigger::Purging(inner) => Arc::new(windows::Purging(inner.plan(stream)?)),
            WindowTrigger::Custom(trigger) => Arc::clone(trigger),
        })
    }
}

/// What a window forgets when it fires, before its function is called.
#[derive(Clone, Debug)]
pub enum WindowEvictor {
    /// All but the last so many rows.
    Count(u64),
    /// The rows that are older than the youngest by so much, or more.
    Time(Duration),
    /// The rows whose value is as far as this from that of the last one, or further.
    Delta(Box<Expr>, f64),
    /// An evictor of the program.
    Custom(Arc<dyn windows::Evictor>),
}

impl WindowEvictor {
    fn plan(&self, stream: &DataStream) -> Result<Arc<dyn windows::Evictor>> {
        Ok(match self {
            WindowEvictor::Count(count) => Arc::new(windows::KeepLast(usize::try_from(*count).unwrap_or(usize::MAX))),
            WindowEvictor::Time(span) => Arc::new(windows::KeepRecent(positive(*span)?)),
            WindowEvictor::Delta(value, threshold) => Arc::new(windows::KeepNear {
                value: stream
                    .builder
                    .session
                    .plan_number(value.as_ref().clone(), &stream.schema)?,
                threshold: *threshold,
            }),
            WindowEvictor::Custom(evictor) => Arc::clone(evictor),
        })
    }
}

/// A stream in windows, on the way to what is computed of them.
#[derive(Clone)]
pub struct WindowedStream {
    stream: DataStream,
    keys: Vec<Planned>,
    assigner: WindowAssigner,
    trigger: Option<WindowTrigger>,
    evictor: Option<WindowEvictor>,
    allowed_lateness: Duration,
    late_output: Option<OutputTag>,
    mode: AccumulationMode,
}

impl WindowedStream {
    pub(super) fn new(stream: DataStream, keys: Vec<Planned>, assigner: WindowAssigner) -> Self {
        Self {
            stream,
            keys,
            assigner,
            trigger: None,
            evictor: None,
            allowed_lateness: Duration::ZERO,
            late_output: None,
            mode: AccumulationMode::default(),
        }
    }

    /// When the windows fire, in place of the assigner's own trigger.
    pub fn trigger(mut self, trigger: WindowTrigger) -> Self {
        self.trigger = Some(trigger);
        self
    }

    /// What they forget when they fire, in place of the assigner's own evictor.
    pub fn evictor(mut self, evictor: WindowEvictor) -> Self {
        self.evictor = Some(evictor);
        self
    }

    /// For how long a complete window stays for late rows.
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.allowed_lateness = lateness;
        self
    }

    /// Where rows go that come when their windows are gone; without, they are dropped and counted.
    pub fn late_output(mut self, tag: &OutputTag) -> Self {
        self.late_output = Some(tag.clone());
        self
    }

    /// How the results of a window that fires more than once relate.
    pub fn accumulation(mut self, mode: AccumulationMode) -> Self {
        self.mode = mode;
        self
    }

    /// Aggregate functions of the windows' rows. The result has the key, the functions, `window_start`, `window_end` and
    /// `window_time`, which is its event time; with accumulating and retracting it is a changelog.
    ///
    /// # Errors
    /// When a function does not fit the stream, or the parts of the window do not go together.
    pub fn aggregate(self, functions: Vec<Expr>) -> Result<DataStream> {
        let aggregates = self
            .stream
            .builder
            .session
            .plan_aggregates(functions, &self.stream.schema)?;
        let zone = self.stream.time.and_then(|time| {
            let DataType::Timestamp(_, zone) = self.stream.schema.field(time).data_type() else {
                return None;
            };
            zone.clone()
        });
        let bound = DataType::Timestamp(TimeUnit::Millisecond, zone);
        let mut fields: Vec<Field> = self.keys.iter().map(|key| key.field.clone()).collect();
        fields.extend(
            aggregates
                .functions
                .iter()
                .map(|function| function.field().as_ref().clone()),
        );
        let time = fields.len() + 2;
        fields.extend(["window_start", "window_end", "window_time"].map(|name| Field::new(name, bound.clone(), true)));
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        if let Some(node) = self.in_slices(&aggregates, &schema)? {
            return Ok(self.stream.builder.add(node, Some(time)));
        }
        let function = WindowFunction::Aggregate {
            aggregates,
            properties: vec![WindowProperty::Start, WindowProperty::End, WindowProperty::Time],
        };
        let mut result = self.finish(function, schema)?;
        result.time = Some(time);
        Ok(result)
    }

    /// A function of the rows of each window, which are in the order in which they came; what it gives has `schema`.
    ///
    /// # Errors
    /// When the parts of the window do not go together.
    pub fn apply(
        self,
        schema: SchemaRef,
        function: impl Fn(&WindowContext<'_>, &RecordBatch) -> thalweg_engine::Result<RecordBatch> + Send + Sync + 'static,
    ) -> Result<DataStream> {
        self.finish(WindowFunction::Apply(Arc::new(function)), schema)
    }

    fn finish(self, function: WindowFunction, schema: SchemaRef) -> Result<DataStream> {
        let Planning {
            assigner,
            trigger,
            evictor,
            time,
        } = self.assigner.plan(&self.stream)?;
        let schema = match self.mode {
            AccumulationMode::AccumulatingAndRetracting => with_row_kind(&schema),
            _ => schema,
        };
        let trigger = match &self.trigger {
            Some(trigger) => trigger.plan(&self.stream)?,
            None => trigger,
        };
        let evictor = match &self.evictor {
            Some(evictor) => Some(evictor.plan(&self.stream)?),
            None => evictor,
        };
        let spec = WindowBufferSpec {
            assigner,
            trigger,
            evictor,
            time,
            keys: self.keys.iter().map(|key| key.expr.clone()).collect(),
            function,
            allowed_lateness_ms: millis(self.allowed_lateness)?,
            late_output: self.late_output.as_ref().map(|tag| tag.id),
            mode: self.mode,
            input: self.stream.schema(),
            schema: Arc::clone(&schema),
        };
        let operator = OperatorSpec::Custom(spec.operator("Window")?);
        let mut node = Node::new(operator, "Window", schema).with_input(0, &self.stream.upstream);
        if self.keys.is_empty() {
            node = node.single();
        }
        Ok(self.stream.builder.add(node, None))
    }
}
