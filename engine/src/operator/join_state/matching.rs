//! The loop that all joins have in common: pairs of one key, judged by the residual condition, a piece at a time.

use super::expansion::{Expansion, Pairs, Probe};
use super::keys::JoinKeys;
use super::output::{JoinOutput, SideRows, row_bytes};
use super::store::RowStore;
use crate::data::{Batch, Result};
use crate::operator::{Collector, Context};

/// What is done with each piece of matching pairs.
pub(in crate::operator) type OnPairs<'a> =
    &'a mut dyn FnMut(&mut RowStore, &mut JoinOutput, &Pairs, &mut dyn Collector) -> Result<()>;

/// The rows that look for partners.
pub(in crate::operator) struct Seekers<'a> {
    /// Their side: 0 left, 1 right.
    pub(in crate::operator) side: usize,
    /// The rows.
    pub(in crate::operator) rows: &'a Batch,
    /// Their keys and times.
    pub(in crate::operator) probe: Probe<'a>,
}

/// Finds the partners of rows in the other side's `store`, whose keys are `keys`.
///
/// # Errors
/// When an expression, a kernel or `on_pairs` fails.
pub(in crate::operator) fn match_rows(
    seekers: Seekers,
    store: &mut RowStore,
    keys: &JoinKeys,
    output: &mut JoinOutput,
    cx: &Context,
    out: &mut dyn Collector,
    on_pairs: OnPairs,
) -> Result<()> {
    if store.is_empty() {
        return Ok(());
    }
    let Seekers { side, rows, probe } = seekers;
    let limit = output.pairs_max(store.row_bytes() + row_bytes(rows), cx);
    let mut expansion = Expansion::new(store, keys, probe)?;
    while let Some(pairs) = expansion.next(store, limit)? {
        cx.cancel.check()?;
        if out.is_done() {
            break;
        }
        if output.filter.is_some() && !pairs.probe.is_empty() {
            let mask = {
                let own = SideRows::batch(rows, &pairs.probe);
                let other = SideRows::stored(store, &pairs.stored);
                output.passes(in_order(side, &own, &other))?
            };
            if let Some(mask) = mask {
                pairs.retain(|position| mask.value(position));
            }
        }
        if !pairs.probe.is_empty() {
            on_pairs(store, output, pairs, out)?;
        }
    }
    Ok(())
}

/// Left before right, `own` being side `side`.
pub(in crate::operator) fn in_order<'a, 'b>(
    side: usize,
    own: &'a SideRows<'b>,
    other: &'a SideRows<'b>,
) -> [&'a SideRows<'b>; 2] {
    if side == 0 { [own, other] } else { [other, own] }
}
