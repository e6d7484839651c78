use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, StringArray, StringViewArray};
use datafusion::common::ScalarValue;
use proptest::prelude::*;
use serde_json::{Value, json};
use sonic_rs::PointerNode;

use super::{DEPTH_MAX, end, extract, find, nesting, parse_constant, parse_path};

fn values(texts: ArrayRef, path: &str) -> Vec<Option<String>> {
    let path = parse_path(path).unwrap();
    let values = extract(&texts, &path).unwrap();
    let values = values.as_string_view();
    values.iter().map(|value| value.map(ToString::to_string)).collect()
}

fn value(text: &str, path: &str) -> Option<String> {
    values(Arc::new(StringArray::from(vec![text])), path).remove(0)
}

/// What serde_json finds at the path, after it has read everything.
fn oracle(mut value: &Value, path: &[PointerNode]) -> Option<String> {
    for node in path {
        value = match node {
            PointerNode::Key(key) => value.as_object()?.get(key.as_str())?,
            PointerNode::Index(index) => value.as_array()?.get(*index)?,
        };
    }
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[test]
fn scalars_have_their_text_and_the_rest_is_null() {
    let text = r#" { "s": "x y", "e": "", "n": -1.50e+3, "t": true, "f": false, "z": null, "o": {"p": 1}, "l": [1] } "#;
    let cases = [
        ("$.s", Some("x y")),
        ("$.e", Some("")),
        ("$.n", Some("-1.50e+3")),
        ("$.t", Some("true")),
        ("$.f", Some("false")),
        ("$.o.p", Some("1")),
        ("$['o']['p']", Some("1")),
        ("lax $.l[0]", Some("1")),
        ("$.z", None),
        ("$.o", None),
        ("$.l", None),
        ("$.l[1]", None),
        ("$.l.p", None),
        ("$.s.p", None),
        ("$.s[0]", None),
        ("$.missing", None),
        ("$[0]", None),
        ("$", None),
    ];
    for (path, expected) in cases {
        assert_eq!(value(text, path).as_deref(), expected, "{path}");
    }
    assert_eq!(value(" \"whole\" ", "$").as_deref(), Some("whole"));
    assert_eq!(value("{}", "$.a"), None);
    assert_eq!(value("[]", "$[0]"), None);
}

#[test]
fn escapes_and_unicode_are_resolved_in_values_and_in_keys() {
    let text = r#"{"\u0061\"": "\u00e9\ud83d\ude00\n\"\\\/", "ключ": "значение", "it's": "€", "": 0}"#;
    assert_eq!(value(text, r#"$['a"']"#).as_deref(), Some("é😀\n\"\\/"));
    assert_eq!(value(text, "$.ключ").as_deref(), Some("значение"));
    assert_eq!(value(text, r"$['it\'s']").as_deref(), Some("€"));
    assert_eq!(value(text, "$['']").as_deref(), Some("0"));
    assert_eq!(value(r#"{"z": "\\u \\\u0041", "a": 1}"#, "$.a").as_deref(), Some("1"));
    let far = format!(r#"{{"z": "{}\u00e9{}\\", "a": 1}}"#, "x".repeat(50), "y".repeat(31));
    assert_eq!(value(&far, "$.a").as_deref(), Some("1"));
    assert_eq!(value(&far.replace("00e9", "00x9"), "$.a"), None);
    // Half a surrogate pair is no text.
    assert_eq!(value(r#"{"a": "\ud83d"}"#, "$.a"), None);
}

#[test]
fn numbers_are_as_long_as_they_are() {
    for number in [
        "123456789012345678901234567890123456789012345678901234567890.5",
        "18446744073709551616",
        "1e400",
        "-0",
        "0.10",
    ] {
        let text = format!(r#"{{"a": [{number}, {number}]}}"#);
        assert_eq!(value(&text, "$.a[1]").as_deref(), Some(number));
    }
}

#[test]
fn what_is_no_json_up_to_the_end_of_the_value_is_null() {
    let malformed = [
        "",
        " ",
        "{",
        "nonsense",
        "{nonsense \"a\": 1}",
        "{\"a\"",
        "{\"a\":",
        "{\"a\": 1",
        "{\"a\": 12x}",
        "{\"a\": 1.}",
        "{\"a\": 01}",
        "{\"a\": +1}",
        "{\"a\": NaN}",
        "{\"a\": truer}",
        "{\"a\": \"x}",
        "{\"a\": \"x\"y}",
        "{\"a\": \"\t\"}",
        "{\"a\": \"\\x\"}",
        "{\"a\": 1]",
        "{'a': 1}",
        "{\"z\": [1, 2}, \"a\": 1}",
        "{\"z\": 1 \"a\": 1}",
        "{\"z\": 1,, \"a\": 1}",
        "\u{feff}{\"a\": 1}",
        r#"{"z": "\u", "a": 1}"#,
        r#"{"z": "\u",,,","a": 1}"#,
        r#"{"z": "\\\u00g0", "a": 1}"#,
    ];
    for text in malformed {
        assert_eq!(value(text, "$.a"), None, "{text}");
    }
    assert_eq!(value("{\"a\": {nonsense \"b\": 1}}", "$.a.b"), None);
    assert_eq!(value("{\"a\": {\"b\": 1, nonsense}}", "$.a.b"), None);
    assert_eq!(value("[1 2]", "$[0]"), None);
    assert_eq!(value("[1}", "$[0]"), None);
    assert_eq!(value("[1,]", "$[1]"), None);
    assert_eq!(value("12 13", "$"), None);
    // Nobody looks behind the value.
    assert_eq!(value("{\"a\": 1, nonsense", "$.a").as_deref(), Some("1"));
    assert_eq!(value("{\"a\": 1, \"a\": 2}", "$.a").as_deref(), Some("1"));
}

#[test]
fn deep_nesting_is_null_and_no_overflow_of_the_stack() {
    let nested = |depth: usize| format!("{}7{}", "[".repeat(depth), "]".repeat(depth));
    let text = |depth: usize| format!(r#"{{"z": {}, "a": 1}}"#, nested(depth));
    assert_eq!(value(&text(DEPTH_MAX - 1), "$.a").as_deref(), Some("1"));
    assert_eq!(value(&text(DEPTH_MAX), "$.a"), None);
    assert_eq!(value(&text(1_000_000), "$.a"), None);
    assert_eq!(value(&"{\"a\":".repeat(1_000_000), "$.a"), None);
    // A broken escape does not hide them.
    for quotes in ["\"xxx", "\"\"xx", "\"\"\"x", "\"\"\"\""] {
        for more in ["", "\""] {
            let text = format!("{{\"z\": [\"\\u{quotes}{more}\", {}", nested(1_000_000));
            assert_eq!(value(&text, "$.a"), None);
        }
    }
    // Brackets in strings and side by side are not deep.
    let wide = format!(
        r#"{{"s": "\"{}", "l": [{}0], "a": 1}}"#,
        "[".repeat(5000),
        "[],".repeat(5000)
    );
    assert_eq!(nesting(&wide), 3);
    assert_eq!(value(&wide, "$.a").as_deref(), Some("1"));
}

#[test]
fn every_type_of_text_with_nulls_slices_and_no_rows() {
    let texts = vec![
        None,
        Some(r#"{"a": "a value that is longer than a view holds in itself"}"#),
        Some("{\"a\": null}"),
        Some("{\"a\": 5}"),
        None,
    ];
    let expected = vec![
        Some("a value that is longer than a view holds in itself".to_string()),
        None,
        Some("5".to_string()),
        None,
    ];
    let arrays: [ArrayRef; 3] = [
        Arc::new(StringArray::from(texts.clone())),
        Arc::new(LargeStringArray::from(texts.clone())),
        Arc::new(StringViewArray::from(texts)),
    ];
    for array in arrays {
        assert_eq!(values(array.slice(1, 4), "$.a"), expected);
        assert!(values(array.slice(0, 0), "$.a").is_empty());
    }
}

#[test]
fn other_paths_are_refused_by_name() {
    let refused = [
        "",
        "a",
        "$a",
        "$.",
        "$..a",
        "$.*",
        "$[*]",
        "$[-1]",
        "$[]",
        "$[1",
        "$[ 1]",
        "$[1,2]",
        "$[0:1]",
        "$['a'",
        "$['a",
        "$['a','b']",
        "$[\"a\"]",
        "$[a]",
        "$.a b",
        "$.a()",
        "$[?(@.a)]",
        "strict $.a",
        "lax$.a",
        "$.a.",
        "$.a[0]b",
        r"$['\n']",
        "$[99999999999999999999999]",
    ];
    for path in refused {
        let message = parse_constant(&ScalarValue::from(path)).unwrap_err().to_string();
        assert!(message.contains(&format!("'{path}'")), "{message}");
    }
    assert!(parse_constant(&ScalarValue::Utf8(None)).is_err());
    let key = PointerNode::from;
    assert_eq!(
        parse_path(r" LAX  $.a-b.@t[12]['x.y\\\'z'].$c ").unwrap(),
        [key("a-b"), key("@t"), PointerNode::Index(12), key(r"x.y\'z"), key("$c")]
    );
}

fn json_strategy() -> impl Strategy<Value = Value> {
    let text = proptest::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9).prop_map(|number: f64| json!(number)),
        text.prop_map(Value::from),
        "[ -~]{0,80}".prop_map(Value::from),
    ];
    let key = prop::sample::select(vec!["a", "b", "é", "a\"b", "c\\n", "d'e"]).prop_map(ToString::to_string);
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|object| Value::Object(object.into_iter().collect())),
        ]
    })
}

/// A way down `value`; a last step may lead nowhere.
fn walk(mut value: &Value, steps: &[usize]) -> (Vec<PointerNode>, String) {
    let (mut nodes, mut text) = (Vec::new(), "$".to_string());
    for step in steps {
        match value {
            Value::Object(object) => {
                let Some((key, inner)) = object.iter().nth(step % object.len().max(1)) else {
                    break;
                };
                nodes.push(PointerNode::from(key.as_str()));
                let quoted = key.replace('\\', r"\\").replace('\'', r"\'");
                text += &format!("['{quoted}']");
                value = inner;
            }
            Value::Array(array) => {
                let index = step % (array.len() + 1);
                nodes.push(PointerNode::from(index));
                text += &format!("[{index}]");
                value = array.get(index).unwrap_or(&Value::Null);
            }
            _ if step % 8 == 0 => {
                nodes.push(PointerNode::from("a"));
                text += ".a";
                break;
            }
            _ => break,
        }
    }
    (nodes, text)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_a_full_parse(json in json_strategy(), steps in prop::collection::vec(0..100_usize, 0..6), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) }.unwrap();
        let (nodes, path) = walk(&json, &steps);
        prop_assert_eq!(parse_path(&path), Some(nodes.clone()));
        prop_assert_eq!(value(&text, &path), oracle(&json, &nodes), "{} of {}", path, text);
    }

    #[test]
    fn a_value_is_only_found_where_all_before_it_is_json(
        json in json_strategy(),
        steps in prop::collection::vec(0..100_usize, 0..4),
        place: prop::sample::Index,
        insert in prop::sample::select(vec!["{", "}", "[", "]", "\"", ":", ",", "\\", "\\u", "\\\"", " ", "x", "t", "-", ".", "é", "\u{1}", ""]),
    ) {
        let text = serde_json::to_string(&json).unwrap();
        let (nodes, path) = walk(&json, &steps);
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let at = places[place.index(places.len())];
        // Nothing to insert: the text ends there.
        let text = if insert.is_empty() { text[..at].to_string() } else { format!("{}{insert}{}", &text[..at], &text[at..]) };
        match serde_json::from_str::<Value>(&text) {
            Ok(json) => {
                let expected = oracle(&json, &nodes);
                let found = value(&text, &path);
                // Another spelling of a number counts as the same.
                let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<f64>().ok());
                match (number(&expected), number(&found)) {
                    (Some(expected), Some(found)) => prop_assert!((expected - found).abs() <= expected.abs() * 1e-12),
                    _ => prop_assert_eq!(found, expected, "{} of {}", path, text),
                }
            }
            Err(error) => {
                if let Some(found) = find(&text, &nodes) {
                    let end = end(&text, &found).unwrap();
                    prop_assert!(error.column() > end, "{} of {}: {}", path, text, error);
                }
            }
        }
    }
}
