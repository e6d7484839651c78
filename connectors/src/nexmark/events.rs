//! The arithmetic: what event `n` is, column by column.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, TimestampMillisecondArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};

use crate::generate::{Pool, SPREAD, Spare, Ticks, mix};
use crate::nexmark::schema::Kind;

/// Events in a row of which 1 is a person, 3 are auctions and 46 are bids.
pub(super) const EPOCH: u64 = 50;
const POOL: usize = 1024;
const POOL_SEED: u64 = 3;
/// Auctions that stay open at a time, about.
const OPEN: u64 = 100;

/// Where in [`Spare`] the times are, and then the columns of each type.
const TIMES: usize = 3 * COLUMNS_MAX;
const COLUMNS_MAX: usize = 16;

/// Consecutive events of one epoch, and where they are rows of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) epoch: u64,
    /// The place in the epoch of the first of them.
    pub(super) offset: u64,
    /// The row of the first of them.
    pub(super) row: usize,
    pub(super) count: usize,
}

impl Run {
    pub(super) fn first(&self) -> u64 {
        self.epoch * EPOCH + self.offset
    }

    /// The part of it that is of one type.
    fn part(&self, kind: Kind) -> Option<Self> {
        let of = kind.offsets();
        let start = self.offset.max(of.start);
        let end = (self.offset + self.count as u64).min(of.end);
        (start < end).then(|| Self {
            epoch: self.epoch,
            offset: start,
            row: self.row + (start - self.offset) as usize,
            count: (end - start) as usize,
        })
    }
}

/// Makes columns of events.
#[derive(Debug)]
pub(super) struct Events {
    salt: u64,
    pub(super) ticks: Ticks,
    /// Auctions are open for 1 to this many milliseconds.
    open_millis: u64,
    names: Pool,
    urls: Pool,
    extras: Pool,
    channels: Pool,
    states: Pool,
    cities: Pool,
}

impl Events {
    pub(super) fn new(seed: u64, ticks: Ticks) -> Self {
        let pool_seed = POOL_SEED.wrapping_add(seed);
        let random = |prefix, letters| Pool::random(prefix, letters, POOL, pool_seed);
        Self {
            // Of seed 0 that is 1, as in the harness.
            salt: mix(seed).wrapping_add(1),
            open_millis: 2 * (OPEN * EPOCH / 3 * 1000 / ticks.per_second).max(1),
            ticks,
            names: random("person-name-", 12),
            urls: random("https://www.example.org/auction/item.htm?query=1&channel=", 12),
            extras: random("", 48),
            channels: Pool::new(["Apple", "Google", "Facebook", "Baidu"]),
            states: Pool::new(["AZ", "CA", "ID", "OR", "WA", "WY"]),
            cities: Pool::new([
                "Phoenix",
                "Los Angeles",
                "San Francisco",
                "Boise",
                "Portland",
                "Bend",
                "Redmond",
                "Seattle",
                "Kent",
                "Cheyenne",
            ]),
        }
    }

    /// The times of all events of a batch.
    pub(super) fn times(&self, runs: &[Run], rows: usize, spare: &mut Spare) -> ArrayRef {
        let mut times = spare.take(TIMES, rows);
        for run in runs {
            self.ticks.fill(run.first(), &mut times[run.row..run.row + run.count]);
        }
        Arc::new(TimestampMillisecondArray::new(spare.give(TIMES, times), None))
    }

    /// Columns of the events of one type, by their places in [`Kind::columns`]. What the rows of other events hold
    /// is undefined; `nulls` has them NULL.
    pub(super) fn columns(
        &self,
        kind: Kind,
        wanted: impl Iterator<Item = usize>,
        runs: &[Run],
        rows: usize,
        nulls: Option<&NullBuffer>,
        spare: &mut Spare,
    ) -> Vec<ArrayRef> {
        let runs: Vec<Run> = runs.iter().filter_map(|run| run.part(kind)).collect();
        let mut noise = spare.take_noise(rows);
        for run in &runs {
            let start = run.first().wrapping_mul(SPREAD).wrapping_add(self.salt);
            for (i, noise) in noise[run.row..run.row + run.count].iter_mut().enumerate() {
                *noise = mix(start.wrapping_add((i as u64).wrapping_mul(SPREAD)));
            }
        }
        let mut part = Part {
            runs: &runs,
            noise: &noise,
            nulls,
            column: 0,
            spare,
        };
        let made = wanted
            .map(|column| {
                part.column = kind as usize * COLUMNS_MAX + column;
                match kind {
                    Kind::Person => self.person(column, &mut part),
                    Kind::Auction => self.auction(column, &mut part),
                    Kind::Bid => self.bid(column, &mut part),
                }
            })
            .collect();
        spare.give_noise(noise);
        made
    }

