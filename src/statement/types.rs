//! Flink's types that the SQL planner does not know: `ROW<..>`, `MAP<..>`, `TIMESTAMP_LTZ`, `BYTES`.
//!
//! They are written as others that it does know. A map and a local time have no such other: they become structs whose
//! fields have names that nobody uses, and [`restore`] makes of these what was meant.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::{first_from, is_word, words};
use crate::error::{Error, Result};

const MAP_KEY: &str = "__map_key";
const MAP_VALUE: &str = "__map_value";
const LOCAL_TIME: &str = "__local_time";
/// The zone of a local time when the session has none.
const DEFAULT_ZONE: &str = "UTC";

/// Whether the `<` at `index` opens the brackets of a type.
pub(super) fn has_brackets(tokens: &[TokenWithSpan], index: usize) -> bool {
    let before = tokens[..index].iter().rev();
    let before = before
        .map(|token| &token.token)
        .find(|token| !matches!(token, Token::Whitespace(_)));
    before.is_some_and(|token| {
        ["ROW", "MAP", "ARRAY", "STRUCT", "MULTISET"]
            .iter()
            .any(|word| is_word(token, word))
    })
}

/// The tokens of a column behind its name, with its type as the planner knows it; `None` when it does already.
///
/// # Errors
/// When the type is not supported.
pub(super) fn rewrite(tokens: &[TokenWithSpan]) -> Result<Option<Vec<TokenWithSpan>>> {
    let mut counting: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    let mut place = 0;
    while let Some(index) = first_from(tokens, place) {
        let token = &tokens[index];
        // Two brackets that close look like one operator.
        if token.token == Token::ShiftRight {
            counting.extend(words(&[">", ">"], token));
        } else {
            counting.push(token.clone());
        }
        place = index + 1;
    }
    let mut types = Types {
        tokens: counting,
        place: 0,
        output: Vec::new(),
        changed: false,
    };
    let understood = types.data_type(false)?;
    if !(understood && types.changed) {
        return Ok(None);
    }
    let mut output = types.output;
    output.extend_from_slice(&types.tokens[types.place..]);
    Ok(Some(output))
}

struct Types {
    tokens: Vec<TokenWithSpan>,
    place: usize,
    output: Vec<TokenWithSpan>,
    changed: bool,
}

