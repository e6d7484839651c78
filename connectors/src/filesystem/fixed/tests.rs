use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, FixedSizeBinaryArray, LargeBinaryArray, StringArray,
};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::physical_plan::{ExecutionPlanProperties, collect};
use datafusion::prelude::SessionContext;
use futures::{TryStreamExt, stream};
use object_store::memory::InMemory;
use thalweg_engine::Batch;

use super::Layout;
use super::read::Records;
use crate::filesystem::tests::{options, query, spec, tree, write};
use crate::filesystem::{create_table, locate_bad_record};
use crate::sink_of;

const LENGTHS: [usize; 4] = [3, 2, 5, 1];

/// A value that tells its row and column.
fn value(row: usize, column: usize) -> Vec<u8> {
    let salt = row * 31 + column * 7;
    (0..LENGTHS[column]).map(|place| (salt >> (place % 3)) as u8).collect()
}

/// One column of each type that the format can hold.
fn rows(count: usize) -> Batch {
    let values = |column: usize| (0..count).map(move |row| value(row, column));
    let fixed = match count {
        0 => FixedSizeBinaryArray::new_null(2, 0),
        _ => FixedSizeBinaryArray::try_from_iter(values(1)).unwrap(),
    };
    let columns: [ArrayRef; 4] = [
        Arc::new(BinaryArray::from_iter_values(values(0))),
        Arc::new(fixed),
        Arc::new(LargeBinaryArray::from_iter_values(values(2))),
        Arc::new(BinaryViewArray::from_iter_values(values(3))),
    ];
    let field = |(name, column): (&str, &ArrayRef)| Field::new(name, column.data_type().clone(), true);
    let fields: Vec<Field> = ["a", "b", "c", "d"].into_iter().zip(&columns).map(field).collect();
    Batch::try_new(Arc::new(Schema::new(fields)), columns.to_vec()).unwrap()
}

/// The bytes that a file of these rows has.
fn records(count: usize) -> Vec<u8> {
    let record = |row: usize| (0..LENGTHS.len()).flat_map(move |column| value(row, column));
    (0..count).flat_map(record).collect()
}

fn fixed(path: &str) -> BTreeMap<String, String> {
    options(&[
        ("connector", "filesystem"),
        ("path", path),
        ("format", "fixed"),
        ("fixed.lengths", "3, 2,5,1"),
    ])
}

