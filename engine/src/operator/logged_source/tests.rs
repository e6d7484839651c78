use std::collections::VecDeque;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use parking_lot::Mutex;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("s", DataType::Utf8View, true),
    ]))
}

fn batch(numbers: &[i64]) -> Batch {
    let texts = numbers
        .iter()
        .map(|number| (*number % 3 != 0).then(|| format!("a text that is not short: {number}")));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(numbers.to_vec())),
        Arc::new(texts.collect::<StringViewArray>()),
    ];
    Batch::try_new(schema(), columns).unwrap()
}

/// What it says is gone once it has been said.
#[derive(Clone, Debug, Default)]
struct Once(Arc<Mutex<VecDeque<Vec<i64>>>>);

impl Once {
    fn say(&self, numbers: &[i64]) {
        self.0.lock().push_back(numbers.to_vec());
    }
}

impl SplitSource for Once {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        Box::pin(async { Ok(vec![split()]) })
    }

    fn reader(&self, _subtask: usize, _task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(self.clone()))
    }

    fn needs_log(&self) -> bool {
        true
    }
}

impl SplitReader for Once {
    fn open(&mut self, _split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        assert!(position.is_none(), "what the log holds is not the source's position");
        let said = Arc::clone(&self.0);
        let rows = stream::poll_fn(move |_| {
            std::task::Poll::Ready(said.lock().pop_front().map(|numbers| {
                Ok(Positioned {
                    batch: batch(&numbers),
                    position: vec![],
                })
            }))
        });
        Ok(rows.boxed())
    }
}

fn split() -> SplitId {
    SplitId {
        name: "the socket".into(),
        ordinal: 0,
    }
}

struct Run {
    reader: Box<dyn SplitReader>,
    rows: SplitStream,
}

fn run(source: &Once, directory: &Path, position: Option<&[u8]>) -> Result<Run> {
    let logged = LoggedSource::new(Arc::new(source.clone()), directory.into(), schema());
    let mut reader = logged.reader(0, Arc::default())?;
    let rows = reader.open(&split(), position)?;
    Ok(Run { reader, rows })
}

impl Run {
    /// The next batch with its position, or the end.
    async fn next(&mut self) -> Option<(Vec<i64>, Vec<u8>)> {
        let read = self.rows.next().await.transpose().unwrap()?;
        assert_eq!(read.batch.schema(), schema());
        let numbers = read.batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(read.batch, batch(&numbers));
        Some((numbers, read.position))
    }
}

#[tokio::test]
async fn what_was_said_after_the_checkpoint_is_said_again_and_then_it_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let source = Once::default();
    let said: Vec<Vec<i64>> = (0..6).map(|i| vec![3 * i, 3 * i + 1, 3 * i + 2]).collect();
    for (round, cut) in [0, 3, 6, 2].into_iter().enumerate() {
        let directory = temp.path().join(round.to_string());
        said.iter().for_each(|numbers| source.say(numbers));
        source.say(&[]);
        let mut first = run(&source, &directory, None).unwrap();
        let mut position = None;
        for (number, numbers) in said.iter().enumerate() {
            let (read, at) = first.next().await.unwrap();
            assert_eq!(read, *numbers);
            if number + 1 == cut {
                position = Some(at);
            }
        }
        // Killed.
        drop(first);
        source.0.lock().clear();
        source.say(&[100, 101]);
        let mut second = run(&source, &directory, position.as_deref()).unwrap();
        for numbers in &said[cut..] {
            assert_eq!(second.next().await.unwrap().0, *numbers);
        }
        let (live, at) = second.next().await.unwrap();
        assert_eq!(live, [100, 101]);
        assert!(second.next().await.is_none());
        drop(second);
        // It has ended, and nobody asks it any more.
        source.say(&[200]);
        let mut third = run(&source, &directory, Some(&at)).unwrap();
        assert!(third.next().await.is_none());
        drop(third);
        source.0.lock().clear();
    }
}

#[tokio::test]
async fn what_lies_before_a_complete_checkpoint_is_removed() {
    let temp = tempfile::tempdir().unwrap();
    let source = Once::default();
    let mut first = run(&source, temp.path(), None).unwrap();
    let mut last = Vec::new();
    for number in 0..5 {
        source.say(&[number]);
        last = first.next().await.unwrap().1;
    }
    first.reader.checkpoint_complete(&[(split(), last.clone())]);
    source.say(&[5]);
    assert_eq!(first.next().await.unwrap().0, [5]);
    drop(first);
    let early = run(&source, temp.path(), Some(&3_u64.to_le_bytes()))
        .err()
        .unwrap()
        .to_string();
    assert!(early.contains("the frames 6 to 6"), "{early}");
    let without = run(&source, temp.path(), None).err().unwrap().to_string();
    assert!(without.contains("of an earlier run of the job"), "{without}");
    let mut second = run(&source, temp.path(), Some(&last)).unwrap();
    assert_eq!(second.next().await.unwrap().0, [5]);
}

#[tokio::test]
async fn rows_of_other_columns_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let source = Once::default();
    source.say(&[1]);
    let mut first = run(&source, temp.path(), None).unwrap();
    first.next().await.unwrap();
    drop(first);
    let other = Arc::new(schema().project(&[0]).unwrap());
    let logged = LoggedSource::new(Arc::new(source.clone()), temp.path().into(), other);
    let mut reader = logged.reader(0, Arc::default()).unwrap();
    let mut rows = reader.open(&split(), None).unwrap();
    let error = rows.next().await.unwrap().unwrap_err().to_string();
    assert!(error.contains("rows of other columns"), "{error}");
}
