//! Files of records as a source that goes on.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::Count;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use object_store::ObjectMeta;
use thalweg_engine::operator::{Positioned, SplitId, SplitReader, SplitSource, SplitStream};
use thalweg_engine::{EngineError, Result};

use super::RecordScan;
use super::reading::Reading;
use crate::filesystem::diagnose::shown_name;
use crate::filesystem::progress::{Progress, hash};
use crate::row_wise::RowWise;

/// The one split of a changelog.
const ALL_FILES: &str = "all files";

/// The files of a [`RecordScan`]: each is a split, but for those of a changelog, which are one.
#[derive(Clone, Debug)]
pub(crate) struct RecordSource {
    scan: RecordScan,
    is_changelog: bool,
}

impl RecordSource {
    /// Of a plan over files of records.
    pub(crate) fn of(plan: &RowWise) -> Option<Self> {
        let scan = plan.only_leaf()?.downcast_ref::<RecordScan>()?;
        Some(Self {
            is_changelog: scan.format.format.is_changelog(),
            scan: scan.clone(),
        })
    }

    fn all(&self) -> Vec<SplitId> {
        if self.is_changelog {
            return vec![SplitId {
                name: ALL_FILES.into(),
                ordinal: 0,
            }];
        }
        let files = self.scan.splits.iter().flatten().enumerate();
        let split = |(ordinal, file): (usize, &ObjectMeta)| SplitId {
            name: file.location.to_string(),
            ordinal: ordinal as u64,
        };
        files.map(split).collect()
    }

    /// The files of a split that are still to be read, in their order.
    fn files(&self, split: &SplitId, progress: &Progress) -> Result<Vec<ObjectMeta>> {
        let all = || self.scan.splits.iter().flatten();
        let gone = |path: &object_store::path::Path| {
            let name = shown_name(self.scan.files.url.object_store().as_str(), path);
            EngineError::BadInput(format!(
                "{name} was being read when the checkpoint was taken and is not among the files of the table any more; restore \
                 it, or start without the state of this source"
            ))
        };
        let current = match &progress.current {
            Some(current) => {
                let file = all().find(|file| file.location == current.path);
                Some(file.cloned().ok_or_else(|| gone(&current.path))?)
            }
            None => None,
        };
        let is_own = |file: &&ObjectMeta| self.is_changelog || file.location.as_ref() == split.name;
        if !self.is_changelog && !all().any(|file| is_own(&file)) {
            return Err(gone(&split.name.as_str().into()));
        }
        let seen = progress.seen();
        let others = all().filter(|file| is_own(file) && !seen.contains(&hash(&file.location)));
        Ok(current.into_iter().chain(others.cloned()).collect())
    }
}

impl SplitSource for RecordSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        Box::pin(async { Ok(self.all()) })
    }

    fn open_at_once(&self) -> usize {
        crate::filesystem::OPEN_AT_ONCE
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(RecordReader {
            source: self.clone(),
            task,
            bad_records: Count::new(),
        }))
    }
}

struct RecordReader {
    source: RecordSource,
    task: Arc<TaskContext>,
    bad_records: Count,
}

impl SplitReader for RecordReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let progress = Progress::decode(position, &split.name)?;
        let files = self.source.files(split, &progress)?;
        let scan = &self.source.scan;
        let reading = Reading::new(scan, files, progress, &self.task, self.bad_records.clone());
        let batches = stream::try_unfold(reading, |mut reading| async move {
            let Some(batch) = reading.next().await? else {
                return Ok(None);
            };
            let position = reading.progress().encode();
            Ok(Some((Positioned { batch, position }, reading)))
        });
        Ok(batches.boxed())
    }

    fn bad_records(&self) -> u64 {
        self.bad_records.value() as u64
    }
}
