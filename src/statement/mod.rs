//! From text to statements: Flink's, where the SQL parser does not know them, and then the parser's.
//!
//! The tokens of Flink's clauses are cut out or rewritten before the parser sees them. Tokens keep their places, so
//! that syntax errors still name the line and column of what was written.

mod create_table;
#[cfg(test)]
mod tests;
mod tokens;
mod types;
mod window_calls;

use datafusion::sql::parser::{DFParserBuilder, Statement as DFStatement};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Statement as SqlStatement};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::error::{Error, Result};
use crate::script::tokenize;
use crate::stream_dialect::StreamDialect;
use tokens::{first_from, is_word, words_from};

pub(crate) use create_table::{ColumnClause, MetadataColumn, TableClauses};
pub(crate) use types::restore;
pub(crate) use window_calls::{PARTITION_BY, WINDOW_FUNCTIONS};

/// How deeply a statement may be nested.
const PARSER_RECURSION_LIMIT: usize = 256;

/// One statement.
#[derive(Debug)]
pub(crate) enum Statement {
    /// What the SQL parser makes of it.
    Plain(Box<DFStatement>),
    /// `CREATE TABLE` with clauses that the parser does not know.
    CreateTable {
        /// The statement without them.
        statement: Box<DFStatement>,
        /// Those.
        clauses: Box<TableClauses>,
    },
    /// `EXECUTE STATEMENT SET BEGIN .. END`: inserts that belong together.
    Set(Vec<DFStatement>),
}

/// Parses one statement.
///
/// # Errors
/// When it is none, or more than one.
pub(crate) fn parse(sql: &str) -> Result<Statement> {
    let tokens = tokenize(sql)?;
    window_calls::refuse(&tokens)?;
    if let Some(body) = after_set_head(&tokens, 0) {
        return statement_set(&tokens[body..]);
    }
    let tokens = window_calls::rewrite(tokens);
    match create_table::cut(&tokens)? {
        Some((rest, clauses)) => Ok(Statement::CreateTable {
            statement: Box::new(parse_one(rest)?),
            clauses: Box::new(clauses),
        }),
        None => Ok(Statement::Plain(Box::new(parse_one(tokens)?))),
    }
}

/// Parses one statement that is to be explained.
///
/// # Errors
/// When it is none, or one that makes no plan.
pub(crate) fn parse_plain(sql: &str) -> Result<DFStatement> {
    match parse(sql)? {
        Statement::Plain(statement) => Ok(*statement),
        _ => Err(Error::unsupported("only one query or INSERT can be explained")
            .with_remedy("explain the statements of a set one by one")),
    }
}

/// Where the first statement of a statement set begins that starts at `from`.
fn after_set_head(tokens: &[TokenWithSpan], from: usize) -> Option<usize> {
    words_from(tokens, from, &["EXECUTE", "STATEMENT", "SET", "BEGIN"])
}

/// Follows a script token by token and tells its statements' ends from the semicolons inside a statement set.
#[derive(Default)]
pub(crate) struct StatementEnds {
    /// The words since the last end, as far as they matter.
    head: usize,
    in_set: bool,
    /// Whether what came since the last semicolon (or BEGIN) is the word END and nothing else.
    only_end: bool,
    is_empty: bool,
}

impl StatementEnds {
    pub(crate) fn new() -> Self {
        Self {
            is_empty: true,
            ..Self::default()
        }
    }

    /// Takes the next token that counts; whether it is a semicolon that ends a statement.
    pub(crate) fn push(&mut self, token: &Token) -> bool {
        const HEAD: [&str; 4] = ["EXECUTE", "STATEMENT", "SET", "BEGIN"];
        if *token == Token::SemiColon {
            let is_end = !self.in_set || self.only_end;
            if is_end {
                *self = Self::new();
            }
            self.only_end = false;
            self.is_empty = true;
            return is_end;
        }
        if self.in_set {
            self.only_end = self.is_empty && is_word(token, "END");
            self.is_empty = false;
            return false;
        }
        // A count beyond the head's length says that the statement is another.
        let matches = HEAD.get(self.head).is_some_and(|word| is_word(token, word));
        self.head = if matches { self.head + 1 } else { usize::MAX / 2 };
        if self.head == HEAD.len() {
            self.in_set = true;
            self.is_empty = true;
        }
        false
    }
}

/// The statements of a set, from the first on.
fn statement_set(tokens: &[TokenWithSpan]) -> Result<Statement> {
    let mut statements = Vec::new();
    let mut current: Vec<TokenWithSpan> = Vec::new();
    let mut is_closed = false;
    for token in tokens {
        if is_closed {
            match token.token {
                Token::SemiColon | Token::Whitespace(_) | Token::EOF => continue,
                _ => {
                    return Err(Error::statement("there is more than one statement")
                        .with_remedy("a statement set ends with END; execute what follows by itself"));
                }
            }
        }
        if token.token == Token::SemiColon {
            if first_from(&current, 0).is_some() {
                statements.push(insert(std::mem::take(&mut current))?);
            }
            current.clear();
            continue;
        }
        if first_from(&current, 0).is_none() && is_word(&token.token, "END") {
            is_closed = true;
            continue;
        }
        current.push(token.clone());
    }
    if !is_closed {
        return Err(Error::statement("the statement set has no END")
            .with_remedy("write EXECUTE STATEMENT SET BEGIN INSERT ..; INSERT ..; END"));
    }
    if statements.is_empty() {
        return Err(
            Error::statement("the statement set is empty").with_remedy("put INSERT statements between BEGIN and END")
        );
    }
    Ok(Statement::Set(statements))
}

fn insert(tokens: Vec<TokenWithSpan>) -> Result<DFStatement> {
    let statement = parse_one(window_calls::rewrite(tokens))?;
    let is_insert =
        matches!(&statement, DFStatement::Statement(sql) if matches!(sql.as_ref(), SqlStatement::Insert(_)));
    if !is_insert {
        return Err(Error::statement(format!("'{statement}' is no INSERT"))
            .with_remedy("a statement set holds INSERT statements only; execute others by themselves"));
    }
    Ok(statement)
}

fn parse_one(tokens: Vec<TokenWithSpan>) -> Result<DFStatement> {
    let dialect = dialect_for(&tokens);
    let mut statements = DFParserBuilder::new(tokens)
        .with_dialect(&dialect)
        .with_recursion_limit(PARSER_RECURSION_LIMIT)
        .build()?
        .parse_statements()?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        (None, _) => Err(Error::statement("there is no statement")),
        (Some(_), false) => Err(Error::statement("there is more than one statement")
            .with_remedy("execute them one by one; Session::split cuts a script")),
    }
}

/// The expression that the tokens are.
fn parse_expr(tokens: Vec<TokenWithSpan>) -> Result<SqlExpr> {
    let dialect = dialect_for(&tokens);
    let parsed = DFParserBuilder::new(tokens)
        .with_dialect(&dialect)
        .with_recursion_limit(PARSER_RECURSION_LIMIT)
        .build()?
        .parse_into_expr()?;
    match parsed.alias {
        None => Ok(parsed.expr),
        Some(alias) => Err(Error::syntax(format!("'{alias}' was not expected"), None)),
    }
}

fn dialect_for(tokens: &[TokenWithSpan]) -> StreamDialect {
    StreamDialect::new(tokens.iter().any(|token| is_word(&token.token, "SYSTEM_TIME")))
}
