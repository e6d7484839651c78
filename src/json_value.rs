//! `JSON_VALUE(text, path)`: the scalar at a path of a JSON text, as Flink gives it by default: NULL where there is none.
//!
//! A line is read on demand: from its start to the end of the value, no further. What comes before the value must be
//! JSON, and so must the value and the byte that ends it; what comes after is not looked at. Of two equal keys the first
//! counts.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArrayType, StringViewBuilder};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use sonic_rs::{JsonValueTrait, LazyValue, PointerNode};

/// A text that is nested deeper is NULL, as for Flink's parser. The reader is recursive: this also bounds its stack.
const DEPTH_MAX: usize = 1000;

/// The function.
pub(crate) fn json_value() -> ScalarUDF {
    ScalarUDF::from(JsonValue {
        signature: Signature::user_defined(Volatility::Immutable),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonValue {
    signature: Signature,
}

impl ScalarUDFImpl for JsonValue {
    fn name(&self) -> &str {
        "json_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [text, path] = types else {
            return plan_err!("json_value takes a text and a path, not {} arguments", types.len());
        };
        Ok(vec![text_type(text)?, text_type(path)?])
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        match arguments.scalar_arguments {
            [_, Some(path)] => parse_constant(path)?,
            _ => return plan_err!("the path of json_value must be a literal, e.g. '$.a.b[0]'"),
        };
        Ok(Arc::new(Field::new(self.name(), DataType::Utf8View, true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [texts, ColumnarValue::Scalar(path)] = arguments.args.as_slice() else {
            return exec_err!("json_value needs a text and a constant path");
        };
        let path = parse_constant(path)?;
        match texts {
            ColumnarValue::Array(texts) => Ok(ColumnarValue::Array(extract(texts, &path)?)),
            ColumnarValue::Scalar(text) => {
                let value = extract(&text.to_array()?, &path)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&value, 0)?))
            }
        }
    }
}

/// The type in which an argument is taken; texts stay as they are.
fn text_type(given: &DataType) -> Result<DataType> {
    match given {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(given.clone()),
        DataType::Null => Ok(DataType::Utf8),
        DataType::Dictionary(_, values) => text_type(values),
        other => plan_err!("json_value takes texts, not {other}"),
    }
}

fn parse_constant(path: &ScalarValue) -> Result<Vec<PointerNode>> {
    match path.try_as_str() {
        Some(Some(path)) => match parse_path(path) {
            Some(nodes) => Ok(nodes),
            None => plan_err!(
                "json_value does not take the path '{path}': a path is $, then any of .name, ['name'] and [0]; lax may come first"
            ),
        },
        _ => plan_err!("the path of json_value must be a text that is not NULL"),
    }
}

fn parse_path(path: &str) -> Option<Vec<PointerNode>> {
    let path = path.trim();
    let path = match path.split_at_checked(3) {
        Some((mode, rest)) if mode.eq_ignore_ascii_case("lax") && rest.starts_with(char::is_whitespace) => {
            rest.trim_start()
        }
        _ => path,
    };
    let mut rest = path.strip_prefix('$')?;
    let mut nodes = Vec::new();
    while !rest.is_empty() {
        let node;
        (node, rest) = if let Some(name) = rest.strip_prefix('.') {
            plain_name(name)?
        } else if let Some(name) = rest.strip_prefix("['") {
            quoted_name(name)?
        } else {
            index(rest.strip_prefix('[')?)?
        };
        nodes.push(node);
    }
    Some(nodes)
}

fn plain_name(rest: &str) -> Option<(PointerNode, &str)> {
    let in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$' | '@');
    let end = rest.find(|c| !in_name(c)).unwrap_or(rest.len());
    (end > 0).then(|| (PointerNode::from(&rest[..end]), &rest[end..]))
}

/// A name up to `']`; a backslash goes before a quote or a backslash in it.
fn quoted_name(rest: &str) -> Option<(PointerNode, &str)> {
    let mut name = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Some((PointerNode::from(name.as_str()), rest[at + 1..].strip_prefix(']')?)),
            '\\' => name.push(chars.next().map(|(_, c)| c).filter(|c| matches!(c, '\'' | '\\'))?),
            c => name.push(c),
        }
    }
    None
}

fn index(rest: &str) -> Option<(PointerNode, &str)> {
    let (digits, rest) = rest.split_once(']')?;
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    let index = all_digits.then(|| digits.parse::<usize>().ok())??;
    Some((PointerNode::from(index), rest))
}

