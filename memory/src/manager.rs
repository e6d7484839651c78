//! The byte budget, the reservations on it, and how it is shared fairly.
//!
//! A [`Reservation`] is *pinned* (it cannot be asked to give anything back: queues, read buffers) or *spillable* (its
//! owner can write what it holds to disk: sorts, joins, aggregations). Free memory goes to whoever asks. When there is
//! none, a spillable reservation that holds its fair share or more is refused and its owner spills; one that holds less
//! asks the largest holder above its share to spill, waits a moment for that, and spills what it has if nothing came.
//!
//! The fair share: what is not pinned, divided by the jobs that hold spillable memory, and within a job by its holders.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::{MemoryError, Result};

/// How long a holder below its share waits for the largest one to spill. A holder may be unable to (it waits for this
/// very one to take its output), so the wait is short and comes once per request.
const TURN: Duration = Duration::from_millis(5);
const TURNS: usize = 4;

#[derive(Debug)]
struct Budget {
    limit_bytes: usize,
    state: Mutex<State>,
    freed: Condvar,
    /// Mirrors of the state for those who only look.
    reserved_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    reserved: usize,
    pinned: usize,
    /// The spillable reservations that hold something.
    holders: HashMap<u64, Holder>,
    /// How many of them each job has.
    jobs: HashMap<u64, usize>,
}

#[derive(Debug)]
struct Holder {
    job: u64,
    bytes: usize,
    asked: Arc<AtomicBool>,
}

impl State {
    /// What a holder of `job` may keep when everybody wants memory; `joining` is the job of one more holder.
    fn share(&self, limit: usize, job: u64, joining: Option<u64>) -> usize {
        let of_job = self.jobs.get(&job).copied().unwrap_or(0) + usize::from(joining == Some(job));
        let new_job = joining.is_some_and(|joining| !self.jobs.contains_key(&joining));
        let jobs = self.jobs.len() + usize::from(new_job);
        limit.saturating_sub(self.pinned) / jobs.max(1) / of_job.max(1)
    }

    fn set(&mut self, id: u64, job: u64, bytes: usize, asked: &Arc<AtomicBool>) {
        if bytes == 0 {
            if self.holders.remove(&id).is_some()
                && let Some(count) = self.jobs.get_mut(&job)
            {
                *count -= 1;
                if *count == 0 {
                    self.jobs.remove(&job);
                }
            }
            asked.store(false, Ordering::Relaxed);
            return;
        }
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.bytes = bytes;
            return;
        }
        *self.jobs.entry(job).or_default() += 1;
        let asked = Arc::clone(asked);
        self.holders.insert(id, Holder { job, bytes, asked });
    }

    /// Asks the largest holder above its share, other than `id`, to spill. Whether there is one that had not been asked.
    fn ask_largest(&self, limit: usize, id: u64, joining: Option<u64>) -> bool {
        let largest = self
            .holders
            .iter()
            .filter(|(holder, _)| **holder != id)
            .max_by_key(|(_, holder)| holder.bytes);
        match largest {
            Some((_, holder)) if holder.bytes > self.share(limit, holder.job, joining) => {
                !holder.asked.swap(true, Ordering::Relaxed)
            }
            _ => false,
        }
    }
}

/// The one byte budget of a process. Cheap to clone; clones share the budget.
#[derive(Clone, Debug)]
pub struct MemoryManager {
    budget: Arc<Budget>,
}

impl MemoryManager {
    /// A budget of `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            budget: Arc::new(Budget {
                limit_bytes,
                state: Mutex::default(),
                freed: Condvar::new(),
                reserved_bytes: AtomicUsize::new(0),
                peak_bytes: AtomicUsize::new(0),
                next_id: AtomicU64::new(1),
            }),
        }
    }

    /// The whole budget in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.budget.limit_bytes
    }

    /// The bytes reserved at this moment.
    pub fn reserved_bytes(&self) -> usize {
        self.budget.reserved_bytes.load(Ordering::Relaxed)
    }

    /// The most bytes ever reserved at once.
    pub fn peak_bytes(&self) -> usize {
        self.budget.peak_bytes.load(Ordering::Relaxed)
    }

    /// An empty pinned reservation in the name of `consumer`, outside any job.
    pub fn reservation(&self, consumer: impl Into<String>) -> Reservation {
        self.make(0, consumer.into(), Kind::Pinned)
    }

    /// The share of the budget of a new job.
    pub fn job(&self) -> JobMemory {
        JobMemory {
            id: self.budget.next_id.fetch_add(1, Ordering::Relaxed),
            manager: self.clone(),
        }
    }

    fn make(&self, job: u64, consumer: String, kind: Kind) -> Reservation {
        Reservation {
            id: self.budget.next_id.fetch_add(1, Ordering::Relaxed),
            job,
            kind,
            consumer,
            budget: Arc::clone(&self.budget),
            asked: Arc::default(),
            bytes: 0,
            peak_bytes: 0,
        }
    }
}

