//! Where the subtasks of a join bring together what they know of one key of the build side, and where scans find it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::buffer::BooleanBuffer;
use parking_lot::Mutex;
use thalweg_memory::{JobMemory, Reservation};

use crate::operator::runtime_filter::members::{Members, Plan};
use crate::operator::runtime_filter::pruning::Condition;
use crate::plan::{BuildFilterSpec, JobGraph, OperatorSpec, RuntimeFilterId};

/// No filter is larger, whatever the budget: beyond the processor's caches a look costs as much as it saves.
const MOST_BYTES: usize = 4 << 20;
/// One filter may take this part of the budget.
const PART_OF_BUDGET: usize = 64;
/// A subtask keeps so many words before it puts them into a filter of estimated size: when all have fewer, the filter
/// is made to measure.
const WAITING_WORDS: usize = 16 << 10;

/// The runtime filters of a job.
#[derive(Debug, Default)]
pub struct RuntimeFilters {
    slots: HashMap<RuntimeFilterId, Arc<Slot>>,
}

impl RuntimeFilters {
    /// The filters that the joins of `graph` make; their memory is booked on `memory`.
    pub fn of(graph: &JobGraph, memory: &JobMemory) -> Self {
        let mut slots = HashMap::new();
        for vertex in &graph.vertices {
            for operator in &vertex.chain {
                let OperatorSpec::HashJoin(join) = operator else {
                    continue;
                };
                for spec in &join.runtime_filters {
                    let parts = if spec.broadcast { 1 } else { vertex.parallelism };
                    slots.insert(spec.id, Arc::new(Slot::new(spec, parts, memory)));
                }
            }
        }
        for vertex in &graph.vertices {
            for operator in &vertex.chain {
                let OperatorSpec::RuntimeFilter(filter) = operator else {
                    continue;
                };
                for slot in filter.checks.iter().filter_map(|check| slots.get(&check.id)) {
                    slot.readers.fetch_add(vertex.parallelism, Ordering::Relaxed);
                }
            }
        }
        Self { slots }
    }

    pub(super) fn slot(&self, id: RuntimeFilterId) -> Option<&Arc<Slot>> {
        self.slots.get(&id)
    }
}

/// One filter: filled by the subtasks of one join, read by those of one or more scans.
#[derive(Debug)]
pub(super) struct Slot {
    /// Set when the filter is there; saves readers the lock.
    is_published: AtomicBool,
    gathering: Mutex<Gathering>,
    /// Subtasks that may still look; without any, nothing is gathered or kept.
    readers: AtomicUsize,
    /// How many words a subtask may keep back.
    pub(super) waiting_words: usize,
}

#[derive(Debug)]
struct Gathering {
    memory: Reservation,
    /// Subtasks that have not finished.
    missing: usize,
    bounds: Bounds,
    words: u64,
    found: Found,
    plan: Plan,
    published: Option<Arc<Published>>,
    /// Scans that want to know the bounds.
    conditions: Vec<Condition>,
}

/// What the subtasks have brought so far.
#[derive(Debug)]
enum Found {
    /// Few enough to keep them.
    Words(Vec<i64>),
    /// They went into a filter of estimated size.
    Members(Arc<Held>),
    /// Memory is short, or the keys are too many.
    BoundsOnly,
}

/// Members with the memory that they take: given back when the last who knows them lets go.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) members: Members,
    _memory: Reservation,
}

/// Least and greatest word; least is beyond greatest when there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    least: i64,
    greatest: i64,
}

impl Bounds {
    pub(super) const NONE: Self = Self {
        least: i64::MAX,
        greatest: i64::MIN,
    };

    pub(super) fn widen(&mut self, words: &[i64]) {
        for word in words {
            self.least = self.least.min(*word);
            self.greatest = self.greatest.max(*word);
        }
    }

    fn join(&mut self, other: Self) {
        self.least = self.least.min(other.least);
        self.greatest = self.greatest.max(other.greatest);
    }

    pub(super) fn range(self) -> Option<(i64, i64)> {
        (self.least <= self.greatest).then_some((self.least, self.greatest))
    }
}

/// What the whole build side holds.
#[derive(Debug)]
pub(super) struct Published {
    bounds: Bounds,
    held: Option<Arc<Held>>,
}

impl Published {
    /// Which words may be among the build side's.
    pub(super) fn select(&self, words: &[i64]) -> BooleanBuffer {
        let Some((least, greatest)) = self.bounds.range() else {
            return BooleanBuffer::new_unset(words.len());
        };
        let span = greatest.wrapping_sub(least) as u64;
        let in_bounds = |word: i64| word.wrapping_sub(least) as u64 <= span;
        match self.held.as_ref().map(|held| &held.members) {
            None => BooleanBuffer::collect_bool(words.len(), |row| in_bounds(words[row])),
            Some(Members::Bitmap(bitmap)) => {
                BooleanBuffer::collect_bool(words.len(), |row| in_bounds(words[row]) && bitmap.contains(words[row]))
            }
            // Without a branch: the words of one batch lie inside and outside in no order.
            Some(Members::Bloom(bloom)) => {
                BooleanBuffer::collect_bool(words.len(), |row| in_bounds(words[row]) & bloom.contains(words[row]))
            }
        }
    }
}

