//! What the line editor asks for: is the input whole, and how might it go on.

use std::rc::Rc;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};
use thalweg::Session;

use super::meta::COMMANDS;
use super::shell::is_farewell;

/// The words of SQL that are worth completing.
const KEYWORDS: &str = "ALL ALTER AND AS ASC BETWEEN BY CASE CAST CREATE CROSS CUBE DELETE DESC DESCRIBE DESCRIPTOR DISTINCT DROP ELSE \
    END ESCAPE EXCEPT EXECUTE EXISTS EXPLAIN EXTERNAL EXTRACT FALSE FETCH FILTER FIRST FOLLOWING FOR FROM FULL GROUP \
    GROUPING HAVING IF IN INNER INSERT INTERSECT INTERVAL INTO IS JOIN LAST LATERAL LEFT LIKE LIMIT LOCATION NATURAL \
    NOT NULL NULLS OFFSET ON OPTIONS OR ORDER OUTER OVER OVERWRITE PARTITION PARTITIONED PRECEDING RANGE RECURSIVE \
    RIGHT ROLLUP ROW ROWS SELECT SET SETS SHOW STATEMENT STORED SYSTEM_TIME TABLE TABLES TEMPORARY THEN TRUE UNBOUNDED \
    UNION USE USING VALUES VIEW WATERMARK WHEN WHERE WINDOW WITH";

/// Helps the line editor.
pub(crate) struct Assistant {
    session: Rc<Session>,
    files: FilenameCompleter,
}

impl Assistant {
    /// Completes the names that the session knows.
    pub(crate) fn new(session: Rc<Session>) -> Self {
        Self {
            session,
            files: FilenameCompleter::new(),
        }
    }
}

impl Helper for Assistant {}

impl Highlighter for Assistant {}

impl Hinter for Assistant {
    type Hint = String;
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let input = context.input();
        let whole = input.trim().is_empty()
            || input.trim_start().starts_with('\\')
            || is_farewell(input)
            || Session::is_complete(input);
        Ok(if whole {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, cursor: usize, _context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..cursor];
        let (start, words) = match expected(typed) {
            Expected::File(start) => {
                let (offset, files) = self.files.complete_path(&typed[start..], cursor - start)?;
                return Ok((start + offset, files));
            }
            Expected::Nothing => return Ok((cursor, Vec::new())),
            Expected::Command => (0, COMMANDS.map(String::from).to_vec()),
            Expected::Format(start) => (start, ["table", "csv", "json"].map(String::from).to_vec()),
            Expected::Name(start) => (start, self.session.names()),
            Expected::Word(start) => (start, [keywords(&typed[start..]), self.session.names()].concat()),
        };
        Ok((start, matching(&typed[start..], words)))
    }
}

/// What the input up to the cursor calls for, and where that begins.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Nothing,
    /// Begins with the quote, if there is one.
    File(usize),
    Command,
    Format(usize),
    Name(usize),
    Word(usize),
}

fn expected(typed: &str) -> Expected {
    if typed.starts_with('\\') {
        let Some(space) = typed.find(' ') else {
            return Expected::Command;
        };
        return match &typed[..space] {
            "\\i" => Expected::File(space + 1),
            "\\d" => Expected::Name(word_start(typed)),
            "\\format" => Expected::Format(word_start(typed)),
            _ => Expected::Nothing,
        };
    }
    match open_at_end(typed) {
        Open::Text(quote) if wants_file(&typed[..quote]) => Expected::File(quote),
        Open::Text(_) | Open::Comment => Expected::Nothing,
        Open::Name(quote) => Expected::Name(quote + 1),
        Open::None => match word_start(typed) {
            start if typed[..start].ends_with('.') || start == typed.len() => Expected::Name(start),
            start => Expected::Word(start),
        },
    }
}

/// What is begun and not ended: offsets are those of the opening quote.
enum Open {
    None,
    Text(usize),
    Name(usize),
    Comment,
}