/// One job's part of the budget: its reservations share with one another what the jobs share.
#[derive(Clone, Debug)]
pub struct JobMemory {
    id: u64,
    manager: MemoryManager,
}

impl JobMemory {
    /// The budget that the job draws on.
    pub fn manager(&self) -> &MemoryManager {
        &self.manager
    }

    /// An empty reservation that is never asked to give anything back, in the name of `consumer` (operator and
    /// subtask, as errors will show it).
    pub fn pinned(&self, consumer: impl Into<String>) -> Reservation {
        self.manager.make(self.id, consumer.into(), Kind::Pinned)
    }

    /// An empty reservation of an owner that can spill, in the name of `consumer`.
    pub fn spillable(&self, consumer: impl Into<String>) -> Reservation {
        self.manager.make(self.id, consumer.into(), Kind::Spillable)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pinned,
    Spillable,
}

/// Bytes held on the budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    id: u64,
    job: u64,
    kind: Kind,
    consumer: String,
    budget: Arc<Budget>,
    asked: Arc<AtomicBool>,
    bytes: usize,
    peak_bytes: usize,
}

impl Reservation {
    /// The bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most bytes held at once.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// Whose reservation this is.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// The budget that this is a part of.
    pub fn manager(&self) -> MemoryManager {
        MemoryManager {
            budget: Arc::clone(&self.budget),
        }
    }

    /// Another empty reservation of the same owner, kind and job: for a part that keeps its own account.
    pub fn sibling(&self) -> Reservation {
        self.manager().make(self.job, self.consumer.clone(), self.kind)
    }

    /// Another empty reservation of the same owner and job that is never asked to give anything back.
    pub fn pinned_sibling(&self) -> Reservation {
        self.manager().make(self.job, self.consumer.clone(), Kind::Pinned)
    }

    /// What this reservation may keep when everybody wants memory: what a plan for spilling should go by.
    pub fn share_bytes(&self) -> usize {
        let state = self.budget.state.lock();
        state.share(self.budget.limit_bytes, self.job, self.joining())
    }

    /// Whether somebody below its share wants memory while this is the largest holder: the owner should spill what it
    /// can at its next batch. Holds until it has given something back.
    pub fn must_spill(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Holds `more` bytes more, or fails with [`MemoryError::Exhausted`] and holds what it held.
    ///
    /// # Errors
    /// When the bytes are not free and this reservation has its share, or nobody else gave anything back.
    pub fn try_grow(&mut self, more: usize) -> Result<()> {
        if more == 0 {
            return Ok(());
        }
        let limit = self.budget.limit_bytes;
        let budget = Arc::clone(&self.budget);
        let mut state = budget.state.lock();
        if !fits(&state, limit, more) && self.may_ask(&state, more) && state.ask_largest(limit, self.id, self.joining())
        {
            for _ in 0..TURNS {
                if fits(&state, limit, more) {
                    break;
                }
                budget.freed.wait_for(&mut state, TURN);
            }
        }
        if !fits(&state, limit, more) {
            return Err(MemoryError::Exhausted {
                consumer: self.consumer.clone(),
                requested_bytes: more,
                available_bytes: limit.saturating_sub(state.reserved),
                budget_bytes: limit,
            });
        }
        self.book(&mut state, more);
        Ok(())
    }

    /// Holds `more` bytes more even beyond the budget: for the little without which nothing can go on (one batch, a
    /// block per run), and for callers that have allocated already. What others ask for is refused until the budget
    /// holds again.
    pub fn grow(&mut self, more: usize) {
        if more > 0 {
            let budget = Arc::clone(&self.budget);
            let mut state = budget.state.lock();
            if self.kind == Kind::Spillable && !fits(&state, budget.limit_bytes, more) {
                state.ask_largest(budget.limit_bytes, self.id, self.joining());
            }
            self.book(&mut state, more);
        }
    }

    /// Gives `less` bytes back (at most what is held).
    pub fn shrink(&mut self, less: usize) {
        let less = less.min(self.bytes);
        if less == 0 {
            return;
        }
        let mut state = self.budget.state.lock();
        self.bytes -= less;
        state.reserved -= less;
        match self.kind {
            Kind::Pinned => state.pinned -= less,
            Kind::Spillable => state.set(self.id, self.job, self.bytes, &self.asked),
        }
        self.asked.store(false, Ordering::Relaxed);
        self.budget.reserved_bytes.store(state.reserved, Ordering::Relaxed);
        drop(state);
        self.budget.freed.notify_all();
    }

    /// Holds exactly `bytes` from now on, growing or shrinking as needed.
    ///
    /// # Errors
    /// As for `try_grow`.
    pub fn try_resize(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.bytes {
            self.try_grow(bytes - self.bytes)
        } else {
            self.shrink(self.bytes - bytes);
            Ok(())
        }
    }

    /// Holds exactly `bytes` from now on, even beyond the budget (see [`Self::grow`]).
    pub fn resize(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.grow(bytes - self.bytes);
        } else {
            self.shrink(self.bytes - bytes);
        }
    }

