//! What was written is read: every type, every compression, any sizes.

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::*;
use proptest::prelude::*;

use super::*;
use crate::checkpoint::Compression;

/// A column of a kind, with nulls and values by `seed`.
fn column(kind: usize, rows: usize, seed: u64) -> ArrayRef {
    let number = |row: usize| {
        (row as u64 + 1)
            .wrapping_mul(seed | 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            >> 7
    };
    let some = |row: usize| (!number(row).is_multiple_of(5)).then(|| number(row));
    let text = |row: usize| some(row).map(|n| "text ".repeat((n % 7) as usize) + &n.to_string());
    let all = 0..rows;
    let ints = || -> Int64Array { (0..rows).map(|row| some(row).map(|n| n as i64)).collect() };
    let views = || -> StringViewArray { (0..rows).map(text).collect() };
    let offsets = || OffsetBuffer::<i32>::from_lengths((0..rows).map(|row| row % 3));
    let inner = (0..rows).map(|row| row % 3).sum::<usize>();
    let field = |data_type: DataType| Arc::new(Field::new_list_field(data_type, true));
    match kind {
        0 => Arc::new(ints()),
        1 => Arc::new(all.map(text).collect::<StringArray>()),
        2 => Arc::new(views()),
        3 => Arc::new(
            all.map(|row| text(row).map(String::into_bytes))
                .collect::<BinaryViewArray>(),
        ),
        4 => Arc::new(all.map(|row| some(row).map(|n| n % 2 == 0)).collect::<BooleanArray>()),
        5 => {
            let odd = [f64::NAN, -0.0, f64::INFINITY, f64::MIN_POSITIVE];
            Arc::new(
                all.map(|row| some(row).map(|n| odd[(n % 4) as usize]))
                    .collect::<Float64Array>(),
            )
        }
        6 => {
            let decimals: Decimal128Array = all.map(|row| some(row).map(|n| i128::from(n) << 50)).collect();
            Arc::new(decimals.with_precision_and_scale(38, 4).unwrap())
        }
        7 => {
            let times: TimestampMicrosecondArray = all.map(|row| some(row).map(|n| n as i64)).collect();
            Arc::new(times.with_timezone("Europe/Berlin"))
        }
        8 => Arc::new(NullArray::new(rows)),
        9 => Arc::new(
            all.map(text)
                .collect::<Vec<_>>()
                .iter()
                .map(|t| t.as_deref())
                .collect::<DictionaryArray<Int32Type>>(),
        ),
        10 => {
            let words = ["a", "b", "a rather long word of a dictionary"];
            let words = all.map(|row| some(row).map(|n| words[(n % 3) as usize]));
            Arc::new(words.collect::<DictionaryArray<Int8Type>>())
        }
        11 => Arc::new(ListArray::new(
            field(DataType::Int64),
            offsets(),
            column(0, inner, seed + 1),
            None,
        )),
        12 => Arc::new(ListArray::new(
            field(DataType::Utf8View),
            offsets(),
            column(2, inner, seed + 1),
            None,
        )),
        13 => {
            let columns = vec![
                ("n", Arc::new(ints()) as ArrayRef),
                ("v", Arc::new(views()) as ArrayRef),
            ];
            Arc::new(StructArray::try_from(columns).unwrap())
        }
        14 => {
            let entries = StructArray::from(vec![
                (
                    Arc::new(Field::new("keys", DataType::Int64, false)),
                    Arc::new(Int64Array::from_iter_values(0..inner as i64)) as ArrayRef,
                ),
                (
                    Arc::new(Field::new("values", DataType::Utf8, true)),
                    column(1, inner, seed),
                ),
            ]);
            let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
            Arc::new(MapArray::new(field, offsets(), entries, None, false))
        }
        15 => Arc::new(FixedSizeListArray::new(
            field(DataType::Int64),
            2,
            column(0, 2 * rows, seed),
            None,
        )),
        16 => {
            let bytes = all.map(|row| some(row).map(|n| n.to_be_bytes()));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 8).unwrap())
        }
        17 => {
            let intervals = all.map(|row| some(row).map(|n| IntervalMonthDayNano::new(n as i32, 3, n as i64)));
            Arc::new(intervals.collect::<IntervalMonthDayNanoArray>())
        }
        18 => {
            let wide = all.map(|row| some(row).map(|n| i256::from_parts(u128::from(n), -5)));
            Arc::new(wide.collect::<Decimal256Array>())
        }
        _ => {
            let words: DictionaryArray<Int32Type> = (0..inner).map(|row| ["x", "y"][row % 2]).collect();
            let field = field(words.data_type().clone());
            Arc::new(ListArray::new(field, offsets(), Arc::new(words), None))
        }
    }
}

