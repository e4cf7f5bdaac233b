//! The words of a grub.cfg: what is quoted, and which variables are put in where.

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Variable {
        name: String,
        /// In quotes its value is one word, or a part of one.
        quoted: bool,
    },
}

/// A word, or what stands between commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(Vec<Piece>),
    /// The end of a command.
    End,
    Open,
    Close,
}

impl Token {
    /// A word without quotes and variables.
    pub(super) fn plain(&self) -> Option<&str> {
        match self {
            Self::Word(pieces) => match &pieces[..] {
                [Piece::Text(text)] => Some(text),
                _ => None,
            },
            _ => None,
        }
    }
}

struct Reader<'t> {
    text: std::iter::Peekable<std::str::Chars<'t>>,
    tokens: Vec<Token>,
    /// The word that is being read.
    word: Option<Vec<Piece>>,
}

/// Takes a text apart. What is quoted to its end is a word to its end.
pub(super) fn split(text: &str) -> Vec<Token> {
    let mut reader = Reader { text: text.chars().peekable(), tokens: Vec::new(), word: None };
    while let Some(c) = reader.text.next() {
        reader.take(c);
    }
    reader.end_word();
    reader.tokens.push(Token::End);
    reader.tokens
}

impl Reader<'_> {
    fn take(&mut self, c: char) {
        match c {
            '\n' | ';' => self.mark(Token::End),
            '{' if self.word.is_none() => self.mark(Token::Open),
            '}' if self.word.is_none() => self.mark(Token::Close),
            '#' if self.word.is_none() => while self.text.next_if(|c| *c != '\n').is_some() {},
            c if c.is_whitespace() => self.end_word(),
            '\\' => match self.text.next() {
                Some('\n') | None => {}
                Some(c) => self.push(c),
            },
            '\'' => {
                self.word.get_or_insert_default();
                while let Some(c) = self.text.next_if(|c| *c != '\'') {
                    self.push(c);
                }
                self.text.next();
            }
            '"' => self.quoted(),
            '$' => self.variable(false),
            c => self.push(c),
        }
    }

    fn quoted(&mut self) {
        self.word.get_or_insert_default();
        while let Some(c) = self.text.next() {
            match c {
                '"' => return,
                '\\' => match self.text.next() {
                    Some(c @ ('"' | '\\' | '$')) => self.push(c),
                    Some('\n') | None => {}
                    Some(c) => {
                        self.push('\\');
                        self.push(c);
                    }
                },
                '$' => self.variable(true),
                c => self.push(c),
            }
        }
    }

    fn variable(&mut self, quoted: bool) {
        let mut name = String::new();
        if self.text.next_if_eq(&'{').is_some() {
            while let Some(c) = self.text.next_if(|c| *c != '}') {
                name.push(c);
            }
            self.text.next();
        } else {
            while let Some(c) = self.text.next_if(|c| c.is_ascii_alphanumeric() || "_?@*#".contains(*c)) {
                name.push(c);
            }
        }
        match name.is_empty() {
            true => self.push('$'),
            false => self.word.get_or_insert_default().push(Piece::Variable { name, quoted }),
        }
    }

    fn push(&mut self, c: char) {
        let word = self.word.get_or_insert_default();
        match word.last_mut() {
            Some(Piece::Text(text)) => text.push(c),
            _ => word.push(Piece::Text(c.into())),
        }
    }

    fn end_word(&mut self) {
        self.tokens.extend(self.word.take().map(Token::Word));
    }

    fn mark(&mut self, token: Token) {
        self.end_word();
        self.tokens.push(token);
    }
}