    /// Gives everything back.
    pub fn free(&mut self) {
        self.shrink(self.bytes);
    }

    /// Whether to ask others to spill rather than be refused: pinned ones always, spillable ones below their share.
    fn may_ask(&self, state: &State, more: usize) -> bool {
        let share = || state.share(self.budget.limit_bytes, self.job, self.joining());
        self.kind == Kind::Pinned || self.bytes.checked_add(more).is_some_and(|wanted| wanted <= share())
    }

    /// The job, while this reservation does not count among its holders yet.
    fn joining(&self) -> Option<u64> {
        (self.bytes == 0 && self.kind == Kind::Spillable).then_some(self.job)
    }

    fn book(&mut self, state: &mut State, more: usize) {
        self.bytes += more;
        self.peak_bytes = self.peak_bytes.max(self.bytes);
        state.reserved += more;
        match self.kind {
            Kind::Pinned => state.pinned += more,
            Kind::Spillable => state.set(self.id, self.job, self.bytes, &self.asked),
        }
        self.budget.reserved_bytes.store(state.reserved, Ordering::Relaxed);
        self.budget.peak_bytes.fetch_max(state.reserved, Ordering::Relaxed);
    }
}

fn fits(state: &State, limit: usize, more: usize) -> bool {
    state.reserved.checked_add(more).is_some_and(|total| total <= limit)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_share_one_budget_and_give_it_back() {
        let manager = MemoryManager::new(100);
        let mut a = manager.reservation("a");
        let mut b = manager.reservation("b");
        a.try_grow(60).unwrap();
        let error = b.try_grow(41).unwrap_err();
        assert!(
            matches!(error, MemoryError::Exhausted { requested_bytes: 41, available_bytes: 40, budget_bytes: 100, ref consumer } if consumer == "b")
        );
        assert_eq!(b.bytes(), 0);
        b.try_grow(40).unwrap();
        a.try_resize(10).unwrap();
        assert_eq!(manager.reserved_bytes(), 50);
        drop(b);
        drop(a);
        assert_eq!((manager.reserved_bytes(), manager.peak_bytes()), (0, 100));
    }

    #[test]
    fn an_absurd_request_does_not_overflow() {
        let manager = MemoryManager::new(usize::MAX);
        let mut a = manager.job().spillable("a");
        a.try_grow(10).unwrap();
        assert!(a.try_grow(usize::MAX).is_err());
        assert_eq!(a.bytes(), 10);
    }

    #[test]
    fn the_largest_holder_is_asked_by_one_below_its_share() {
        let job = MemoryManager::new(100).job();
        let (mut large, mut small, mut late) = (job.spillable("large"), job.spillable("small"), job.spillable("late"));
        large.try_grow(70).unwrap();
        small.try_grow(30).unwrap();
        assert!(small.try_grow(10).is_err(), "nobody gives anything back");
        assert!(large.must_spill() && !small.must_spill());
        large.shrink(50);
        assert!(!large.must_spill(), "what was asked for was given");
        late.try_grow(30).unwrap();
        small.try_grow(20).unwrap();
        // Above its share it is refused at once, and nobody else is asked.
        assert!(small.try_grow(10).is_err());
        assert!(!large.must_spill() && !late.must_spill());
    }

    #[test]
    fn a_holder_that_spills_in_time_serves_the_one_that_waits() {
        let job = MemoryManager::new(100).job();
        let mut large = job.spillable("large");
        large.try_grow(100).unwrap();
        let other = std::thread::spawn(move || {
            while !large.must_spill() {
                std::thread::yield_now();
            }
            large.shrink(60);
            large
        });
        // The wait is bounded, so a machine that stands still for long may need another turn.
        let mut late = job.spillable("late");
        while late.try_grow(40).is_err() {}
        assert_eq!(other.join().unwrap().bytes() + late.bytes(), 80);
    }

    #[test]
    fn jobs_share_before_their_operators_do() {
        let manager = MemoryManager::new(120);
        let (one, two) = (manager.job(), manager.job());
        let mut of_one: Vec<_> = (0..3).map(|_| one.spillable("one")).collect();
        of_one.iter_mut().for_each(|r| r.try_grow(1).unwrap());
        let mut of_two = two.spillable("two");
        assert_eq!(of_two.share_bytes(), 60, "it would be the second job");
        of_two.try_grow(1).unwrap();
        assert_eq!((of_one[0].share_bytes(), of_two.share_bytes()), (20, 60));
        let mut queue = two.pinned("queue");
        queue.grow(60);
        assert_eq!((of_one[0].share_bytes(), of_two.share_bytes()), (10, 30));
        drop(of_one);
        assert_eq!(of_two.share_bytes(), 60);
    }

    #[test]
    fn what_must_go_on_may_pass_the_budget() {
        let manager = MemoryManager::new(10);
        let mut a = manager.job().spillable("a");
        a.grow(15);
        assert_eq!(manager.reserved_bytes(), 15);
        assert!(a.try_grow(1).is_err());
        a.resize(3);
        a.try_grow(7).unwrap();
    }
}