    fn person(&self, column: usize, part: &mut Part<'_>) -> ArrayRef {
        match column {
            0 => part.longs(|epoch, _, _| 1000 + epoch),
            1 | 3 => part.texts(&self.names, pooled),
            2 => part.texts(&self.urls, pooled),
            4 => part.texts(&self.cities, |r| ((r >> 10) % 10) as usize),
            5 => part.texts(&self.states, |r| ((r >> 20) % 6) as usize),
            _ => part.texts(&self.extras, pooled),
        }
    }

    fn auction(&self, column: usize, part: &mut Part<'_>) -> ArrayRef {
        match column {
            0 => part.longs(|epoch, offset, _| 1000 + epoch * 3 + offset - 1),
            1 => part.texts(&self.names, pooled),
            2 => part.texts(&self.urls, pooled),
            3 => part.longs(|_, _, r| 1 + (r >> 40) % 1000),
            4 => part.longs(|_, _, r| 1 + (r >> 44) % 10_000),
            5 => {
                let expires = part.values(|epoch, offset, r| {
                    let open = 1 + (r >> 30) % self.open_millis;
                    self.ticks.at(epoch * EPOCH + offset).wrapping_add(open as i64) as u64
                });
                Arc::new(TimestampMillisecondArray::new(expires, part.nulls.cloned()))
            }
            6 => part.longs(|epoch, _, r| {
                let hot = epoch / 100 * 100;
                let any = epoch.saturating_sub((r >> 20) % 1000);
                1000 + if !(r >> 10).is_multiple_of(4) { hot } else { any }
            }),
            7 => part.longs(|_, _, r| 10 + (r >> 50) % 5),
            _ => part.texts(&self.extras, pooled),
        }
    }

    fn bid(&self, column: usize, part: &mut Part<'_>) -> ArrayRef {
        match column {
            0 => part.longs(|epoch, _, r| {
                let last = epoch * 3 + 2;
                let hot = last / 100 * 100;
                let any = last.saturating_sub((r >> 20) % 100);
                1000 + if (r >> 10).is_multiple_of(2) { hot } else { any }
            }),
            1 => part.longs(|epoch, _, r| {
                let hot = epoch / 100 * 100 + 1;
                let any = epoch.saturating_sub((r >> 34) % 1000);
                1000 + if !(r >> 30).is_multiple_of(4) { hot } else { any }
            }),
            2 => part.longs(|_, _, r| 100 + (r >> 40) % 10_000_000),
            3 => part.texts(&self.channels, |r| (r >> 12) as usize & 3),
            4 => part.texts(&self.urls, pooled),
            _ => part.texts(&self.extras, pooled),
        }
    }
}

#[inline]
fn pooled(noise: u64) -> usize {
    noise as usize & (POOL - 1)
}

/// The events of one type in a batch.
struct Part<'a> {
    runs: &'a [Run],
    /// The noise of each row.
    noise: &'a [u64],
    nulls: Option<&'a NullBuffer>,
    /// The column that is being made, among those of all types.
    column: usize,
    spare: &'a mut Spare,
}

impl Part<'_> {
    /// A value for each event, of epoch, place in the epoch and noise.
    #[inline]
    fn values(&mut self, value: impl Fn(u64, u64, u64) -> u64) -> ScalarBuffer<i64> {
        let mut values: Vec<i64> = self.spare.take(self.column, self.noise.len());
        for run in self.runs {
            let rows = run.row..run.row + run.count;
            let noise = &self.noise[rows.clone()];
            for (i, (out, noise)) in values[rows].iter_mut().zip(noise).enumerate() {
                *out = value(run.epoch, run.offset + i as u64, *noise) as i64;
            }
        }
        self.spare.give(self.column, values)
    }

    #[inline]
    fn longs(&mut self, value: impl Fn(u64, u64, u64) -> u64) -> ArrayRef {
        Arc::new(Int64Array::new(self.values(value), self.nulls.cloned()))
    }

    #[inline]
    fn texts(&mut self, pool: &Pool, choose: impl Fn(u64) -> usize) -> ArrayRef {
        // Views of an earlier batch are of the same column, so of the same pool.
        let mut views: Vec<u128> = self.spare.take(self.column, self.noise.len());
        let choices = pool.views();
        for run in self.runs {
            let rows = run.row..run.row + run.count;
            let noise = &self.noise[rows.clone()];
            for (out, noise) in views[rows].iter_mut().zip(noise) {
                *out = choices[choose(*noise)];
            }
        }
        pool.column(self.spare.give(self.column, views), self.nulls.cloned())
    }
}
