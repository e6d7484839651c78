//! [`Rolling`]: an aggregate function over groups that never end: its results are read again and again, and rows may be
//! taken back.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::boxed::Boxed;
use super::counts::{BoolLogic, Count};
use super::distinct::Distinct;
use super::{extremes, first_last, sums};
use crate::data::{EngineError, Result};
use crate::operator::aggregate::Input;
use crate::operator::keyed::{FROZEN_ROWS, Frozen};

/// Which group each row of a batch belongs to, and what it does there.
pub(super) struct Rows<'a> {
    pub(super) groups: &'a [usize],
    /// 1 = the row comes, -1 = it is taken back, 0 = it does not count. `None`: all come.
    pub(super) signs: Option<&'a [i8]>,
}

impl Rows<'_> {
    /// Calls `f` with row, group and sign of each row that counts, in order.
    #[inline]
    pub(super) fn each(
        &self,
        filter: Option<&BooleanArray>,
        nulls: Option<&NullBuffer>,
        mut f: impl FnMut(usize, usize, i8),
    ) {
        match (mask(filter, nulls), self.signs) {
            (None, None) => {
                for (row, group) in self.groups.iter().enumerate() {
                    f(row, *group, 1);
                }
            }
            (None, Some(signs)) => {
                for (row, (group, sign)) in self.groups.iter().zip(signs).enumerate() {
                    if *sign != 0 {
                        f(row, *group, *sign);
                    }
                }
            }
            (Some(mask), signs) => {
                for row in mask.set_indices() {
                    let sign = signs.map_or(1, |signs| signs[row]);
                    if sign != 0 {
                        f(row, self.groups[row], sign);
                    }
                }
            }
        }
    }
}

/// The rows that are neither filtered out nor NULL; `None` = all.
fn mask(filter: Option<&BooleanArray>, nulls: Option<&NullBuffer>) -> Option<BooleanBuffer> {
    let valid = nulls.filter(|nulls| nulls.null_count() > 0).map(NullBuffer::inner);
    match (filter.map(BooleanArray::values), valid) {
        (Some(filter), Some(valid)) => Some(filter & valid),
        (Some(mask), None) | (None, Some(mask)) => Some(mask.clone()),
        (None, None) => None,
    }
}

/// One function over all groups.
pub(super) trait Rolling: Send {
    /// Makes room for so many groups; new ones are empty.
    fn grow(&mut self, groups: usize) -> Result<()>;

    /// Takes the rows of a batch.
    ///
    /// # Errors
    /// When the function fails.
    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()>;

    /// The present results of some groups.
    ///
    /// # Errors
    /// When a result cannot be represented (a decimal that is too large).
    fn gather(&self, groups: &[usize]) -> Result<ArrayRef>;

    /// Empties some groups.
    fn forget(&mut self, groups: &[usize]);

    /// Keeps only these groups, which get the numbers from 0 on.
    ///
    /// # Errors
    /// When what is kept cannot be copied.
    fn compact(&mut self, kept: &[usize]) -> Result<()>;

    /// Bytes held.
    fn size(&self) -> usize;

    /// The columns of a group's state.
    ///
    /// # Errors
    /// When the function cannot say.
    fn fields(&self) -> Result<Vec<Field>>;

    /// Copies the state of some groups.
    ///
    /// # Errors
    /// When the function cannot give its state.
    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen>;

    /// Takes back the state of some groups that are empty; NULLs where the state knew nothing of the function.
    ///
    /// # Errors
    /// When the state does not fit.
    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()>;

    /// The columns of what a group has any number of; none when it has nothing such.
    fn entry_fields(&self) -> Vec<Field> {
        Vec::new()
    }

    /// Copies what groups have any number of.
    ///
    /// # Errors
    /// When it cannot be copied.
    fn freeze_entries(&self) -> Result<Option<FrozenEntries>> {
        Ok(None)
    }

    /// Takes back what groups have any number of: the group of each entry, and its columns.
    ///
    /// # Errors
    /// When the state does not fit.
    fn thaw_entries(&mut self, _groups: &[usize], _columns: &[ArrayRef]) -> Result<()> {
        Err(EngineError::Internal(
            "a function without entries was handed some".into(),
        ))
    }
}

