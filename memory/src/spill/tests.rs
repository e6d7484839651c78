use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, BooleanArray, Decimal128Array, DictionaryArray, Int64Array, ListArray, RecordBatch,
    StringViewArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Int8Type, Int32Type, Schema};

use super::*;

fn batch(values: std::ops::Range<i64>) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(values))]).unwrap()
}

fn all_types(rows: usize, salt: usize) -> RecordBatch {
    let text =
        |row: usize| (!row.is_multiple_of(5)).then(|| format!("{salt} a text that does not fit into a view {row}"));
    let words: DictionaryArray<Int8Type> = (0..rows)
        .map(|row| ["x", "y", "z"].get((row + salt) % 4).copied())
        .collect();
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..rows).map(|row| (row % 3 != 0).then(|| vec![Some(row as i32), None])),
    );
    let int: ArrayRef = Arc::new(Int64Array::from_iter(
        (0..rows).map(|row| (row % 2 == 0).then_some(row as i64)),
    ));
    let field = Arc::new(Field::new("i", DataType::Int64, true));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("view", Arc::new(StringViewArray::from_iter((0..rows).map(text)))),
        (
            "bytes",
            Arc::new(BinaryViewArray::from_iter(
                (0..rows).map(|r| text(r).map(String::into_bytes)),
            )),
        ),
        ("words", Arc::new(words)),
        ("list", Arc::new(list)),
        ("struct", Arc::new(StructArray::from(vec![(field, Arc::clone(&int))]))),
        (
            "bool",
            Arc::new(BooleanArray::from_iter(
                (0..rows).map(|row| (row % 7 != 0).then_some(row % 2 == 0)),
            )),
        ),
        (
            "decimal",
            Arc::new(Decimal128Array::from_iter_values((0..rows).map(|r| r as i128 - 7))),
        ),
        ("int", int),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn written(directory: &SpillDirectory, batches: &[RecordBatch]) -> SpillFile {
    let mut writer = directory.create(batches[0].schema()).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn every_type_comes_back_from_any_block_with_every_compression() {
    let parent = tempfile::tempdir().unwrap();
    for (name, compression) in SpillCompression::NAMES {
        assert_eq!(compression.name(), name);
        let directory = SpillDirectory::new(parent.path(), compression);
        let whole = all_types(3000, 3);
        let batches = [
            all_types(1000, 1),
            all_types(1, 2),
            whole.slice(500, 2000),
            whole.slice(7, 0),
        ];
        let file = written(&directory, &batches);
        assert_eq!((file.rows(), file.blocks()), (3001, 4));
        for start in [0, 3, 1] {
            let read: Vec<_> = file.open_at(start).unwrap().map(|b| b.unwrap()).collect();
            assert_eq!(read, batches[start..], "{name}");
        }
        drop(file);
        drop(directory);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_batch_without_columns_keeps_its_rows() {
    let parent = tempfile::tempdir().unwrap();
    let directory = SpillDirectory::new(parent.path(), SpillCompression::None);
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(42));
    let bare = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
    let file = written(&directory, &[bare]);
    assert_eq!(file.open().unwrap().next().unwrap().unwrap().num_rows(), 42);
}

#[test]
fn a_file_cut_short_is_an_error_that_names_it() {
    let parent = tempfile::tempdir().unwrap();
    let directory = SpillDirectory::new(parent.path(), SpillCompression::None);
    let file = written(&directory, &(0..10).map(|i| batch(i..i + 1000)).collect::<Vec<_>>());
    let path = file.path().to_path_buf();
    let whole = std::fs::metadata(&path).unwrap().len();
    for keep in [whole - 1, whole / 2, 10, 0] {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(keep)
            .unwrap();
        let errors: Vec<_> = file.open().unwrap().filter_map(std::result::Result::err).collect();
        assert_eq!(errors.len(), 1, "cut to {keep}");
        let text = errors[0].to_string();
        assert!(text.contains("is damaged") && text.contains("000000.arrow"), "{text}");
    }
}

#[test]
fn every_flipped_bit_is_seen() {
    let parent = tempfile::tempdir().unwrap();
    for (_, compression) in SpillCompression::NAMES {
        let directory = SpillDirectory::new(parent.path(), compression);
        let file = written(&directory, &[all_types(5, 0), batch_of_same_schema()]);
        let path = file.path().to_path_buf();
        let good = std::fs::read(&path).unwrap();
        let handle = OpenOptions::new().write(true).open(&path).unwrap();
        let mut silent = Vec::new();
        for (at, byte) in good.iter().enumerate() {
            let flipped = byte ^ (1 << (at % 8));
            handle.write_all_at(&[flipped], at as u64).unwrap();
            let read: Vec<_> = file.open().unwrap().collect();
            match read.iter().find_map(|batch| batch.as_ref().err()) {
                Some(error) => assert!(error.to_string().contains("checksum"), "byte {at}: {error}"),
                None => silent.push((at, read)),
            }
            handle.write_all_at(&[*byte], at as u64).unwrap();
        }
        // A bit of padding may flip unseen, as nobody reads it: the rows are as written.
        for (at, read) in silent {
            let read: Vec<_> = read.into_iter().map(|b| b.unwrap()).collect();
            assert_eq!(read, [all_types(5, 0), batch_of_same_schema()], "byte {at}");
        }
    }
}

fn batch_of_same_schema() -> RecordBatch {
    all_types(3, 1)
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("occupied");
    std::fs::write(&file, b"x").unwrap();
    let directory = SpillDirectory::new(&file, SpillCompression::None);
    let error = directory.create(batch(0..1).schema()).err().unwrap();
    assert!(
        error.to_string().contains("occupied") && error.to_string().contains("io.tmp.dirs"),
        "{error}"
    );
}

#[test]
fn only_directories_without_an_owner_are_swept() {
    let parent = tempfile::tempdir().unwrap();
    let live = SpillDirectory::new(parent.path(), SpillCompression::None);
    let file = written(&live, &[batch(0..10)]);
    // What killed processes leave: a lock that nobody holds, a directory whose lock is gone, a lock alone.
    let make = |name: &str| {
        std::fs::create_dir(parent.path().join(name)).unwrap();
        std::fs::write(parent.path().join(name).join("000000.arrow"), b"x").unwrap();
    };
    make("thalweg-spill-1-0-aa");
    File::create(parent.path().join("thalweg-spill-1-0-aa.lock")).unwrap();
    make("thalweg-spill-2-0-bb");
    File::create(parent.path().join("thalweg-spill-3-0-cc.lock")).unwrap();
    make("somebody-elses");
    assert_eq!(sweep(parent.path()), 2);
    assert_eq!(sweep(parent.path()), 0);
    let mut left: Vec<_> = std::fs::read_dir(parent.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(left[0], "somebody-elses");
    assert_eq!(file.open().unwrap().next().unwrap().unwrap(), batch(0..10));
    assert_eq!(sweep(std::path::Path::new("/nonexistent/place")), 0);
}
