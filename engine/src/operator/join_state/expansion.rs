//! From the rows of a batch to pairs with stored rows of the same key, a piece at a time.

use super::equality::Equality;
use super::index::Chain;
use super::keys::{JoinKeys, Keyed};
use super::pieces::NO_ROW;
use super::store::RowStore;
use crate::data::Result;

/// So few rows are looked up by comparing hashes, while rows are not indexed.
const SCAN_ROWS_MAX: usize = 16;

/// So many hashes are compared in the time in which a row is indexed.
const SCANNED_PER_INDEXED: usize = 32;

/// Hashes that are compared at once.
const LANE: usize = 16;

/// The rows that are looked up.
pub(in crate::operator) struct Probe<'a> {
    pub(in crate::operator) keyed: &'a Keyed,
    pub(in crate::operator) hashes: &'a [u64],
    /// Per row, the least and the greatest time of a match.
    pub(in crate::operator) times: Option<(&'a [i64], &'a [i64])>,
}

impl Probe<'_> {
    #[inline]
    fn is_null(&self, row: usize) -> bool {
        self.keyed.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }
}

/// Pairs of a row of the batch and a stored row.
#[derive(Debug, Default)]
pub(in crate::operator) struct Pairs {
    pub(in crate::operator) probe: Vec<u32>,
    pub(in crate::operator) stored: Vec<u32>,
}

impl Pairs {
    /// Keeps the pairs whose flag is set.
    pub(in crate::operator) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut kept = 0;
        for position in 0..self.probe.len() {
            self.probe[kept] = self.probe[position];
            self.stored[kept] = self.stored[position];
            kept += usize::from(keep(position));
        }
        self.probe.truncate(kept);
        self.stored.truncate(kept);
    }
}

/// Produces the pairs of one batch.
pub(in crate::operator) struct Expansion<'a> {
    probe: Probe<'a>,
    chains: Vec<Chain>,
    row: usize,
    /// The next stored row of that row's chain.
    at: u32,
    equality: Option<Equality>,
    scan: Option<Scan>,
    pairs: Pairs,
}

/// Compares hashes of rows that are not indexed.
struct Scan {
    piece: usize,
    found: Pairs,
    done: usize,
}

impl<'a> Expansion<'a> {
    /// Over the rows of `store`, whose side has `keys`.
    ///
    /// # Errors
    /// When a key's expression fails.
    pub(in crate::operator) fn new(store: &mut RowStore, keys: &JoinKeys, probe: Probe<'a>) -> Result<Self> {
        let scans = scans(store, &probe);
        if scans {
            store.hash_all(keys)?;
        } else {
            store.index_all(keys)?;
        }
        let chains = store.chains(probe.hashes, |row| probe.is_null(row));
        let equality = (!keys.exact).then(|| Equality::new(probe.keyed.columns.clone(), keys.stored.clone()));
        Ok(Self {
            probe,
            chains,
            row: 0,
            at: NO_ROW,
            equality,
            scan: scans.then(|| Scan {
                piece: 0,
                found: Pairs::default(),
                done: 0,
            }),
            pairs: Pairs::default(),
        })
    }

    /// At most `limit` further pairs, maybe none; `None` at the end.
    ///
    /// # Errors
    /// When keys cannot be compared.
    pub(in crate::operator) fn next(&mut self, store: &RowStore, limit: usize) -> Result<Option<&mut Pairs>> {
        self.pairs.probe.clear();
        self.pairs.stored.clear();
        if self.row < self.chains.len() {
            self.walk(store, limit);
        } else if !self.scan_next(store, limit) {
            return Ok(None);
        }
        if let Some(equality) = &mut self.equality {
            let Pairs { probe, stored } = &self.pairs;
            let mut equal = vec![false; probe.len()];
            for (position, equal) in equal.iter_mut().enumerate() {
                *equal = equality.holds(&store.pieces, probe[position], stored[position])?;
            }
            self.pairs.retain(|position| equal[position]);
        }
        Ok(Some(&mut self.pairs))
    }