impl Types {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.place).map(|token| &token.token)
    }

    fn is(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| is_word(token, word))
    }

    fn take(&mut self, token: &Token) -> bool {
        let is_next = self.peek() == Some(token);
        self.place += usize::from(is_next);
        is_next
    }

    fn take_words(&mut self, words: &[&str]) -> bool {
        let rest = self.tokens.iter().skip(self.place).take(words.len());
        let are_next = rest.len() == words.len() && rest.zip(words).all(|(token, word)| is_word(&token.token, word));
        self.place += if are_next { words.len() } else { 0 };
        are_next
    }

    fn emit(&mut self, text: &[&str]) {
        if let Some(near) = self.tokens.get(self.place.saturating_sub(1)) {
            self.output.extend(words(text, near));
        }
    }

    fn copy(&mut self) {
        self.output.extend(self.tokens.get(self.place).cloned());
        self.place += 1;
    }

    /// One type; `false` when it is not understood, which the parser may then say.
    fn data_type(&mut self, is_nested: bool) -> Result<bool> {
        if self.is("MULTISET") {
            return Err(Error::unsupported("the type MULTISET is not supported").with_remedy("use MAP<type, INT>"));
        }
        if self.is("ROW") || self.is("STRUCT") {
            return self.row();
        }
        if self.is("MAP") {
            return self.map();
        }
        if self.is("ARRAY")
            && self
                .tokens
                .get(self.place + 1)
                .is_some_and(|next| next.token == Token::Lt)
        {
            self.copy();
            self.copy();
            let understood = self.data_type(true)? && self.take(&Token::Gt);
            self.emit(&[">"]);
            return Ok(understood);
        }
        if self.take_words(&["TIMESTAMP_LTZ"]) {
            return Ok(self.local_time());
        }
        for name in ["BYTES", "VARBINARY", "BINARY"] {
            if self.take_words(&[name]) {
                self.changed = true;
                self.emit(&["BYTEA"]);
                self.skip_parentheses();
                return Ok(true);
            }
        }
        self.plain(is_nested)
    }

    fn row(&mut self) -> Result<bool> {
        self.place += 1;
        let close = match self.peek() {
            Some(Token::Lt) => Token::Gt,
            Some(Token::LParen) => Token::RParen,
            _ => return Ok(false),
        };
        self.place += 1;
        self.changed = true;
        self.emit(&["STRUCT", "<"]);
        loop {
            self.copy();
            if !self.data_type(true)? {
                return Ok(false);
            }
            // What is inside a row may be NULL, whatever is said.
            let _ = self.take_words(&["NOT", "NULL"]) || self.take_words(&["NULL"]);
            if self.take_words(&["COMMENT"]) {
                self.place += 1;
            }
            if self.take(&close) {
                self.emit(&[">"]);
                return Ok(true);
            }
            if !self.take(&Token::Comma) {
                return Ok(false);
            }
            self.emit(&[","]);
        }
    }

    fn map(&mut self) -> Result<bool> {
        self.place += 1;
        if !self.take(&Token::Lt) {
            return Ok(false);
        }
        self.changed = true;
        self.emit(&["STRUCT", "<", MAP_KEY]);
        let has_key = self.data_type(true)?;
        let _ = self.take_words(&["NOT", "NULL"]);
        if !has_key || !self.take(&Token::Comma) {
            return Ok(false);
        }
        self.emit(&[",", MAP_VALUE]);
        let has_value = self.data_type(true)?;
        let _ = self.take_words(&["NOT", "NULL"]);
        if !has_value || !self.take(&Token::Gt) {
            return Ok(false);
        }
        self.emit(&[">"]);
        Ok(true)
    }

    /// Behind the name of a local time: its digits.
    fn local_time(&mut self) -> bool {
        self.changed = true;
        self.emit(&["STRUCT", "<", LOCAL_TIME, "TIMESTAMP"]);
        self.copy_parentheses();
        self.emit(&[">"]);
        true
    }

    /// A type that the planner knows, perhaps of several words.
    fn plain(&mut self, is_nested: bool) -> Result<bool> {
        if !matches!(self.peek(), Some(Token::Word(_))) {
            return Ok(false);
        }
        let (start, output) = (self.place, self.output.len());
        let is_timestamp = self.is("TIMESTAMP");
        self.copy();
        self.copy_parentheses();
        if is_timestamp && self.take_words(&["WITH", "LOCAL", "TIME", "ZONE"]) {
            let end = self.place;
            self.output.truncate(output);
            self.place = start + 1;
            let understood = self.local_time();
            self.place = end;
            return Ok(understood);
        }
        while is_nested
            && matches!(self.peek(), Some(Token::Word(_)))
            && !["NOT", "NULL", "COMMENT"].iter().any(|word| self.is(word))
        {
            self.copy();
        }
        Ok(true)
    }

    fn copy_parentheses(&mut self) {
        if self.peek() == Some(&Token::LParen) {
            while self.peek().is_some_and(|token| *token != Token::RParen) {
                self.copy();
            }
            self.copy();
        }
    }

    fn skip_parentheses(&mut self) {
        let output = self.output.len();
        self.copy_parentheses();
        self.output.truncate(output);
    }
}

/// The schema that was meant by one of rewritten types.
pub(crate) fn restore(schema: &Schema, zone: Option<&str>) -> Schema {
    let fields: Vec<FieldRef> = schema.fields().iter().map(|field| restore_field(field, zone)).collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

fn restore_field(field: &FieldRef, zone: Option<&str>) -> FieldRef {
    let data_type = restore_type(field.data_type(), zone);
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

fn restore_type(data_type: &DataType, zone: Option<&str>) -> DataType {
    match data_type {
        DataType::Struct(fields) => match &fields[..] {
            [time] if time.name() == LOCAL_TIME => match time.data_type() {
                DataType::Timestamp(unit, _) => DataType::Timestamp(*unit, Some(zone.unwrap_or(DEFAULT_ZONE).into())),
                other => other.clone(),
            },
            [key, value] if key.name() == MAP_KEY && value.name() == MAP_VALUE => {
                let key = match restore_type(key.data_type(), zone) {
                    // DataFusion looks for a literal among the keys, and does not compare it with views.
                    DataType::Utf8View => DataType::Utf8,
                    other => other,
                };
                let key = Field::new("key", key, false);
                let value = Field::new("value", restore_type(value.data_type(), zone), true);
                let entries = Field::new("entries", DataType::Struct(vec![key, value].into()), false);
                DataType::Map(Arc::new(entries), false)
            }
            fields => DataType::Struct(fields.iter().map(|field| restore_field(field, zone)).collect()),
        },
        DataType::List(item) => DataType::List(restore_field(item, zone)),
        other => other.clone(),
    }
}
