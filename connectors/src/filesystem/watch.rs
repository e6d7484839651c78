//! Folders that are watched: files that appear later are read too, each once.
//!
//! A file is known by its path. What is found in one look is read in order of modification time and then of name,
//! before the next look. A file that is read while it is being written is read as far as it is: put files there by
//! renaming them. There is one split, so that the order holds; its position has the files that have been read, and how many
//! rows of the current one.

mod scan;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{ScalarValue, exec_err, internal_datafusion_err};
use datafusion::datasource::listing::helpers::parse_partitions_for_path;
use datafusion::datasource::listing::{ListingTableUrl, PartitionedFile};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::filesystem::diagnose::shown_name;
use crate::filesystem::progress::{FileProgress, Progress, hash};
use crate::filesystem::{FileTable, hive};

use scan::WatchScan;
pub(crate) use scan::WatchSource;

/// The endless scan of a table's folder.
pub(super) fn plan(
    table: &FileTable,
    state: &dyn Session,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
    interval: Duration,
) -> Result<Arc<dyn ExecutionPlan>> {
    let state = state
        .as_any()
        .downcast_ref::<SessionState>()
        .ok_or_else(|| internal_datafusion_err!("a watched folder needs a session to plan its files"))?;
    let url = table
        .listing()
        .table_paths()
        .first()
        .ok_or_else(|| internal_datafusion_err!("a table of files without a path"))?;
    let schema = match projection {
        Some(columns) => Arc::new(table.schema().project(columns)?),
        None => table.schema(),
    };
    let folder = Arc::new(Folder {
        store: state.runtime_env().object_store(url.object_store())?,
        url: url.clone(),
        pruning: table.partition_filters(filters),
        table: table.clone(),
        state: state.clone(),
        projection: projection.cloned(),
        interval,
        schema,
    });
    Ok(Arc::new(WatchScan::new(folder)))
}

/// A folder and how its files are read.
#[derive(Clone)]
struct Folder {
    table: FileTable,
    url: ListingTableUrl,
    store: Arc<dyn ObjectStore>,
    state: SessionState,
    projection: Option<Vec<usize>>,
    /// Filters on partition columns.
    pruning: Vec<Expr>,
    interval: Duration,
    schema: SchemaRef,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folder({}, each {:?})", self.url.as_str(), self.interval)
    }
}

impl Folder {
    /// The files that are there and not among `seen`, in the order to read them.
    async fn look(&self, seen: &HashSet<u128>) -> Result<Vec<ObjectMeta>> {
        let top_only = self.state.config_options().execution.listing_table_ignore_subdirectory;
        let ending = &self.table.listing().options().file_extension;
        let wanted = |file: &ObjectMeta| {
            let path = &file.location;
            // An empty file may be one that is about to be written.
            file.size > 0
                && !seen.contains(&hash(path))
                && path.as_ref().ends_with(ending)
                && self.url.contains(path, top_only)
                && !self.is_hidden(path)
        };
        let mut found = Vec::new();
        let mut listed = self.store.list(Some(self.url.prefix()));
        loop {
            match listed.try_next().await {
                Ok(Some(file)) if wanted(&file) => found.push(file),
                Ok(Some(_)) => {}
                // A file or the folder itself went away while it was looked at, or the folder is not there yet.
                Err(object_store::Error::NotFound { .. }) => {}
                Ok(None) => break,
                Err(e) => return Err(e.into()),
            }
        }
        found.sort_by(|a, b| (a.last_modified, &a.location).cmp(&(b.last_modified, &b.location)));
        Ok(found)
    }

    fn shown(&self, path: &Path) -> String {
        shown_name(self.url.object_store().as_str(), path)
    }

    /// What others are still writing, and notes to themselves.
    fn is_hidden(&self, path: &Path) -> bool {
        let hidden = |segment: &str| segment.starts_with('.') || segment.starts_with('_') && !segment.contains('=');
        self.url
            .strip_prefix(path)
            .is_none_or(|mut segments| segments.any(hidden))
    }

