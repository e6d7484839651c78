//! DataFusion's parts draw on the same memory budget as ours.

use std::fmt;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation};
use parking_lot::Mutex;
use thalweg_memory::{MemoryManager, Reservation};

/// A DataFusion `MemoryPool` over a [`MemoryManager`].
#[derive(Debug)]
pub struct BudgetPool {
    reservation: Mutex<Reservation>,
    limit_bytes: usize,
}

impl BudgetPool {
    /// A pool that books what DataFusion's operators use on `memory`.
    pub fn new(memory: &MemoryManager) -> Self {
        Self {
            reservation: Mutex::new(memory.reservation("DataFusion operators")),
            limit_bytes: memory.limit_bytes(),
        }
    }
}

impl fmt::Display for BudgetPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BudgetPool(limit {} bytes)", self.limit_bytes)
    }
}

impl MemoryPool for BudgetPool {
    fn name(&self) -> &str {
        "BudgetPool"
    }

    fn grow(&self, _reservation: &MemoryReservation, additional: usize) {
        self.reservation.lock().grow(additional);
    }

    fn shrink(&self, _reservation: &MemoryReservation, shrink: usize) {
        self.reservation.lock().shrink(shrink);
    }

    fn try_grow(&self, _reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.reservation
            .lock()
            .try_grow(additional)
            .map_err(|e| DataFusionError::ResourcesExhausted(e.to_string()))
    }

    fn reserved(&self) -> usize {
        self.reservation.lock().bytes()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit_bytes)
    }
}
