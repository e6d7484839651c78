//! Conditions that bound the time of one side of a join by the time of the other.

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Join, Operator};

use super::flow::Flow;

/// `left + lower <= right <= left + upper`, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) left: usize,
    pub(super) right: usize,
    pub(super) lower_ms: i64,
    pub(super) upper_ms: i64,
    pub(super) processing: bool,
}

/// What one condition says: `left + lower_ms <= right`, `right <= left + upper_ms`.
struct Bound {
    left: usize,
    right: usize,
    processing: bool,
    lower_ms: Option<i64>,
    upper_ms: Option<i64>,
}

/// The interval that a join's condition implies, when it bounds both sides. The condition itself stays to be checked: it
/// may be stricter.
pub(super) fn interval_of(join: &Join, left: &Flow, right: &Flow) -> Option<Interval> {
    let place = |column: &Column| -> Option<(bool, usize)> {
        if let Some(index) = join.left.schema().maybe_index_of_column(column) {
            return Some((true, index));
        }
        join.right
            .schema()
            .maybe_index_of_column(column)
            .map(|index| (false, index))
    };
    let is_time = |(on_left, index): (bool, usize)| {
        let flow = if on_left { left } else { right };
        (flow.rowtimes.contains(&index), flow.proctimes.contains(&index))
    };
    let mut bounds: Vec<Bound> = Vec::new();
    let mut note = |a: (Column, i64), b: (Column, i64), op: Operator| -> Option<()> {
        let (a_place, b_place) = (place(&a.0)?, place(&b.0)?);
        if a_place.0 == b_place.0 {
            return None;
        }
        // Bring the left side to the left.
        let (l, r, op) = if a_place.0 {
            ((a_place.1, a.1), (b_place.1, b.1), op)
        } else {
            ((b_place.1, b.1), (a_place.1, a.1), op.swap()?)
        };
        let ((l_event, l_proc), (r_event, r_proc)) = (is_time((true, l.0)), is_time((false, r.0)));
        let processing = l_proc && r_proc;
        let event = l_event && r_event;
        if !processing && !event {
            return None;
        }
        // left + a op right + b, that is right op' left + (a - b).
        let distance = l.1.checked_sub(r.1)?;
        let (lower, upper) = match op {
            Operator::GtEq | Operator::Gt => (None, Some(distance)),
            Operator::LtEq | Operator::Lt => (Some(distance), None),
            Operator::Eq => (Some(distance), Some(distance)),
            _ => return None,
        };
        bounds.push(Bound {
            left: l.0,
            right: r.0,
            processing,
            lower_ms: lower,
            upper_ms: upper,
        });
        Some(())
    };
    for (l, r) in &join.on {
        if let (Some(l), Some(r)) = (linear(l), linear(r)) {
            note(l, r, Operator::Eq);
        }
    }
    for conjunct in join.filter.iter().flat_map(|filter| split_conjunction(filter)) {
        if let Expr::BinaryExpr(binary) = conjunct
            && let (Some(a), Some(b)) = (linear(&binary.left), linear(&binary.right))
        {
            note(a, b, binary.op);
        }
    }
    bounds.iter().find_map(|pair| {
        let same = || {
            let of_pair = |bound: &&Bound| (bound.left, bound.right) == (pair.left, pair.right);
            bounds.iter().filter(of_pair)
        };
        Some(Interval {
            left: pair.left,
            right: pair.right,
            lower_ms: same().filter_map(|bound| bound.lower_ms).max()?,
            upper_ms: same().filter_map(|bound| bound.upper_ms).min()?,
            processing: pair.processing,
        })
    })
}

/// `column`, `column + interval` or `column - interval`, with the interval in milliseconds.
fn linear(expr: &Expr) -> Option<(Column, i64)> {
    match expr {
        Expr::Column(column) => Some((column.clone(), 0)),
        Expr::Alias(alias) => linear(&alias.expr),
        Expr::Cast(cast) if matches!(cast.field.data_type(), arrow::datatypes::DataType::Timestamp(_, _)) => {
            linear(&cast.expr)
        }
        Expr::BinaryExpr(binary) => {
            let (column, offset) = linear(&binary.left)?;
            let more = literal_ms(&binary.right)?;
            match binary.op {
                Operator::Plus => Some((column, offset.checked_add(more)?)),
                Operator::Minus => Some((column, offset.checked_sub(more)?)),
                _ => None,
            }
        }
        _ => None,
    }
}

fn literal_ms(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(value, _) => interval_ms(value),
        Expr::Cast(cast) => literal_ms(&cast.expr),
        _ => None,
    }
}

/// An interval without months, in milliseconds; `None` for parts of a millisecond too.
pub(super) fn interval_ms(value: &ScalarValue) -> Option<i64> {
    const DAY_MS: i64 = 86_400_000;
    let nanos = |nanos: i64| (nanos % 1_000_000 == 0).then_some(nanos / 1_000_000);
    match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => i64::from(interval.days)
            .checked_mul(DAY_MS)?
            .checked_add(nanos(interval.nanoseconds)?),
        ScalarValue::IntervalDayTime(Some(interval)) => i64::from(interval.days)
            .checked_mul(DAY_MS)?
            .checked_add(i64::from(interval.milliseconds)),
        ScalarValue::DurationSecond(Some(seconds)) => seconds.checked_mul(1000),
        ScalarValue::DurationMillisecond(Some(ms)) => Some(*ms),
        ScalarValue::DurationMicrosecond(Some(us)) => (us % 1000 == 0).then_some(us / 1000),
        ScalarValue::DurationNanosecond(Some(ns)) => nanos(*ns),
        _ => None,
    }
}
