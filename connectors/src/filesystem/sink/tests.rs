use std::fs::File;
use std::io::Write;

use arrow::array::{ArrayRef, Int64Array};

use thalweg_engine::time::SystemClock;

use super::*;
use crate::filesystem::storage::{Folder, StagedFile};

/// A disk on which nothing fits.
#[derive(Debug)]
struct FullDisk;

struct FullFile(File);

impl Write for FullFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl StagedFile for FullFile {
    fn complete(self: Box<Self>) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Storage for FullDisk {
    fn create(&self, _name: &str) -> Result<Box<dyn StagedFile>> {
        let file = File::create("/dev/full").map_err(|e| EngineError::Internal(e.to_string()))?;
        Ok(Box::new(FullFile(file)))
    }

    fn describe(&self, name: &str) -> String {
        format!("/full/{name}")
    }

    fn is_empty(&self) -> bool {
        false
    }

    fn target_is_empty(&self) -> Result<bool> {
        Ok(true)
    }

    fn publish_file(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self) {}
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    for format in [Format::Parquet, Format::Csv, Format::Json, Format::Arrow, Format::Avro] {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
        let batch = Batch::try_from_iter([("a", column)]).unwrap();
        let rows = batch.schema();
        let job = Arc::new(Job {
            id: "j".into(),
            options: FileOptions::new("/full/", format),
            target: Target::Folder(Folder::Local("/full".into())),
            rows: Arc::clone(&rows),
            files: Arc::clone(&rows),
            partitioner: Partitioner::try_new(&rows, &[], false).unwrap(),
            storage: Arc::new(FullDisk),
            checkpoints: None,
            rolling: None,
            clock: Arc::new(SystemClock::new()),
            runtime: Arc::default(),
        });
        let mut writer = FileSinkWriter {
            job,
            subtask: 0,
            parallelism: 1,
            open: HashMap::new(),
            parts: HashMap::new(),
            finished: Vec::new(),
            tick: 0,
        };
        let error = writer
            .write(&batch)
            .and_then(|()| writer.finish())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/full/part-j-0.") && error.contains("No space left"),
            "{format:?}: {error}"
        );
    }
}
