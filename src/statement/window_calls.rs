//! Makes `TUMBLE(TABLE t, DESCRIPTOR(ts), ..)` and its like something that the SQL parser takes: the table becomes a
//! subquery, `PARTITION BY` an argument of that name, and `TABLE(..)` around the call goes. The relation planner
//! (`relations.rs`) makes a plan of it.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::{Edits, after, closing, end_of_name, first_from, is_word, token_at, word_at, words_from};
use crate::error::{Error, Result};

/// The functions whose value is a table with windows.
pub(crate) const WINDOW_FUNCTIONS: [&str; 4] = ["TUMBLE", "HOP", "CUMULATE", "SESSION"];

/// The argument that `PARTITION BY` becomes.
pub(crate) const PARTITION_BY: &str = "PARTITION_BY";

/// Rewrites every such call.
pub(super) fn rewrite(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut edits = Edits::new(&tokens);
    for index in 0..tokens.len() {
        if is_word(&tokens[index].token, "TABLE") {
            drop_table_around(&tokens, index, &mut edits);
        } else if let Some(open) = opens_call(&tokens, index) {
            rewrite_call(&tokens, open, &mut edits);
        }
    }
    edits.apply(tokens)
}

/// The parenthesis of a call of a window function at `index`.
fn opens_call(tokens: &[TokenWithSpan], index: usize) -> Option<usize> {
    if !WINDOW_FUNCTIONS.iter().any(|name| is_word(&tokens[index].token, name)) {
        return None;
    }
    after(tokens, index).filter(|open| tokens[*open].token == Token::LParen)
}

/// `TABLE(TUMBLE(..))` to `TUMBLE(..)`.
fn drop_table_around(tokens: &[TokenWithSpan], table: usize, edits: &mut Edits) {
    let Some(open) = after(tokens, table).filter(|open| tokens[*open].token == Token::LParen) else {
        return;
    };
    let is_call = after(tokens, open).is_some_and(|call| opens_call(tokens, call).is_some());
    if let (true, Some(close)) = (is_call, closing(tokens, open)) {
        edits.drop_token(table);
        edits.drop_token(open);
        edits.drop_token(close);
    }
}

fn rewrite_call(tokens: &[TokenWithSpan], open: usize, edits: &mut Edits) {
    let Some(close) = closing(tokens, open) else { return };
    let mut place = open + 1;
    while let Some(start) = first_from(tokens, place).filter(|start| *start < close) {
        let end = end_of_argument(tokens, start, close);
        rewrite_argument(tokens, start, end, edits);
        place = end + 1;
    }
}

/// The comma or parenthesis behind the argument at `start`.
fn end_of_argument(tokens: &[TokenWithSpan], start: usize, close: usize) -> usize {
    let mut index = start;
    while index < close {
        match tokens[index].token {
            Token::LParen => index = closing(tokens, index).unwrap_or(close),
            Token::Comma => return index,
            _ => {}
        }
        index += 1;
    }
    close
}

fn rewrite_argument(tokens: &[TokenWithSpan], start: usize, end: usize, edits: &mut Edits) {
    let mut data = start;
    if let Some(arrow) = after(tokens, start).filter(|arrow| tokens[*arrow].token == Token::RArrow) {
        match after(tokens, arrow) {
            Some(value) if value < end => data = value,
            _ => return,
        }
    }
    let mut first = data;
    if is_word(&tokens[data].token, "TABLE") {
        match after(tokens, data) {
            Some(next) if next < end => first = next,
            _ => return,
        }
        edits.drop_token(data);
    }
    let last = if tokens[first].token == Token::LParen {
        closing(tokens, first)
    } else if first > data {
        let last = end_of_name(tokens, first);
        if let Some(last) = last {
            edits.insert_before(first, &["(", "SELECT", "*", "FROM"], &tokens[first]);
            edits.insert_before(last + 1, &[")"], &tokens[last]);
        }
        last
    } else {
        None
    };
    if let Some(partition) = last.and_then(|last| after(tokens, last)).filter(|next| *next < end) {
        rewrite_partition_by(tokens, partition, edits);
    }
}

/// `PARTITION BY (a, b)` or `PARTITION BY a` to `, PARTITION_BY => DESCRIPTOR(a, b)`.
fn rewrite_partition_by(tokens: &[TokenWithSpan], partition: usize, edits: &mut Edits) {
    let by = after(tokens, partition);
    let (true, true, Some(by)) = (
        is_word(&tokens[partition].token, "PARTITION"),
        word_at(tokens, by, "BY"),
        by,
    ) else {
        return;
    };
    let Some(keys) = after(tokens, by) else { return };
    let near = &tokens[partition];
    if token_at(tokens, Some(keys), &Token::LParen) {
        edits.insert_before(partition, &[",", PARTITION_BY, "=>", "DESCRIPTOR"], near);
    } else if let Some(last) = end_of_name(tokens, keys) {
        edits.insert_before(partition, &[",", PARTITION_BY, "=>", "DESCRIPTOR", "("], near);
        edits.insert_before(last + 1, &[")"], near);
    } else {
        return;
    }
    edits.drop_token(partition);
    edits.drop_token(by);
}

/// `TUMBLE_START(..)` and its like, and `GROUP BY TUMBLE(..)`: the windows that Flink had before those in FROM.
fn is_group_window(tokens: &[TokenWithSpan], index: usize) -> bool {
    let Token::Word(word) = &tokens[index].token else {
        return false;
    };
    let is_call = || token_at(tokens, after(tokens, index), &Token::LParen);
    let of_window = word.value.to_uppercase().split_once('_').is_some_and(|(window, part)| {
        ["TUMBLE", "HOP", "SESSION"].contains(&window) && ["START", "END", "ROWTIME", "PROCTIME"].contains(&part)
    });
    if word.quote_style.is_none() && of_window {
        return is_call();
    }
    let after_by = words_from(tokens, index, &["GROUP", "BY"]);
    let grouped = after_by.and_then(|place| first_from(tokens, place));
    grouped.is_some_and(|call| opens_call(tokens, call).is_some())
}

/// Refuses what would be read as something else: EMIT clauses, group windows, and functions of the watermark.
///
/// # Errors
/// When the statement holds one.
pub(super) fn refuse(tokens: &[TokenWithSpan]) -> Result<()> {
    const AFTER_EMIT: [&str; 9] = [
        "CHANGES", "FINAL", "AFTER", "STREAM", "UPDATE", "WITH", "WITHOUT", "BEFORE", "EVERY",
    ];
    for (index, token) in tokens.iter().enumerate() {
        let next = after(tokens, index);
        if is_word(&token.token, "EMIT") {
            let is_clause = AFTER_EMIT.iter().any(|word| word_at(tokens, next, word))
                || (word_at(tokens, next, "ON") && next.is_some_and(|on| word_at(tokens, after(tokens, on), "WINDOW")));
            if is_clause {
                return Err(Error::unsupported("EMIT is not supported").with_remedy(
                    "leave it out: windows emit when the watermark passes their end, other results with each change",
                ));
            }
        }
        if is_group_window(tokens, index) {
            return Err(
                Error::unsupported(format!("the group window {} is not supported", token.token)).with_remedy(
                    "use the table: FROM TUMBLE(TABLE t, DESCRIPTOR(ts), ..) GROUP BY window_start, window_end",
                ),
            );
        }
        if is_word(&token.token, "CURRENT_WATERMARK") && token_at(tokens, next, &Token::LParen) {
            return Err(Error::unsupported("CURRENT_WATERMARK is not supported")
                .with_remedy("late rows are dropped by windows; compare times with each other instead"));
        }
    }
    Ok(())
}