fn pairs(options: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    options
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

async fn register(context: &SessionContext, columns: SchemaRef, options: &BTreeMap<String, String>) {
    let table = create_table(&context.state(), columns, &[], options).await.unwrap();
    context.deregister_table("t").unwrap();
    context.register_table("t", table).unwrap();
}

fn path_of(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_back_as_they_went_and_are_bare_bytes() {
    // More than one batch and more than one write buffer.
    for count in [0, 1, 2, 8192, 50_001] {
        let temp = tempfile::tempdir().unwrap();
        let context = SessionContext::new();
        let path = temp.path().join("out.bin");
        let of = fixed(&path_of(&path));
        let batch = rows(count);
        write(&context, &spec(batch.schema(), &pairs(&of)), &[vec![batch.clone()]]).unwrap();
        assert!(std::fs::read(&path).unwrap() == records(count), "{count} rows");
        register(&context, batch.schema(), &of).await;
        let mut sorted = query(&context, "SELECT * FROM t").await;
        if sorted.num_rows() == 0 {
            sorted = rows(0);
        }
        assert!(sorted == batch, "{count} rows");
        let some = query(&context, "SELECT d, a FROM t").await;
        assert_eq!(some.num_rows(), count);
        if count > 0 {
            assert!(some == batch.project(&[3, 0]).unwrap(), "{count} rows");
        }
        let number = query(&context, "SELECT count(*) FROM t WHERE arrow_typeof(a) = 'Binary'").await;
        assert_eq!(number.column(0).as_primitive::<Int64Type>().value(0), count as i64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_cut_between_records_only() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("in.bin");
    for (count, pieces) in [(1, 11), (2, 7), (1000, 2), (1000, 97)] {
        std::fs::write(&path, records(count)).unwrap();
        let context = SessionContext::new();
        let state = context.state();
        let table = create_table(&state, rows(0).schema(), &[], &fixed(&path_of(&path)))
            .await
            .unwrap();
        let plan = table.scan(&state, None, &[], None).await.unwrap();
        let mut config = state.config_options().as_ref().clone();
        config.optimizer.repartition_file_min_size = 0;
        let plan = plan.repartitioned(pieces, &config).unwrap().unwrap();
        let made = plan.output_partitioning().partition_count();
        assert!(made > 1 && made <= pieces, "{made} of {pieces}");
        let mut batches = Vec::new();
        for piece in 0..made {
            let part = plan.execute(piece, context.task_ctx()).unwrap();
            batches.extend(part.try_collect::<Vec<_>>().await.unwrap());
        }
        let all = concat_batches(&rows(0).schema(), &batches).unwrap();
        assert!(all == rows(count), "{count} rows in {pieces} pieces");
    }
}

fn seven_at_once() -> Records {
    let schema = rows(0).schema();
    let layout = Layout::try_new(&schema, &LENGTHS).unwrap();
    Records::try_new(layout, &schema, &[0, 1, 2, 3], 7).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_may_come_in_pieces_of_any_size() {
    let context = SessionContext::new();
    context.register_object_store(&url::Url::parse("mem://bucket").unwrap(), Arc::new(InMemory::new()));
    let of = fixed("mem://bucket/t");
    let batch = rows(20_000);
    register(&context, batch.schema(), &of).await;
    let table = context.table_provider("t").await.unwrap();
    let sink = sink_of(table.as_ref()).unwrap().unwrap();
    write(&context, &sink, &[vec![batch.clone()]]).unwrap();
    assert!(query(&context, "SELECT * FROM t").await == batch);

    let bytes = records(100);
    for size in [1, 10, 11, 12, 35, 2000] {
        let records = seven_at_once();
        let pieces = stream::iter(bytes.chunks(size).map(|piece| Ok(piece.to_vec())));
        let batches: Vec<Batch> = records.of_stream(pieces, bytes.len()).try_collect().await.unwrap();
        assert!(batches.iter().all(|batch| batch.num_rows() <= 7));
        assert!(
            concat_batches(&rows(0).schema(), &batches).unwrap() == rows(100),
            "{size}"
        );
    }
    let records = seven_at_once();
    let pieces = stream::iter([Ok(bytes[..1000].to_vec())]);
    let ended = records.of_stream(pieces, bytes.len());
    let error = ended.try_collect::<Vec<Batch>>().await.unwrap_err();
    assert!(error.to_string().contains("ends 100 bytes early"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_ends_within_a_record_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("in.bin");
    let context = SessionContext::new();
    for bytes in [1, 10, 12, 1099] {
        std::fs::write(&path, &records(100)[..bytes]).unwrap();
        let state = context.state();
        let table = create_table(&state, rows(0).schema(), &[], &fixed(&path_of(&path)))
            .await
            .unwrap();
        let plan = table.scan(&state, None, &[], None).await.unwrap();
        let error = collect(Arc::clone(&plan), context.task_ctx()).await.unwrap_err();
        let message = locate_bad_record(&plan, &context.runtime_env(), &error).await.unwrap();
        let expected = format!(
            "{}: the file has {bytes} bytes, which is not a multiple of the 11 bytes of a record",
            path.display()
        );
        assert_eq!(message, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_record_is_not_written() {
    let good = || Arc::new(BinaryArray::from(vec![Some(b"abc".as_slice()); 30_000])) as ArrayRef;
    let spoilt = |at: usize, value: Option<&'static [u8]>| {
        let mut values = vec![Some(b"abc".as_slice()); 30_000];
        values[at] = value;
        Arc::new(BinaryArray::from(values)) as ArrayRef
    };
    let null = "row 30001: column 'b' is NULL, which the format 'fixed' cannot hold";
    let cases = [
        (spoilt(0, None), null),
        (
            spoilt(29_999, Some(b"ab")),
            "row 60000: column 'b' has a value of 2 bytes where records hold 3",
        ),
        (
            spoilt(29_998, Some(b"abcd")),
            "row 59999: column 'b' has a value of 4 bytes where records hold 3",
        ),
        (
            spoilt(15_000, Some(b"")),
            "row 45001: column 'b' has a value of 0 bytes where records hold 3",
        ),
    ];
    for data_type in [DataType::Binary, DataType::LargeBinary, DataType::BinaryView] {
        for (second, expected) in &cases {
            let temp = tempfile::tempdir().unwrap();
            let context = SessionContext::new();
            let path = format!("{}/out/", temp.path().display());
            let batch = |column: ArrayRef| {
                let column = cast(&column, &data_type).unwrap();
                Batch::try_from_iter_with_nullable([("a", good(), true), ("b", column, true)]).unwrap()
            };
            let of = [("path", path.as_str()), ("format", "fixed"), ("fixed.lengths", "3,3")];
            let sink = spec(batch(good()).schema(), &of);
            let error = write(&context, &sink, &[vec![batch(good()), batch(Arc::clone(second))]]).unwrap_err();
            assert!(error.to_string().contains(expected), "{data_type}: {error}");
            assert_eq!(tree(temp.path()), Vec::<String>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_directories_and_not_in_the_records() {
    let temp = tempfile::tempdir().unwrap();
    let context = SessionContext::new();
    let path = path_of(&temp.path().join("h"));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("p", Arc::new(StringArray::from(vec!["x", "y", "x"]))),
        ("v", Arc::new(BinaryArray::from(vec![b"11".as_slice(), b"22", b"33"]))),
    ];
    let batch = Batch::try_from_iter(columns).unwrap();
    let of = options(&[
        ("path", path.as_str()),
        ("format", "fixed"),
        ("fixed.lengths", "2"),
        ("sink.sync", "false"),
    ]);
    let by = ["p".to_string()];
    let table = create_table(&context.state(), batch.schema(), &by, &of).await.unwrap();
    let sink = sink_of(table.as_ref()).unwrap().unwrap();
    context.register_table("t", table).unwrap();
    write(&context, &sink, &[vec![batch]]).unwrap();
    assert_eq!(
        std::fs::read(temp.path().join("h/p=x/part-j1-0.fixed")).unwrap(),
        b"1133"
    );
    let back = query(&context, "SELECT v FROM t WHERE p = 'y'").await;
    assert_eq!(back.column(0).as_binary::<i32>().value(0), b"22");
    let count = query(&context, "SELECT count(*) FROM t").await;
    assert_eq!(count.column(0).as_primitive::<Int64Type>().value(0), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_not_declared_get_numbers() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("1"), b"abcdef").unwrap();
    std::fs::write(temp.path().join("2"), b"ghi").unwrap();
    let context = SessionContext::new();
    let of = options(&[
        ("path", temp.path().to_str().unwrap()),
        ("format", "fixed"),
        ("fixed.lengths", "1,2"),
    ]);
    register(&context, Arc::new(Schema::empty()), &of).await;
    let back = query(&context, "SELECT column_2, column_1 FROM t ORDER BY column_1").await;
    let values = |column: usize| {
        back.column(column)
            .as_binary::<i32>()
            .iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    assert_eq!(values(0), [b"bc", b"ef", b"hi"]);
    assert_eq!(values(1), [b"a", b"d", b"g"]);
}

#[test]
fn a_layout_says_what_is_wrong() {
    let layout = |columns: &[(&str, DataType)], lengths: &[usize]| {
        let fields = columns
            .iter()
            .map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
        Layout::try_new(&Schema::new(fields.collect::<Vec<_>>()), lengths)
    };
    let bytes = |name| (name, DataType::Binary);
    let of_two = |name| (name, DataType::FixedSizeBinary(2));
    let known = layout(&[of_two("a"), of_two("b")], &[]).unwrap();
    assert_eq!((known.record_bytes, known.places[1].start), (4, 2));
    assert_eq!(layout(&[bytes("a"), of_two("b")], &[5, 2]).unwrap().record_bytes, 7);
    type Case<'a> = (&'a [(&'a str, DataType)], &'a [usize], &'a str);
    let cases: [Case; 7] = [
        (
            &[bytes("a"), bytes("b")],
            &[1],
            "names 1 lengths, but the files have 2 columns",
        ),
        (&[bytes("a")], &[1, 2], "names 2 lengths, but the files have 1 columns"),
        (
            &[of_two("a"), bytes("b")],
            &[],
            "column 'b' has no length; add 'fixed.lengths'",
        ),
        (
            &[of_two("a")],
            &[3],
            "column 'a' has 2 bytes, but 'fixed.lengths' says 3",
        ),
        (
            &[("n", DataType::Int64)],
            &[8],
            "column 'n' of type Int64 cannot be in a file of format 'fixed'",
        ),
        (
            &[("z", DataType::FixedSizeBinary(0))],
            &[],
            "column 'z' must have at least 1 byte",
        ),
        (
            &[bytes("a"), bytes("b")],
            &[1 << 30, 1 << 30],
            "a record of 2147483648 bytes is too long",
        ),
    ];
    for (columns, lengths, expected) in cases {
        let why = layout(columns, lengths).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_table_checks_the_lengths() {
    let context = SessionContext::new();
    let state = context.state();
    let columns = || Arc::new(Schema::new(vec![Field::new("a", DataType::Binary, true)]));
    for (lengths, expected) in [
        (None, "column 'a' has no length"),
        (Some("1,2"), "names 2 lengths"),
        (Some("0"), "must be at least 1"),
        (Some("x"), "must be a number"),
    ] {
        let mut of = options(&[("path", "nowhere/x"), ("format", "fixed")]);
        of.extend(lengths.map(|lengths| ("fixed.lengths".to_string(), lengths.to_string())));
        let error = create_table(&state, columns(), &[], &of).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
