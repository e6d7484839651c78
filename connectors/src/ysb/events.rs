//! The arithmetic, and batches of it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewArray, TimestampMillisecondArray};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{ArrowNativeType, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use parking_lot::Mutex;

use crate::generate::{Interleave, JavaRandom, Pool, Rows, SPREAD, Spare, Ticks, mix};

/// Ads of a campaign.
pub(super) const ADS: u64 = 10;
const POOL: usize = 1024;
const POOL_SEED: u64 = 5;
/// Where the ids of campaigns begin, before they are mixed.
const CAMPAIGNS: u64 = 1 << 40;
/// [`Ticks::fill`] takes no more at a time.
const STRETCH: usize = 64;
/// The bytes of a text that are in its view, where the text has more than 12; every line has.
const PREFIX_BYTES: usize = 4;
/// Of an `i64`, with its sign.
pub(super) const DIGITS_MAX: usize = 20;
/// An offset in a view has 32 bits, and a line about 210 bytes.
const LINES_MAX: usize = 1 << 23;

/// `ysb.form`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Typed,
    Json,
}

/// Makes columns of events.
#[derive(Debug)]
pub(super) struct Events {
    salt: u64,
    ads: u64,
    ticks: Ticks,
    uuids: Pool,
    ad_types: Pool,
    kinds: Pool,
    address: Pool,
}

/// Consecutive events, from `first` on, that are the rows from `row` on.
struct Run {
    first: u64,
    row: usize,
    count: usize,
}

impl Events {
    pub(super) fn new(seed: u64, campaigns: u64, ticks: Ticks) -> Self {
        let mut random = JavaRandom::new(POOL_SEED.wrapping_add(seed));
        let mut uuid = |_| {
            let (high, low) = (random.next_long(), random.next_long());
            let digits = format!("{high:016x}{low:016x}");
            [
                &digits[..8],
                &digits[8..12],
                &digits[12..16],
                &digits[16..20],
                &digits[20..],
            ]
            .join("-")
        };
        Self {
            // Of seed 0 that is 7, as in the harness.
            salt: mix(seed).wrapping_add(7),
            ads: campaigns * ADS,
            ticks,
            uuids: Pool::new((0..POOL).map(&mut uuid).collect::<Vec<_>>()),
            ad_types: Pool::new(["banner", "modal", "sponsored-search", "mail", "mobile"]),
            kinds: Pool::new(["view", "click", "purchase"]),
            address: Pool::new(["1.2.3.4"]),
        }
    }

    #[inline]
    fn noise(&self, event: u64) -> u64 {
        mix(event.wrapping_mul(SPREAD).wrapping_add(self.salt))
    }

    #[inline]
    fn ad(&self, noise: u64) -> i64 {
        mix((noise >> 1) % self.ads) as i64
    }

    fn times(&self, runs: &[Run], mut times: Vec<i64>) -> Vec<i64> {
        for run in runs {
            let mut first = run.first;
            for stretch in times[run.row..run.row + run.count].chunks_mut(STRETCH) {
                self.ticks.fill(first, stretch);
                first += stretch.len() as u64;
            }
        }
        times
    }

    fn column(&self, column: usize, runs: &[Run], rows: usize, spare: &mut Spare) -> ArrayRef {
        let mut maker = Maker {
            runs,
            rows,
            column,
            spare,
        };
        match column {
            0 => maker.texts(&self.uuids, |event| user(self.noise(event))),
            1 => maker.texts(&self.uuids, |event| page(self.noise(event))),
            2 => Arc::new(Int64Array::new(maker.values(|event| self.ad(self.noise(event))), None)),
            3 => maker.texts(&self.ad_types, |event| ad_type(self.noise(event))),
            4 => maker.texts(&self.kinds, kind),
            5 => {
                let times = self.times(runs, spare.take(column, rows));
                Arc::new(TimestampMillisecondArray::new(spare.give(column, times), None))
            }
            _ => maker.texts(&self.address, |_| 0),
        }
    }

    /// The events as JSON, in one buffer.
    fn lines(&self, runs: &[Run], rows: usize) -> ArrayRef {
        let times = self.times(runs, vec![0; rows]);
        let mut text: Vec<u8> = Vec::with_capacity(rows * 224);
        let mut views = Vec::with_capacity(rows);
        let (mut ad, mut time) = ([0; DIGITS_MAX], [0; DIGITS_MAX]);
        for run in runs {
            for i in 0..run.count {
                let event = run.first + i as u64;
                let noise = self.noise(event);
                let start = text.len();
                for part in [
                    b"{\"user_id\":\"",
                    self.uuids.get(user(noise)).as_bytes(),
                    b"\",\"page_id\":\"",
                    self.uuids.get(page(noise)).as_bytes(),
                    b"\",\"ad_id\":",
                    decimal(self.ad(noise), &mut ad),
                    b",\"ad_type\":\"",
                    self.ad_types.get(ad_type(noise)).as_bytes(),
                    b"\",\"event_type\":\"",
                    self.kinds.get(kind(event)).as_bytes(),
                    b"\",\"event_time\":",
                    decimal(times[run.row + i], &mut time),
                    b",\"ip_address\":\"1.2.3.4\"}",
                ] {
                    text.extend_from_slice(part);
                }
                views.push(view(&text[start..], start));
            }
        }
        // SAFETY: each view was made of the bytes at its offset, which are pieces of `str` and
        // decimal digits one after the other.
        Arc::new(unsafe {
            StringViewArray::new_unchecked(ScalarBuffer::from(views), vec![Buffer::from_vec(text)], None)
        })
    }
}

