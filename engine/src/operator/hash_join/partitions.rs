//! A join whose build side does not fit: the hybrid hash join.
//!
//! The build side is split by a hash of its keys. Partitions stay in memory while they fit; the largest are written to
//! disk until the rest fits, and later rows of theirs follow. Then the partitions in memory get one table. Probe rows
//! that may match in it are joined at once, the others go to disk too, each partition's to a file of its own. In the
//! end each pair of files is a join of its own ([`pairs`](super::pairs)).

use arrow::datatypes::SchemaRef;
use thalweg_memory::{MemoryError, SpillFile, SpillWriter};

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::build::{Collected, ROWS_MAX, held_bytes};
use crate::operator::hash_join::keys::{KeyShape, Keys};
use crate::operator::hash_join::late::{Late, can_evict};
use crate::operator::hash_join::marks::{keeps_unmatched_build, needs_build};
use crate::operator::hash_join::narrow::Narrow;
use crate::operator::hash_join::output::{Layout, Output};
use crate::operator::hash_join::pairs::{Pair, join_pair};
use crate::operator::hash_join::probe::Prober;
use crate::operator::hash_join::radix::{DROP, PARTITIONS_MAX, Radix, Staging, Target};
use crate::operator::{Collector, Context};

/// Probe rows for the table in memory.
const RESIDENT: Target = DROP - 1;

/// Staging takes this part of the share, so that distributing it takes twice that.
const STAGING_PART: usize = 16;
const STAGING_BYTES_MIN: usize = 8 * 1024;
const STAGING_BYTES_MAX: usize = 8 << 20;

/// What to gather up before rows are distributed.
pub(in crate::operator) fn staging_bytes(cx: &Context) -> usize {
    (cx.memory.share_bytes() / STAGING_PART).clamp(STAGING_BYTES_MIN, STAGING_BYTES_MAX)
}

/// One partition of the build side.
#[derive(Default)]
struct Partition {
    rows: u64,
    /// Those of them whose key is NULL and matches nothing.
    unkeyed: u64,
    /// The rows in memory, and their bytes.
    resident: Vec<Batch>,
    resident_bytes: usize,
    /// Once spilled.
    writer: Option<SpillWriter>,
}

impl Partition {
    fn take(&mut self, batch: Batch, cx: &Context) -> Result<()> {
        match &mut self.writer {
            Some(writer) => write(writer, &batch, cx),
            None => {
                self.resident_bytes += held_bytes(batch.columns());
                self.resident.push(batch);
                Ok(())
            }
        }
    }

    fn spill(&mut self, schema: &SchemaRef, cx: &Context) -> Result<()> {
        let mut writer = cx.spill.create(schema.clone())?;
        for batch in self.resident.drain(..) {
            cx.cancel.check()?;
            write(&mut writer, &batch, cx)?;
        }
        self.resident_bytes = 0;
        self.writer = Some(writer);
        Ok(())
    }
}

/// Writes a block and counts it.
pub(in crate::operator) fn write(writer: &mut SpillWriter, batch: &Batch, cx: &Context) -> Result<()> {
    let before = writer.bytes();
    writer.write(batch)?;
    cx.note_spilled(writer.bytes() - before);
    Ok(())
}

/// The build side, while it arrives.
pub(super) struct BuildPartitions {
    narrow: Narrow,
    radix: Radix,
    staging: Staging,
    staging_bytes: usize,
    partitions: Vec<Partition>,
    /// Of what was collected before and is not partitioned yet.
    pending_bytes: usize,
    keeps_unmatched: bool,
    /// Whether a key was NULL.
    saw_null_key: bool,
    next_unkeyed: usize,
    depth: usize,
}

