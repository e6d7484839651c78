//! Files that are there as a source that goes on: the position is the number of rows that a file has given.
//!
//! DataFusion deals files, and parts of them, to as many partitions as there are subtasks. Here a split is a file, or a part
//! of a fixed length of a file whose format can be read in parts: the splits are the same whatever the parallelism is.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use datafusion::common::Statistics;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;
use thalweg_engine::operator::{SplitId, SplitReader, SplitSource, SplitStream, counted_rows, rows_given};
use thalweg_engine::{EngineError, Result};

use crate::filesystem::diagnose::shown_name;
use crate::row_wise::RowWise;

/// The length of a part of a file.
const PART_BYTES: u64 = 8 << 20;
/// What is between a file's path and where a part begins, in the name of a split.
const FROM: &str = " from byte ";

/// The files of a scan.
#[derive(Clone, Debug)]
pub(crate) struct FileSource {
    plan: RowWise,
    config: FileScanConfig,
    /// By path.
    files: Arc<BTreeMap<String, PartitionedFile>>,
    /// `None` when files are read whole.
    part_bytes: Option<u64>,
}

impl FileSource {
    /// Of a plan over files.
    pub(crate) fn of(plan: &RowWise) -> Option<Self> {
        Self::with_parts(plan, PART_BYTES)
    }

    pub(super) fn with_parts(plan: &RowWise, part_bytes: u64) -> Option<Self> {
        let exec = plan.leaf().downcast_ref::<DataSourceExec>()?;
        let config = exec.data_source().downcast_ref::<FileScanConfig>()?;
        let files = whole_files(config)?;
        Some(Self {
            part_bytes: can_be_parted(config).then_some(part_bytes),
            config: config.clone(),
            files: Arc::new(files),
            plan: plan.clone(),
        })
    }

    fn shown(&self, path: &str) -> String {
        shown_name(self.config.object_store_url.as_str(), &path.into())
    }

    /// Where the parts of a file begin.
    fn starts(&self, file: &PartitionedFile) -> Vec<u64> {
        match self.part_bytes {
            Some(length) => (0..file.object_meta.size.max(1)).step_by(length as usize).collect(),
            None => vec![0],
        }
    }

    fn all(&self) -> Vec<SplitId> {
        let starts = self.files.iter().flat_map(|(path, file)| {
            let starts = self.starts(file).into_iter();
            starts.map(move |start| (path, start))
        });
        let split = |(ordinal, (path, start)): (usize, (&String, u64))| SplitId {
            name: match self.part_bytes {
                Some(_) => format!("{path}{FROM}{start}"),
                None => path.clone(),
            },
            ordinal: ordinal as u64,
        };
        starts.enumerate().map(split).collect()
    }

    /// The path of a split's file, and where it begins when files are read in parts.
    fn place_of<'a>(&self, split: &'a SplitId) -> (&'a str, Option<u64>) {
        let whole = (split.name.as_str(), None);
        let place = || {
            self.part_bytes?;
            let (path, start) = split.name.rsplit_once(FROM)?;
            Some((path, Some(start.parse().ok()?)))
        };
        place().unwrap_or(whole)
    }

    /// A split's file, as the table has it now, and where it begins.
    fn part_of(&self, split: &SplitId) -> Result<(&PartitionedFile, Option<u64>)> {
        let (path, start) = self.place_of(split);
        let file = self.files.get(path).ok_or_else(|| {
            EngineError::BadInput(format!(
                "{} was being read when the checkpoint was taken and is not among the files of the table any more; restore \
                 it, or start without the state of this source",
                self.shown(path)
            ))
        })?;
        if start.is_some_and(|start| start > 0 && start >= file.object_meta.size) {
            return Err(EngineError::BadInput(format!(
                "{} has shrunk to {} bytes since the checkpoint was taken; restore it, or start without the state of this \
                 source",
                self.shown(path),
                file.object_meta.size
            )));
        }
        Ok((file, start))
    }

    /// The scan of one part of a file.
    fn scan(&self, split: &SplitId) -> Result<Arc<dyn ExecutionPlan>> {
        let (file, start) = self.part_of(split)?;
        let mut file = file.clone();
        if let (Some(start), Some(length)) = (start, self.part_bytes)
            && file.object_meta.size > length
        {
            let end = (start + length).min(file.object_meta.size);
            // A file has fewer bytes than fit here.
            file = file.with_range(start as i64, end as i64);
        }
        let columns = self.config.file_source.table_schema().table_schema();
        let config = FileScanConfigBuilder::from(self.config.clone())
            .with_statistics(Statistics::new_unknown(columns))
            .with_file_groups(vec![FileGroup::new(vec![file])])
            .build();
        Ok(self.plan.over(DataSourceExec::from_data_source(config))?)
    }
}

/// The files of a scan by path, whole. `None` when a file is not read as a whole, or more than once.
fn whole_files(config: &FileScanConfig) -> Option<BTreeMap<String, PartitionedFile>> {
    let mut parts: BTreeMap<String, Vec<PartitionedFile>> = BTreeMap::new();
    for file in config.file_groups.iter().flat_map(FileGroup::iter) {
        let path = file.object_meta.location.to_string();
        parts.entry(path).or_default().push(file.clone());
    }
    let mut files = BTreeMap::new();
    for (path, mut parts) in parts {
        let size = i64::try_from(parts[0].object_meta.size).ok()?;
        let mut ranges: Vec<(i64, i64)> = parts
            .iter()
            .map(|part| part.range.as_ref().map_or((0, size), |range| (range.start, range.end)))
            .collect();
        ranges.sort_unstable();
        let mut end = 0;
        for range in ranges {
            if range.0 != end {
                return None;
            }
            end = range.1;
        }
        if end < size || parts.len() > 1 && size == 0 {
            return None;
        }
        let mut file = parts.swap_remove(0);
        file.range = None;
        files.insert(path, file);
    }
    Some(files)
}

/// Whether a file can be read in parts: a matter of the format and its options, not of how large the files are.
fn can_be_parted(config: &FileScanConfig) -> bool {
    let large = PartitionedFile::new("large", 1 << 30);
    let config = FileScanConfigBuilder::from(config.clone())
        .with_file_groups(vec![FileGroup::new(vec![large])])
        .build();
    matches!(config.repartitioned(2, 0, None), Ok(Some(_)))
}

impl SplitSource for FileSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        Box::pin(async { Ok(self.all()) })
    }

    fn splits_besides<'a>(&'a self, known: &'a [SplitId]) -> BoxFuture<'a, Result<Vec<SplitId>>> {
        Box::pin(async {
            // A file that has been begun is read as it was: what it has grown by since was not there.
            let begun: HashSet<&str> = known.iter().map(|split| self.place_of(split).0).collect();
            let mut all = self.all();
            all.retain(|split| !begun.contains(self.place_of(split).0));
            Ok(all)
        })
    }

    fn open_at_once(&self) -> usize {
        crate::filesystem::OPEN_AT_ONCE
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(FileReader {
            source: self.clone(),
            task,
        }))
    }
}

struct FileReader {
    source: FileSource,
    task: Arc<TaskContext>,
}

impl SplitReader for FileReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let given = rows_given(position, &split.name)?;
        let rows = self.source.scan(split)?.execute(0, Arc::clone(&self.task))?;
        let (path, start) = self.source.place_of(split);
        let mut shown = self.source.shown(path);
        if let Some(start) = start.filter(|start| *start > 0) {
            shown = format!("{shown}{FROM}{start}");
        }
        Ok(counted_rows(rows, given, shown))
    }
}

#[cfg(test)]
mod tests;
