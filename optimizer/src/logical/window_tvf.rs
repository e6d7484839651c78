//! [`WindowTvf`]: TUMBLE, HOP, CUMULATE and SESSION as tables.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::{Column, DFSchema, DFSchemaRef, TableReference, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore};
use thalweg_engine::plan::WindowKind;

use super::{Result, names_of, only_column, only_input};

/// The column with a window's first millisecond.
pub const WINDOW_START: &str = "window_start";
/// The column with the first millisecond after a window.
pub const WINDOW_END: &str = "window_end";
/// The column with a window's last millisecond: the event time of what is computed of the window.
pub const WINDOW_TIME: &str = "window_time";

/// Appends `window_start`, `window_end` and `window_time` to each row of the input, once for each window it is in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowTvf {
    input: Arc<LogicalPlan>,
    window: WindowKind,
    time: Column,
    partition_by: Vec<Expr>,
    schema: DFSchemaRef,
}

impl WindowTvf {
    /// Windows over `time`; `partition_by` is for sessions only.
    ///
    /// # Errors
    /// When the lengths contradict each other, the time is no timestamp of the input, or the input has a column of the
    /// name of one that is appended.
    pub fn try_new(input: Arc<LogicalPlan>, window: WindowKind, time: Column, partition_by: Vec<Expr>) -> Result<Self> {
        if let Err(why) = window.check() {
            return plan_err!("{}: {why}", name_of(&window));
        }
        if !partition_by.is_empty() && !matches!(window, WindowKind::Session { .. }) {
            return plan_err!(
                "{} does not take PARTITION BY: its windows are the same for all keys; leave it out and group by the keys",
                name_of(&window)
            );
        }
        let schema = window_schema(&input, &window, &time)?;
        Ok(Self {
            input,
            window,
            time,
            partition_by,
            schema,
        })
    }

    /// The rows that are put into windows.
    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }

    /// The windows.
    pub fn window(&self) -> WindowKind {
        self.window
    }

    /// The input's column with the time.
    pub fn time(&self) -> &Column {
        &self.time
    }

    /// The keys that have sessions of their own.
    pub fn partition_by(&self) -> &[Expr] {
        &self.partition_by
    }
}

fn name_of(window: &WindowKind) -> &'static str {
    match window {
        WindowKind::Tumble { .. } => "TUMBLE",
        WindowKind::Hop { .. } => "HOP",
        WindowKind::Cumulate { .. } => "CUMULATE",
        WindowKind::Session { .. } => "SESSION",
    }
}

fn window_schema(input: &LogicalPlan, window: &WindowKind, time: &Column) -> Result<DFSchemaRef> {
    let schema = input.schema();
    let zone = match schema.qualified_field_from_column(time)?.1.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        other => {
            return plan_err!(
                "{}: DESCRIPTOR names '{}', which is {other}, not a TIMESTAMP; name the column with the event time, or cast it in a subquery",
                name_of(window),
                time.name
            );
        }
    };
    let mut fields: Vec<(Option<TableReference>, FieldRef)> = schema
        .iter()
        .map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)))
        .collect();
    for name in [WINDOW_START, WINDOW_END, WINDOW_TIME] {
        if names_of(schema).any(|other| other == name) {
            return plan_err!(
                "{}: its input has a column '{name}' already; give it another name in a subquery",
                name_of(window)
            );
        }
        let data_type = DataType::Timestamp(TimeUnit::Millisecond, zone.clone());
        fields.push((None, Arc::new(Field::new(name, data_type, false))));
    }
    // Keys of the input are none of the output, where a row may be in several windows: no functional dependencies.
    Ok(Arc::new(DFSchema::new_with_metadata(
        fields,
        schema.metadata().clone(),
    )?))
}

impl PartialOrd for WindowTvf {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let order = self.window.cmp(&other.window).then_with(|| self.time.cmp(&other.time));
        let order = match order {
            Ordering::Equal => self.input.partial_cmp(&other.input),
            decided => Some(decided),
        };
        order.filter(|order| *order != Ordering::Equal || self == other)
    }
}

impl UserDefinedLogicalNodeCore for WindowTvf {
    fn name(&self) -> &str {
        "WindowTvf"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let mut exprs = vec![Expr::Column(self.time.clone())];
        exprs.extend(self.partition_by.iter().cloned());
        exprs
    }

    /// A filter on a row's own columns may come before tumbling, hopping and cumulating windows. A row that is dropped
    /// before may tear a session in two, unless all of its key are.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let own = [WINDOW_START, WINDOW_END, WINDOW_TIME].map(String::from);
        if !matches!(self.window, WindowKind::Session { .. }) {
            return own.into();
        }
        let is_key = |column: &Column| self.partition_by.contains(&Expr::Column(column.clone()));
        let columns = self.input.schema().columns().into_iter();
        let others = columns.filter(|column| !is_key(column)).map(|column| column.name);
        others.chain(own).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowTvf: {} of {}", self.window, self.time)?;
        if !self.partition_by.is_empty() {
            let keys: Vec<String> = self.partition_by.iter().map(ToString::to_string).collect();
            write!(f, " partition by {}", keys.join(", "))?;
        }
        Ok(())
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        let time = only_column(exprs.next(), "WindowTvf")?;
        let input = only_input(inputs, "WindowTvf")?;
        Self::try_new(input, self.window, time, exprs.collect())
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let width = self.input.schema().fields().len();
        let passed_on = output_columns.iter().copied().filter(|column| *column < width);
        Some(vec![passed_on.collect()])
    }

    /// Each row comes out at least once; but what session it is in, rows after it may decide.
    fn supports_limit_pushdown(&self) -> bool {
        !matches!(self.window, WindowKind::Session { .. })
    }
}