/// The group of each entry, and the entries' columns.
pub(super) type Entries = (Vec<u32>, Vec<ArrayRef>);

/// What groups have any number of, copied at a barrier.
pub(super) struct FrozenEntries {
    /// Some at a time.
    pub(super) entries: Box<dyn Iterator<Item = Result<Entries>> + Send>,
    /// Bytes held.
    pub(super) bytes: usize,
}

impl FrozenEntries {
    /// Entries of these groups, and from their positions to columns.
    pub(super) fn new(groups: Vec<u32>, frozen: Frozen) -> Self {
        let bytes = groups.capacity() * size_of::<u32>() + frozen.bytes;
        let starts = (0..groups.len()).step_by(FROZEN_ROWS);
        let entries = starts.map(move |start| {
            let end = (start + FROZEN_ROWS).min(groups.len());
            let positions: Vec<u32> = (start as u32..end as u32).collect();
            Ok((groups[start..end].to_vec(), (frozen.columns)(&positions)?))
        });
        Self {
            entries: Box::new(entries),
            bytes,
        }
    }
}

/// A nullable column of a state.
pub(super) fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

/// Keeps only these elements, in this order.
pub(super) fn keep<T: Default>(all: &mut Vec<T>, kept: &[usize]) {
    *all = kept.iter().map(|group| std::mem::take(&mut all[*group])).collect();
}

/// The function over input of schema `input`. With `changelog`, rows are taken back.
///
/// # Errors
/// When the function cannot take rows back, or refuses its arguments.
pub(super) fn rolling_for(
    function: &Arc<AggregateFunctionExpr>,
    input: &SchemaRef,
    changelog: bool,
) -> Result<Box<dyn Rolling>> {
    let arguments = function.expressions();
    let types = arguments.iter().map(|argument| Ok(argument.data_type(input)?));
    let types: Vec<DataType> = types.collect::<Result<_>>()?;
    let result = function.field().data_type().clone();
    let (name, distinct) = (function.fun().name(), function.is_distinct());
    let plain = function.order_bys().is_empty();
    let ready: Option<Box<dyn Rolling>> = match (name, types.as_slice()) {
        ("count", _) if distinct => Some(Box::new(Distinct::new(
            types.clone(),
            false,
            Box::new(Count::default()),
        )?)),
        ("count", _) => Some(Box::new(Count::default())),
        ("sum", [argument]) | ("avg", [argument]) => {
            let inner = match name {
                "sum" => sums::sum(argument, &result, changelog),
                _ => sums::average(argument, &result, changelog),
            };
            match inner {
                Some(inner) if distinct => Some(Box::new(Distinct::new(types.clone(), false, inner)?)),
                inner => inner,
            }
        }
        ("min" | "max", [argument]) => Some(extremes::extreme(argument, name == "max", changelog)?),
        ("bool_and" | "bool_or", [DataType::Boolean]) => Some(Box::new(BoolLogic::new(name == "bool_or"))),
        ("first_value" | "last_value" | "any_value", [argument]) if plain && !distinct => {
            let ignore_nulls = name == "any_value" || function.ignore_nulls();
            Some(first_last::first_last(
                argument,
                name == "last_value",
                ignore_nulls,
                changelog,
            )?)
        }
        _ => None,
    };
    if let Some(ready) = ready {
        return Ok(ready);
    }
    let boxed = Box::new(Boxed::new(Arc::clone(function), changelog)?);
    Ok(match distinct && changelog {
        // The state of an accumulator has each value once, and forgets how often it is there.
        true => Box::new(Distinct::new(types, name == "array_agg", boxed)?),
        false => boxed,
    })
}

/// The error of a function that cannot take rows back.
pub(super) fn cannot_take_back(function: &AggregateFunctionExpr) -> EngineError {
    EngineError::Plan(format!(
        "{} cannot take rows back, but its input is a changelog with updates and deletions; aggregate an input of \
         insertions only, or use another function",
        function.name()
    ))
}