fn extract(texts: &ArrayRef, path: &[PointerNode]) -> Result<ArrayRef> {
    match texts.data_type() {
        DataType::Utf8 => Ok(extract_all(texts.as_string::<i32>(), path)),
        DataType::LargeUtf8 => Ok(extract_all(texts.as_string::<i64>(), path)),
        DataType::Utf8View => Ok(extract_all(texts.as_string_view(), path)),
        other => exec_err!("json_value takes texts, not {other}"),
    }
}

fn extract_all<'a>(texts: impl StringArrayType<'a>, path: &[PointerNode]) -> ArrayRef {
    // The values are copied: views into the lines would keep all of every line alive.
    let mut values = StringViewBuilder::with_capacity(texts.len());
    for text in texts.iter() {
        match text.and_then(|text| find(text, path)) {
            Some(value) => append(&mut values, &value),
            None => values.append_null(),
        }
    }
    Arc::new(values.finish())
}

fn append(values: &mut StringViewBuilder, value: &LazyValue<'_>) {
    if value.is_str() {
        // None where an escape is half of a surrogate pair, which no text can hold.
        values.append_option(value.as_str());
    } else if value.is_number() || value.is_boolean() {
        match value.as_raw_cow() {
            Cow::Borrowed(raw) => values.append_value(raw),
            Cow::Owned(raw) => values.append_value(raw),
        }
    } else {
        values.append_null();
    }
}

/// The value at `path`, when all before it and it itself are JSON.
fn find<'a>(text: &'a str, path: &[PointerNode]) -> Option<LazyValue<'a>> {
    if is_too_deep(text) {
        return None;
    }
    let (first, rest) = match path.split_first() {
        Some((first, rest)) => (std::slice::from_ref(first), rest),
        None => (path, path),
    };
    if let [PointerNode::Key(_)] = first {
        // The reader would skip anything before the first quote.
        let inside = skip_space(text).strip_prefix('{')?;
        if !skip_space(inside).starts_with('"') {
            return None;
        }
    }
    let value = sonic_rs::get(text, first).ok()?;
    let (read, behind) = text.split_at_checked(end(text, &value)?)?;
    let ends = match (first, skip_space(behind).as_bytes().first()) {
        ([], next) => next.is_none(),
        ([PointerNode::Key(_)], next) => matches!(next, Some(b',' | b'}')),
        (_, next) => matches!(next, Some(b',' | b']')),
    };
    if !ends || !unicode_escapes_are_whole(read) {
        return None;
    }
    if rest.is_empty() {
        return Some(value);
    }
    // The value has been checked as a whole, so what the reader skips in it is JSON.
    match value.as_raw_cow() {
        Cow::Borrowed(inner) => sonic_rs::get(inner, rest).ok(),
        Cow::Owned(_) => None,
    }
}

/// Where `value`, a part of `text`, ends.
fn end(text: &str, value: &LazyValue<'_>) -> Option<usize> {
    let Cow::Borrowed(raw) = value.as_raw_cow() else {
        return None;
    };
    (raw.as_ptr().addr() + raw.len()).checked_sub(text.as_ptr().addr())
}

/// Whether four digits follow each `\u`; the reader skips five bytes unseen, be there a quote among them.
fn unicode_escapes_are_whole(read: &str) -> bool {
    let mut rest = read.as_bytes();
    while let Some(at) = backslash(rest) {
        let length = if rest.get(at + 1) == Some(&b'u') { 6 } else { 2 };
        let Some(escape) = rest.get(at..at + length) else {
            return false;
        };
        if length == 6 && !escape[2..].iter().all(u8::is_ascii_hexdigit) {
            return false;
        }
        rest = &rest[at + length..];
    }
    true
}

fn backslash(bytes: &[u8]) -> Option<usize> {
    // By blocks, which compilers make one comparison of; most lines have none.
    const BLOCK: usize = 32;
    let clean = bytes
        .chunks(BLOCK)
        .take_while(|block| !block.iter().fold(false, |found, byte| found | (*byte == b'\\')));
    let from = clean.map(<[u8]>::len).sum::<usize>();
    let at = bytes[from..].iter().position(|byte| *byte == b'\\')?;
    Some(from + at)
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\n', '\r'])
}

fn is_too_deep(text: &str) -> bool {
    // Most lines have fewer bytes, and most of the others fewer brackets.
    text.len() > DEPTH_MAX
        && text.bytes().filter(|byte| byte | 0x20 == b'{').count() > DEPTH_MAX
        // After a broken escape the reader may take another byte for the end of a string than `nesting` does.
        && (!unicode_escapes_are_whole(text) || nesting(text) > DEPTH_MAX)
}

/// How deep objects and arrays lie in each other, at most.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests;