impl Slot {
    pub(super) fn new(spec: &BuildFilterSpec, parts: usize, memory: &JobMemory) -> Self {
        let budget = memory.manager().limit_bytes();
        let most_bytes = (budget / PART_OF_BUDGET).min(MOST_BYTES);
        Self {
            is_published: AtomicBool::new(false),
            gathering: Mutex::new(Gathering {
                memory: memory.pinned(format!("runtime filter #{}", spec.id)),
                missing: parts,
                bounds: Bounds::NONE,
                words: 0,
                found: Found::Words(Vec::new()),
                plan: Plan {
                    keys: spec.estimated_keys.unwrap_or(0),
                    domain: spec.domain,
                    most_bytes,
                },
                published: None,
                conditions: Vec::new(),
            }),
            readers: AtomicUsize::new(0),
            waiting_words: (most_bytes / 2 / size_of::<i64>()).clamp(64, WAITING_WORDS),
        }
    }

    /// Whether anybody may still look.
    pub(super) fn is_wanted(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// One of the readers will not look again; the last one gives the memory back.
    pub(super) fn leave(&self) {
        if self.readers.fetch_sub(1, Ordering::Relaxed) == 1 {
            let mut gathering = self.gathering.lock();
            gathering.published = None;
            gathering.give_up();
        }
    }

    /// The filter, once it is there.
    pub(super) fn published(&self) -> Option<Arc<Published>> {
        if !self.is_published.load(Ordering::Acquire) {
            return None;
        }
        self.gathering.lock().published.clone()
    }

    /// Where a subtask with more words than it may keep puts them; `None` when only the bounds count.
    pub(super) fn members(&self) -> Option<Arc<Held>> {
        let mut gathering = self.gathering.lock();
        if !self.is_wanted() {
            gathering.give_up();
        }
        gathering.enlarge();
        match &gathering.found {
            Found::Members(held) => Some(Arc::clone(held)),
            _ => None,
        }
    }

    /// Lets a scan know the bounds when they are there.
    pub(super) fn tell(&self, condition: Condition) {
        self.gathering.lock().conditions.push(condition);
    }

    /// A reservation for what a subtask keeps back.
    pub(super) fn reservation(&self) -> Reservation {
        self.gathering.lock().memory.pinned_sibling()
    }

    /// A subtask has seen all its part of the build side: `total` words, of which `waiting` are in no filter yet;
    /// `None` when words were lost.
    pub(super) fn finish(&self, total: u64, bounds: Bounds, waiting: Option<&[i64]>) {
        let mut gathering = self.gathering.lock();
        gathering.words += total;
        gathering.bounds.join(bounds);
        gathering.missing = gathering.missing.saturating_sub(1);
        if !self.is_wanted() {
            return gathering.give_up();
        }
        match waiting {
            Some(words) => gathering.take(words),
            None => gathering.give_up(),
        }
        if gathering.missing == 0 {
            gathering.publish();
            self.is_published.store(true, Ordering::Release);
        }
    }
}

impl Gathering {
    fn give_up(&mut self) {
        self.found = Found::BoundsOnly;
        self.memory.free();
    }

    fn take(&mut self, words: &[i64]) {
        if let Found::Words(found) = &mut self.found {
            let room = self.plan.most_bytes / 2 / size_of::<i64>();
            if found.len() + words.len() <= room && self.memory.try_grow(size_of_val(words)).is_ok() {
                found.reserve_exact(words.len());
                found.extend_from_slice(words);
                return;
            }
        }
        self.enlarge();
        if let Found::Members(held) = &self.found {
            held.members.insert(words);
        }
    }

    /// From words to a filter of estimated size.
    fn enlarge(&mut self) {
        let Found::Words(words) = &mut self.found else { return };
        let words = std::mem::take(words);
        // An estimate below what has been seen already is off; nobody knows by how much.
        let plan = Plan {
            keys: self.plan.keys.max(4 * words.len() as u64).max(4 * WAITING_WORDS as u64),
            ..self.plan
        };
        self.make(plan, &words);
    }

    fn make(&mut self, plan: Plan, words: &[i64]) {
        self.memory.shrink(size_of_val(words));
        let mut memory = self.memory.pinned_sibling();
        self.found = if plan.is_possible() && memory.try_grow(plan.bytes()).is_ok() {
            let members = plan.make();
            members.insert(words);
            Found::Members(Arc::new(Held {
                members,
                _memory: memory,
            }))
        } else {
            Found::BoundsOnly
        };
    }

    fn publish(&mut self) {
        if let Found::Words(words) = &mut self.found {
            let words = std::mem::take(words);
            let plan = Plan {
                keys: words.len() as u64,
                domain: self.bounds.range(),
                ..self.plan
            };
            self.make(plan, &words);
        }
        if matches!(&self.found, Found::Members(held) if held.members.is_crowded(self.words)) {
            self.give_up();
        }
        let held = match std::mem::replace(&mut self.found, Found::BoundsOnly) {
            Found::Members(held) => Some(held),
            _ => None,
        };
        let range = self.bounds.range();
        self.conditions.drain(..).for_each(|condition| condition.publish(range));
        self.published = Some(Arc::new(Published {
            bounds: self.bounds,
            held,
        }));
    }
}
