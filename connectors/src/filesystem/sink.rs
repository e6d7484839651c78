//! The filesystem sink: rows to files of any format, into one file or a (partitioned) folder.
//!
//! A job without checkpoints shows its files when it is done, or when they roll. With checkpoints, files that are finished
//! wait under hidden names ([`PendingStorage`]) until the checkpoint that their rows belong to is complete.

#[cfg(test)]
mod checkpoint_tests;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use datafusion::execution::runtime_env::RuntimeEnv;
use thalweg_engine::operator::{Committable, PreparedSink, SinkConnector, SinkJob, SinkWriter};
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::time::Clock;
use thalweg_engine::{Batch, EngineError, Result};

use crate::filesystem::encode::{EncodeResult, FileEncoder, encoder, file_schema};
use crate::filesystem::fixed::Layout;
use crate::filesystem::partition::Partitioner;
use crate::filesystem::rolling::{Counted, RollingPolicy};
use crate::filesystem::storage::{PendingFile, PendingStorage, Storage, Target};
use crate::filesystem::{DeliveryGuarantee, FileOptions, Format};
use crate::run_token::run_token;

/// Makes sinks that write files; see [`FileOptions`] for the options.
#[derive(Clone, Copy, Debug)]
pub struct FileSinkConnector;

impl SinkConnector for FileSinkConnector {
    fn name(&self) -> &str {
        "filesystem"
    }

    fn prepare(&self, spec: &SinkSpec, job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        let options = FileOptions::parse(&spec.options)?;
        let target = Target::resolve(&options)?;
        let rows = file_schema(options.format, &spec.schema.0)?;
        let partitioner = Partitioner::try_new(&rows, &options.partition_by, options.keep_partition_columns)?;
        let files = partitioner.file_schema(&rows)?;
        if options.format == Format::Fixed {
            Layout::try_new(&files, &options.fixed_lengths).map_err(EngineError::Plan)?;
        }
        let storage = target.storage(&options, job)?;
        // Told while the job is planned, not after it has run for an hour.
        if let Target::File { name, .. } = &target
            && !options.replace
            && crate::filesystem::storage::local_path(&options.path)?.is_some_and(|path| path.exists())
        {
            return Err(EngineError::Plan(format!(
                "{} exists and INSERT would replace it; insert into a folder, or replace it with COPY",
                storage.describe(name)
            )));
        }
        let checkpoints = Checkpoints::of(&options, &target, storage.as_ref(), job)?;
        let rolling = RollingPolicy::of(&options.rolling, job.endless || checkpoints.is_some());
        if let (Target::File { name, .. }, Some(_)) = (&target, rolling) {
            let file = storage.describe(name);
            return Err(EngineError::Plan(match job.endless {
                true => format!("{file} is one file, and rows without end would never complete it; name a folder"),
                false => format!("{file} is one file, for which there is no 'sink.rolling-policy'; name a folder"),
            }));
        }
        let job = Arc::new(Job {
            id: job.job.clone(),
            options,
            target,
            rows,
            files,
            partitioner,
            storage,
            checkpoints,
            rolling,
            clock: Arc::clone(&job.clock),
            runtime: Arc::clone(&job.runtime),
        });
        Ok(Arc::new(PreparedFileSink { job }))
    }
}

/// How files are kept for the checkpoints of a job.
#[derive(Debug)]
struct Checkpoints {
    storage: Arc<dyn PendingStorage>,
    /// Whether files are shown when they are finished.
    at_once: bool,
    /// Part of the names: a job that goes on after a restart never meets a file of an earlier run.
    run: String,
}

impl Checkpoints {
    /// `None` for a job without.
    fn of(options: &FileOptions, target: &Target, storage: &dyn Storage, job: &SinkJob) -> Result<Option<Self>> {
        let Some(name) = &job.checkpointed else {
            if job.endless && options.delivery == Some(DeliveryGuarantee::ExactlyOnce) {
                return Err(EngineError::Plan(format!(
                    "{}: 'sink.delivery-guarantee' = 'exactly-once' shows files when a checkpoint is complete, and this job \
                     takes none; SET 'execution.checkpointing.interval', or leave the option out",
                    options.path
                )));
            }
            return Ok(None);
        };
        let folder = match target {
            Target::Folder(folder) => folder,
            Target::File { name, .. } => {
                return Err(EngineError::Plan(format!(
                    "{} is one file: a checkpoint completes the files that are being written, and the rows after it need \
                     another; name a folder, or take no checkpoints (RESET 'execution.checkpointing.interval')",
                    storage.describe(name)
                )));
            }
        };
        Ok(Some(Self {
            storage: folder.pending(name, options, job)?,
            at_once: options.delivery == Some(DeliveryGuarantee::AtLeastOnce),
            run: run_token(),
        }))
    }
}