const KINDS: usize = 20;

fn batch(kinds: &[usize], rows: usize, seed: u64) -> Batch {
    let columns = kinds
        .iter()
        .enumerate()
        .map(|(index, kind)| (index, column(*kind, rows, seed)));
    let columns: Vec<(String, ArrayRef, bool)> = columns
        .map(|(index, column)| (format!("c{index}"), column, true))
        .collect();
    match columns.is_empty() {
        true => {
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            Batch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap()
        }
        false => Batch::try_from_iter_with_nullable(columns).unwrap(),
    }
}

/// Writes batches of one table, reads them back, compares.
fn check(store: &CheckpointStore, batches: Vec<Batch>) {
    let schema = batches[0].schema();
    let spec = TableSpec::of_rows("t", schema.clone(), vec![]);
    let written = store
        .write("chk-1", "0-0", vec![full(&spec, batches.clone())], (0, 1))
        .unwrap();
    let part = &written[0].part;
    let read: Vec<Batch> = store.read(part, false).unwrap().map(|batch| batch.unwrap()).collect();
    let expected = concat_batches(&schema, &batches).unwrap();
    let stored = store.schema(part).unwrap();
    assert_eq!(stored.fields(), schema.fields());
    assert_eq!(part.rows, expected.num_rows() as u64);
    assert_eq!(part.file.is_empty(), part.rows == 0);
    assert!(read.iter().all(|batch| batch.schema() == stored));
    let read = concat_batches(&stored, &read).unwrap();
    assert_eq!(read.num_rows(), expected.num_rows());
    assert_eq!(read.columns(), expected.columns());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_type_comes_back(
        kinds in proptest::collection::vec(0..KINDS, 0..6),
        sizes in proptest::collection::vec((0usize..400, 0usize..400), 1..5),
        compression in 0usize..3,
        seed in any::<u64>(),
    ) {
        let store = in_memory().with_compression([Compression::None, Compression::Lz4, Compression::Zstd][compression]);
        let batches = sizes.iter().map(|(skipped, rows)| batch(&kinds, skipped + rows, seed).slice(*skipped, *rows));
        check(&store, batches.collect());
    }
}

#[test]
fn each_type_alone_whole_and_sliced() {
    for kind in 0..KINDS {
        let whole = batch(&[kind], 1000, kind as u64);
        check(
            &in_memory(),
            vec![
                whole.clone(),
                whole.slice(17, 3),
                whole.slice(500, 500),
                whole.slice(9, 0),
            ],
        );
    }
}

#[test]
fn large_batches_are_many_frames_and_parts() {
    let store = in_memory();
    let wide = batch(&[0, 2, 9, 12], 30_000, 5);
    check(&store, vec![wide.slice(3, 29_990), wide.slice(0, 1), wide]);
    // Several parts of an upload, frames across the borders of what is read at once.
    let texts: StringArray = (0..40).map(|n| Some(format!("{n}").repeat(700_000))).collect();
    let huge = Batch::try_from_iter([("text", Arc::new(texts) as ArrayRef)]).unwrap();
    check(&store, vec![huge.slice(1, 39), huge]);
    let numbers = Int64Array::from_iter_values(0..4_000_000);
    check(
        &store,
        vec![Batch::try_from_iter([("n", Arc::new(numbers) as ArrayRef)]).unwrap()],
    );
}

#[test]
fn one_row_is_small_and_no_row_is_nothing() {
    let store = in_memory();
    let written = store
        .write(
            "chk-1",
            "0-0",
            vec![full(&spec(), vec![rows(0..1, 1)]), full(&spec(), vec![])],
            (0, 1),
        )
        .unwrap();
    assert!(written[0].part.length < 1000, "{}", written[0].part.length);
    assert_eq!((written[1].part.rows, written[1].part.length), (0, 0));
    assert_eq!(store.contents("").unwrap().files.len(), 1);
    store
        .write("chk-2", "0-0", vec![full(&spec(), vec![rows(5..5, 1)])], (0, 1))
        .unwrap();
    assert_eq!(store.contents("").unwrap().files.len(), 1);
}

