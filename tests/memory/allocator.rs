//! An allocator that counts: the bytes that are allocated now, and by how much they exceed what is reserved.
//!
//! The allocator is the one of the command `thalweg`. What counts is what was asked for, not the size class that it got.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use thalweg_memory::MemoryManager;
use tikv_jemallocator::Jemalloc;

/// From this size on, an allocation is compared with the reservations. Small ones are seen by [`Watch::look`] and by the
/// next large one.
const LARGE_BYTES: usize = 4096;

pub(crate) struct Counting;

/// Bytes allocated now. Signed: what was allocated by one thread may be freed, and counted, by another first.
static LIVE: AtomicI64 = AtomicI64::new(0);
/// The budget that is watched, or null.
static WATCHED: AtomicPtr<MemoryManager> = AtomicPtr::new(std::ptr::null_mut());
static BASELINE: AtomicI64 = AtomicI64::new(0);
static WORST_EXCESS: AtomicI64 = AtomicI64::new(0);
static RESERVED_THEN: AtomicUsize = AtomicUsize::new(0);
static LARGEST_REQUEST: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to jemalloc unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are jemalloc's.
        unsafe { Jemalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are jemalloc's.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promises are jemalloc's.
        unsafe { Jemalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        grown(new_size);
        // SAFETY: the caller's promises are jemalloc's.
        unsafe { Jemalloc.realloc(pointer, layout, new_size) }
    }
}

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes as i64, Ordering::Relaxed) + bytes as i64;
    if bytes >= LARGE_BYTES {
        compare(live, bytes);
    }
}

fn compare(live: i64, request: usize) {
    let watched = WATCHED.load(Ordering::Acquire);
    // SAFETY: a watched budget is leaked, so it is there for good once it has been set.
    let Some(memory) = (unsafe { watched.as_ref() }) else {
        return;
    };
    let reserved = memory.reserved_bytes();
    let excess = live - BASELINE.load(Ordering::Relaxed) - reserved as i64;
    if WORST_EXCESS.fetch_max(excess, Ordering::Relaxed) < excess {
        RESERVED_THEN.store(reserved, Ordering::Relaxed);
        LARGEST_REQUEST.store(request as u64, Ordering::Relaxed);
    }
}

/// Bytes allocated now.
pub(crate) fn live_bytes() -> i64 {
    LIVE.load(Ordering::Relaxed)
}

/// What was seen while a budget was watched.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Excess {
    /// The most bytes allocated beyond what was reserved then.
    pub(crate) worst_bytes: i64,
    /// What was reserved then.
    pub(crate) reserved_bytes: usize,
    /// The allocation that made it the worst (0: found by looking).
    pub(crate) request_bytes: u64,
}

/// Compares every large allocation with the reservations of one budget until it is dropped.
pub(crate) struct Watch;

impl Watch {
    /// Watches `memory`; what was allocated before `baseline` was taken does not count.
    pub(crate) fn start(memory: &MemoryManager, baseline: i64) -> Self {
        BASELINE.store(baseline, Ordering::Relaxed);
        WORST_EXCESS.store(0, Ordering::Relaxed);
        // A few words per cell that are never freed: an allocating thread may look at them at any time.
        WATCHED.store(Box::leak(Box::new(memory.clone())), Ordering::Release);
        Self
    }

    /// Compares now, for what grew in small allocations.
    pub(crate) fn look() {
        compare(live_bytes(), 0);
    }

    /// Ends watching.
    pub(crate) fn stop(self) -> Excess {
        Self::look();
        Excess {
            worst_bytes: WORST_EXCESS.load(Ordering::Relaxed),
            reserved_bytes: RESERVED_THEN.load(Ordering::Relaxed),
            request_bytes: LARGEST_REQUEST.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.store(std::ptr::null_mut(), Ordering::Release);
    }
}

#[test]
fn what_is_allocated_beyond_the_reservations_is_seen() {
    let _alone = crate::alone();
    let memory = MemoryManager::new(64 << 20);
    let watch = Watch::start(&memory, live_bytes());
    let mut reservation = memory.reservation("test");
    reservation.try_grow(8 << 20).unwrap();
    let booked = vec![1u8; 8 << 20];
    let unbooked = vec![1u8; 3 << 20];
    drop((booked, unbooked));
    drop(reservation);
    let excess = watch.stop();
    // Other threads of the test runner allocate, too, but little.
    assert!(
        ((3 << 20) - 4096..(3 << 20) + (1 << 20)).contains(&excess.worst_bytes),
        "{excess:?}"
    );
    // Whose request was the worst is not certain: a thread of the runner may ask for a little while all is held.
    assert!(excess.request_bytes <= 3 << 20);
    assert_eq!(excess.reserved_bytes, 8 << 20);
}