/// What the writers of one job share.
#[derive(Debug)]
struct Job {
    id: String,
    options: FileOptions,
    target: Target,
    /// The rows that are written.
    rows: SchemaRef,
    /// The rows of a file: without the partition columns.
    files: SchemaRef,
    partitioner: Partitioner,
    storage: Arc<dyn Storage>,
    /// Where files wait for checkpoints, if there are such.
    checkpoints: Option<Checkpoints>,
    /// When files are finished and shown; at the end of the job when `None`.
    rolling: Option<RollingPolicy>,
    clock: Arc<dyn Clock>,
    runtime: Arc<RuntimeEnv>,
}

impl Job {
    /// The name of a file relative to the target.
    fn name(&self, directory: &str, (subtask, parallelism): (usize, usize), part: usize) -> String {
        match &self.target {
            Target::File { name, .. } => name.clone(),
            Target::Folder(_) => {
                let slash = if directory.is_empty() { "" } else { "/" };
                // The order of the names is the order of the subtasks: rows sorted by range are in order over all files.
                let digits = parallelism.saturating_sub(1).to_string().len();
                let part = match &self.checkpoints {
                    Some(_) => format!("-{part:06}"),
                    None if part == 0 => String::new(),
                    None => format!("-{part}"),
                };
                let run = self.checkpoints.as_ref();
                let run = run.map_or_else(String::new, |checkpoints| format!("-{}", checkpoints.run));
                let safe = |c: char| {
                    if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                        c
                    } else {
                        '_'
                    }
                };
                let id: String = self.id.chars().map(safe).collect();
                format!(
                    "{directory}{slash}part-{id}{run}-{subtask:0digits$}{part}.{}",
                    self.options.extension()
                )
            }
        }
    }

    fn open(&self, name: String) -> Result<OpenFile> {
        let bytes = Arc::new(AtomicU64::new(0));
        let file = match &self.checkpoints {
            Some(checkpoints) => checkpoints.storage.create(&name)?,
            None => self.storage.create(&name)?,
        };
        let file = Box::new(Counted::new(file, Arc::clone(&bytes)));
        let encoder = encoder(&self.options, &self.files, file);
        let encoder = self.named(&name, encoder)?;
        let now = self.clock.now_ms();
        Ok(OpenFile {
            name,
            encoder,
            bytes,
            used: 0,
            begun_ms: now,
            written_ms: now,
        })
    }

    /// Finishes a file before its writer does. Where it waits for a checkpoint it is given back; else it is shown at once if
    /// files roll.
    fn roll(&self, file: OpenFile) -> Result<Option<PendingFile>> {
        let (name, bytes) = (file.name.clone(), Arc::clone(&file.bytes));
        self.close(file)?;
        if let Some(checkpoints) = &self.checkpoints {
            let pending = checkpoints.storage.pending(&name, bytes.load(Ordering::Relaxed));
            if !checkpoints.at_once {
                return Ok(Some(pending));
            }
            checkpoints.storage.publish(&[pending])?;
            self.forget_listings();
            return Ok(None);
        }
        if self.rolling.is_some() {
            self.storage.publish_file(&name)?;
            self.forget_listings();
        }
        Ok(None)
    }

    /// DataFusion remembers listings for ever; whoever reads next shall see the new files.
    fn forget_listings(&self) {
        if let Some(listings) = self.runtime.cache_manager.get_list_files_cache() {
            listings.clear();
        }
    }

    fn close(&self, file: OpenFile) -> Result<()> {
        let OpenFile { name, encoder, .. } = file;
        let finished = encoder.finish().and_then(|staged| Ok(staged.complete()?));
        self.named(&name, finished)
    }

    /// Adds the file's final name to what a format's writer says.
    fn named<T>(&self, name: &str, result: EncodeResult<T>) -> Result<T> {
        result.map_err(|e| EngineError::Io {
            path: self.storage.describe(name),
            source: io_cause(e),
        })
    }
}

