//! Merge: several sorted inputs become one, a batch at a time.

use std::cmp::Ordering;

use arrow::compute::interleave_record_batch;
use datafusion::common::utils::memory::get_record_batch_memory_size;

use crate::data::{Batch, EngineError, Result, batch_bytes};
use crate::operator::sort::{BatchKeys, KeyEncoder, without_unused_strings};
use crate::operator::{Collector, Context, Operator, Port, ReadNext};
use crate::plan::MergeSpec;

/// Merges sorted inputs, one per port; rows that compare as equal come in the order of the ports.
pub(super) struct Merge {
    spec: MergeSpec,
    encoder: Option<KeyEncoder>,
    inputs: Vec<Input>,
    tree: LoserTree,
    /// The batches that cursors or `pending` refer to.
    batches: Vec<Held>,
    /// The next rows to hand on: batch and row.
    pending: Vec<(usize, usize)>,
    /// Bytes of those rows, about.
    pending_bytes: usize,
    rows_left: usize,
}

#[derive(Clone)]
struct Held {
    batch: Batch,
    bytes: usize,
}

#[derive(Default)]
struct Input {
    ended: bool,
    cursor: Option<Cursor>,
}

/// Where an input's batch has been merged up to.
struct Cursor {
    keys: BatchKeys,
    batch: usize,
    row: usize,
    row_count: usize,
    /// On average.
    row_bytes: usize,
}

impl Input {
    fn is_missing(&self) -> bool {
        !self.ended && self.cursor.is_none()
    }
}

impl Merge {
    /// A merge of `inputs` ports.
    pub(super) fn new(spec: MergeSpec, inputs: usize) -> Self {
        Self {
            rows_left: spec.fetch.unwrap_or(usize::MAX),
            spec,
            encoder: None,
            inputs: (0..inputs).map(|_| Input::default()).collect(),
            tree: LoserTree::default(),
            batches: Vec::new(),
            pending: Vec::new(),
            pending_bytes: 0,
        }
    }

    fn missing(&self) -> Option<Port> {
        self.inputs.iter().position(Input::is_missing)
    }

    /// Merges until an input must be read again, or nothing is left.
    fn advance(&mut self, changed: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.missing().is_some() {
            return Ok(());
        }
        if self.tree.is_built() {
            self.tree.replay(changed, &self.inputs);
        } else {
            self.tree.build(&self.inputs);
        }
        while self.rows_left > 0 {
            let port = self.tree.winner();
            let Some(cursor) = &mut self.inputs[port].cursor else {
                break;
            };
            self.pending.push((cursor.batch, cursor.row));
            self.pending_bytes += cursor.row_bytes;
            self.rows_left -= 1;
            cursor.row += 1;
            let exhausted = cursor.row == cursor.row_count;
            if exhausted {
                self.inputs[port].cursor = None;
            }
            if self.pending.len() == cx.batch_size || self.pending_bytes >= cx.batch_bytes {
                self.flush(cx, out)?;
            }
            if exhausted && self.rows_left > 0 {
                return Ok(()); // the tree is replayed when the port's next batch or its end is there
            }
            self.tree.replay(port, &self.inputs);
        }
        self.flush(cx, out)?;
        // Nothing is merged any more: what is still held is beyond the fetch.
        self.inputs.iter_mut().for_each(|input| input.cursor = None);
        self.batches.clear();
        cx.hold_anyway(0);
        Ok(())
    }

    fn flush(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        cx.cancel.check()?;
        if !self.pending.is_empty() {
            let batches: Vec<&Batch> = self.batches.iter().map(|held| &held.batch).collect();
            let merged = interleave_record_batch(&batches, &self.pending)?;
            self.pending.clear();
            self.pending_bytes = 0;
            out.collect(without_unused_strings(merged)?)?;
        }
        self.release(cx);
        Ok(())
    }

    /// Lets go of the batches that no cursor refers to any more.
    fn release(&mut self, cx: &mut Context) {
        let mut kept = Vec::with_capacity(self.inputs.len() + 1);
        for cursor in self.inputs.iter_mut().filter_map(|input| input.cursor.as_mut()) {
            kept.push(self.batches[cursor.batch].clone());
            cursor.batch = kept.len() - 1;
        }
        self.batches = kept;
        self.book(cx);
    }