fn open_at_end(text: &str) -> Open {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'\'' => find(text, at + 1, "'").ok_or(Open::Text(at)),
            b'"' => find(text, at + 1, "\"").ok_or(Open::Name(at)),
            b'-' if text[at..].starts_with("--") => find(text, at, "\n").ok_or(Open::Comment),
            b'/' if text[at..].starts_with("/*") => find(text, at + 2, "*/").ok_or(Open::Comment),
            _ => Ok(at + 1),
        };
        match end {
            Ok(next) => at = next,
            Err(open) => return open,
        }
    }
    Open::None
}

/// Just after the next `end`.
fn find(text: &str, from: usize, end: &str) -> Option<usize> {
    text.get(from..)?.find(end).map(|offset| from + offset + end.len())
}

/// Whether a text that follows names a file: after FROM, JOIN, LOCATION, or in `'path' = '..'`.
fn wants_file(before: &str) -> bool {
    let before = before.trim_end();
    if let Some(key) = before.strip_suffix('=') {
        return key.trim_end().to_ascii_lowercase().ends_with("'path'");
    }
    let word = &before[word_start(before)..];
    ["FROM", "JOIN", "LOCATION"]
        .iter()
        .any(|keyword| word.eq_ignore_ascii_case(keyword))
}

fn word_start(text: &str) -> usize {
    let after = |(at, c): (usize, char)| at + c.len_utf8();
    text.char_indices()
        .rev()
        .find(|(_, c)| !c.is_alphanumeric() && *c != '_')
        .map_or(0, after)
}

/// Keywords in the case the user types.
fn keywords(typed: &str) -> Vec<String> {
    let lower = typed.chars().any(char::is_lowercase);
    KEYWORDS
        .split_whitespace()
        .map(|word| if lower { word.to_lowercase() } else { word.to_string() })
        .collect()
}

fn matching(typed: &str, mut words: Vec<String>) -> Vec<Pair> {
    words.retain(|word| {
        word.get(..typed.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(typed))
    });
    words.sort_unstable();
    words.dedup();
    words
        .into_iter()
        .map(|word| Pair {
            display: word.clone(),
            replacement: word,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_where() {
        for (typed, what) in [
            ("SEL", Expected::Word(0)),
            ("SELECT a FROM fl", Expected::Word(14)),
            ("SELECT a FROM ", Expected::Name(14)),
            ("SELECT t.co", Expected::Name(9)),
            ("SELECT \"Co", Expected::Name(8)),
            ("SELECT 'it''s a", Expected::Nothing),
            ("SELECT 1 -- it's", Expected::Nothing),
            ("SELECT 1 -- it's\n, co", Expected::Word(19)),
            ("SELECT * FROM 'exa", Expected::File(14)),
            ("SELECT 'é' FROM '", Expected::File(17)),
            ("CREATE EXTERNAL TABLE t LOCATION 'exa", Expected::File(33)),
            ("CREATE TABLE t (a INT) WITH ('path' = '/tm", Expected::File(38)),
            ("CREATE TABLE t (a INT) WITH ('topic' = '/tm", Expected::Nothing),
            ("\\f", Expected::Command),
            ("\\i examples/q", Expected::File(3)),
            ("\\format c", Expected::Format(8)),
            ("\\d fli", Expected::Name(3)),
        ] {
            assert_eq!(expected(typed), what, "{typed}");
        }
    }

    #[test]
    fn candidates_follow_the_typed_case_and_come_once() {
        let found = |typed: &str, words: Vec<String>| {
            matching(typed, words)
                .into_iter()
                .map(|pair| pair.replacement)
                .collect::<Vec<_>>()
        };
        assert_eq!(found("wh", keywords("wh")), ["when", "where"]);
        assert_eq!(found("WH", keywords("WH")), ["WHEN", "WHERE"]);
        let names = ["flights", "Flow", "flights", "é"].map(String::from).to_vec();
        assert_eq!(found("fl", names), ["Flow", "flights"]);
    }
}
