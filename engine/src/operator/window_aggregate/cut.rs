//! Cuts a batch by slices: in the usual case without copying a row.

use arrow::array::{ArrayRef, BooleanArray, UInt32Array};
use arrow::compute::take;
use hashbrown::HashMap;

use super::slicing::Slicing;
use crate::data::Result;
use crate::operator::aggregate::accumulators::Input;

/// The rows of a batch that are in one slice.
#[derive(Debug, PartialEq)]
pub(super) enum Selection {
    /// All of them.
    All,
    /// A range: its start and length.
    Range(usize, usize),
    /// These.
    Rows(UInt32Array),
}

/// Neighbouring rows of one slice.
struct Run {
    slice_end: i64,
    start: u32,
    rows: u32,
}

/// A batch by slices.
pub(super) struct Cut {
    /// The slices by their ends, rising.
    pub(super) slices: Vec<(i64, Selection)>,
    /// Rows of slices that were not wanted.
    pub(super) unwanted: u64,
}

/// What the numbers of a column say about the slice.
#[derive(Clone, Copy)]
pub(super) enum SliceOf {
    /// They are times.
    Times(Slicing),
    /// They are the slices' ends.
    Ends,
}

impl SliceOf {
    /// The first number of the slice, the first after it, and the slice's end.
    #[inline]
    fn bounds(self, number: i64) -> (i64, i64, i64) {
        match self {
            SliceOf::Times(slicing) => {
                let start = slicing.slice_start(number);
                let end = start + slicing.slice_ms();
                (start, end, end)
            }
            SliceOf::Ends => (number, number + 1, number),
        }
    }

    /// The end of the slice that each number belongs to.
    pub(super) fn ends(self, numbers: &[i64]) -> Vec<i64> {
        let (mut low, mut high, mut slice_end) = (0, 0, 0);
        let end_of = |number: &i64| {
            if !(low..high).contains(number) {
                (low, high, slice_end) = self.bounds(*number);
            }
            slice_end
        };
        numbers.iter().map(end_of).collect()
    }
}

/// Cuts rows, told by `numbers`, into slices; drops those of slices that are not `wanted`.
pub(super) fn cut(numbers: &[i64], of: SliceOf, wanted: impl Fn(i64) -> bool) -> Cut {
    let runs = runs(numbers, of);
    if let [run] = runs.as_slice() {
        let (slices, unwanted) = if wanted(run.slice_end) {
            (vec![(run.slice_end, Selection::All)], 0)
        } else {
            (Vec::new(), u64::from(run.rows))
        };
        return Cut { slices, unwanted };
    }
    gather(&runs, wanted)
}

fn runs(numbers: &[i64], of: SliceOf) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    let mut low_high_end = numbers.first().map_or((0, 0, 0), |number| of.bounds(*number));
    for (row, number) in numbers.iter().enumerate() {
        let (low, high, slice_end) = low_high_end;
        // Neighbours are mostly of one slice: a division for each row would cost more than all the rest.
        if *number < low || *number >= high {
            runs.push(Run {
                slice_end,
                start: start as u32,
                rows: (row - start) as u32,
            });
            start = row;
            low_high_end = of.bounds(*number);
        }
    }
    if !numbers.is_empty() {
        runs.push(Run {
            slice_end: low_high_end.2,
            start: start as u32,
            rows: (numbers.len() - start) as u32,
        });
    }
    runs
}

/// What is known of one slice while runs are gathered.
struct Gathered {
    slice_end: i64,
    first: u32,
    runs: u32,
    rows: u32,
}

