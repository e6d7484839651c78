//! Finding one's way in the tokens of a statement.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

/// Whether the token is this word, not quoted, in any case.
pub(super) fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// Whether the token at `index` is this word.
pub(super) fn word_at(tokens: &[TokenWithSpan], index: Option<usize>, word: &str) -> bool {
    index.is_some_and(|index| is_word(&tokens[index].token, word))
}

/// Whether the token at `index` is this one.
pub(super) fn token_at(tokens: &[TokenWithSpan], index: Option<usize>, token: &Token) -> bool {
    index.is_some_and(|index| tokens[index].token == *token)
}

/// The first token from `from` on that is neither white space nor a comment.
pub(super) fn first_from(tokens: &[TokenWithSpan], from: usize) -> Option<usize> {
    let mut rest = tokens.iter().enumerate().skip(from);
    rest.find(|(_, token)| !matches!(token.token, Token::Whitespace(_) | Token::EOF))
        .map(|(index, _)| index)
}

/// The token after `index` that counts.
pub(super) fn after(tokens: &[TokenWithSpan], index: usize) -> Option<usize> {
    first_from(tokens, index + 1)
}

/// The place after these words, when they are what follows from `from` on.
pub(super) fn words_from(tokens: &[TokenWithSpan], from: usize, words: &[&str]) -> Option<usize> {
    let mut place = from;
    for word in words {
        let index = first_from(tokens, place)?;
        if !is_word(&tokens[index].token, word) {
            return None;
        }
        place = index + 1;
    }
    Some(place)
}

/// The parenthesis that closes the one at `open`.
pub(super) fn closing(tokens: &[TokenWithSpan], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => {
                depth -= 1;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

/// The last token of the name `a.b.c` that begins at `from`.
pub(super) fn end_of_name(tokens: &[TokenWithSpan], from: usize) -> Option<usize> {
    let mut end = from;
    loop {
        if !matches!(tokens[end].token, Token::Word(_)) {
            return None;
        }
        match after(tokens, end) {
            Some(dot) if tokens[dot].token == Token::Period => end = after(tokens, dot)?,
            _ => return Some(end),
        }
    }
}

/// The words, as tokens at the place of `near`.
pub(super) fn words(text: &[&str], near: &TokenWithSpan) -> Vec<TokenWithSpan> {
    let token = |word: &&str| match *word {
        "(" => Token::LParen,
        ")" => Token::RParen,
        "," => Token::Comma,
        "*" => Token::Mul,
        "=>" => Token::RArrow,
        "<" => Token::Lt,
        ">" => Token::Gt,
        word => Token::make_keyword(word),
    };
    let span = near.span;
    text.iter().map(|word| TokenWithSpan::new(token(word), span)).collect()
}

/// Changes to a token list, each at a place of the list as it was.
pub(super) struct Edits {
    dropped: Vec<bool>,
    before: Vec<Vec<TokenWithSpan>>,
    changed: bool,
}

impl Edits {
    pub(super) fn new(tokens: &[TokenWithSpan]) -> Self {
        Self {
            dropped: vec![false; tokens.len()],
            before: vec![Vec::new(); tokens.len() + 1],
            changed: false,
        }
    }

    pub(super) fn drop_token(&mut self, index: usize) {
        self.dropped[index] = true;
        self.changed = true;
    }

    /// Puts words before the token at `index`, behind those put there already.
    pub(super) fn insert_before(&mut self, index: usize, text: &[&str], near: &TokenWithSpan) {
        self.before[index].extend(words(text, near));
        self.changed = true;
    }

    pub(super) fn apply(self, tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
        if !self.changed {
            return tokens;
        }
        let mut edited = Vec::with_capacity(tokens.len());
        let mut before = self.before.into_iter();
        for (token, dropped) in tokens.into_iter().zip(self.dropped) {
            edited.extend(before.next().unwrap_or_default());
            if !dropped {
                edited.push(token);
            }
        }
        edited.extend(before.flatten());
        edited
    }
}
