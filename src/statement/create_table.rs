//! Cuts the clauses of Flink's `CREATE TABLE` that the SQL parser does not know out of the column list.

use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::tokens::{after, closing, end_of_name, first_from, is_word, token_at, word_at, words_from};
use super::{parse_expr, types};
use crate::error::{Error, Result};

/// A column in the order of its declaration.
#[derive(Clone, Debug)]
pub(crate) enum ColumnClause {
    /// `a INT`: the connector has it.
    Physical(Ident),
    /// `c AS expr`.
    Computed(Ident, Box<SqlExpr>),
}

/// `ts TIMESTAMP(3) METADATA [FROM 'key'] [VIRTUAL]`.
#[derive(Clone, Debug)]
pub(crate) struct MetadataColumn {
    /// The column.
    pub(crate) name: Ident,
    /// What the connector calls it; the column's name where it is not said.
    pub(crate) key: Option<String>,
    /// Whether it is read only.
    pub(crate) is_virtual: bool,
}

/// What was cut out.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableClauses {
    /// All columns.
    pub(crate) columns: Vec<ColumnClause>,
    /// Those of the physical ones that are metadata.
    pub(crate) metadata: Vec<MetadataColumn>,
    /// `WATERMARK FOR column AS expr`.
    pub(crate) watermark: Option<(Ident, SqlExpr)>,
    /// `PRIMARY KEY (..) NOT ENFORCED`.
    pub(crate) primary_key: Vec<Ident>,
}

/// The statement without our clauses, and those; `None` when it has none or is no `CREATE TABLE`.
///
/// # Errors
/// When a clause is not well formed.
pub(super) fn cut(tokens: &[TokenWithSpan]) -> Result<Option<(Vec<TokenWithSpan>, TableClauses)>> {
    let Some(open) = column_list(tokens) else {
        return Ok(None);
    };
    let Some(close) = closing(tokens, open) else {
        return Ok(None);
    };
    let mut cutter = Cutter::default();
    for item in items(&tokens[open + 1..close]) {
        cutter.item(item)?;
    }
    let mut behind = close + 1;
    // What a table is called for people is read over.
    if let Some(text) = words_from(tokens, behind, &["COMMENT"]).and_then(|place| first_from(tokens, place))
        && matches!(tokens[text].token, Token::SingleQuotedString(_))
    {
        cutter.found = true;
        behind = text + 1;
    }
    if !cutter.found {
        return Ok(None);
    }
    let mut rest = tokens[..open].to_vec();
    if !cutter.kept.is_empty() {
        rest.push(tokens[open].clone());
        rest.extend(cutter.kept);
        rest.push(tokens[close].clone());
    }
    rest.extend_from_slice(&tokens[behind..]);
    Ok(Some((rest, cutter.clauses)))
}

/// The parenthesis before the columns of a `CREATE TABLE`.
fn column_list(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut place = words_from(tokens, 0, &["CREATE"])?;
    for optional in [&["OR", "REPLACE"][..], &["TEMPORARY"]] {
        place = words_from(tokens, place, optional).unwrap_or(place);
    }
    place = words_from(tokens, place, &["TABLE"])?;
    place = words_from(tokens, place, &["IF", "NOT", "EXISTS"]).unwrap_or(place);
    let name = end_of_name(tokens, first_from(tokens, place)?)?;
    after(tokens, name).filter(|open| tokens[*open].token == Token::LParen)
}