/// The I/O error at the bottom of `e` (a full disk rather than "Parquet error: external"), else `e` itself.
fn io_cause(e: Box<dyn Error + Send + Sync>) -> io::Error {
    let mut cause: Option<&(dyn Error + 'static)> = Some(e.as_ref());
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.get_ref().is_none()
        {
            return match io.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::from(io.kind()),
            };
        }
        cause = error.source();
    }
    io::Error::other(e)
}

#[derive(Debug)]
struct PreparedFileSink {
    job: Arc<Job>,
}

impl PreparedSink for PreparedFileSink {
    fn max_parallelism(&self) -> Option<usize> {
        matches!(self.job.target, Target::File { .. }).then_some(1)
    }

    fn writer(&self, subtask: usize, parallelism: usize) -> Result<Box<dyn SinkWriter>> {
        if let Target::File { name, .. } = &self.job.target
            && parallelism > 1
        {
            return Err(EngineError::Internal(format!(
                "{} is one file and cannot have {parallelism} writers",
                self.job.storage.describe(name)
            )));
        }
        let mut writer = FileSinkWriter {
            job: Arc::clone(&self.job),
            subtask,
            parallelism,
            open: HashMap::new(),
            parts: HashMap::new(),
            finished: Vec::new(),
            tick: 0,
        };
        if self.max_parallelism().is_some() {
            // A single file is there also when no row is.
            writer.open_file("")?;
        }
        Ok(Box::new(writer))
    }

    fn commit(&self) -> Result<()> {
        let job = &self.job;
        if job.checkpoints.is_some() {
            return Err(EngineError::Internal(
                "a sink of a job with checkpoints was committed".into(),
            ));
        }
        let without_rows = job.storage.is_empty() && job.options.partition_by.is_empty();
        // A folder that would be empty could not be read back: nothing in it tells the columns.
        let outcome = match without_rows.then(|| job.storage.target_is_empty()) {
            Some(Ok(true)) => job.open(job.name("", (0, 1), 0)).and_then(|file| job.close(file)),
            Some(Err(e)) => Err(e),
            Some(Ok(false)) | None => Ok(()),
        };
        if let Err(e) = outcome {
            job.storage.discard();
            return Err(e);
        }
        job.storage.publish()?;
        job.forget_listings();
        Ok(())
    }

    fn abort(&self) {
        self.job.storage.discard();
    }

    fn publish(&self, committables: &[Committable]) -> Result<()> {
        if committables.is_empty() {
            return Ok(());
        }
        let files = committables.iter().map(|bytes| PendingFile::decode(bytes));
        let files = files.collect::<Result<Vec<_>>>()?;
        self.checkpoints()?.storage.publish(&files)?;
        self.job.forget_listings();
        Ok(())
    }

    fn recover(&self) -> Result<()> {
        self.checkpoints()?.storage.recover()
    }

    fn hides_until_published(&self) -> bool {
        self.is_exactly_once()
    }

    fn is_exactly_once(&self) -> bool {
        self.job
            .checkpoints
            .as_ref()
            .is_some_and(|checkpoints| !checkpoints.at_once)
    }
}

impl PreparedFileSink {
    fn checkpoints(&self) -> Result<&Checkpoints> {
        let checkpoints = self.job.checkpoints.as_ref();
        checkpoints.ok_or_else(|| EngineError::Internal("a sink of a job without checkpoints was told of one".into()))
    }
}

/// A file being written.
struct OpenFile {
    name: String,
    encoder: Box<dyn FileEncoder>,
    /// Bytes in the file.
    bytes: Arc<AtomicU64>,
    /// When it was last written to, in batches.
    used: u64,
    /// When it was begun and last written to, by the clock.
    begun_ms: i64,
    written_ms: i64,
}

impl OpenFile {
    /// What the file will be if it is finished now, about.
    fn size(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) + self.encoder.pending_bytes() as u64
    }
}

struct FileSinkWriter {
    job: Arc<Job>,
    subtask: usize,
    parallelism: usize,
    /// Open files by directory.
    open: HashMap<String, OpenFile>,
    /// How many files each directory has had.
    parts: HashMap<String, usize>,
    /// Files that wait for the next checkpoint.
    finished: Vec<PendingFile>,
    tick: u64,
}

