//! Runtime filters: the build side of a hash join tells the scans of the probe side which keys can match, so that rows
//! that cannot are dropped before they are shipped, sorted or aggregated for nothing.
//!
//! Each subtask of the join puts the keys of its part of the build side into a [`Slot`](slot::Slot) that all subtasks
//! of the job share: their least and greatest, and as members of a bitmap or a Bloom filter. When the last has
//! finished, the slot is published, and from the next batch on [`RuntimeFilter`] drops rows. It never waits, so that no
//! plan can lock up: what comes before is handed on, which is slower, not wrong. Back-pressure sees to it that a large
//! probe side is mostly still unread by then. The bounds go into the scan itself, too ([`pruning`]).

mod members;
mod pruning;
mod publisher;
mod slot;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::buffer::BooleanBuffer;

use crate::data::{Batch, Result};
use crate::operator::filter::Survivors;
use crate::operator::runtime_filter::slot::{Published, Slot};
use crate::operator::runtime_filter::words::words_of;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{RuntimeCheckSpec, RuntimeFilterSpec};

pub(super) use publisher::Publisher;
pub use slot::RuntimeFilters;

/// Batches after which a check must have shown its worth.
const TRIAL_BATCHES: usize = 50;
/// It must drop one row in so many.
const LEAST_SHARE_DROPPED: usize = 10;
/// A check that does not is left out for so many batches: data that is clustered may change.
const PAUSE_BATCHES: usize = 1000;

/// Drops the rows whose keys no build side holds.
pub(super) struct RuntimeFilter {
    checks: Vec<Check>,
    survivors: Survivors,
    words: Vec<i64>,
}

impl RuntimeFilter {
    pub(super) fn new(spec: RuntimeFilterSpec) -> Self {
        Self {
            checks: spec.checks.into_iter().map(Check::new).collect(),
            survivors: Survivors::default(),
            words: Vec::new(),
        }
    }
}

impl Operator for RuntimeFilter {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let mut selected: Option<BooleanBuffer> = None;
        let mut left = batch.num_rows();
        for check in &mut self.checks {
            let Some(published) = check.ready(cx) else { continue };
            let more = check.select(&published, &batch, &mut self.words)?;
            let both = match selected.take() {
                Some(before) => &before & &more,
                None => more,
            };
            let kept = both.count_set_bits();
            check.trial.note(left, kept);
            left = kept;
            selected = Some(both);
            if left == 0 {
                break;
            }
        }
        match selected {
            Some(selected) => self
                .survivors
                .push(batch, &BooleanArray::new(selected, None), left, cx, out),
            None => self.survivors.push_all(batch, cx, out),
        }
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        // A subtask without rows has not said that it looks, but was counted: it too must leave.
        self.checks.iter_mut().for_each(|check| check.attach(cx));
        self.checks.clear();
        self.survivors.finish(out)
    }
}

/// One of the filters.
struct Check {
    spec: RuntimeCheckSpec,
    /// Given up before the reader says that it leaves.
    published: Option<Arc<Published>>,
    reader: Option<Reader>,
    trial: Trial,
}

impl Check {
    fn new(spec: RuntimeCheckSpec) -> Self {
        Self {
            spec,
            reader: None,
            published: None,
            trial: Trial::default(),
        }
    }

    /// The filter, when it is there and worth looking at.
    fn ready(&mut self, cx: &Context) -> Option<Arc<Published>> {
        if self.published.is_none() {
            self.attach(cx);
            self.published = self.reader.as_ref()?.0.published();
        }
        let published = self.published.as_ref()?;
        self.trial.is_on().then(|| Arc::clone(published))
    }

    fn attach(&mut self, cx: &Context) {
        if self.reader.is_none() {
            self.reader = cx.filters.slot(self.spec.id).cloned().map(Reader);
        }
    }

    fn select(&self, published: &Published, batch: &Batch, words: &mut Vec<i64>) -> Result<BooleanBuffer> {
        let key = self.spec.key.expr.evaluate(batch)?.into_array(batch.num_rows())?;
        let nulls = words_of(&key, words)?;
        let selected = published.select(words);
        Ok(match nulls.filter(|nulls| nulls.null_count() > 0) {
            Some(nulls) => &selected & nulls.inner(),
            None => selected,
        })
    }
}

/// Tells the slot when this subtask will not look again.
struct Reader(Arc<Slot>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Whether a check drops enough rows to pay for itself.
#[derive(Default)]
struct Trial {
    batches: usize,
    rows: usize,
    dropped: usize,
    pause: usize,
}

impl Trial {
    /// Whether to look at this batch.
    fn is_on(&mut self) -> bool {
        if self.pause == 0 {
            return true;
        }
        self.pause -= 1;
        false
    }

    /// Of `before` rows `after` were left.
    fn note(&mut self, before: usize, after: usize) {
        self.batches += 1;
        self.rows += before;
        self.dropped += before - after;
        if self.batches == TRIAL_BATCHES {
            let pays = self.dropped * LEAST_SHARE_DROPPED >= self.rows;
            *self = Self {
                pause: if pays { 0 } else { PAUSE_BATCHES },
                ..Self::default()
            };
        }
    }
}
