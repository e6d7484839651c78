//! From a window that fires to the rows that are handed on.

use std::sync::Arc;

use arrow::array::RecordBatchOptions;

use super::super::AccumulationMode;
use super::super::assigner::Bounds;
use super::super::evictor::EvictedRows;
use super::super::firing::{Pane, Previous, changelog};
use super::super::function::Results;
use super::super::rows::{Place, RowStore};
use super::WindowBuffer;
use crate::data::{Batch, Result, batch_bytes};
use crate::operator::{Collector, Context};

impl WindowBuffer {
    /// Notes a firing; the rows that an evictor or the mode drops are dropped now.
    pub(super) fn fire(&mut self, number: u32, until: Option<i64>) -> Result<()> {
        let window = *self.table.get(number);
        let begin = self.firings.places.len();
        let is_in = |place: &Place| until.is_none_or(|until| self.rows.time(*place) < until);
        self.firings.places.extend(self.rows.places(window.rows).filter(is_in));
        if window.is_merged {
            self.firings.places[begin..].sort_unstable();
        }
        let Some(key) = self.firings.places.get(begin).copied() else {
            return Ok(());
        };
        let before = self.firings.places.len();
        self.evict(begin)?;
        let evicted = before > self.firings.places.len();
        let discards = self.spec.mode == AccumulationMode::Discarding;
        if evicted || discards {
            let mut kept: Vec<Place> = match until {
                None => Vec::new(),
                Some(until) => {
                    let rest = self.rows.places(window.rows);
                    rest.filter(|place| self.rows.time(*place) >= until).collect()
                }
            };
            if !discards {
                kept.extend(&self.firings.places[begin..]);
                kept.sort_unstable();
            }
            self.rows.replace(&mut self.table.get_mut(number).rows, &kept);
        }
        let state = self.table.get_mut(number);
        state.is_dirty = false;
        if self.firings.places.len() == begin {
            return Ok(());
        }
        let bounds = self.bounds_of(window.bounds, begin, until);
        let mut previous = Previous::Nothing;
        if self.retracts {
            let pane = u32::try_from(self.firings.panes.len()).unwrap_or(u32::MAX);
            let state = self.table.get_mut(number);
            previous = match state.pane.replace(pane) {
                Some(earlier) => Previous::Pane(earlier),
                None => Previous::Rows(std::mem::take(&mut state.previous)),
            };
        }
        self.firings.panes.push(Pane {
            start: begin,
            key,
            bounds,
            window: number,
            previous,
        });
        Ok(())
    }

    fn evict(&mut self, begin: usize) -> Result<()> {
        let Some(evictor) = &self.spec.evictor else {
            return Ok(());
        };
        let places = &mut self.firings.places;
        let times: Vec<i64> = places[begin..].iter().map(|place| self.rows.time(*place)).collect();
        let first = self.evaluator.width() + self.spec.keys.len();
        let inputs = self
            .rows
            .gather(&places[begin..], first..first + self.evictor_exprs.len())?;
        let mut keep = vec![true; times.len()];
        let rows = EvictedRows {
            times_ms: &times,
            inputs: &inputs,
        };
        evictor.evict(&rows, &mut keep)?;
        let mut end = begin;
        for (offset, keep) in keep.into_iter().enumerate() {
            if keep {
                places[end] = places[begin + offset];
                end += 1;
            }
        }
        places.truncate(end);
        Ok(())
    }

    /// The bounds that a result tells: of a window without bounds those of its rows.
    fn bounds_of(&self, bounds: Bounds, begin: usize, until: Option<i64>) -> Bounds {
        let mut told = bounds;
        let times = || self.firings.places[begin..].iter().map(|place| self.rows.time(*place));
        if bounds.start_ms == i64::MIN {
            told.start_ms = times().min().unwrap_or(i64::MIN);
        }
        if let Some(until) = until {
            told.end_ms = until;
        } else if bounds.end_ms == i64::MAX {
            told.end_ms = times().max().map_or(i64::MAX, |last| last.saturating_add(1));
        }
        told
    }

    /// Evaluates the firings noted so far and hands on their results.
    pub(super) fn flush(&mut self, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        cx.cancel.check()?;
        if self.firings.panes.is_empty() {
            self.firings.clear();
            return Ok(());
        }
        let places: Vec<Place> = self.firings.panes.iter().map(|pane| pane.key).collect();
        let first = self.evaluator.width();
        let keys = self.rows.gather(&places, first..first + self.spec.keys.len())?;
        let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
        let keys = Batch::try_new_with_options(Arc::clone(&self.key_schema), keys, &options)?;
        let times = (self.watermark_ms, self.now_ms);
        let results = self
            .evaluator
            .evaluate(&self.rows, &self.firings, keys, &self.result_schema, times)?;
        let output = if self.retracts {
            let (mut columns, kinds) = changelog(&self.firings, &results, &self.results)?;
            columns.push(Arc::new(kinds));
            Batch::try_new(Arc::clone(&self.spec.schema), columns)?
        } else {
            results.rows.clone().with_schema(Arc::clone(&self.spec.schema))?
        };
        if self.retracts {
            self.remember(&results)?;
        }
        self.firings.clear();
        let mut start = 0;
        while start < output.num_rows() {
            let rows = cx.batch_size.max(1).min(output.num_rows() - start);
            out.collect(output.slice(start, rows))?;
            start += rows;
        }
        Ok(())
    }

    /// Keeps the last result of each window that is still there, and gives up the ones before.
    fn remember(&mut self, results: &Results) -> Result<()> {
        let bytes = batch_bytes(&results.rows);
        let times = vec![0; results.rows.num_rows()];
        let first = self.results.push(results.rows.columns().to_vec(), times, bytes);
        for (index, pane) in self.firings.panes.iter_mut().enumerate() {
            let window = self.table.get_mut(pane.window);
            if window.is_open && window.pane == Some(index as u32) {
                window.pane = None;
                for row in results.starts[index]..results.starts[index + 1] {
                    self.results.append(&mut window.previous, RowStore::place(first, row));
                }
            }
            if let Previous::Rows(list) = &mut pane.previous {
                self.results.release(list);
            }
        }
        self.results.sweep()
    }
}
