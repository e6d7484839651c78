//! The byte budget and the reservations on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{MemoryError, Result};

#[derive(Debug)]
struct Budget {
    limit_bytes: usize,
    reserved_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
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
                reserved_bytes: AtomicUsize::new(0),
                peak_bytes: AtomicUsize::new(0),
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

    /// An empty reservation in the name of `consumer` (operator and subtask, as errors will show it).
    pub fn reservation(&self, consumer: impl Into<String>) -> Reservation {
        Reservation {
            consumer: consumer.into(),
            budget: Arc::clone(&self.budget),
            bytes: 0,
            peak_bytes: 0,
        }
    }
}

/// Bytes held on the budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    consumer: String,
    budget: Arc<Budget>,
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

    /// Holds `more` bytes more, or fails with [`MemoryError::Exhausted`] and holds what it held.
    pub fn try_grow(&mut self, more: usize) -> Result<()> {
        let limit = self.budget.limit_bytes;
        let before = self
            .budget
            .reserved_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
                reserved.checked_add(more).filter(|total| *total <= limit)
            })
            .map_err(|reserved| MemoryError::Exhausted {
                consumer: self.consumer.clone(),
                requested_bytes: more,
                available_bytes: limit.saturating_sub(reserved),
                budget_bytes: limit,
            })?;
        self.budget.peak_bytes.fetch_max(before + more, Ordering::Relaxed);
        self.bytes += more;
        self.peak_bytes = self.peak_bytes.max(self.bytes);
        Ok(())
    }

    /// Holds `more` bytes more even beyond the budget: for callers that have already allocated and cannot fail. What
    /// others ask for afterwards is refused until the budget holds again.
    pub fn grow(&mut self, more: usize) {
        let before = self.budget.reserved_bytes.fetch_add(more, Ordering::Relaxed);
        self.budget.peak_bytes.fetch_max(before + more, Ordering::Relaxed);
        self.bytes += more;
        self.peak_bytes = self.peak_bytes.max(self.bytes);
    }

    /// Gives `less` bytes back (at most what is held).
    pub fn shrink(&mut self, less: usize) {
        let less = less.min(self.bytes);
        self.bytes -= less;
        self.budget.reserved_bytes.fetch_sub(less, Ordering::Relaxed);
    }

    /// Holds exactly `bytes` from now on, growing or shrinking as needed.
    pub fn try_resize(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.bytes {
            self.try_grow(bytes - self.bytes)
        } else {
            self.shrink(self.bytes - bytes);
            Ok(())
        }
    }

    /// Gives everything back.
    pub fn free(&mut self) {
        self.shrink(self.bytes);
    }
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
        let mut a = manager.reservation("a");
        a.try_grow(10).unwrap();
        assert!(a.try_grow(usize::MAX).is_err());
        assert_eq!(a.bytes(), 10);
    }
}