impl BuildPartitions {
    /// Partitions what was collected. `expected_bytes` of the build side are known to come in all.
    pub(super) fn new(
        narrow: Narrow,
        shape: &KeyShape,
        collected: Collected,
        depth: usize,
        expected_bytes: Option<u64>,
        cx: &mut Context,
    ) -> Result<Self> {
        let share = cx.memory.share_bytes();
        let radix = Radix::new(radix_bits(share, expected_bytes), depth);
        let staging_bytes = staging_bytes(cx);
        let mut this = Self {
            staging: Staging::new(narrow.build.schema().clone(), staging_bytes),
            staging_bytes,
            partitions: (0..radix.partitions()).map(|_| Partition::default()).collect(),
            radix,
            pending_bytes: collected.bytes(),
            keeps_unmatched: keeps_unmatched_build(narrow.spec.join_type),
            saw_null_key: false,
            next_unkeyed: 0,
            narrow,
            depth,
        };
        let asked = cx.memory.must_spill();
        for chunk in collected.into_batches() {
            let kept = chunk.kept.into_iter();
            let batch = this.narrow.build.of_columns(kept, &chunk.extra, chunk.rows)?;
            this.pending_bytes -= chunk.bytes;
            this.push_keyed(batch, &shape.digest(&chunk.extra, chunk.rows)?, cx)?;
        }
        this.pending_bytes = 0;
        if asked {
            this.give_back(cx)?;
        }
        this.settle(cx)?;
        Ok(this)
    }

    /// Takes a batch of the build side's input.
    pub(super) fn push(&mut self, shape: &KeyShape, batch: &Batch, cx: &mut Context) -> Result<()> {
        let (batch, keys) = self.narrow.build.of_input(shape, batch)?;
        let keys = shape.digest(&keys, batch.num_rows())?;
        self.push_keyed(batch, &keys, cx)
    }

    fn push_keyed(&mut self, batch: Batch, keys: &Keys, cx: &mut Context) -> Result<()> {
        cx.cancel.check()?;
        let asked = cx.memory.must_spill();
        let mut targets = self.radix.of(keys);
        if let Some(nulls) = &keys.nulls {
            self.saw_null_key = true;
            // Rows that match nothing are spread evenly, and gone where nobody wants to see them.
            for row in (!nulls.inner()).set_indices() {
                if self.keeps_unmatched {
                    self.next_unkeyed = (self.next_unkeyed + 1) % self.partitions.len();
                    self.partitions[self.next_unkeyed].unkeyed += 1;
                    targets[row] = self.next_unkeyed as Target;
                } else {
                    targets[row] = DROP;
                }
            }
        }
        let mut counts = [0u32; Target::MAX as usize + 1];
        for target in &targets {
            counts[usize::from(*target)] += 1;
        }
        for (partition, count) in self.partitions.iter_mut().zip(counts) {
            partition.rows += u64::from(count);
        }
        self.staging.push(batch, targets)?;
        self.settle(cx)?;
        if self.staging.is_full() {
            self.flush(cx)?;
            self.settle(cx)?;
        }
        if asked {
            self.give_back(cx)?;
        }
        Ok(())
    }

    fn flush(&mut self, cx: &Context) -> Result<()> {
        let partitions = &mut self.partitions;
        self.staging
            .distribute(|target, batch| partitions[usize::from(target)].take(batch, cx))
    }

    fn held_bytes(&self) -> usize {
        self.pending_bytes + self.staging.memory_bytes() + self.resident_bytes()
    }

    fn resident_bytes(&self) -> usize {
        self.partitions.iter().map(|partition| partition.resident_bytes).sum()
    }

    /// Books what is held, and spills until that is granted.
    fn settle(&mut self, cx: &mut Context) -> Result<()> {
        while let Err(error) = cx.hold(self.held_bytes()) {
            if !is_exhausted(&error) {
                return Err(error);
            }
            if !self.spill_largest(cx)? {
                cx.hold_anyway(self.held_bytes());
                break;
            }
        }
        Ok(())
    }

    /// Spills half of what is in memory, as somebody else is short of it.
    fn give_back(&mut self, cx: &mut Context) -> Result<()> {
        let keep = self.resident_bytes() / 2;
        while self.resident_bytes() > keep && self.spill_largest(cx)? {}
        self.settle(cx)
    }

