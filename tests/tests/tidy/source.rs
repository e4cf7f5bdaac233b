//! Rust source taken apart: its code, in which comments, strings and characters are spaces, and its comments, in which
//! all other text is spaces. Line ends stay, so that every position is the same as in the file.

use std::ops::Range;

/// The code of a file.
#[derive(Default)]
pub struct Code {
    /// Without comments and literals.
    pub text: String,
    /// The comments alone.
    pub comments: String,
    /// Where a line begins.
    line_starts: Vec<usize>,
}

impl Code {
    /// The code in a source text.
    pub fn of(source: &str) -> Self {
        let (text, comments) = taken_apart(source);
        let line_starts = [0].into_iter().chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, comments, line_starts }
    }

    /// The line, from 1, that a position is in.
    pub fn line_of(&self, position: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= position)
    }

    /// The lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    /// Positions at which `word` stands as a word of its own.
    pub fn words(&self, word: &str) -> impl Iterator<Item = usize> {
        let bytes = self.text.as_bytes();
        self.text.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let after = at + word.len();
            (*at == 0 || !is_word(bytes[at - 1])) && (after == bytes.len() || !is_word(bytes[after]))
        })
    }

    /// From the first opening bracket at or after `position` to behind its closing one; nothing if a semicolon comes
    /// first.
    pub fn braces(&self, position: usize) -> Option<Range<usize>> {
        let bytes = self.text.as_bytes();
        let mut round = 0;
        let open = (position..bytes.len()).find(|at| {
            match bytes[*at] {
                b'(' | b'[' => round += 1,
                b')' | b']' => round -= 1,
                _ => {}
            }
            round == 0 && matches!(bytes[*at], b'{' | b';')
        })?;
        if bytes[open] == b';' {
            return None;
        }
        let mut depth = 0;
        let close = (open..bytes.len()).find(|at| {
            match bytes[*at] {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            depth == 0
        })?;
        Some(open..close + 1)
    }

    /// The code without its modules of tests.
    pub fn without_tests(&self) -> String {
        let mut text = self.text.clone();
        for (at, attribute) in self.text.match_indices("#[cfg(test)]") {
            let end = self.braces(at + attribute.len()).map_or(at + attribute.len(), |body| body.end);
            let blank: String = text[at..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            text.replace_range(at..end, &blank);
        }
        text
    }
}

/// Whether a byte can be part of a word of Rust.
pub fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

/// The identifier at the start of a text; empty if there is none.
pub fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len());
    &text[..end]
}

/// The code and the comments of a source.
fn taken_apart(source: &str) -> (String, String) {
    let mut code = source.as_bytes().to_vec();
    let mut comments: Vec<_> = code.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }).collect();
    let mut at = 0;
    while at < code.len() {
        let rest = &source.as_bytes()[at..];
        let end = at + literal_or_comment(rest, at > 0 && is_word(code[at - 1]));
        if rest.starts_with(b"//") || rest.starts_with(b"/*") {
            comments[at..end].copy_from_slice(&source.as_bytes()[at..end]);
        }
        code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end.max(at + 1);
    }
    [code, comments]
        .map(|bytes| String::from_utf8(bytes).expect("whole characters are replaced by spaces"))
        .into()
}

/// The length of the comment or literal that a text begins with; zero if it is code.
fn literal_or_comment(text: &[u8], in_word: bool) -> usize {
    let until = |end: &[u8], from: usize| {
        let found = text[from..].windows(end.len()).position(|window| window == end);
        found.map_or(text.len(), |at| from + at + end.len())
    };
    match text {
        [b'/', b'/', ..] => until(b"\n", 0) - 1,
        [b'/', b'*', ..] => block_comment(text),
        [b'"', ..] => string(text, 1),
        [b'b' | b'c', b'"', ..] if !in_word => string(text, 2),
        [b'b', b'\'', ..] if !in_word => 1 + literal_or_comment(&text[1..], false),
        [b'r' | b'b' | b'c', ..] if !in_word => {
            let prefix = text.iter().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
            let hashes = text[prefix..].iter().take_while(|byte| **byte == b'#').count();
            if text[..prefix].contains(&b'r') && text.get(prefix + hashes) == Some(&b'"') {
                let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
                until(&end, prefix + hashes + 1)
            } else {
                0
            }
        }
        // A character, not a lifetime.
        [b'\'', b'\\', _, ..] => until(b"'", 3),
        [b'\'', ..] => {
            let width = std::str::from_utf8(&text[1..text.len().min(5)])
                .map_or_else(|error| error.valid_up_to(), str::len)
                .min(4);
            let first = std::str::from_utf8(&text[1..=width]).ok().and_then(|text| text.chars().next());
            first.map(char::len_utf8).filter(|len| text.get(1 + len) == Some(&b'\'')).map_or(0, |len| len + 2)
        }
        _ => 0,
    }
}

fn block_comment(text: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at + 1 < text.len() {
        match &text[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn string(text: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

#[test]
fn comments_and_literals_are_no_code() {
    let source = "a/*x/*y*/{*/b // {\n\"{\\\"\"c r#\"{\"\"#d '{' '\\'' &'e f b'{' br\"{\" 'ä' g\n";
    let code = Code::of(source);
    assert_eq!(code.text.len(), source.len());
    let words: Vec<_> = code.text.split_whitespace().collect();
    assert_eq!(words, ["a", "b", "c", "d", "&'e", "f", "g"]);
    let comments: Vec<_> = code.comments.split_whitespace().collect();
    assert_eq!(comments, ["/*x/*y*/{*/", "//", "{"]);
}

#[test]
fn braces_are_matched_and_tests_cut_out() {
    let code = Code::of("fn a(b: [u8; 2]) { if c { d } }\n#[cfg(test)]\nmod tests {\n e\n}\nfn f();\n");
    assert_eq!(code.braces(0), Some(17..31));
    assert_eq!(code.braces(code.text.find("fn f").unwrap()), None);
    assert!(!code.without_tests().contains('e') && code.without_tests().contains("fn f"));
    assert_eq!(code.line_of(code.text.find("\n e").unwrap() + 1), 4);
}
