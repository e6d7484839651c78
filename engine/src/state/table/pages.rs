//! Vectors in pages: a snapshot shares the pages, the writer copies those that it changes while they are shared.

use std::sync::Arc;

const BITS: u32 = 10;
/// Values in a page. Small, so that a write after a snapshot copies little.
const PAGE: usize = 1 << BITS;

/// A page is plain memory until a snapshot takes it: a write to it costs no atomic operation then.
enum Page<T> {
    Own(Box<[T]>),
    Shared(Arc<Box<[T]>>),
}

/// A vector of plain values by slot.
pub(super) struct Pages<T> {
    pages: Vec<Page<T>>,
    fill: T,
    /// Bytes of pages that were copied because a snapshot held them.
    copied_bytes: usize,
}

impl<T: Copy> Pages<T> {
    /// An empty vector; places that nobody has written hold `fill`.
    pub(super) fn new(fill: T) -> Self {
        Self {
            pages: Vec::new(),
            fill,
            copied_bytes: 0,
        }
    }

    /// Makes room for `slots` values.
    pub(super) fn grow(&mut self, slots: usize) {
        while self.pages.len() << BITS < slots {
            self.pages.push(Page::Own(vec![self.fill; PAGE].into_boxed_slice()));
        }
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> T {
        let at = slot as usize & (PAGE - 1);
        match &self.pages[slot as usize >> BITS] {
            Page::Own(values) => values[at],
            Page::Shared(values) => values[at],
        }
    }

    #[inline]
    pub(super) fn set(&mut self, slot: u32, value: T) {
        let at = slot as usize & (PAGE - 1);
        let page = slot as usize >> BITS;
        match &mut self.pages[page] {
            Page::Own(values) => values[at] = value,
            Page::Shared(_) => self.owned(page)[at] = value,
        }
    }

    /// Takes a page back from a snapshot: copied only when the snapshot still holds it.
    #[cold]
    fn owned(&mut self, page: usize) -> &mut [T] {
        if let Page::Shared(shared) = &mut self.pages[page] {
            let values = Arc::try_unwrap(std::mem::take(shared)).unwrap_or_else(|shared| {
                self.copied_bytes += size_of::<T>() * PAGE;
                shared.as_ref().clone()
            });
            self.pages[page] = Page::Own(values);
        }
        match &mut self.pages[page] {
            Page::Own(values) => values,
            Page::Shared(_) => &mut [],
        }
    }

    /// The vector as it is now, sharing its pages.
    pub(super) fn freeze(&mut self) -> Self {
        let mut pages = Vec::with_capacity(self.pages.len());
        for page in &mut self.pages {
            if let Page::Own(values) = page {
                *page = Page::Shared(Arc::new(std::mem::take(values)));
            }
            if let Page::Shared(shared) = page {
                pages.push(Page::Shared(Arc::clone(shared)));
            }
        }
        self.copied_bytes = 0;
        Self {
            pages,
            fill: self.fill,
            copied_bytes: 0,
        }
    }

    /// The values at `slots`, in that order, in a vector of their own.
    pub(super) fn compacted(&self, slots: &[u32]) -> Self {
        let mut compacted = Self::new(self.fill);
        compacted.grow(slots.len());
        for (to, from) in (0..).zip(slots) {
            compacted.set(to, self.get(*from));
        }
        compacted
    }

    /// Bytes of the pages.
    pub(super) fn bytes(&self) -> usize {
        self.pages.len() * (PAGE * size_of::<T>() + size_of::<Page<T>>())
    }

    /// Bytes that the last snapshot alone holds, for as long as it lives.
    pub(super) fn copied_bytes(&self) -> usize {
        self.copied_bytes
    }
}

/// The most bytes in a page of the heap, unless one value has more.
const HEAP_PAGE: usize = 256 << 10;
/// A shared page that is shorter is copied rather than closed.
const SHORT: usize = 16 << 10;

/// Bytes of values that have no fixed width.
#[derive(Clone, Default)]
pub(super) struct Heap {
    pages: Vec<Arc<Vec<u8>>>,
    capacity: usize,
    live: usize,
    dead: usize,
}

impl Heap {
    pub(super) fn get(&self, page: u32, offset: u32, length: u32) -> &[u8] {
        &self.pages[page as usize][offset as usize..offset as usize + length as usize]
    }

    /// Adds a value; gives its page and offset.
    pub(super) fn push(&mut self, value: &[u8]) -> (u32, u32) {
        let room = |page: &Arc<Vec<u8>>| {
            let is_free = Arc::strong_count(page) == 1 || page.len() < SHORT;
            is_free && page.len() + value.len() <= HEAP_PAGE
        };
        if !self.pages.last().is_some_and(room) {
            self.pages.push(Arc::default());
        }
        let page = self.pages.len() - 1;
        let bytes = Arc::make_mut(&mut self.pages[page]);
        let (offset, before) = (bytes.len(), bytes.capacity());
        bytes.extend_from_slice(value);
        // What a copy of a shared page saves in capacity is not worth counting.
        self.capacity = (self.capacity + bytes.capacity()).saturating_sub(before);
        self.live += value.len();
        (page as u32, offset as u32)
    }

    /// Writes a value over an older, not shorter one, unless a snapshot holds that.
    pub(super) fn overwrite(&mut self, (page, offset): (u32, u32), old: u32, value: &[u8]) -> bool {
        let Some(bytes) = Arc::get_mut(&mut self.pages[page as usize]).filter(|_| value.len() <= old as usize) else {
            return false;
        };
        bytes[offset as usize..offset as usize + value.len()].copy_from_slice(value);
        self.live -= old as usize - value.len();
        self.dead += old as usize - value.len();
        true
    }

    pub(super) fn forget(&mut self, length: u32) {
        self.live -= length as usize;
        self.dead += length as usize;
    }

    /// Whether most of it is garbage.
    pub(super) fn is_wasteful(&self) -> bool {
        self.dead > self.live && self.dead > HEAP_PAGE
    }

    pub(super) fn bytes(&self) -> usize {
        self.capacity + self.pages.len() * (size_of::<Vec<u8>>() + 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_vector_stays_as_it_was() {
        let mut pages = Pages::new(0u64);
        pages.grow(3000);
        (0..3000).for_each(|slot| pages.set(slot, u64::from(slot)));
        let frozen = pages.freeze();
        pages.set(5, 99);
        pages.set(6, 98);
        assert_eq!((pages.get(5), frozen.get(5), frozen.get(2999)), (99, 5, 2999));
        assert_eq!(pages.copied_bytes(), PAGE * 8, "one page, once");
        drop(frozen);
        pages.set(2999, 1);
        assert_eq!(pages.copied_bytes(), PAGE * 8, "nobody holds it any more");
        let compacted = pages.compacted(&[2999, 5]);
        assert_eq!((compacted.get(0), compacted.get(1)), (1, 99));
    }

    #[test]
    fn a_shared_heap_is_not_written_over() {
        let mut heap = Heap::default();
        let long = vec![7; SHORT];
        let place = heap.push(&long);
        let frozen = heap.clone();
        assert!(!heap.overwrite(place, SHORT as u32, &[1; 100]));
        let other = heap.push(&[1; 100]);
        assert_ne!(other.0, place.0);
        drop(frozen);
        assert!(heap.overwrite(place, SHORT as u32, &[2; 100]));
        assert_eq!(heap.get(place.0, place.1, 100), [2; 100]);
        heap.forget(100);
        assert!(!heap.is_wasteful(), "too little to mind");
    }
}
