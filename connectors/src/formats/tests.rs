use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, UInt8Type};
use arrow::util::display::{ArrayFormatter, FormatOptions as Display};
use thalweg_engine::data::{ROW_KIND_COLUMN, RowKind, is_changelog};

use super::*;
use crate::Options;

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ]))
}

fn decoder(format: StreamFormat, change: impl Fn(&mut FormatOptions)) -> Decoder {
    let mut options = FormatOptions::new(format);
    change(&mut options);
    Decoder::new(&options, &columns(), "here").unwrap()
}

fn decode(decoder: &mut Decoder, records: &[&str]) -> Result<Vec<String>, String> {
    let records: Vec<&[u8]> = records.iter().map(|record| record.as_bytes()).collect();
    let batch = decoder.decode(&records).map_err(|error| error.to_string())?;
    assert_eq!(&batch.schema(), decoder.schema());
    Ok(rows(&batch))
}

/// As Flink prints them: `+I[1, a]`.
fn rows(batch: &RecordBatch) -> Vec<String> {
    let format = Display::default().with_null("NULL");
    let count = batch.num_columns() - usize::from(is_changelog(batch.schema_ref()));
    let each = (0..batch.num_rows()).map(|row| {
        let kind = match batch.column_by_name(ROW_KIND_COLUMN) {
            Some(kinds) => RowKind::from_u8(kinds.as_primitive::<UInt8Type>().value(row))
                .unwrap()
                .symbol(),
            None => "",
        };
        let cells: Vec<String> = batch.columns()[..count]
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &format).unwrap().value(row).to_string())
            .collect();
        format!("{kind}[{}]", cells.join(", "))
    });
    each.collect()
}

#[test]
fn json_reads_what_flink_writes() {
    let mut decoder = decoder(StreamFormat::Json, |_| ());
    let read = decode(
        &mut decoder,
        &[
            r#"{"id": 1, "name": "a", "ts": "2024-01-02 03:04:05.678", "more": [1, {}]}"#,
            "  ",
            r#"{"ts": "2024-01-02T03:04:05Z", "id": 2}"#,
            r#"{"id": 3, "name": 7, "ts": null}"#,
        ],
    );
    let expected = [
        "[1, a, 2024-01-02T03:04:05.678]",
        "[2, NULL, 2024-01-02T03:04:05]",
        "[3, 7, NULL]",
    ];
    assert_eq!(read.unwrap(), expected);
    assert!(decode(&mut decoder, &["", " "]).unwrap().is_empty());
}

/// Records each of which is bad on its own, or would be read as part of its neighbours.
const BAD: &[&str] = &[
    r#"{"id": "x"}"#,
    r#"{"id": 1"#,
    r#", "name": "y"}"#,
    r#"{"id": 1}{"id": 2}"#,
    r#"{"name": "no id"}"#,
    r#"{"id": 5, "name": "open"#,
    r#"still open"}"#,
    "[1]",
    "nonsense",
    "}",
    r#"{"id": 7, "ts": "yesterday"}"#,
];

#[test]
fn bad_records_are_found_wherever_they_are_and_the_others_stay_in_order() {
    let good: Vec<String> = (0..40).map(|id| format!("{{\"id\": {id}}}")).collect();
    // One bad record at each place, then all of them spread, then side by side.
    let mut inputs: Vec<Vec<&str>> = Vec::new();
    for (at, bad) in BAD.iter().enumerate() {
        let mut records: Vec<&str> = good.iter().map(String::as_str).collect();
        records.insert(at * 4, bad);
        inputs.push(records);
    }
    let spread = good
        .iter()
        .enumerate()
        .flat_map(|(at, record)| [BAD[at % BAD.len()], record.as_str()]);
    inputs.push(spread.collect());
    inputs.push(
        BAD.iter()
            .copied()
            .chain(good.iter().map(String::as_str))
            .chain(BAD.iter().copied())
            .collect(),
    );
    let expected: Vec<String> = (0..40).map(|id| format!("[{id}, NULL, NULL]")).collect();
    for records in inputs {
        let mut skipping = decoder(StreamFormat::Json, |options| options.ignore_parse_errors = true);
        assert_eq!(decode(&mut skipping, &records).unwrap(), expected);
        assert_eq!(skipping.bad_records() as usize, records.len() - 40);
        // Failing names the first.
        let first = records.iter().position(|record| BAD.contains(record)).unwrap() + 1;
        let message = decode(&mut decoder(StreamFormat::Json, |_| ()), &records).unwrap_err();
        assert!(
            message.starts_with(&format!("here, record {first} cannot be read as json")),
            "{message}"
        );
    }
}

