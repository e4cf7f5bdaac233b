//! The structure of a grub.cfg: commands, and what decides whether they are executed.

use super::words::{Piece, Token, split};
use std::rc::Rc;

/// Commands within commands.
const DEPTH_MAX: usize = 32;
/// Words in a file.
const TOKENS_MAX: usize = 1 << 20;

type Word = Vec<Piece>;
/// Commands that several have.
pub(super) type Block = Rc<Vec<Command>>;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Simple(Vec<Word>),
    /// Conditions and what is to be done, in order, and what is to be done else.
    If(Vec<(Block, Block)>, Block),
    /// While the condition has this value.
    While(Block, bool, Block),
    For(String, Vec<Word>, Block),
    Function(String, Block),
    /// `menuentry` (or `submenu`), its words, and its content.
    Entry {
        words: Vec<Word>,
        is_menu: bool,
        body: Block,
    },
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

type Parsed<T> = Result<T, &'static str>;

/// Parses a file.
pub(super) fn parse(text: &str) -> Parsed<Block> {
    let tokens = split(text);
    if tokens.len() > TOKENS_MAX {
        return Err("it is too long");
    }
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let block = parser.block(&[])?;
    match parser.at == parser.tokens.len() {
        true => Ok(block),
        false => Err("a '}' has no '{'"),
    }
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn is_at(&self, word: &str) -> bool {
        self.peek().and_then(Token::plain) == Some(word)
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    fn expect(&mut self, word: &'static str) -> Parsed<()> {
        self.skip_ends();
        match self.is_at(word) {
            true => self.at += 1,
            false => return Err("an if, while or for is not complete"),
        }
        Ok(())
    }

    /// Commands up to one of these words, or to a '}', or to the end.
    fn block(&mut self, ends: &[&str]) -> Parsed<Block> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("it is nested too deeply");
        }
        let mut commands = Vec::new();
        loop {
            self.skip_ends();
            let is_over = matches!(self.peek(), None | Some(Token::Close));
            if is_over || ends.iter().any(|end| self.is_at(end)) {
                break;
            }
            commands.push(self.command()?);
        }
        self.depth -= 1;
        Ok(Rc::new(commands))
    }

    /// `{ commands }`
    fn braces(&mut self) -> Parsed<Block> {
        self.skip_ends();
        if self.peek() != Some(&Token::Open) {
            return Err("a '{' is missing");
        }
        self.at += 1;
        let block = self.block(&[])?;
        if self.peek() != Some(&Token::Close) {
            return Err("a '}' is missing");
        }
        self.at += 1;
        Ok(block)
    }

    /// Words up to the end of the command, or to a '{' that is one of its own.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn name(&mut self) -> Parsed<String> {
        let name = self.peek().and_then(Token::plain).ok_or("a name is missing")?.to_owned();
        self.at += 1;
        Ok(name)
    }

    fn command(&mut self) -> Parsed<Command> {
        let start = self.at;
        let first = self.peek().and_then(Token::plain).unwrap_or_default().to_owned();
        self.at += 1;
        match &*first {
            "if" => self.conditional(),
            "while" | "until" => {
                let condition = self.block(&["do"])?;
                self.expect("do")?;
                let body = self.block(&["done"])?;
                self.expect("done")?;
                Ok(Command::While(condition, first == "while", body))
            }
            "for" => {
                let name = self.name()?;
                self.expect("in")?;
                let words = self.words();
                self.expect("do")?;
                let body = self.block(&["done"])?;
                self.expect("done")?;
                Ok(Command::For(name, words, body))
            }
            "function" => {
                let name = self.name()?;
                Ok(Command::Function(name, self.braces()?))
            }
            "menuentry" | "submenu" => {
                let words = self.words();
                Ok(Command::Entry { words, is_menu: first == "submenu", body: self.braces()? })
            }
            _ => {
                self.at = start;
                let words = self.words();
                if words.is_empty() {
                    // A '{' that belongs to no command.
                    return self.braces().map(|block| Command::If(Vec::new(), block));
                }
                Ok(Command::Simple(words))
            }
        }
    }

    fn conditional(&mut self) -> Parsed<Command> {
        let mut branches = Vec::new();
        loop {
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.block(&["elif", "else", "fi"])?));
            if !self.is_at("elif") {
                break;
            }
            self.at += 1;
        }
        let mut otherwise = Block::default();
        if self.is_at("else") {
            self.at += 1;
            otherwise = self.block(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Command::If(branches, otherwise))
    }
}