/// Sorts runs by slice, counting, and makes a selection of those of each.
fn gather(runs: &[Run], wanted: impl Fn(i64) -> bool) -> Cut {
    const UNWANTED: u32 = u32::MAX;
    let mut numbers: HashMap<i64, u32> = HashMap::new();
    let mut found: Vec<Gathered> = Vec::new();
    let mut unwanted = 0;
    let mut number_of_run = Vec::with_capacity(runs.len());
    for run in runs {
        let number = *numbers.entry(run.slice_end).or_insert_with(|| {
            if !wanted(run.slice_end) {
                return UNWANTED;
            }
            found.push(Gathered {
                slice_end: run.slice_end,
                first: run.start,
                runs: 0,
                rows: 0,
            });
            (found.len() - 1) as u32
        });
        number_of_run.push(number);
        match found.get_mut(number as usize) {
            Some(slice) => {
                slice.runs += 1;
                slice.rows += run.rows;
            }
            None => unwanted += u64::from(run.rows),
        }
    }
    let mut rows: Vec<Vec<u32>> = found
        .iter()
        .map(|slice| Vec::with_capacity(if slice.runs > 1 { slice.rows as usize } else { 0 }))
        .collect();
    for (run, number) in runs.iter().zip(&number_of_run) {
        if found.get(*number as usize).is_some_and(|slice| slice.runs > 1) {
            rows[*number as usize].extend(run.start..run.start + run.rows);
        }
    }
    let mut slices: Vec<(i64, Selection)> = found
        .into_iter()
        .zip(rows)
        .map(|(slice, rows)| {
            let selection = if slice.runs > 1 {
                Selection::Rows(rows.into())
            } else {
                Selection::Range(slice.first as usize, slice.rows as usize)
            };
            (slice.slice_end, selection)
        })
        .collect();
    slices.sort_unstable_by_key(|(end, _)| *end);
    Cut { slices, unwanted }
}

/// Evaluated columns of a batch: what is grouped by, and what the functions read.
pub(super) struct Rows {
    pub(super) keys: Vec<ArrayRef>,
    pub(super) inputs: Vec<Input>,
    pub(super) count: usize,
}

impl Rows {
    /// Some of the rows.
    ///
    /// # Errors
    /// When a column cannot be copied.
    pub(super) fn select(&self, selection: &Selection) -> Result<Rows> {
        let column = |column: &ArrayRef| -> Result<ArrayRef> {
            Ok(match selection {
                Selection::All => ArrayRef::clone(column),
                Selection::Range(start, rows) => column.slice(*start, *rows),
                Selection::Rows(rows) => take(column, rows, None)?,
            })
        };
        let input = |input: &Input| -> Result<Input> {
            let filter = input.filter.as_ref().map(|filter| -> Result<BooleanArray> {
                Ok(match selection {
                    Selection::All => filter.clone(),
                    Selection::Range(start, rows) => filter.slice(*start, *rows),
                    Selection::Rows(rows) => {
                        let taken = take(filter, rows, None)?;
                        BooleanArray::from(taken.to_data())
                    }
                })
            });
            Ok(Input {
                values: input.values.iter().map(column).collect::<Result<_>>()?,
                filter: filter.transpose()?,
            })
        };
        Ok(Rows {
            keys: self.keys.iter().map(column).collect::<Result<_>>()?,
            inputs: self.inputs.iter().map(input).collect::<Result<_>>()?,
            count: match selection {
                Selection::All => self.count,
                Selection::Range(_, rows) => *rows,
                Selection::Rows(rows) => rows.values().len(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::WindowKind;

    fn tens() -> SliceOf {
        SliceOf::Times(
            Slicing::new(WindowKind::Tumble {
                size_ms: 10,
                offset_ms: 0,
            })
            .unwrap(),
        )
    }

    #[test]
    fn one_slice_and_sorted_slices_are_not_copied() {
        let all = cut(&[1, 9, 0], tens(), |_| true);
        assert_eq!(all.slices, [(10, Selection::All)]);
        let sorted = cut(&[-1, 1, 9, 25], tens(), |_| true);
        let ranges = [(0, 0, 1), (10, 1, 2), (30, 3, 1)];
        assert_eq!(
            sorted.slices,
            ranges.map(|(end, start, rows)| (end, Selection::Range(start, rows)))
        );
    }

    #[test]
    fn disorder_keeps_the_order_within_a_slice_and_late_rows_go() {
        let mixed = cut(&[11, 1, 12, -5, 2, 13, -6], tens(), |end| end > 0);
        assert_eq!(mixed.unwanted, 2);
        assert_eq!(
            mixed.slices,
            [
                (10, Selection::Rows(vec![1, 4].into())),
                (20, Selection::Rows(vec![0, 2, 5].into()))
            ]
        );
        let late = cut(&[1, 2], tens(), |_| false);
        assert!(late.slices.is_empty() && late.unwanted == 2);
        assert_eq!(tens().ends(&[11, -1, 3]), [20, 0, 10]);
    }
}
