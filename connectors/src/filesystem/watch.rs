//! Folders that are watched: files that appear later are read too, each once.
//!
//! A file is known by its path. What is found in one look is read in order of modification time and then of name,
//! before the next look. A file that is read while it is being written is read as far as it is: put files there by
//! renaming them. There is one split, so that the order holds.

#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{ScalarValue, internal_datafusion_err};
use datafusion::datasource::listing::helpers::parse_partitions_for_path;
use datafusion::datasource::listing::{ListingTableUrl, PartitionedFile};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};

use crate::filesystem::{FileTable, hive};

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
        schema: Arc::clone(&schema),
    });
    let splits = vec![folder as Arc<dyn PartitionStream>];
    Ok(Arc::new(StreamingTableExec::try_new(
        schema,
        splits,
        None,
        [],
        true,
        None,
    )?))
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

impl PartitionStream for Folder {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let watch = Watch {
            folder: self.clone(),
            task,
            seen: HashSet::new(),
            waiting: VecDeque::new(),
            current: None,
        };
        let stream = futures::stream::try_unfold(watch, |mut watch| async move {
            let batch = watch.next().await?;
            Ok(Some((batch, watch)))
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream))
    }
}

impl Folder {
    /// The files that are there and not among `seen`, in the order to read them.
    async fn look(&self, seen: &HashSet<Path>) -> Result<Vec<ObjectMeta>> {
        let top_only = self.state.config_options().execution.listing_table_ignore_subdirectory;
        let ending = &self.table.listing().options().file_extension;
        let wanted = |file: &ObjectMeta| {
            let path = &file.location;
            // An empty file may be one that is about to be written.
            file.size > 0
                && !seen.contains(path)
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
    folder: Folder,
    task: Arc<TaskContext>,
    seen: HashSet<Path>,
    waiting: VecDeque<ObjectMeta>,
    current: Option<SendableRecordBatchStream>,
}

impl Watch {
    async fn next(&mut self) -> Result<RecordBatch> {
        loop {
            if let Some(current) = &mut self.current {
                match current.try_next().await? {
                    Some(batch) => return Ok(batch),
                    None => self.current = None,
                }
            }
            if let Some(file) = self.waiting.pop_front() {
                self.current = self.folder.open(file, &self.task).await?;
                continue;
            }
            self.waiting = self.folder.look(&self.seen).await?.into();
            if self.waiting.is_empty() {
                tokio::time::sleep(self.folder.interval).await;
                continue;
            }
            self.seen.extend(self.waiting.iter().map(|file| file.location.clone()));
        }
    }
}
