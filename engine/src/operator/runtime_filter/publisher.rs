//! The build side of a join tells what it holds.

use std::sync::Arc;

use arrow::array::ArrayRef;
use thalweg_memory::Reservation;

use crate::data::Result;
use crate::operator::Context;
use crate::operator::runtime_filter::slot::{Bounds, Held, Slot};
use crate::operator::runtime_filter::words::words_of;
use crate::plan::BuildFilterSpec;

/// Fills the runtime filters of one join from one subtask's part of the build side.
pub(in crate::operator) struct Publisher {
    specs: Vec<BuildFilterSpec>,
    /// `None` before the first call: only then is the context known.
    parts: Option<Vec<Part>>,
    scratch: Vec<i64>,
}

impl Publisher {
    pub(in crate::operator) fn new(specs: &[BuildFilterSpec]) -> Self {
        Self {
            specs: specs.to_vec(),
            parts: None,
            scratch: Vec::new(),
        }
    }

    /// Takes the evaluated build keys of one batch, one array per key of the join.
    ///
    /// # Errors
    /// When a key is of a type that has no filter.
    pub(in crate::operator) fn add(&mut self, keys: &[ArrayRef], cx: &Context) -> Result<()> {
        if self.specs.is_empty() {
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        for part in self.parts(cx) {
            if let Some(key) = keys.get(part.key).filter(|_| part.slot.is_wanted()) {
                part.add(key, &mut scratch)?;
            }
        }
        self.scratch = scratch;
        Ok(())
    }

    /// The build side has ended: every batch has been seen, also what the join has spilled.
    pub(in crate::operator) fn finish(&mut self, cx: &Context) {
        if self.specs.is_empty() {
            return;
        }
        self.parts(cx).drain(..).for_each(Part::finish);
        self.specs.clear();
        self.scratch = Vec::new();
    }

    fn parts(&mut self, cx: &Context) -> &mut Vec<Part> {
        let specs = &self.specs;
        self.parts.get_or_insert_with(|| {
            specs
                .iter()
                .filter(|spec| !spec.broadcast || cx.subtask == 0)
                .filter_map(|spec| Some(Part::new(spec.key, cx.filters.slot(spec.id)?)))
                .collect()
        })
    }
}

/// One subtask's part of one filter.
struct Part {
    slot: Arc<Slot>,
    key: usize,
    memory: Reservation,
    bounds: Bounds,
    words: u64,
    /// Words that are in no filter yet.
    waiting: Vec<i64>,
    /// Where they go when there are many.
    held: Option<Arc<Held>>,
    bounds_only: bool,
}

impl Part {
    fn new(key: usize, slot: &Arc<Slot>) -> Self {
        let mut memory = slot.reservation();
        let bounds_only = memory.try_grow(slot.waiting_words * size_of::<i64>()).is_err();
        let waiting = Vec::with_capacity(if bounds_only { 0 } else { slot.waiting_words });
        Self {
            slot: Arc::clone(slot),
            key,
            memory,
            bounds: Bounds::NONE,
            words: 0,
            waiting,
            held: None,
            bounds_only,
        }
    }

    fn add(&mut self, key: &ArrayRef, scratch: &mut Vec<i64>) -> Result<()> {
        if let Some(nulls) = words_of(key, scratch)?.filter(|nulls| nulls.null_count() > 0) {
            // NULL matches nothing: it is no key.
            let mut kept = 0;
            for row in nulls.valid_indices() {
                scratch[kept] = scratch[row];
                kept += 1;
            }
            scratch.truncate(kept);
        }
        self.bounds.widen(scratch);
        self.words += scratch.len() as u64;
        if self.is_waiting() && self.waiting.len() + scratch.len() > self.slot.waiting_words {
            self.flush();
        }
        if let Some(held) = &self.held {
            held.members.insert(scratch);
        } else if self.is_waiting() {
            self.waiting.extend_from_slice(scratch);
        }
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        !self.bounds_only && self.held.is_none()
    }

    /// Puts what waits into the filter of estimated size; from then on nothing waits.
    fn flush(&mut self) {
        self.held = self.slot.members();
        match &self.held {
            Some(held) => held.members.insert(&self.waiting),
            None => self.bounds_only = true,
        }
        self.waiting = Vec::new();
        self.memory.free();
    }

    fn finish(self) {
        let waiting = (!self.bounds_only).then_some(self.waiting.as_slice());
        self.slot.finish(self.words, self.bounds, waiting);
    }
}