/// The parts between the commas of a column list. Commas inside parentheses and inside the brackets of a type do not
/// count.
fn items(tokens: &[TokenWithSpan]) -> Vec<&[TokenWithSpan]> {
    let mut items = Vec::new();
    let (mut depth, mut angles, mut start) = (0i32, 0i32, 0);
    for (index, token) in tokens.iter().enumerate() {
        match token.token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth -= 1,
            // Elsewhere it compares.
            Token::Lt if angles > 0 || types::has_brackets(tokens, index) => angles += 1,
            Token::Gt if angles > 0 => angles -= 1,
            Token::ShiftRight if angles > 0 => angles -= 2,
            Token::Comma if depth == 0 && angles <= 0 => {
                items.push(&tokens[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    items.push(&tokens[start..]);
    items
}

#[derive(Default)]
struct Cutter {
    kept: Vec<TokenWithSpan>,
    clauses: TableClauses,
    /// Whether anything was cut out or rewritten.
    found: bool,
}

impl Cutter {
    fn item(&mut self, item: &[TokenWithSpan]) -> Result<()> {
        let Some(first) = first_from(item, 0) else {
            return Ok(());
        };
        if let Some(place) = words_from(item, first, &["WATERMARK", "FOR"]) {
            return self.watermark(&item[place..]);
        }
        if self.table_primary_key(item, first)? {
            return Ok(());
        }
        let is_constraint = ["PRIMARY", "CONSTRAINT", "UNIQUE", "FOREIGN", "CHECK"]
            .iter()
            .any(|word| is_word(&item[first].token, word));
        if is_constraint {
            self.keep(item.to_vec());
            return Ok(());
        }
        let Token::Word(name) = &item[first].token else {
            self.keep(item.to_vec());
            return Ok(());
        };
        let mut name = Ident::new(name.value.clone());
        if let Token::Word(word) = &item[first].token {
            name.quote_style = word.quote_style;
        }
        let item = self.without_comment(item);
        if let Some(place) = words_from(item, first + 1, &["AS"]) {
            self.found = true;
            let expr = parse_expr(item[place..].to_vec())?;
            self.clauses.columns.push(ColumnClause::Computed(name, Box::new(expr)));
            return Ok(());
        }
        self.physical(item, first, name)
    }

    fn physical(&mut self, item: &[TokenWithSpan], first: usize, name: Ident) -> Result<()> {
        let item = self.metadata(item, first, &name)?;
        let mut kept = item.to_vec();
        let key = (first + 1..item.len())
            .find_map(|place| words_from(item, place, &["PRIMARY", "KEY", "NOT", "ENFORCED"]).map(|end| (place, end)));
        if let Some((start, end)) = key {
            self.set_primary_key(vec![name.clone()])?;
            kept.drain(start..end);
        }
        if let Some(rewritten) = types::rewrite(&kept[first + 1..])? {
            self.found = true;
            kept.truncate(first + 1);
            kept.extend(rewritten);
        }
        self.keep(kept);
        self.clauses.columns.push(ColumnClause::Physical(name));
        Ok(())
    }

    fn keep(&mut self, item: Vec<TokenWithSpan>) {
        if let (false, Some(near)) = (self.kept.is_empty(), item.first()) {
            self.kept.push(TokenWithSpan::new(Token::Comma, near.span));
        }
        self.kept.extend(item);
    }

    fn watermark(&mut self, rest: &[TokenWithSpan]) -> Result<()> {
        self.found = true;
        let malformed = || {
            Error::statement("the WATERMARK clause is not complete")
                .with_remedy("write WATERMARK FOR ts AS ts - INTERVAL '5' SECOND")
        };
        let name = first_from(rest, 0).ok_or_else(malformed)?;
        let Token::Word(word) = &rest[name].token else {
            return Err(malformed());
        };
        let next = after(rest, name);
        if token_at(rest, next, &Token::Period) {
            return Err(Error::unsupported("WATERMARK FOR a field of a row is not supported")
                .with_remedy("compute a column of the field (ts AS r.f), and take that"));
        }
        if !word_at(rest, next, "AS") {
            return Err(malformed());
        }
        if self.clauses.watermark.is_some() {
            return Err(Error::statement("there are two WATERMARK clauses").with_remedy("a table has one"));
        }
        let expr = parse_expr(rest[next.unwrap_or(name) + 1..].to_vec())?;
        let mut column = Ident::new(word.value.clone());
        column.quote_style = word.quote_style;
        self.clauses.watermark = Some((column, expr));
        Ok(())
    }

    /// `[CONSTRAINT c] PRIMARY KEY (a, b) NOT ENFORCED`. One that is enforced is left to the parser.
    fn table_primary_key(&mut self, item: &[TokenWithSpan], first: usize) -> Result<bool> {
        let mut place = first;
        if is_word(&item[first].token, "CONSTRAINT") {
            match after(item, first).and_then(|name| end_of_name(item, name)) {
                Some(name) => place = name + 1,
                None => return Ok(false),
            }
        }
        let Some(place) = words_from(item, place, &["PRIMARY", "KEY"]) else {
            return Ok(false);
        };
        let open = first_from(item, place).filter(|open| item[*open].token == Token::LParen);
        let Some((open, close)) = open.and_then(|open| Some((open, closing(item, open)?))) else {
            return Ok(false);
        };
        if words_from(item, close + 1, &["NOT", "ENFORCED"]).is_none() {
            return Ok(false);
        }
        let mut names = Vec::new();
        for token in &item[open + 1..close] {
            if let Token::Word(word) = &token.token {
                let mut name = Ident::new(word.value.clone());
                name.quote_style = word.quote_style;
                names.push(name);
            }
        }
        self.set_primary_key(names)?;
        Ok(true)
    }

    fn set_primary_key(&mut self, names: Vec<Ident>) -> Result<()> {
        self.found = true;
        if !self.clauses.primary_key.is_empty() {
            return Err(Error::statement("there are two primary keys")
                .with_remedy("a table has one; write PRIMARY KEY (a, b) NOT ENFORCED for one of several columns"));
        }
        if names.is_empty() {
            return Err(
                Error::statement("PRIMARY KEY names no column").with_remedy("write PRIMARY KEY (a) NOT ENFORCED")
            );
        }
        self.clauses.primary_key = names;
        Ok(())
    }

    /// The item without `METADATA ..` at its end.
    fn metadata<'t>(&mut self, item: &'t [TokenWithSpan], first: usize, name: &Ident) -> Result<&'t [TokenWithSpan]> {
        // The word behind the name is the type's first.
        let Some(of_type) = after(item, first) else {
            return Ok(item);
        };
        let Some(place) = (of_type + 1..item.len()).find(|place| is_word(&item[*place].token, "METADATA")) else {
            return Ok(item);
        };
        self.found = true;
        let mut rest = place + 1;
        let mut key = None;
        if let Some(from) = words_from(item, rest, &["FROM"]) {
            let text = first_from(item, from).and_then(|text| match &item[text].token {
                Token::SingleQuotedString(text_of) => Some((text, text_of.clone())),
                _ => None,
            });
            let Some((at, text)) = text else {
                return Err(
                    Error::statement(format!("METADATA FROM of column '{name}' names no key"))
                        .with_remedy("write METADATA FROM 'timestamp'"),
                );
            };
            key = Some(text);
            rest = at + 1;
        }
        let end = words_from(item, rest, &["VIRTUAL"]);
        let is_virtual = end.is_some();
        if let Some(index) = first_from(item, end.unwrap_or(rest)) {
            return Err(Error::statement(format!(
                "'{}' was not expected behind METADATA of column '{name}'",
                item[index].token
            ))
            .with_remedy("write name type METADATA [FROM 'key'] [VIRTUAL]"));
        }
        self.clauses.metadata.push(MetadataColumn {
            name: name.clone(),
            key,
            is_virtual,
        });
        Ok(&item[..place])
    }

    /// The item without `COMMENT '..'` at its end.
    fn without_comment<'t>(&mut self, item: &'t [TokenWithSpan]) -> &'t [TokenWithSpan] {
        let counting = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_) | Token::EOF);
        let mut last = item.iter().enumerate().rev().filter(|(_, token)| counting(token));
        let (Some((_, text)), Some((word, comment))) = (last.next(), last.next()) else {
            return item;
        };
        if matches!(text.token, Token::SingleQuotedString(_)) && is_word(&comment.token, "COMMENT") {
            self.found = true;
            return &item[..word];
        }
        item
    }
}