#[test]
fn an_error_names_the_record_the_column_and_the_beginning_of_the_text() {
    let mut decoder = decoder(StreamFormat::Json, |_| ());
    decode(&mut decoder, &[r#"{"id": 1}"#, ""]).unwrap();
    let long = format!(r#"{{"id": "abc", "name": "{}"}}"#, "é".repeat(500));
    let message = decode(&mut decoder, &[r#"{"id": 2}"#, &long]).unwrap_err();
    assert!(
        message.starts_with("here, record 4 cannot be read as json"),
        "{message}"
    );
    assert!(message.contains("id") && message.contains("abc"), "{message}");
    assert!(
        message.contains(&format!(r#"{{"id": "abc", "name": "{}..;"#, "é".repeat(80 - 23))),
        "{message}"
    );
    assert!(message.contains("'json.ignore-parse-errors'"), "{message}");
    let message = decode(&mut decoder, &[]).map(|rows| rows.len());
    assert_eq!(message, Ok(0));
}

#[test]
fn invalid_utf8_is_a_bad_record() {
    for format in [StreamFormat::Json, StreamFormat::Csv] {
        let mut decoder = decoder(format, |options| options.ignore_parse_errors = true);
        let records: [&[u8]; 3] = match format {
            StreamFormat::Json => [b"{\"id\": 1}", b"{\"id\": 2, \"name\": \"\xff\"}", b"{\"id\": 3}"],
            _ => [b"1,,", b"2,\xff,", b"3,,"],
        };
        assert_eq!(decoder.decode(&records).unwrap().num_rows(), 2, "{format:?}");
        assert_eq!(decoder.bad_records(), 1, "{format:?}");
    }
}

#[test]
fn csv_reads_quotes_nulls_and_comments_and_sets_bad_records_aside() {
    let mut decoder = decoder(StreamFormat::Csv, |options| {
        options.ignore_parse_errors = true;
        options.csv.null_literal = Some("n/a".into());
        options.csv.comment = Some(b'#');
    });
    let read = decode(
        &mut decoder,
        &[
            r#"1,"a, ""b""",2024-01-02 03:04:05"#,
            "# 2,b,",
            "2,n/a,",
            "x,c,",
            "3,d",
            "4,\"open,",
            "5,e,",
            "6,f,,",
            ",no id,",
            "7,\"\",",
        ],
    );
    assert_eq!(
        read.unwrap(),
        [
            "[1, a, \"b\", 2024-01-02T03:04:05]",
            "[2, NULL, NULL]",
            "[5, e, NULL]",
            "[7, NULL, NULL]"
        ]
    );
    assert_eq!(decoder.bad_records(), 5);
}

#[test]
fn raw_takes_records_as_they_are() {
    let text: SchemaRef = Arc::new(Schema::new(vec![Field::new("line", DataType::Utf8View, true)]));
    let mut decoder = Decoder::new(&FormatOptions::new(StreamFormat::Raw), &text, "here").unwrap();
    assert_eq!(
        decode(&mut decoder, &["a b", "", "{\"c\""]).unwrap(),
        ["[a b]", "[]", "[{\"c\"]"]
    );
    assert!(decoder.decode(&[b"\xff"]).unwrap_err().to_string().contains("record 4"));
    let message = Decoder::new(&FormatOptions::new(StreamFormat::Raw), &columns(), "here")
        .err()
        .unwrap();
    assert!(
        message.to_string().contains("one column, but the table has 3"),
        "{message}"
    );
}

#[test]
fn debezium_tells_insertions_updates_and_deletions() {
    let records = [
        r#"{"before": null, "after": {"id": 1, "name": "a"}, "op": "r", "ts_ms": 5, "source": {"x": 1}}"#,
        r#"{"before": null, "after": {"id": 2, "name": "b"}, "op": "c"}"#,
        "",
        r#"{"op": "u", "after": {"id": 1, "name": "c"}, "before": {"id": 1, "name": "a"}}"#,
        r#"{"before": {"id": 2}, "after": null, "op": "d"}"#,
    ];
    let expected = [
        "+I[1, a, NULL]",
        "+I[2, b, NULL]",
        "-U[1, a, NULL]",
        "+U[1, c, NULL]",
        "-D[2, NULL, NULL]",
    ];
    assert_eq!(
        decode(&mut decoder(StreamFormat::DebeziumJson, |_| ()), &records).unwrap(),
        expected
    );
    // With the schema around.
    let wrapped: Vec<String> = records
        .iter()
        .filter(|record| !record.is_empty())
        .map(|record| format!(r#"{{"schema": {{"type": "struct"}}, "payload": {record}}}"#))
        .collect();
    let wrapped: Vec<&str> = wrapped.iter().map(String::as_str).collect();
    let mut included = decoder(StreamFormat::DebeziumJson, |options| options.schema_include = true);
    assert_eq!(decode(&mut included, &wrapped).unwrap(), expected);
    let message = decode(&mut decoder(StreamFormat::DebeziumJson, |_| ()), &wrapped).unwrap_err();
    assert!(message.contains("'debezium-json.schema-include' = 'true'"), "{message}");
}

#[test]
fn messages_of_debezium_without_what_they_need_are_bad_records() {
    let bad = [
        (
            r#"{"before": null, "after": {"id": 1}, "op": "u"}"#,
            "REPLICA IDENTITY FULL",
        ),
        (
            r#"{"before": null, "after": null, "op": "d"}"#,
            "'before' is null in a deletion",
        ),
        (
            r#"{"before": null, "after": null, "op": "c"}"#,
            "'after' is null in an insertion",
        ),
        (
            r#"{"before": null, "after": {"id": 1}, "op": "t"}"#,
            "unknown 'op' \"t\"",
        ),
        (r#"{"before": null, "after": {"name": "x"}, "op": "c"}"#, "id"),
        (r#"{"before": null, "after": {"id": "x"}, "op": "c"}"#, "id"),
    ];
    for (record, why) in bad {
        let records = [
            r#"{"after": {"id": 8}, "op": "c"}"#,
            record,
            r#"{"after": {"id": 9}, "op": "c"}"#,
        ];
        let message = decode(&mut decoder(StreamFormat::DebeziumJson, |_| ()), &records).unwrap_err();
        assert!(
            message.starts_with("here, record 2") && message.contains(why),
            "{message}"
        );
        let mut skipping = decoder(StreamFormat::DebeziumJson, |options| options.ignore_parse_errors = true);
        assert_eq!(
            decode(&mut skipping, &records).unwrap(),
            ["+I[8, NULL, NULL]", "+I[9, NULL, NULL]"]
        );
        assert_eq!(skipping.bad_records(), 1);
    }
}

#[test]
fn canal_tells_what_has_changed() {
    let records = [
        r#"{"data": [{"id": "1", "name": "a"}, {"id": "2", "name": null}], "old": null, "type": "INSERT", "isDdl": false}"#,
        r#"{"data": null, "type": "CREATE", "sql": "create table"}"#,
        r#"{"data": null, "type": "ALTER", "isDdl": true}"#,
        // The name was NULL; the name has not changed; both, of which one had escapes in its name.
        r#"{"data": [{"id": "2", "name": "b"}], "old": [{"name": null}], "type": "UPDATE"}"#,
        r#"{"data": [{"id": "3", "name": "b"}], "old": [{"id": "2"}], "type": "UPDATE"}"#,
        r#"{"data": [{"id": "4", "name": null}, {"id": "5", "name": "e"}], "old": [{"id": "3", "na\u006de": "b"}, {"name": "d"}], "type": "UPDATE"}"#,
        r#"{"data": [{"id": "4", "name": null}], "old": null, "type": "DELETE"}"#,
    ];
    let expected = [
        "+I[1, a, NULL]",
        "+I[2, NULL, NULL]",
        "-U[2, NULL, NULL]",
        "+U[2, b, NULL]",
        "-U[2, b, NULL]",
        "+U[3, b, NULL]",
        "-U[3, b, NULL]",
        "+U[4, NULL, NULL]",
        "-U[5, d, NULL]",
        "+U[5, e, NULL]",
        "-D[4, NULL, NULL]",
    ];
    assert_eq!(
        decode(&mut decoder(StreamFormat::CanalJson, |_| ()), &records).unwrap(),
        expected
    );
    let bad = [
        (r#"{"data": [{"id": 1}], "type": "UPDATE"}"#, "'old' does not hold"),
        (
            r#"{"data": [{"id": 1}, {"id": 2}], "old": [{}], "type": "UPDATE"}"#,
            "'old' does not hold",
        ),
        (r#"{"data": null, "type": "INSERT"}"#, "'data' is null"),
        (r#"{"data": [null], "type": "INSERT"}"#, "'data' holds null"),
        (r#"{"data": [{"id": 1}], "type": "MERGE"}"#, "unknown 'type' \"MERGE\""),
        (r#"{"data": [{"id": 1}]}"#, "no 'type'"),
    ];
    for (record, why) in bad {
        let message = decode(&mut decoder(StreamFormat::CanalJson, |_| ()), &[record]).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
}

#[test]
fn what_is_encoded_is_decoded_again() {
    let records = [
        r#"{"after": {"id": 1, "name": "a \"b\"", "ts": "2024-01-02T03:04:05.678"}, "op": "c"}"#,
        r#"{"before": {"id": 1, "name": null}, "after": {"id": 1, "name": "c"}, "op": "u"}"#,
        r#"{"before": {"id": 1, "name": "c"}, "op": "d"}"#,
    ];
    let records: Vec<&[u8]> = records.iter().map(|record| record.as_bytes()).collect();
    let batch = decoder(StreamFormat::DebeziumJson, |_| ()).decode(&records).unwrap();
    let lines = [
        (
            StreamFormat::DebeziumJson,
            r#"{"before":null,"after":{"id":1,"name":"a \"b\"","ts":"2024-01-02T03:04:05.678"},"op":"c"}"#,
        ),
        (
            StreamFormat::CanalJson,
            r#"{"data":[{"id":1,"name":"a \"b\"","ts":"2024-01-02T03:04:05.678"}],"type":"INSERT"}"#,
        ),
    ];
    for (format, first) in lines {
        let mut text = Vec::new();
        let mut encoder = encoder(format).unwrap();
        encoder.encode(&batch, &mut text).unwrap();
        let mut lines = Lines::default();
        lines.push(&text);
        assert_eq!(lines.complete()[0], first.as_bytes());
        let again = decoder(format, |_| ()).decode(&lines.complete()).unwrap();
        assert_eq!(
            rows(&again),
            [
                "+I[1, a \"b\", 2024-01-02T03:04:05.678]",
                "-D[1, NULL, NULL]",
                "+I[1, c, NULL]",
                "-D[1, c, NULL]"
            ]
        );
    }
    assert!(encoder(StreamFormat::Csv).is_err());
}

#[test]
fn a_dead_letter_file_gets_the_records_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    let mut decoder = decoder(StreamFormat::Json, |options| options.dead_letter = Some(path.clone()));
    decode(&mut decoder, &[r#"{"id": 1}"#]).unwrap();
    assert!(!path.exists(), "there is no file without a bad record");
    assert_eq!(
        decode(&mut decoder, &["bad \"one\"", r#"{"id": 2}"#]).unwrap(),
        ["[2, NULL, NULL]"]
    );
    decode(&mut decoder, &[r#"{"id": "é"}"#]).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["record"], "bad \"one\"");
    assert!(
        lines[0]["error"].as_str().unwrap().starts_with("here, record 2: "),
        "{text}"
    );
    assert_eq!(lines[1]["record"], "{\"id\": \"é\"}");
    assert_eq!(decoder.bad_records(), 2);
    // A file that cannot be written is an error: the record would be lost.
    let mut lost = self::decoder(StreamFormat::Json, |options| {
        options.dead_letter = Some(folder.path().into())
    });
    assert!(decode(&mut lost, &["bad"]).is_err());
}

#[test]
fn lines_are_cut_wherever_the_bytes_are() {
    let text = b"one\r\n\ntwo\nthree";
    for cut in 0..text.len() {
        let mut lines = Lines::default();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for part in [&text[..cut], &text[cut..]] {
            lines.push(part);
            seen.extend(lines.complete().into_iter().map(<[u8]>::to_vec));
            lines.consume();
        }
        seen.extend(lines.all().into_iter().map(<[u8]>::to_vec));
        assert_eq!(seen, [&b"one"[..], b"", b"two", b"three"], "cut at {cut}");
    }
}

#[test]
fn options_are_those_of_the_format() {
    let given = BTreeMap::from([
        ("debezium-json.schema-include".to_string(), "true".to_string()),
        ("debezium-json.ignore-parse-errors".to_string(), "true".to_string()),
        ("dead-letter.path".to_string(), "x".to_string()),
    ]);
    let mut options = Options::new("socket", &given);
    let taken = FormatOptions::take(StreamFormat::parse("Debezium-JSON").unwrap(), &mut options).unwrap();
    options.finish().unwrap();
    assert!(taken.schema_include && taken.ignore_parse_errors && taken.dead_letter.is_some());
    let mut options = Options::new("socket", &given);
    FormatOptions::take(StreamFormat::Json, &mut options).unwrap();
    assert!(
        options
            .finish()
            .unwrap_err()
            .to_string()
            .contains("json.ignore-parse-errors")
    );
    assert!(
        StreamFormat::parse("xml")
            .unwrap_err()
            .to_string()
            .contains("canal-json")
    );
}