    /// The rows of a file; `None` when a filter on partitions leaves it out.
    async fn open(&self, file: ObjectMeta, task: &Arc<TaskContext>) -> Result<Option<SendableRecordBatchStream>> {
        let partitions = self.table.partitions();
        let names = partitions.iter().map(|field| field.name().as_str());
        let Some(values) = parse_partitions_for_path(&self.url, &file.location, names) else {
            // As when a folder is listed: it lies outside of the partitions' directories.
            return Ok(None);
        };
        let values = values.iter().map(|value| ScalarValue::from(value.as_ref())).collect();
        let mut read = PartitionedFile::new_from_meta(file);
        read.partition_values = values;
        let read = vec![hive::typed(read, partitions)?];
        let Some(read) = hive::prune(&self.state, read, partitions, self.pruning.clone())?.pop() else {
            return Ok(None);
        };
        let plan = self
            .table
            .plan_file(&self.state, read, self.projection.as_ref())
            .await?;
        let splits = plan.properties().partitioning.partition_count();
        let streams = (0..splits).map(|split| plan.execute(split, Arc::clone(task)));
        let streams = futures::stream::iter(streams.collect::<Result<Vec<_>>>()?).flatten();
        Ok(Some(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            streams,
        ))))
    }
}

/// A folder being watched.
struct Watch {
    folder: Arc<Folder>,
    task: Arc<TaskContext>,
    /// What has been found, by what stands for its path.
    seen: HashSet<u128>,
    waiting: VecDeque<ObjectMeta>,
    current: Option<SendableRecordBatchStream>,
    /// Rows of the current file that are to be left out.
    left_out: u64,
    /// After the last batch that was given.
    progress: Progress,
}

impl Watch {
    fn new(folder: Arc<Folder>, task: Arc<TaskContext>, progress: Progress) -> Self {
        Self {
            folder,
            task,
            seen: progress.seen(),
            waiting: VecDeque::new(),
            current: None,
            left_out: 0,
            progress,
        }
    }

    async fn next(&mut self) -> Result<RecordBatch> {
        if self.current.is_none()
            && let Some(begun) = self.progress.current.clone()
        {
            self.go_on_in(&begun).await?;
        }
        loop {
            if let Some(current) = &mut self.current {
                match current.try_next().await? {
                    Some(batch) => {
                        if let Some(batch) = self.given(batch) {
                            return Ok(batch);
                        }
                    }
                    None => self.finish()?,
                }
                continue;
            }
            if let Some(file) = self.waiting.pop_front() {
                self.progress.current = Some(FileProgress {
                    path: file.location.clone(),
                    records: 0,
                    rows: 0,
                });
                self.current = self.folder.open(file, &self.task).await?;
                if self.current.is_none() {
                    self.finish()?;
                }
                continue;
            }
            self.waiting = self.folder.look(&self.seen).await?.into();
            if self.waiting.is_empty() {
                tokio::time::sleep(self.folder.interval).await;
                continue;
            }
            self.seen.extend(self.waiting.iter().map(|file| hash(&file.location)));
        }
    }

    /// Opens the file that was being read.
    async fn go_on_in(&mut self, begun: &FileProgress) -> Result<()> {
        let file = match self.folder.store.head(&begun.path).await {
            Ok(file) => file,
            Err(object_store::Error::NotFound { .. }) => {
                return exec_err!(
                    "{} was being read when the checkpoint was taken and is gone; restore it, or start without the state of \
                     this source",
                    self.folder.shown(&begun.path)
                );
            }
            Err(e) => return Err(e.into()),
        };
        self.left_out = begun.rows;
        self.current = self.folder.open(file, &self.task).await?;
        if self.current.is_none() {
            self.finish()?;
        }
        Ok(())
    }

    /// What of a batch is to be given.
    fn given(&mut self, batch: RecordBatch) -> Option<RecordBatch> {
        let rows = batch.num_rows();
        // No more than the rows of a batch.
        let left_out = self.left_out.min(rows as u64) as usize;
        self.left_out -= left_out as u64;
        let batch = batch.slice(left_out, rows - left_out);
        if let Some(current) = &mut self.progress.current {
            current.rows += batch.num_rows() as u64;
        }
        (batch.num_rows() > 0).then_some(batch)
    }

    /// The current file has been read.
    fn finish(&mut self) -> Result<()> {
        self.current = None;
        let Some(done) = self.progress.current.take() else {
            return Ok(());
        };
        if self.left_out > 0 {
            return exec_err!(
                "{} has fewer than the {} rows that had been read of it before: it has changed or shrunk; restore it, or start \
                 without the state of this source",
                self.folder.shown(&done.path),
                done.rows
            );
        }
        self.progress.finish(&done.path);
        Ok(())
    }
}
