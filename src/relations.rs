//! Relations that the SQL planner does not know: windows as tables, and tables as of a time.

use std::sync::Arc;

use datafusion::common::{Column, ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, TableFactor, TableFunctionArgs,
    TableVersion,
};
use thalweg_engine::plan::WindowKind;
use thalweg_optimizer::logical::{TemporalTable, WindowTvf, as_plan};

use crate::statement::{PARTITION_BY, WINDOW_FUNCTIONS};

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
const NS_PER_MS: i64 = 1_000_000;

/// Plans them.
#[derive(Debug)]
pub(crate) struct StreamRelations;

impl RelationPlanner for StreamRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::Table {
            name,
            args,
            version,
            alias,
            ..
        } = &relation
        else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let alias = alias.clone();
        let plan = match (window_function(name), args, version) {
            (Some(function), Some(args), None) => window(function, args, context)?,
            (_, None, Some(TableVersion::ForSystemTimeAsOf(time))) => {
                let time = left_time(time, context)?;
                temporal(relation, time, context)?
            }
            (_, _, Some(version)) => {
                return plan_err!(
                    "'{version}' behind a table is not supported; FOR SYSTEM_TIME AS OF is, behind a table's name"
                );
            }
            _ => return Ok(RelationPlanning::Original(Box::new(relation))),
        };
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

fn window_function(name: &ObjectName) -> Option<&'static str> {
    let [part] = &name.0[..] else { return None };
    let ident = part.as_ident().filter(|ident| ident.quote_style.is_none())?;
    WINDOW_FUNCTIONS
        .into_iter()
        .find(|function| ident.value.eq_ignore_ascii_case(function))
}

fn temporal(mut relation: TableFactor, time: Column, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    if let TableFactor::Table { version, alias, .. } = &mut relation {
        *version = None;
        *alias = None;
    }
    let table = context.plan(relation)?;
    Ok(as_plan(TemporalTable::new(Arc::new(table), time)))
}

/// The column of the left side, as it is written.
fn left_time(time: &SqlExpr, context: &dyn RelationPlannerContext) -> Result<Column> {
    let parts = match time {
        SqlExpr::Identifier(name) => vec![name.clone()],
        SqlExpr::CompoundIdentifier(parts) => parts.clone(),
        other => {
            return plan_err!(
                "FOR SYSTEM_TIME AS OF {other}: that is no column; name a time column of the left side of the join"
            );
        }
    };
    let mut names: Vec<String> = parts.into_iter().map(|part| context.normalize_ident(part)).collect();
    let name = names.pop().unwrap_or_default();
    Ok(match names.pop() {
        Some(relation) => Column::new(Some(relation), name),
        None => Column::new_unqualified(name),
    })
}

/// The arguments of a call by their parameters' names.
struct Arguments {
    function: &'static str,
    given: Vec<(&'static str, SqlExpr)>,
}

/// The parameters of a function in order, `OFFSET` last where it is optional.
fn parameters(function: &str) -> &'static [&'static str] {
    match function {
        "TUMBLE" => &["DATA", "TIMECOL", "SIZE", "OFFSET"],
        "HOP" => &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"],
        "CUMULATE" => &["DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"],
        _ => &["DATA", "TIMECOL", "GAP"],
    }
}

fn usage(function: &str) -> &'static str {
    match function {
        "TUMBLE" => "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
        "HOP" => "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' MINUTE, INTERVAL '10' MINUTE)",
        "CUMULATE" => "CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '2' MINUTE, INTERVAL '10' MINUTE)",
        _ => "SESSION(TABLE t PARTITION BY k, DESCRIPTOR(ts), INTERVAL '10' MINUTE)",
    }
}

impl Arguments {
    fn new(function: &'static str, args: &TableFunctionArgs) -> Result<Self> {
        let mut arguments = Self {
            function,
            given: Vec::new(),
        };
        let mut position = 0;
        for arg in &args.args {
            let (name, value) = match arg {
                FunctionArg::Named { name, arg, .. } => (Some(name.value.to_uppercase()), arg),
                FunctionArg::Unnamed(arg) => (None, arg),
                FunctionArg::ExprNamed { name, arg, .. } => (Some(name.to_string().to_uppercase()), arg),
            };
            let FunctionArgExpr::Expr(value) = value else {
                return plan_err!("{function}: '{arg}' is no argument; write {}", usage(function));
            };
            arguments.add(name, value.clone(), &mut position)?;
        }
        Ok(arguments)
    }

    fn add(&mut self, name: Option<String>, value: SqlExpr, position: &mut usize) -> Result<()> {
        let function = self.function;
        let known = parameters(function);
        let parameter = match name {
            Some(name) if name == PARTITION_BY => PARTITION_BY,
            Some(name) => match known.iter().find(|parameter| **parameter == name) {
                Some(parameter) => parameter,
                None => {
                    return plan_err!("{function} has no argument '{name}'; it has {}", known.join(", "));
                }
            },
            None => {
                let Some(parameter) = known.get(*position) else {
                    return plan_err!("{function} has too many arguments; write {}", usage(function));
                };
                *position += 1;
                parameter
            }
        };
        if self.given.iter().any(|(other, _)| *other == parameter) {
            return plan_err!("{function}: the argument {parameter} is given twice; give it once");
        }
        self.given.push((parameter, value));
        Ok(())
    }

