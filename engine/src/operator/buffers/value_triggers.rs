//! Triggers that go by the values of rows: delta, punctuation, and the closing of delta windows.

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float64Type;

use super::evictor::as_numbers;
use super::trigger::{Trigger, TriggerContext, TriggerResult, TriggerTraits, fire_if};
use crate::data::{EngineError, Result};
use crate::plan::ScalarExpr;

/// The number of the row that has come; nothing when it is NULL.
fn number(cx: &TriggerContext<'_>) -> Result<Option<f64>> {
    if let Some(values) = cx.inputs[0].as_primitive_opt::<Float64Type>() {
        return Ok(values.is_valid(cx.row).then(|| values.value(cx.row)));
    }
    let row = as_numbers(&cx.inputs[0].slice(cx.row, 1))?;
    let row = row.as_primitive::<Float64Type>();
    Ok(row.is_valid(0).then(|| row.value(0)))
}

/// Compares with the number that is remembered: nothing when there is none.
fn distance(cx: &TriggerContext<'_>, value: f64) -> Option<f64> {
    let known = (cx.state[0] == 1).then(|| f64::from_bits(cx.state[1].cast_unsigned()))?;
    Some((value - known).abs())
}

fn remember(cx: &mut TriggerContext<'_>, value: f64) {
    cx.state[0] = 1;
    cx.state[1] = value.to_bits().cast_signed();
}

/// Fires when a value is more than a threshold away from the one at the last firing (at first, from the first one). NULL
/// changes nothing.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The value, a number.
    pub value: ScalarExpr,
    /// The distance.
    pub threshold: f64,
}

impl Trigger for Delta {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        let Some(value) = number(cx)? else {
            return Ok(TriggerResult::Continue);
        };
        let distance = distance(cx, value);
        let fires = distance.is_some_and(|distance| distance > self.threshold);
        if fires || distance.is_none() {
            remember(cx, value);
        }
        Ok(fire_if(fires))
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits {
            words: 2,
            inputs: vec![self.value.clone()],
            ..TriggerTraits::default()
        }
    }
}

/// Closes the window before a row whose value is more than a threshold away from that of the window's first row.
#[derive(Clone, Debug)]
pub struct DeltaClose {
    /// The value, a number.
    pub value: ScalarExpr,
    /// The distance.
    pub threshold: f64,
}

impl Trigger for DeltaClose {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        if cx.state[0] == 0
            && let Some(value) = number(cx)?
        {
            remember(cx, value);
        }
        Ok(TriggerResult::Continue)
    }

    fn before_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        let Some(value) = number(cx)? else {
            return Ok(TriggerResult::Continue);
        };
        if distance(cx, value).is_some_and(|distance| distance > self.threshold) {
            cx.state.fill(0);
            return Ok(TriggerResult::FireAndPurge);
        }
        Ok(TriggerResult::Continue)
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits {
            words: 2,
            looks_ahead: true,
            inputs: vec![self.value.clone()],
            ..TriggerTraits::default()
        }
    }
}

/// Closes the window with the row for which a condition is true; that row is in the window.
#[derive(Clone, Debug)]
pub struct Punctuation {
    /// The condition.
    pub condition: ScalarExpr,
}

impl Trigger for Punctuation {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        let condition = cx.inputs[0]
            .as_boolean_opt()
            .ok_or_else(|| EngineError::Plan(format!("the punctuation {} is no condition", self.condition)))?;
        let closes = condition.is_valid(cx.row) && condition.value(cx.row);
        Ok(if closes {
            TriggerResult::FireAndPurge
        } else {
            TriggerResult::Continue
        })
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits {
            inputs: vec![self.condition.clone()],
            ..TriggerTraits::default()
        }
    }
}