/// A number's digits, at the end of `digits`. Most of a line's time would go into the formatter of the standard
/// library.
pub(super) fn decimal(number: i64, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut start = DIGITS_MAX;
    // By twos: each division waits for the one before.
    while rest >= 10 {
        let two = (rest % 100) as u8;
        rest /= 100;
        start -= 2;
        digits[start] = b'0' + two / 10;
        digits[start + 1] = b'0' + two % 10;
    }
    if rest > 0 || start == DIGITS_MAX {
        start -= 1;
        digits[start] = b'0' + rest as u8;
    }
    if number < 0 {
        start -= 1;
        digits[start] = b'-';
    }
    &digits[start..]
}

/// The view of a text of more than 12 bytes at `offset` of the first buffer: length, first bytes, buffer, offset.
#[inline]
fn view(text: &[u8], offset: usize) -> u128 {
    let mut prefix = [0; PREFIX_BYTES];
    prefix.copy_from_slice(&text[..PREFIX_BYTES]);
    text.len() as u128 | u128::from(u32::from_le_bytes(prefix)) << 32 | (offset as u128) << 96
}

fn user(noise: u64) -> usize {
    noise as usize & (POOL - 1)
}

fn page(noise: u64) -> usize {
    (noise >> 10) as usize & (POOL - 1)
}

fn ad_type(noise: u64) -> usize {
    (noise >> 20) as usize % POOL % 5
}

fn kind(event: u64) -> usize {
    (event % 3) as usize
}

/// A column being made.
struct Maker<'a> {
    runs: &'a [Run],
    rows: usize,
    column: usize,
    spare: &'a mut Spare,
}

impl Maker<'_> {
    #[inline]
    fn values<T: ArrowNativeType>(&mut self, value: impl Fn(u64) -> T) -> ScalarBuffer<T> {
        let mut values: Vec<T> = self.spare.take(self.column, self.rows);
        for run in self.runs {
            for (i, out) in values[run.row..run.row + run.count].iter_mut().enumerate() {
                *out = value(run.first + i as u64);
            }
        }
        self.spare.give(self.column, values)
    }

    #[inline]
    fn texts(&mut self, pool: &Pool, choose: impl Fn(u64) -> usize) -> ArrayRef {
        let choices = pool.views();
        pool.column(self.values(|event| choices[choose(event)]), None)
    }
}

/// The runs that rows `first .. first + count` of a split are made of.
fn runs(deal: Interleave, split: usize, first: u64, count: usize) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut row = 0;
    while row < count {
        let local = first + row as u64;
        let run = (deal.left_in_block(local) as usize).min(count - row);
        runs.push(Run {
            first: deal.event(split, local),
            row,
            count: run,
        });
        row += run;
    }
    runs
}

/// The events of a scan.
#[derive(Debug)]
pub(super) struct EventRows {
    pub(super) events: Arc<Events>,
    pub(super) form: Form,
    pub(super) schema: SchemaRef,
    pub(super) projection: Vec<usize>,
    pub(super) deal: Interleave,
    /// By split.
    pub(super) spare: Vec<Mutex<Spare>>,
}

impl Rows for EventRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn below(&self, split: usize, event: u64) -> u64 {
        self.deal.below(split, event)
    }

    fn event(&self, split: usize, row: u64) -> u64 {
        self.deal.event(split, row)
    }

    fn layout(&self) -> String {
        self.deal.layout()
    }

    fn with_splits(&self, splits: usize) -> Option<Arc<dyn Rows>> {
        Some(Arc::new(Self {
            events: Arc::clone(&self.events),
            form: self.form,
            schema: Arc::clone(&self.schema),
            projection: self.projection.clone(),
            deal: self.deal.with_splits(splits),
            spare: (0..splits).map(|_| Mutex::default()).collect(),
        }))
    }

    fn batch(&self, split: usize, first: u64, count: usize) -> Result<RecordBatch, ArrowError> {
        if self.form == Form::Json && count > LINES_MAX {
            return Err(ArrowError::InvalidArgumentError(format!(
                "connector 'ysb' makes batches of at most {LINES_MAX} lines of JSON, not {count}"
            )));
        }
        let runs = runs(self.deal, split, first, count);
        let mut spare = self.spare[split].lock();
        let column = |column: &usize| match self.form {
            Form::Typed => self.events.column(*column, &runs, count, &mut spare),
            Form::Json => self.events.lines(&runs, count),
        };
        let columns = self.projection.iter().map(column).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
    }
}

/// The ads of all campaigns: an "event" is an ad.
#[derive(Debug)]
pub(super) struct CampaignRows {
    pub(super) schema: SchemaRef,
    pub(super) projection: Vec<usize>,
    pub(super) deal: Interleave,
}

impl Rows for CampaignRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn below(&self, split: usize, event: u64) -> u64 {
        self.deal.below(split, event)
    }

    fn event(&self, split: usize, row: u64) -> u64 {
        self.deal.event(split, row)
    }

    fn layout(&self) -> String {
        self.deal.layout()
    }

    fn with_splits(&self, splits: usize) -> Option<Arc<dyn Rows>> {
        Some(Arc::new(Self {
            schema: Arc::clone(&self.schema),
            projection: self.projection.clone(),
            deal: self.deal.with_splits(splits),
        }))
    }

    fn batch(&self, split: usize, first: u64, count: usize) -> Result<RecordBatch, ArrowError> {
        let runs = runs(self.deal, split, first, count);
        let column = |column: &usize| -> ArrayRef {
            let ads = runs.iter().flat_map(|run| run.first..run.first + run.count as u64);
            let id = |ad: u64| match column {
                0 => mix(ad) as i64,
                _ => mix(ad / ADS + CAMPAIGNS) as i64,
            };
            Arc::new(Int64Array::from_iter_values(ads.map(id)))
        };
        let columns = self.projection.iter().map(column).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
    }
}
