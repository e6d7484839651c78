//! Segments: buffers that are used again and again, for readers that need large ones all the time.
//!
//! The first touch of a fresh page costs the operating system ten times what copying into a touched one costs
//! (docs/benchmarks.md), and a large buffer that is freed goes back to it. A pool keeps what was given back, up to a
//! bound.

use std::sync::Arc;

use parking_lot::Mutex;

/// Capacities are multiples of this, so that buffers of about the same size serve each other's requests.
const GRANULE_BYTES: usize = 1 << 20;
/// A buffer more than this many times too large is not taken.
const WASTE_MAX: usize = 2;

/// Keeps buffers that were given back.
#[derive(Clone, Debug)]
pub struct SegmentPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    idle: Mutex<Idle>,
    idle_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl SegmentPool {
    /// A pool that keeps at most `idle_bytes_max` bytes for later.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                idle: Mutex::default(),
                idle_bytes_max,
            }),
        }
    }

    /// An empty buffer with room for `bytes` bytes: the smallest idle one that has it, or a new one.
    pub fn segment(&self, bytes: usize) -> Segment {
        let mut idle = self.shared.idle.lock();
        let fitting = idle.buffers.iter().enumerate().filter(|(_, buffer)| {
            let capacity = buffer.capacity();
            capacity >= bytes && capacity / WASTE_MAX <= bytes.max(GRANULE_BYTES)
        });
        let best = fitting
            .min_by_key(|(_, buffer)| buffer.capacity())
            .map(|(index, _)| index);
        let buffer = match best {
            Some(index) => {
                let buffer = idle.buffers.swap_remove(index);
                idle.bytes -= buffer.capacity();
                buffer
            }
            None => {
                drop(idle);
                Vec::with_capacity(bytes.next_multiple_of(GRANULE_BYTES))
            }
        };
        Segment {
            buffer,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Bytes that are kept for later now.
    pub fn idle_bytes(&self) -> usize {
        self.shared.idle.lock().bytes
    }
}

/// A buffer; it goes back to its pool when dropped.
#[derive(Debug)]
pub struct Segment {
    buffer: Vec<u8>,
    shared: Arc<Shared>,
}

impl Segment {
    /// The buffer, to be filled within its capacity.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut idle = self.shared.idle.lock();
        if idle.bytes + buffer.capacity() <= self.shared.idle_bytes_max {
            idle.bytes += buffer.capacity();
            idle.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(segment: &Segment) -> *const u8 {
        segment.buffer.as_ptr()
    }

    #[test]
    fn a_buffer_given_back_is_used_again() {
        let pool = SegmentPool::new(16 << 20);
        let mut segment = pool.segment(3 << 20);
        segment.buffer().extend_from_slice(b"old");
        let first = address(&segment);
        drop(segment);
        assert_eq!(pool.idle_bytes(), 3 << 20);
        let again = pool.segment((5 << 20) / 2);
        assert_eq!(address(&again), first);
        assert!(again.as_ref().is_empty(), "what was in it is gone");
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn the_smallest_that_fits_is_taken_and_none_far_too_large() {
        let pool = SegmentPool::new(64 << 20);
        let (small, large) = (pool.segment(4 << 20), pool.segment(20 << 20));
        let (small_at, large_at) = (address(&small), address(&large));
        drop((large, small));
        let new = pool.segment(6 << 20);
        assert!(address(&new) != small_at && address(&new) != large_at);
        assert_eq!(address(&pool.segment(3 << 20)), small_at);
        assert_eq!(address(&pool.segment(20 << 20)), large_at);
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let pool = SegmentPool::new(10 << 20);
        let segments: Vec<_> = (0..4).map(|_| pool.segment(4 << 20)).collect();
        drop(segments);
        assert_eq!(pool.idle_bytes(), 8 << 20);
        drop(pool.segment(usize::MAX >> 44));
        assert!(pool.idle_bytes() <= 10 << 20);
    }
}
