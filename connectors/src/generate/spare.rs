//! Buffers of earlier batches, used again when nobody holds them any more.
//!
//! A batch of made-up rows lives for a moment: it is filtered and forgotten. To clear fresh memory for the next one,
//! and have the system map it, takes longer than to fill it.

use std::collections::VecDeque;

use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::ArrowNativeType;

/// Batches of which the buffers are remembered, for readers that are some batches behind.
const BATCHES: usize = 4;

/// The buffers of one split, by column.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    columns: Vec<VecDeque<Buffer>>,
    noise: Vec<u64>,
}

impl Spare {
    /// `rows` values to be written over: 0, or what an earlier batch had in the same column.
    pub(crate) fn take<T: ArrowNativeType>(&mut self, column: usize, rows: usize) -> Vec<T> {
        let kept = self.columns.get_mut(column);
        let Some((kept, oldest)) = kept.and_then(|kept| kept.pop_front().map(|oldest| (kept, oldest))) else {
            return vec![T::default(); rows];
        };
        match oldest.into_vec::<T>() {
            Ok(mut values) => {
                values.resize(rows, T::default());
                values
            }
            Err(in_use) => {
                if kept.len() + 1 < BATCHES {
                    kept.push_front(in_use);
                }
                vec![T::default(); rows]
            }
        }
    }

    /// The values as part of a batch; remembered.
    pub(crate) fn give<T: ArrowNativeType>(&mut self, column: usize, values: Vec<T>) -> ScalarBuffer<T> {
        let values = ScalarBuffer::from(values);
        if self.columns.len() <= column {
            self.columns.resize_with(column + 1, VecDeque::new);
        }
        self.columns[column].push_back(values.inner().clone());
        values
    }

    /// Scratch for the noise of a batch; to be given back.
    pub(crate) fn take_noise(&mut self, rows: usize) -> Vec<u64> {
        let mut noise = std::mem::take(&mut self.noise);
        noise.resize(rows, 0);
        noise
    }

    pub(crate) fn give_noise(&mut self, noise: Vec<u64>) {
        self.noise = noise;
    }
}