impl FileSinkWriter {
    fn open_file(&mut self, directory: &str) -> Result<()> {
        if self.open.len() >= self.job.options.max_open_files {
            let oldest = self
                .open
                .iter()
                .min_by_key(|(_, file)| file.used)
                .map(|(directory, _)| directory.clone());
            if let Some(file) = oldest.and_then(|directory| self.open.remove(&directory)) {
                self.finished.extend(self.job.roll(file)?);
            }
        }
        let part = self.parts.entry(directory.to_string()).or_default();
        let name = self.job.name(directory, (self.subtask, self.parallelism), *part);
        *part += 1;
        self.open.insert(directory.to_string(), self.job.open(name)?);
        Ok(())
    }

    fn write_part(&mut self, directory: &str, rows: &Batch) -> Result<()> {
        if !self.open.contains_key(directory) {
            self.open_file(directory)?;
        }
        self.tick += 1;
        let Some(file) = self.open.get_mut(directory) else {
            return Err(EngineError::Internal(format!("no file is open for '{directory}'")));
        };
        file.used = self.tick;
        let written = file.encoder.write(rows);
        self.job.named(&file.name, written)?;
        let Some(rolling) = &self.job.rolling else {
            return Ok(());
        };
        file.written_ms = self.job.clock.now_ms();
        if rolling.is_full(file.size())
            && let Some(file) = self.open.remove(directory)
        {
            self.finished.extend(self.job.roll(file)?);
        }
        Ok(())
    }

    /// Writes out the largest buffers until at most `limit` bytes are held.
    fn shrink_to(&mut self, limit: usize) -> Result<()> {
        let mut held = self.held_bytes();
        while held > limit {
            let Some(file) = self.open.values_mut().max_by_key(|file| file.encoder.held_bytes()) else {
                break;
            };
            let relieved = file.encoder.relieve();
            self.job.named(&file.name, relieved)?;
            let now = self.held_bytes();
            if now >= held {
                break;
            }
            held = now;
        }
        Ok(())
    }
}

impl SinkWriter for FileSinkWriter {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let batch = conform(batch, &self.job.rows)?;
        for (directory, rows) in self.job.partitioner.split(&batch)? {
            self.write_part(&directory, &rows)?;
        }
        self.shrink_to(self.job.options.buffer_bytes)
    }

    fn held_bytes(&self) -> usize {
        self.open.values().map(|file| file.encoder.held_bytes()).sum()
    }

    fn relieve(&mut self) -> Result<()> {
        self.shrink_to(0)
    }

    fn finish(&mut self) -> Result<()> {
        if self.job.checkpoints.is_some() {
            return Err(EngineError::Internal(
                "a sink of a job with checkpoints was finished".into(),
            ));
        }
        let open = std::mem::take(&mut self.open);
        open.into_values().try_for_each(|file| self.job.close(file))
    }

    fn prepare(&mut self, _checkpoint: u64) -> Result<Vec<Committable>> {
        for file in std::mem::take(&mut self.open).into_values() {
            self.finished.extend(self.job.roll(file)?);
        }
        let Some(checkpoints) = &self.job.checkpoints else {
            return Err(EngineError::Internal(
                "a sink of a job without checkpoints was told of one".into(),
            ));
        };
        checkpoints.storage.seal(&self.finished)?;
        let finished = std::mem::take(&mut self.finished);
        finished.iter().map(PendingFile::encode).collect()
    }

    fn next_roll_ms(&self) -> Option<i64> {
        let rolling = self.job.rolling.as_ref()?;
        let due = self
            .open
            .values()
            .map(|file| rolling.due_ms(file.begun_ms, file.written_ms));
        due.min()
    }

    fn roll(&mut self) -> Result<()> {
        let Some(rolling) = &self.job.rolling else {
            return Ok(());
        };
        let now = self.job.clock.now_ms();
        let due = self
            .open
            .extract_if(|_, file| rolling.due_ms(file.begun_ms, file.written_ms) <= now);
        let due: Vec<OpenFile> = due.map(|(_, file)| file).collect();
        for file in due {
            self.finished.extend(self.job.roll(file)?);
        }
        Ok(())
    }
}

/// `batch` with exactly the types of `schema` (a plan may hand on views or dictionaries for strings).
fn conform(batch: &Batch, schema: &SchemaRef) -> Result<Batch> {
    if batch.num_columns() != schema.fields().len() {
        return Err(EngineError::Internal(format!(
            "a sink of {} columns was handed {}",
            schema.fields().len(),
            batch.num_columns()
        )));
    }
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(Arc::clone(column))
        } else {
            cast(column, field.data_type())
        }
    });
    Ok(Batch::try_new(
        Arc::clone(schema),
        columns.collect::<std::result::Result<_, _>>()?,
    )?)
}