    /// False when nothing is left in memory.
    fn spill_largest(&mut self, cx: &Context) -> Result<bool> {
        let largest = self
            .partitions
            .iter_mut()
            .max_by_key(|partition| partition.resident_bytes);
        match largest {
            Some(partition) if partition.resident_bytes > 0 => {
                partition.spill(self.narrow.build.schema(), cx)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether a build key was NULL.
    pub(super) fn saw_null_key(&self) -> bool {
        self.saw_null_key
    }

    /// The build side has ended: builds the table over what stays in memory.
    pub(super) fn finish(mut self, shape: &KeyShape, null_aware: bool, cx: &mut Context) -> Result<ProbePartitions> {
        self.flush(cx)?;
        self.settle(cx)?;
        let staging = Staging::new(self.narrow.probe.schema().clone(), self.staging_bytes);
        let staged_bytes = 2 * self.staging_bytes;
        loop {
            let collected = self.resident(shape)?;
            let rows = collected.rows();
            let granted = cx.hold(collected.bytes_to_build(shape.table_bytes(rows)) + staged_bytes);
            drop(collected);
            match granted {
                Ok(()) if rows < ROWS_MAX => break,
                Ok(()) if self.spill_largest(cx)? => {}
                Ok(()) => break,
                Err(error) if !is_exhausted(&error) => return Err(error),
                Err(_) if self.spill_largest(cx)? => {}
                Err(_) => {
                    cx.hold_anyway(staged_bytes);
                    break;
                }
            }
        }
        let collected = self.resident(shape)?;
        let idle = needs_build(self.narrow.spec.join_type);
        let unmatched = if idle || null_aware { DROP } else { RESIDENT };
        let keyed = |partition: &Partition| partition.rows - partition.unkeyed;
        let all_keyed: u64 = self.partitions.iter().map(keyed).sum();
        let (mut pairs, mut targets) = (Vec::new(), Vec::new());
        for partition in self.partitions {
            let keyed = keyed(&partition);
            targets.push(match &partition.writer {
                Some(_) if keyed > 0 => pairs.len() as Target,
                _ if keyed == 0 && idle => DROP,
                _ => RESIDENT,
            });
            if let Some(writer) = partition.writer {
                pairs.push(OpenPair {
                    build: writer.finish()?,
                    probe: cx.spill.create(self.narrow.probe.schema().clone())?,
                    hot: keyed * 5 > all_keyed * 4,
                });
            }
        }
        let prober = if collected.rows() > 0 || !idle {
            Some(Prober::build(&self.narrow.spec, shape, collected, staged_bytes, cx)?)
        } else {
            None
        };
        Ok(ProbePartitions {
            narrow: self.narrow,
            radix: self.radix,
            staging,
            staged_bytes,
            prober_bytes: cx.memory.bytes().saturating_sub(staged_bytes),
            prober: prober.map(|prober| Resident::Table(Box::new(prober))),
            targets,
            unkeyed: unmatched,
            pairs,
            depth: self.depth,
        })
    }

    /// What is in memory, collected once more.
    fn resident(&self, shape: &KeyShape) -> Result<Collected> {
        let spec = &self.narrow.spec;
        let mut collected = Collected::of(spec, &Layout::of(spec)?);
        for batch in self.partitions.iter().flat_map(|partition| &partition.resident) {
            collected.add(batch, shape.evaluate(&spec.build_keys, batch)?);
        }
        Ok(collected)
    }
}

fn is_exhausted(error: &EngineError) -> bool {
    matches!(error, EngineError::Memory(MemoryError::Exhausted { .. }))
}

/// How many bits of the hash to split by: few partitions where memory is short, as each takes a block.
fn radix_bits(share_bytes: usize, expected_bytes: Option<u64>) -> u32 {
    let most = match share_bytes >> 20 {
        0..2 => 2,
        2..16 => 3,
        16..64 => 4,
        _ => 5,
    };
    let Some(expected) = expected_bytes else { return most };
    let wanted = (2 * expected / (share_bytes as u64).max(1)).next_power_of_two().ilog2();
    wanted.clamp(2, (most + 1).min(PARTITIONS_MAX.ilog2()))
}

/// A partition on disk, while the probe side arrives.
struct OpenPair {
    build: SpillFile,
    probe: SpillWriter,
    hot: bool,
}

/// The partitions that stayed in memory when the build side ended.
enum Resident {
    Table(Box<Prober>),
    /// They had to make room after all.
    Evicted(Box<Late>),
}

/// The probe side, while it arrives.
pub(super) struct ProbePartitions {
    narrow: Narrow,
    radix: Radix,
    staging: Staging,
    /// Booked for staging.
    staged_bytes: usize,
    /// The partitions in memory.
    prober: Option<Resident>,
    prober_bytes: usize,
    /// Where the rows of each partition go: [`RESIDENT`], [`DROP`] or a pair.
    targets: Vec<Target>,
    /// Where the rows go whose key is NULL.
    unkeyed: Target,
    pairs: Vec<OpenPair>,
    depth: usize,
}

impl ProbePartitions {
    /// Takes a batch of the probe side's input.
    pub(super) fn push(
        &mut self,
        shape: &KeyShape,
        batch: &Batch,
        output: &mut Output,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        if cx.memory.must_spill() {
            self.evict(shape, output, cx, out)?;
        }
        let (batch, keys) = self.narrow.probe.of_input(shape, batch)?;
        let keys = shape.digest(&keys, batch.num_rows())?;
        let mut targets = self.radix.of(&keys);
        for target in &mut targets {
            *target = self.targets[usize::from(*target)];
        }
        if let Some(nulls) = &keys.nulls {
            for row in (!nulls.inner()).set_indices() {
                targets[row] = self.unkeyed;
            }
        }
        drop(keys);
        self.staging.push(batch, targets)?;
        cx.hold_anyway(self.prober_bytes + self.staging.memory_bytes().max(self.staged_bytes));
        if self.staging.is_full() {
            self.flush(shape, output, cx, out)?;
            cx.hold_anyway(self.prober_bytes + self.staged_bytes);
        }
        Ok(())
    }

    /// Somebody else is short of memory: the table goes to disk.
    fn evict(
        &mut self,
        shape: &KeyShape,
        output: &mut Output,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let spec = &self.narrow.spec;
        self.prober = match self.prober.take() {
            Some(Resident::Table(prober)) if can_evict(spec.join_type, &prober) => {
                let late = Late::evict(spec, shape, *prober, output, cx, out)?;
                // Its staging is booked from now on, full.
                self.prober_bytes = self.staged_bytes;
                Some(Resident::Evicted(Box::new(late)))
            }
            other => other,
        };
        cx.hold_anyway(self.prober_bytes + self.staging.memory_bytes().max(self.staged_bytes));
        Ok(())
    }

    fn flush(&mut self, shape: &KeyShape, output: &mut Output, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let (spec, prober, pairs) = (&self.narrow.spec, &mut self.prober, &mut self.pairs);
        self.staging.distribute(|target, batch| {
            cx.cancel.check()?;
            match (target, &mut *prober) {
                (RESIDENT, Some(resident)) => {
                    let keys = shape.evaluate(&spec.probe_keys, &batch)?;
                    let keys = shape.digest(&keys, batch.num_rows())?;
                    match resident {
                        Resident::Table(prober) => prober.join(spec, &batch, &keys, output, cx, out),
                        Resident::Evicted(late) => late.push(&batch, keys, cx),
                    }
                }
                (RESIDENT, None) => Ok(()),
                (pair, _) => write(&mut pairs[usize::from(pair)].probe, &batch, cx),
            }
        })
    }

    /// The probe side has ended: hands on what is left, and joins what is on disk.
    pub(super) fn finish(
        mut self,
        shape: &KeyShape,
        output: &mut Output,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        self.flush(shape, output, cx, out)?;
        drop(self.staging);
        let late = match self.prober.take() {
            Some(Resident::Table(prober)) => {
                prober.finish(self.narrow.spec.join_type, output, cx, out)?;
                None
            }
            Some(Resident::Evicted(late)) => Some(late),
            None => None,
        };
        output.finish(out)?;
        if let Some(late) = late {
            late.finish(self.depth, cx, out)?;
        }
        cx.hold(0)?;
        for pair in self.pairs {
            let pair = Pair {
                build: pair.build,
                probe: pair.probe.finish()?,
                hot: pair.hot,
            };
            join_pair(&self.narrow.spec, pair, self.depth, cx, out)?;
        }
        Ok(())
    }
}
