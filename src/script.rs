//! Cutting a script into statements.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::error::{Error, Result};
use crate::statement::StatementEnds;

/// One statement of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptStatement {
    /// The text, without its semicolon.
    pub sql: String,
    /// The line of the script on which it starts, from 1.
    pub line: usize,
}

/// Splits a script at the semicolons that are not inside quotes, comments or a statement set.
pub(crate) fn split(text: &str) -> Result<Vec<ScriptStatement>> {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut statements = Vec::new();
    let mut current: Vec<TokenWithSpan> = Vec::new();
    let mut ends = StatementEnds::new();
    for token in tokenize(text)? {
        match token.token {
            Token::Whitespace(_) | Token::EOF => {}
            _ if ends.push(&token.token) => statements.extend(cut(&lines, &std::mem::take(&mut current))),
            _ => current.push(token),
        }
    }
    statements.extend(cut(&lines, &current));
    Ok(statements)
}

/// Whether what was typed so far ends with a semicolon that ends a statement.
pub(crate) fn is_complete(text: &str) -> bool {
    let Ok(tokens) = tokenize(text) else { return false };
    let mut ends = StatementEnds::new();
    let counting = tokens.iter().map(|token| &token.token);
    counting
        .filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF))
        .fold(false, |_, token| ends.push(token))
}

pub(crate) fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>> {
    Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|e| Error::syntax(e.message, Some((e.location.line, e.location.column))))
}

/// The text from the first to the last token.
fn cut(lines: &[&str], tokens: &[TokenWithSpan]) -> Option<ScriptStatement> {
    let (first, last) = (tokens.first()?.span.start, tokens.last()?.span.end);
    let (first_line, last_line) = (first.line as usize, last.line as usize);
    let mut sql = String::new();
    for number in first_line..=last_line {
        let line = lines.get(number - 1)?;
        // Columns count characters, from 1.
        let from = if number == first_line {
            first.column as usize - 1
        } else {
            0
        };
        let to = if number == last_line {
            last.column as usize - 1
        } else {
            usize::MAX
        };
        if number > first_line {
            sql.push('\n');
        }
        sql.extend(line.chars().take(to).skip(from));
    }
    Some(ScriptStatement { sql, line: first_line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(script: &str) -> Vec<(String, usize)> {
        split(script).unwrap().into_iter().map(|s| (s.sql, s.line)).collect()
    }

    #[test]
    fn semicolons_in_quotes_and_comments_do_not_split() {
        let script = "-- a; comment\nSELECT ';' AS \"a;b\" /* ; */;\n\n  SELECT\n  2\n;;\nSELECT 'ü;' , 3";
        assert_eq!(
            texts(script),
            vec![
                ("SELECT ';' AS \"a;b\"".to_string(), 2),
                ("SELECT\n  2".to_string(), 4),
                ("SELECT 'ü;' , 3".to_string(), 7),
            ]
        );
    }

    #[test]
    fn a_statement_set_is_one_statement() {
        let set = "EXECUTE STATEMENT SET BEGIN\nINSERT INTO a SELECT CASE WHEN x THEN 1 END FROM t;\nINSERT INTO b SELECT 1;\nEND";
        let script = format!("SELECT 1;\n{set};\nSELECT 2");
        let expected = [("SELECT 1", 1), (set, 2), ("SELECT 2", 6)].map(|(sql, line)| (sql.to_string(), line));
        assert_eq!(texts(&script), expected);
        assert!(!is_complete("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1;"));
        assert!(is_complete("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1; END;"));
        // A prepared statement is executed in another way.
        assert_eq!(texts("EXECUTE p(1); EXECUTE statement; SELECT 1").len(), 3);
    }

    #[test]
    fn nothing_gives_nothing() {
        assert!(texts("").is_empty());
        assert!(texts("  -- only a comment\n;").is_empty());
    }

    #[test]
    fn an_open_quote_is_not_complete() {
        assert!(is_complete("SELECT 1;"));
        assert!(is_complete("SELECT 1; -- done"));
        assert!(!is_complete("SELECT 1"));
        assert!(!is_complete("SELECT ';"));
        assert!(!is_complete("SELECT /* ;"));
    }
}
