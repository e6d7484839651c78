//! Which code computes a function over a frame.

use std::sync::Arc;

use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, UInt64Type};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::fold::{Count, DecimalAverage, Extreme, FloatAverage, Fold, Folded, Sum, Undo};
use super::general::General;
use super::keep::{Additive, Running, TwoStacks};
use super::kept::Function;

/// `function` of arguments of these types with results of type `result`, over frames that rows leave, or not.
pub(super) fn over_function(
    function: &Arc<AggregateFunctionExpr>,
    arguments: &[DataType],
    result: &DataType,
    rows_leave: bool,
) -> Box<dyn Function> {
    let own = match (function.is_distinct() || !function.order_bys().is_empty(), arguments) {
        (false, arguments)
            if function.fun().name() == "count" && *result == DataType::Int64 && !arguments.is_empty() =>
        {
            Some(Box::new(Count::default()) as Box<dyn Function>)
        }
        (false, [argument]) => own_function(function.fun().name(), argument, result, rows_leave),
        _ => None,
    };
    own.unwrap_or_else(|| {
        let arguments = arguments.to_vec();
        Box::new(General::new(
            Arc::clone(function),
            arguments,
            result.clone(),
            rows_leave,
        ))
    })
}

fn own_function(name: &str, argument: &DataType, result: &DataType, rows_leave: bool) -> Option<Box<dyn Function>> {
    use DataType::{Decimal128, Float64, Int64, UInt64};
    let of = |carrier: &DataType| (carrier.clone(), result.clone());
    Some(match (name, result) {
        ("sum", Int64) if argument.is_signed_integer() => undone(Sum::<Int64Type>::default(), of(&Int64), rows_leave),
        ("sum", UInt64) if argument.is_unsigned_integer() => {
            undone(Sum::<UInt64Type>::default(), of(&UInt64), rows_leave)
        }
        ("sum", Float64) if argument.is_numeric() => refolded(Sum::<Float64Type>::default(), of(&Float64), rows_leave),
        ("sum", Decimal128(_, scale)) if matches!(argument, Decimal128(_, own) if own == scale) => {
            undone(Sum::<Decimal128Type>::default(), of(result), rows_leave)
        }
        ("avg", Float64) if argument.is_numeric() => refolded(FloatAverage, of(&Float64), rows_leave),
        ("avg", Decimal128(precision, scale)) => match argument {
            Decimal128(_, from) => {
                let average = DecimalAverage::try_new(*from, *precision, *scale)?;
                undone(average, of(argument), rows_leave)
            }
            _ => return None,
        },
        ("min", _) if argument == result => extreme::<false>(argument, rows_leave)?,
        ("max", _) if argument == result => extreme::<true>(argument, rows_leave)?,
        _ => return None,
    })
}

fn extreme<const MAX: bool>(data_type: &DataType, rows_leave: bool) -> Option<Box<dyn Function>> {
    use DataType::*;
    let types = |carrier: DataType| (carrier, data_type.clone());
    Some(match data_type {
        UInt64 => refolded(Extreme::<UInt64Type, MAX>::default(), types(UInt64), rows_leave),
        Float32 | Float64 => refolded(Extreme::<Float64Type, MAX>::default(), types(Float64), rows_leave),
        Decimal128(_, _) => {
            let carrier = data_type.clone();
            refolded(Extreme::<Decimal128Type, MAX>::default(), types(carrier), rows_leave)
        }
        // The order of these is that of their numbers, to and from which they can be cast (Time32 cannot).
        Int8
        | Int16
        | Int32
        | Int64
        | UInt8
        | UInt16
        | UInt32
        | Date32
        | Date64
        | Time64(_)
        | Timestamp(_, _)
        | Duration(_) => refolded(Extreme::<Int64Type, MAX>::default(), types(Int64), rows_leave),
        _ => return None,
    })
}

/// A fold that can be undone exactly.
fn undone<F: Undo>(fold: F, (carrier, result): (DataType, DataType), rows_leave: bool) -> Box<dyn Function> {
    match rows_leave {
        true => Box::new(Folded::<F, Additive<F>>::new(fold, carrier, result)),
        false => Box::new(Folded::<F, Running<F>>::new(fold, carrier, result)),
    }
}

/// A fold that cannot.
fn refolded<F: Fold>(fold: F, (carrier, result): (DataType, DataType), rows_leave: bool) -> Box<dyn Function> {
    match rows_leave {
        true => Box::new(Folded::<F, TwoStacks<F>>::new(fold, carrier, result)),
        false => Box::new(Folded::<F, Running<F>>::new(fold, carrier, result)),
    }
}
