//! How the operators of unbounded streams are shown.

use arrow::datatypes::Schema;
use thalweg_engine::data::is_changelog;
use thalweg_engine::plan::{
    JoinFilterSpec, JoinInputSpec, OperatorSpec, OverFrame, TemporalTime, WindowSource, WindowTime,
};

use super::{condition, debug_list, functions, list};

/// The text of a stream operator; `None` for the others.
pub(super) fn describe(operator: &OperatorSpec) -> Option<String> {
    let name = operator.name();
    Some(match operator {
        OperatorSpec::AssignWatermark(spec) => format!("{name} {}", spec.watermark.expr),
        OperatorSpec::WindowAggregate(spec) => format!(
            "{name} {} by=[{}] {}{}",
            source(&spec.window),
            list(&spec.group_by),
            functions(&spec.aggregates),
            changelog(&spec.schema.0)
        ),
        OperatorSpec::GroupAggregate(spec) => format!(
            "{name} by=[{}] {}{}{}",
            list(&spec.group_by),
            functions(&spec.aggregates),
            ttl(spec.ttl_ms),
            changelog(&spec.schema.0)
        ),
        OperatorSpec::StreamJoin(spec) => format!(
            "{name} {} {}{}{}",
            spec.join_type,
            keys(&spec.left, &spec.right),
            residual(spec.filter.as_ref()),
            changelog(&spec.schema.0)
        ),
        OperatorSpec::IntervalJoin(spec) => format!(
            "{name} {} {} within [{} ms, {} ms]{}",
            spec.join_type,
            keys(&spec.left, &spec.right),
            spec.lower_ms,
            spec.upper_ms,
            residual(spec.filter.as_ref())
        ),
        OperatorSpec::WindowJoin(spec) => format!(
            "{name} {} {}{}",
            spec.join_type,
            keys(&spec.left, &spec.right),
            residual(spec.filter.as_ref())
        ),
        OperatorSpec::TemporalJoin(spec) => format!(
            "{name} {} {} {}{}",
            spec.join_type,
            keys(&spec.left, &spec.right),
            match spec.time {
                TemporalTime::Event { left, right } => format!("versions #{right} at event time #{left}"),
                TemporalTime::Processing { bounded: true } => "lookup".to_string(),
                TemporalTime::Processing { bounded: false } => "at processing time".to_string(),
            },
            residual(spec.filter.as_ref())
        ),
        OperatorSpec::Rank(spec) => format!(
            "{}{} {}..{} by=[{}] order=[{}]{}{}",
            if spec.window_end.is_some() { "Window" } else { "" },
            if spec.by_time && spec.last == 1 {
                "Deduplicate"
            } else {
                name
            },
            spec.first,
            spec.last,
            list(&spec.partition_by),
            debug_list(&spec.order_by),
            ttl(spec.ttl_ms),
            changelog(&spec.schema.0)
        ),
        OperatorSpec::Over(spec) => format!(
            "{name} by=[{}] {} frames=[{}] in {}{}",
            list(&spec.partition_by),
            functions(&spec.aggregates),
            spec.frames.iter().map(frame).collect::<Vec<_>>().join(", "),
            time(spec.time),
            ttl(spec.ttl_ms)
        ),
        OperatorSpec::Normalize(spec) => format!(
            "{name} keys={:?}{}{}",
            spec.keys,
            ttl(spec.ttl_ms),
            changelog(&spec.schema.0)
        ),
        OperatorSpec::StreamSort(spec) => format!("{name} time=#{} then {}", spec.time, debug_list(&spec.keys)),
        OperatorSpec::Custom(spec) => format!("{name} {}", spec.label),
        _ => return None,
    })
}

fn source(source: &WindowSource) -> String {
    match source {
        WindowSource::Assign { window: kind, time: by } => format!("{kind} by {}", time(*by)),
        WindowSource::Attached { end, .. } => format!("window ends at #{end}"),
    }
}

fn time(time: WindowTime) -> String {
    match time {
        WindowTime::Event(column) => format!("event time #{column}"),
        WindowTime::Processing => "processing time".into(),
    }
}

fn frame(frame: &OverFrame) -> String {
    match frame {
        OverFrame::RowsUnbounded => "ROWS UNBOUNDED PRECEDING".into(),
        OverFrame::RangeUnbounded => "RANGE UNBOUNDED PRECEDING".into(),
        OverFrame::Rows(rows) => format!("ROWS {rows} PRECEDING"),
        OverFrame::Range(ms) => format!("RANGE {ms} ms PRECEDING"),
    }
}

fn keys(left: &JoinInputSpec, right: &JoinInputSpec) -> String {
    let pairs = left.keys.iter().zip(&right.keys);
    let texts: Vec<String> = pairs.map(|(left, right)| format!("{left} = {right}")).collect();
    format!("on {}", texts.join(" AND "))
}

fn residual(filter: Option<&JoinFilterSpec>) -> String {
    condition(filter)
}

fn ttl(ttl_ms: Option<u64>) -> String {
    ttl_ms.map(|ms| format!(" ttl={ms} ms")).unwrap_or_default()
}

/// The kinds of rows that leave: insertions only, unless told otherwise.
fn changelog(schema: &Schema) -> &'static str {
    if is_changelog(schema) { " changelog" } else { "" }
}
