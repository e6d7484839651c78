//! The values of one column.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringArray, StringBuilder,
};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::{CastOptions, cast, cast_with_options, nullif};
use arrow::datatypes::{DataType, Decimal128Type, Field, Int64Type, TimeUnit};
use thalweg_engine::{EngineError, Result};

use crate::Options;
use crate::generate::{SPREAD, mix};

/// Makes the values of one column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    data_type: DataType,
    kind: Kind,
    null_rate: f64,
    seed: u64,
}

#[derive(Clone, Debug)]
enum Kind {
    /// `start`, `start + 1`, .. `end`.
    Sequence {
        start: i64,
        end: i64,
    },
    /// From `min` to `max` inclusive: integers, dates, timestamps and decimals (unscaled).
    Whole {
        min: i64,
        max: i64,
    },
    Float {
        min: f64,
        max: f64,
    },
    Text {
        length: usize,
    },
    Boolean,
    /// `start` and then `per_second` rows a second, less up to `disorder`; in units of the type.
    EventTime {
        start: i64,
        units_per_second: u64,
        per_second: u64,
        disorder: u64,
    },
}

impl Column {
    /// `pace` is the rows a second of the wall clock, where there is such a rate.
    pub(super) fn parse(
        field: &Field,
        seed: u64,
        index: usize,
        pace: Option<u64>,
        options: &mut Options,
    ) -> Result<Self> {
        let key = |what: &str| format!("fields.{}.{what}", field.name());
        let kind = options.take(&key("kind")).unwrap_or_else(|| "random".into());
        let null_rate: f64 = options.take_parsed(&key("null-rate"))?.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&null_rate) {
            return Err(options.bad_value(&key("null-rate"), &null_rate.to_string(), "must be from 0 to 1"));
        }
        if null_rate > 0.0 && !field.is_nullable() {
            return Err(options.bad_value(&key("null-rate"), &null_rate.to_string(), "the column is NOT NULL"));
        }
        let data_type = field.data_type().clone();
        let kind = match kind.to_lowercase().as_str() {
            "sequence" => Self::sequence(&data_type, &key, options)?,
            "random" => Self::random(&data_type, &key, options)?,
            "event-time" => Self::event_time(&data_type, pace, &key, options)?,
            other => {
                return Err(options.bad_value(&key("kind"), other, "must be random, sequence or event-time"));
            }
        };
        Ok(Self {
            data_type,
            kind,
            null_rate,
            seed: mix(seed ^ mix(index as u64 + 1)),
        })
    }

    fn sequence(data_type: &DataType, key: &dyn Fn(&str) -> String, options: &mut Options) -> Result<Kind> {
        let fits = data_type.is_numeric() || is_text(data_type);
        if !fits {
            return Err(options.bad_value(&key("kind"), "sequence", &format!("a {data_type} has no sequence")));
        }
        let start: i64 = options.take_parsed(&key("start"))?.unwrap_or(0);
        let end: i64 = options.take_parsed(&key("end"))?.unwrap_or(i64::MAX);
        if end < start {
            return Err(options.bad_value(&key("end"), &end.to_string(), &format!("is before the start, {start}")));
        }
        Ok(Kind::Sequence { start, end })
    }

    fn random(data_type: &DataType, key: &dyn Fn(&str) -> String, options: &mut Options) -> Result<Kind> {
        if is_text(data_type) {
            return Ok(Kind::Text {
                length: options.take_parsed(&key("length"))?.unwrap_or(100),
            });
        }
        let bound = |name: &str, options: &mut Options| -> Result<Option<String>> { Ok(options.take(&key(name))) };
        match data_type {
            DataType::Boolean => Ok(Kind::Boolean),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                let min: f64 = options.take_parsed(&key("min"))?.unwrap_or(0.0);
                let max: f64 = options.take_parsed(&key("max"))?.unwrap_or(1.0);
                if !(min.is_finite() && max.is_finite() && min <= max) {
                    return Err(options.bad_value(&key("max"), &max.to_string(), &format!("is not above min, {min}")));
                }
                Ok(Kind::Float { min, max })
            }
            other => {
                let (least, most) = default_range(other).ok_or_else(|| {
                    EngineError::Plan(format!("connector 'datagen' cannot make up values of type {other}"))
                })?;
                let read = |name: &str, default: i64, options: &mut Options| match bound(name, options)? {
                    None => Ok(default),
                    Some(text) => {
                        whole(&text, other).map_err(|why| options.bad_value(&key(name), &text, &why.to_string()))
                    }
                };
                let min = read("min", least, options)?;
                let max = read("max", most, options)?;
                if max < min {
                    return Err(options.bad_value(&key("max"), &max.to_string(), &format!("is below min, {min}")));
                }
                Ok(Kind::Whole { min, max })
            }
        }
    }

    fn event_time(
        data_type: &DataType,
        pace: Option<u64>,
        key: &dyn Fn(&str) -> String,
        options: &mut Options,
    ) -> Result<Kind> {
        let DataType::Timestamp(unit, _) = data_type else {
            return Err(options.bad_value(&key("kind"), "event-time", &format!("a {data_type} is no timestamp")));
        };
        let units_per_second = units_per_second(*unit);
        let start = match options.take(&key("start")) {
            None => 0,
            Some(text) => whole(&text, data_type).map_err(|why| options.bad_value(&key("start"), &text, &why))?,
        };
        let per_second = options.take_positive(&key("rate"))?.or(pace).ok_or_else(|| {
            EngineError::Plan(format!(
                "connector 'datagen' needs '{}', the rows per second of event time, or 'rows-per-second'",
                key("rate")
            ))
        })?;
        let disorder_millis: u64 = options.take_parsed(&key("disorder"))?.unwrap_or(0);
        // In whole units of the type: of a type that knows seconds only, none.
        let disorder = u128::from(disorder_millis) * u128::from(units_per_second) / 1000;
        let disorder = u64::try_from(disorder)
            .ok()
            .filter(|disorder| *disorder < i64::MAX as u64)
            .ok_or_else(|| options.bad_value(&key("disorder"), &disorder_millis.to_string(), "is too large"))?;
        Ok(Kind::EventTime {
            start,
            units_per_second,
            per_second,
            disorder,
        })
    }

    /// How many rows there are before a sequence ends.
    pub(super) fn rows(&self) -> Option<u64> {
        match self.kind {
            Kind::Sequence { end: i64::MAX, .. } => None,
            Kind::Sequence { start, end } => Some(end.abs_diff(start).saturating_add(1)),
            _ => None,
        }
    }

    /// The values of rows `first .. first + count`.
    pub(super) fn values(&self, first: u64, count: usize) -> std::result::Result<ArrayRef, arrow::error::ArrowError> {
        let noise = |i: usize| mix(self.seed.wrapping_add((first + i as u64).wrapping_mul(SPREAD)));
        let values: ArrayRef = match self.kind {
            Kind::Sequence { start, .. } => Arc::new(Int64Array::from_iter_values(
                (0..count).map(|i| start.wrapping_add((first + i as u64) as i64)),
            )),
            Kind::Whole { min, max } => {
                let span = (i128::from(max) - i128::from(min) + 1) as u128;
                // Multiply and shift: even enough for any span, without a division.
                let value = |i| (i128::from(min) + ((u128::from(noise(i)) * span) >> 64) as i128) as i64;
                Arc::new(Int64Array::from_iter_values((0..count).map(value)))
            }
            Kind::Float { min, max } => {
                let unit = |i| (noise(i) >> 11) as f64 / (1u64 << 53) as f64;
                Arc::new(Float64Array::from_iter_values(
                    (0..count).map(|i| min + unit(i) * (max - min)),
                ))
            }
            Kind::EventTime {
                start,
                units_per_second,
                per_second,
                disorder,
            } => {
                let time = |i: usize| {
                    let row = first + i as u64;
                    // Whole seconds apart, so that no product is too large.
                    let seconds = (row / per_second).wrapping_mul(units_per_second);
                    let rest = u128::from(row % per_second) * u128::from(units_per_second) / u128::from(per_second);
                    let behind = if disorder == 0 { 0 } else { noise(i) % (disorder + 1) };
                    start.wrapping_add(seconds.wrapping_add(rest as u64).wrapping_sub(behind) as i64)
                };
                Arc::new(Int64Array::from_iter_values((0..count).map(time)))
            }
            Kind::Boolean => Arc::new(BooleanArray::new(
                BooleanBuffer::collect_bool(count, |i| noise(i) & 1 == 1),
                None,
            )),
            Kind::Text { length } => text(length, count, noise),
        };
        let typed = match (&self.data_type, &self.kind) {
            // The generated numbers are unscaled.
            (DataType::Decimal128(precision, scale), Kind::Whole { .. }) => {
                let unscaled = values
                    .as_primitive::<Int64Type>()
                    .values()
                    .iter()
                    .map(|value| i128::from(*value));
                Arc::new(Decimal128Array::from_iter_values(unscaled).with_precision_and_scale(*precision, *scale)?)
            }
            // Through the number behind the date.
            (DataType::Date32 | DataType::Time32(_), _) => cast(&cast(&values, &DataType::Int32)?, &self.data_type)?,
            _ => cast_with_options(
                &values,
                &self.data_type,
                &CastOptions {
                    safe: false,
                    ..CastOptions::default()
                },
            )?,
        };
        if self.null_rate == 0.0 {
            return Ok(typed);
        }
        let limit = (self.null_rate * u64::MAX as f64) as u64;
        let is_null = BooleanBuffer::collect_bool(count, |i| mix(noise(i) ^ 0x6E75_6C6C) <= limit);
        nullif(&typed, &BooleanArray::new(is_null, None::<NullBuffer>))
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn text(length: usize, count: usize, noise: impl Fn(usize) -> u64) -> ArrayRef {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut builder = StringBuilder::with_capacity(count, count * length);
    let mut value = String::with_capacity(length);
    for i in 0..count {
        value.clear();
        let mut bits = noise(i);
        for place in 0..length {
            if place > 0 && place % 16 == 0 {
                bits = mix(bits ^ place as u64);
            }
            value.push(char::from(DIGITS[(bits >> (4 * (place % 16))) as usize & 15]));
        }
        builder.append_value(&value);
    }
    Arc::new(builder.finish())
}

/// The range of random values of a type when none is asked for: all of an integer's, the years 1970 to 2029 of a
/// date's.
fn default_range(data_type: &DataType) -> Option<(i64, i64)> {
    const LAST_DAY: i64 = 21_914;
    const SECONDS: i64 = LAST_DAY * 86_400;
    Some(match data_type {
        DataType::Int8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DataType::Int16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DataType::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DataType::Int64 => (i64::MIN, i64::MAX),
        DataType::UInt8 => (0, i64::from(u8::MAX)),
        DataType::UInt16 => (0, i64::from(u16::MAX)),
        DataType::UInt32 => (0, i64::from(u32::MAX)),
        DataType::UInt64 => (0, i64::MAX),
        DataType::Decimal128(precision, _) => {
            let largest = 10i64
                .checked_pow(u32::from(*precision))
                .map_or(i64::MAX, |power| power - 1);
            (-largest, largest)
        }
        DataType::Date32 => (0, LAST_DAY),
        DataType::Date64 => (0, SECONDS * 1000),
        DataType::Timestamp(unit, _) => (0, SECONDS * units_per_second(*unit) as i64),
        _ => return None,
    })
}

/// `text` as a value of `data_type`, as the whole number behind it.
fn whole(text: &str, data_type: &DataType) -> std::result::Result<i64, String> {
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let text = StringArray::from(vec![text.trim()]);
    let value = cast_with_options(&text, data_type, &strict).map_err(|e| e.to_string())?;
    let number = match data_type {
        DataType::Decimal128(_, _) => i64::try_from(value.as_primitive::<Decimal128Type>().value(0)).ok(),
        _ => {
            let number = cast_with_options(&value, &DataType::Int64, &strict).map_err(|e| e.to_string())?;
            Some(number.as_primitive::<Int64Type>())
                .filter(|number| number.is_valid(0))
                .map(|number| number.value(0))
        }
    };
    number.ok_or_else(|| "is out of range".into())
}

fn units_per_second(unit: TimeUnit) -> u64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}