    /// Follows chains.
    fn walk(&mut self, store: &RowStore, limit: usize) {
        let first = store.first;
        while self.row < self.chains.len() && self.pairs.probe.len() < limit {
            let chain = self.chains[self.row];
            let mut at = if self.at == NO_ROW { chain.head } else { self.at };
            let row = self.row as u32;
            self.at = NO_ROW;
            while at != NO_ROW && at >= first {
                if self.pairs.probe.len() == limit {
                    self.at = at;
                    return;
                }
                let fits = self.probe.times.is_none_or(|(least, most)| {
                    let time = store.times[at as usize];
                    least[self.row] <= time && time <= most[self.row]
                });
                if fits {
                    self.pairs.probe.push(row);
                    self.pairs.stored.push(at);
                }
                if chain.rows == 1 {
                    break;
                }
                at = store.next[at as usize];
            }
            self.row += 1;
        }
    }

    /// Compares hashes, piece by piece.
    fn scan_next(&mut self, store: &RowStore, limit: usize) -> bool {
        let Some(scan) = &mut self.scan else { return false };
        while scan.done == scan.found.probe.len() {
            if scan.piece == store.pieces.len() {
                return false;
            }
            scan.found.probe.clear();
            scan.found.stored.clear();
            scan.done = 0;
            scan_piece(store, scan.piece, &self.probe, &mut scan.found);
            scan.piece += 1;
        }
        let end = scan.found.probe.len().min(scan.done + limit);
        self.pairs.probe.extend_from_slice(&scan.found.probe[scan.done..end]);
        self.pairs.stored.extend_from_slice(&scan.found.stored[scan.done..end]);
        scan.done = end;
        true
    }
}

/// Whether rows that are not indexed are better scanned, which is noted down: scanning them again and again costs more
/// than indexing them once.
fn scans(store: &mut RowStore, probe: &Probe) -> bool {
    let indexed = store.next.len();
    let open = store.rows() - indexed;
    let (Some((least, most)), 1..=SCAN_ROWS_MAX) = (probe.times, probe.hashes.len()) else {
        return false;
    };
    if open == 0 {
        return false;
    }
    let least = least.iter().copied().min().unwrap_or(i64::MAX);
    let most = most.iter().copied().max().unwrap_or(i64::MIN);
    let rows = probe.hashes.len();
    let mut debt = 0;
    for piece in store.pieces.iter_mut() {
        if piece.range().end > indexed && piece.columns.is_some() && piece.times.0 <= most && piece.times.1 >= least {
            let cost = (piece.rows * rows).div_ceil(SCANNED_PER_INDEXED);
            piece.scanned += cost;
            debt += cost;
        }
    }
    store.scan_debt += debt;
    store.scan_debt <= open
}

fn scan_piece(store: &RowStore, piece: usize, probe: &Probe, found: &mut Pairs) {
    let piece = store.pieces.get(piece);
    let start = piece.range().start.max(store.next.len()).max(store.first as usize);
    let (Some((least, most)), true) = (probe.times, start < piece.range().end && piece.columns.is_some()) else {
        return;
    };
    for (row, hash) in probe.hashes.iter().enumerate() {
        let (least, most) = (least[row], most[row]);
        if probe.is_null(row) || piece.times.0 > most || piece.times.1 < least {
            continue;
        }
        let hashes = &store.hashes[start..piece.range().end];
        for (lane, hashes) in hashes.chunks(LANE).enumerate() {
            // Most lanes hold nothing, and this loop has no branch.
            if !hashes.iter().fold(false, |any, other| any | (other == hash)) {
                continue;
            }
            for (offset, _) in hashes.iter().enumerate().filter(|(_, other)| *other == hash) {
                let at = start + lane * LANE + offset;
                if store.is_live(at) && (least..=most).contains(&store.times[at]) {
                    found.probe.push(row as u32);
                    found.stored.push(at as u32);
                }
            }
        }
    }
}