#[test]
fn small_neighbours_are_written_together() {
    let store = in_memory();
    let batches: Vec<Batch> = (0..10_000).map(|n| rows(n..n + 1, 1)).collect();
    let written = store
        .write("chk-1", "0-0", vec![full(&spec(), batches)], (0, 1))
        .unwrap();
    let frames = store.read(&written[0].part, false).unwrap().count();
    assert_eq!(frames, 2);
}

#[test]
fn tables_share_a_file_and_keep_their_deleted_keys() {
    let store = in_memory();
    let other = TableSpec {
        name: "u".into(),
        ..spec()
    };
    let tables = vec![
        full(&spec(), vec![rows(0..5, 1)]),
        delta(&other, 0, vec![rows(5..6, 1)], &[1, 2, 3]),
        delta(
            &TableSpec {
                name: "v".into(),
                ..spec()
            },
            0,
            vec![],
            &[9],
        ),
    ];
    let written = store.write("chk-1", "0-0", tables, (0, 1)).unwrap();
    assert!(written.iter().all(|table| table.part.file == written[0].part.file));
    let read = |index: usize, deleted: bool| -> usize {
        let batches = store.read(&written[index].part, deleted).unwrap();
        batches.map(|batch| batch.unwrap().num_rows()).sum()
    };
    let counts: Vec<_> = (0..3).map(|index| (read(index, false), read(index, true))).collect();
    assert_eq!(counts, [(5, 0), (1, 3), (0, 1)]);
    let keys: Vec<Batch> = store
        .read(&written[1].part, true)
        .unwrap()
        .map(|b| b.unwrap())
        .collect();
    assert_eq!(keys[0].column(0).as_primitive::<Int64Type>().values(), &[1, 2, 3]);
}

#[test]
fn rows_of_another_schema_are_refused_by_name() {
    let store = in_memory();
    let error = store
        .write("chk-1", "0-0", vec![full(&spec(), vec![keys(&[1])])], (0, 1))
        .unwrap_err();
    assert!(error.to_string().contains("table 't' of operator 'op'"), "{error}");
    let mut snapshot = Snapshot::new(SnapshotRequest {
        checkpoint: 1,
        since: None,
    });
    let broken = || Err(EngineError::BadInput("drawing failed".into()));
    snapshot.full(&spec(), [Ok(rows(0..20_000, 1)), broken()]);
    let tables = vec![("op".to_string(), snapshot.into_tables().remove(0))];
    let error = store.write("chk-1", "0-0", tables, (0, 1)).unwrap_err();
    assert_eq!(error.to_string(), "drawing failed");
    assert!(store.contents("").unwrap().files.is_empty());
}

/// How long a large state takes: 1 GB of keys, counts and texts.
#[test]
#[ignore = "a measurement: writes 1 GB to a local disk"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn a_gigabyte() {
    let texts: ArrayRef = Arc::new((0..8192).map(|n| Some(format!("{n:0>80}"))).collect::<StringArray>());
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..8192));
    let columns = [
        ("key", numbers.clone()),
        ("text", texts),
        ("count", numbers.clone()),
        ("sum", numbers),
    ];
    let batch = Batch::try_from_iter(columns).unwrap();
    let count = (1 << 30) / crate::data::batch_bytes(&batch);
    let spec = TableSpec::of_rows("t", batch.schema(), vec![]);
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(folder.path(), io()).unwrap();
    for _ in 0..3 {
        let begin = std::time::Instant::now();
        let table = full(&spec, vec![batch.clone(); count]);
        let written = store.write("chk-1", "0-0", vec![table], (0, 1)).unwrap();
        let wrote = begin.elapsed();
        let begin = std::time::Instant::now();
        let rows: usize = store
            .read(&written[0].part, false)
            .unwrap()
            .map(|b| b.unwrap().num_rows())
            .sum();
        assert_eq!(rows, count * 8192);
        println!(
            "{} bytes: written in {wrote:?}, read in {:?}",
            written[0].part.length,
            begin.elapsed()
        );
        store.discard("chk-1").unwrap();
    }
}