    fn optional(&self, parameter: &str) -> Option<&SqlExpr> {
        self.given
            .iter()
            .find(|(name, _)| *name == parameter)
            .map(|(_, value)| value)
    }

    fn required(&self, parameter: &str) -> Result<&SqlExpr> {
        match self.optional(parameter) {
            Some(value) => Ok(value),
            None => plan_err!(
                "{}: the argument {parameter} is missing; write {}",
                self.function,
                usage(self.function)
            ),
        }
    }

    /// The rows.
    fn data(&self, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
        match self.required("DATA")? {
            SqlExpr::Subquery(query) => context.plan(TableFactor::Derived {
                lateral: false,
                subquery: query.clone(),
                alias: None,
                sample: None,
            }),
            other => plan_err!(
                "{}: '{other}' is no table; write TABLE {other}, or a query in parentheses",
                self.function
            ),
        }
    }

    /// The columns that a `DESCRIPTOR(..)` names.
    fn descriptor(
        &self,
        parameter: &str,
        input: &LogicalPlan,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Vec<Expr>> {
        let value = self.required(parameter)?;
        let columns = match value {
            SqlExpr::Function(call) if call.name.to_string().eq_ignore_ascii_case("DESCRIPTOR") => match &call.args {
                FunctionArguments::List(list) => &list.args[..],
                _ => &[],
            },
            other => {
                return plan_err!("{}: '{other}' is no DESCRIPTOR; write DESCRIPTOR(ts)", self.function);
            }
        };
        let mut named = Vec::with_capacity(columns.len());
        for column in columns {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(column)) = column else {
                return plan_err!("{}: '{column}' is no column; write DESCRIPTOR(ts)", self.function);
            };
            match context.sql_to_expr(column.clone(), input.schema())? {
                expr @ Expr::Column(_) => named.push(expr),
                other => {
                    return plan_err!(
                        "{}: '{other}' is no column; name one, computed in a subquery",
                        self.function
                    );
                }
            }
        }
        Ok(named)
    }

    /// A length of time in milliseconds.
    fn interval(&self, parameter: &str, context: &mut dyn RelationPlannerContext) -> Result<i64> {
        let written = self.required(parameter)?.clone();
        let expr = context.sql_to_expr(written.clone(), &datafusion::common::DFSchema::empty())?;
        let Some((months, ms)) = months_and_ms(&expr) else {
            return plan_err!(
                "{}: {parameter} is '{written}', which is no INTERVAL in whole milliseconds; write INTERVAL '10' SECOND",
                self.function
            );
        };
        if months != 0 {
            return plan_err!(
                "{}: {parameter} is '{written}', and months differ in length; give it in days or smaller units",
                self.function
            );
        }
        Ok(ms)
    }

    fn offset(&self, context: &mut dyn RelationPlannerContext) -> Result<i64> {
        match self.optional("OFFSET") {
            Some(_) => self.interval("OFFSET", context),
            None => Ok(0),
        }
    }
}

/// The months and the milliseconds of an interval literal; `None` when it is none, or has fractions of a millisecond.
fn months_and_ms(expr: &Expr) -> Option<(i64, i64)> {
    match expr {
        Expr::Negative(inner) => {
            let (months, ms) = months_and_ms(inner)?;
            Some((-months, ms.checked_neg()?))
        }
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(value)), _) => {
            if value.nanoseconds % NS_PER_MS != 0 {
                return None;
            }
            let days = i64::from(value.days).checked_mul(MS_PER_DAY)?;
            Some((
                i64::from(value.months),
                days.checked_add(value.nanoseconds / NS_PER_MS)?,
            ))
        }
        Expr::Literal(ScalarValue::IntervalDayTime(Some(value)), _) => {
            let days = i64::from(value.days).checked_mul(MS_PER_DAY)?;
            Some((0, days.checked_add(i64::from(value.milliseconds))?))
        }
        Expr::Literal(ScalarValue::IntervalYearMonth(Some(months)), _) => Some((i64::from(*months), 0)),
        _ => None,
    }
}

fn window(
    function: &'static str,
    args: &TableFunctionArgs,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let arguments = Arguments::new(function, args)?;
    let input = arguments.data(context)?;
    let time = match &arguments.descriptor("TIMECOL", &input, context)?[..] {
        [Expr::Column(time)] => time.clone(),
        other => {
            return plan_err!(
                "{function}: DESCRIPTOR names {} columns; name the one with the event time",
                other.len()
            );
        }
    };
    let window = match function {
        "TUMBLE" => WindowKind::Tumble {
            size_ms: arguments.interval("SIZE", context)?,
            offset_ms: arguments.offset(context)?,
        },
        "HOP" => WindowKind::Hop {
            size_ms: arguments.interval("SIZE", context)?,
            slide_ms: arguments.interval("SLIDE", context)?,
            offset_ms: arguments.offset(context)?,
        },
        "CUMULATE" => WindowKind::Cumulate {
            max_ms: arguments.interval("SIZE", context)?,
            step_ms: arguments.interval("STEP", context)?,
            offset_ms: arguments.offset(context)?,
        },
        _ => WindowKind::Session {
            gap_ms: arguments.interval("GAP", context)?,
        },
    };
    let partition_by = match arguments.optional(PARTITION_BY) {
        Some(_) => arguments.descriptor(PARTITION_BY, &input, context)?,
        None => Vec::new(),
    };
    let node = WindowTvf::try_new(Arc::new(input), window, time, partition_by)?;
    Ok(as_plan(node))
}