    /// A batch of each input, and those that the next output is made of: without them nothing can be merged.
    fn book(&self, cx: &mut Context) {
        let batches: usize = self.batches.iter().map(|held| held.bytes).sum();
        let cursors = self.inputs.iter().filter_map(|input| input.cursor.as_ref());
        let keys: usize = cursors.map(|cursor| cursor.keys.byte_size()).sum();
        cx.hold_anyway(batches + keys + self.pending_bytes);
    }
}

impl Operator for Merge {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.rows_left == 0 {
            return Ok(());
        }
        if self.inputs.len() == 1 {
            let rows = self.rows_left.min(batch.num_rows());
            self.rows_left -= rows;
            return out.collect(if rows == batch.num_rows() {
                batch
            } else {
                batch.slice(0, rows)
            });
        }
        if !self.inputs[port].is_missing() {
            return Err(EngineError::Internal(format!(
                "{} was handed a batch of input {port} unasked",
                cx.operator
            )));
        }
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self
                .encoder
                .insert(KeyEncoder::try_new(&self.spec.keys, &batch.schema())?),
        };
        self.inputs[port].cursor = Some(Cursor {
            keys: encoder.encode(&batch)?,
            batch: self.batches.len(),
            row: 0,
            row_count: batch.num_rows(),
            row_bytes: batch_bytes(&batch).div_ceil(batch.num_rows()),
        });
        let bytes = get_record_batch_memory_size(&batch);
        self.batches.push(Held { batch, bytes });
        self.book(cx);
        self.advance(port, cx, out)
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.inputs[port].ended = true;
        if self.inputs.len() == 1 || self.rows_left == 0 {
            return Ok(());
        }
        self.advance(port, cx, out)
    }

    fn reads_next(&self) -> ReadNext {
        match self.missing() {
            Some(port) if self.inputs.len() > 1 && self.rows_left > 0 => ReadNext::Only(port),
            _ => ReadNext::Any,
        }
    }

    fn is_done(&self) -> bool {
        self.rows_left == 0
    }
}

/// A tournament in an array: each inner node remembers the loser of its match, so that after the winner's advance one
/// comparison per level finds the next (Knuth, TAOCP 3, 5.4.1).
#[derive(Default)]
struct LoserTree {
    /// `nodes[0]` is the winner; the children of node `n` are `2n` and `2n + 1`; port `p` is leaf `ports + p`.
    nodes: Vec<Port>,
}

impl LoserTree {
    fn is_built(&self) -> bool {
        !self.nodes.is_empty()
    }

    fn winner(&self) -> Port {
        self.nodes[0]
    }

    fn build(&mut self, inputs: &[Input]) {
        let ports = inputs.len();
        // The winner of each subtree, leaves last.
        let mut winners = vec![0; 2 * ports];
        for (port, leaf) in (ports..2 * ports).enumerate() {
            winners[leaf] = port;
        }
        self.nodes = vec![0; ports];
        for node in (1..ports).rev() {
            let (a, b) = (winners[2 * node], winners[2 * node + 1]);
            let (winner, loser) = if precedes(a, b, inputs) { (a, b) } else { (b, a) };
            winners[node] = winner;
            self.nodes[node] = loser;
        }
        self.nodes[0] = winners[1];
    }

    /// Plays the matches of `port`, the last winner, again: its row has changed.
    fn replay(&mut self, port: Port, inputs: &[Input]) {
        let mut winner = port;
        let mut node = (port + inputs.len()) / 2;
        while node > 0 {
            if precedes(self.nodes[node], winner, inputs) {
                std::mem::swap(&mut self.nodes[node], &mut winner);
            }
            node /= 2;
        }
        self.nodes[0] = winner;
    }
}

/// Whether port `a`'s row comes before port `b`'s; an input that has ended comes last.
fn precedes(a: Port, b: Port, inputs: &[Input]) -> bool {
    match (&inputs[a].cursor, &inputs[b].cursor) {
        (Some(x), Some(y)) => x.keys.compare(x.row, &y.keys, y.row).then(a.cmp(&b)) == Ordering::Less,
        (Some(_), None) => true,
        (None, Some(_)) => false,
        (None, None) => a < b,
    }
}
