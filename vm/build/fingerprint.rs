//! One number for all that decides what a guest on the deterministic engine executes, given a state and a log: the code
//! of the modules below [`ROOTS`] and the versions of the crates that it calls. What decides nothing does not count:
//! comments, white space, names of files, what is compiled for tests alone, and modules that only choose what goes into
//! a log.
//!
//! Modules are found as the compiler finds them, by their declarations, so that one that was moved away is an error.

use std::path::{Path, PathBuf};

/// The modules, relative to the crate ft-vm; with each come those that it declares.
pub const ROOTS: [&str; 6] = [
    "ram/src/lib.rs",
    "cpu/src/lib.rs",
    "src/spec.rs",
    "src/devices/mod.rs",
    "src/engine/soft/mod.rs",
    "src/replay/log/mod.rs",
];
/// Modules among them that choose inputs, count for the operator or take what leaves the machine, with those that they
/// declare.
pub const OUTSIDE: [&str; 5] = [
    "src/devices/counters.rs",
    "src/engine/soft/host_time.rs",
    "src/engine/soft/outbox.rs",
    "src/engine/soft/record.rs",
    "src/engine/soft/vcpu/live.rs",
];
/// Crates by which instructions are decoded and computed, and through which devices see memory and registers.
pub const CRATES: [&str; 6] =
    ["iced-x86", "libm", "rustc_apfloat", "vm-memory", "virtio-queue", "vm-superio"];

/// What is compiled for tests alone stands behind one of these.
const TESTS_ALONE: [&[&str]; 2] = [
    &["#", "[", "cfg", "(", "test", ")", "]"],
    &["#", "[", "cfg", "(", "feature", "=", "\"testing\"", ")", "]"],
];

/// The number, and the files that it was made of.
pub struct Fingerprint {
    /// FNV-1a, 64 bits.
    pub hash: u64,
    /// In the order in which they were read.
    pub files: Vec<PathBuf>,
}

/// Of the code below `roots` but for that below `outside`, all relative to `dir`, and of `crates` as `lock` has them.
pub fn fingerprint(
    dir: &Path,
    roots: &[&str],
    outside: &[&str],
    crates: &[&str],
    lock: &Path,
) -> Result<Fingerprint, String> {
    let mut outside: Vec<PathBuf> = outside.iter().map(|path| dir.join(path)).collect();
    let mut found = Fingerprint { hash: 0xcbf2_9ce4_8422_2325, files: Vec::new() };
    let mut due: Vec<PathBuf> = roots.iter().rev().map(|root| dir.join(root)).collect();
    while let Some(path) = due.pop() {
        if let Some(at) = outside.iter().position(|known| *known == path) {
            outside.swap_remove(at);
            continue;
        }
        let in_file = |e: String| format!("{}: {e}", path.display());
        let source = read(&path)?;
        let tokens = normalise(&source).map_err(in_file)?;
        let children = declared(&tokens).map(|name| file_of(&path, name));
        let mut children = children.collect::<Result<Vec<_>, _>>().map_err(in_file)?;
        due.extend(children.drain(..).rev());
        found.add(&tokens);
        found.files.push(path);
    }
    if let Some(path) = outside.first() {
        return Err(format!("{}: said to decide nothing, but no module declares it", path.display()));
    }
    let packages = read(lock)?;
    for name in crates {
        found.add(&package(&packages, name).ok_or_else(|| format!("{}: no crate {name}", lock.display()))?);
    }
    found.files.push(lock.to_owned());
    Ok(found)
}

impl Fingerprint {
    fn add(&mut self, words: &[&str]) {
        let mut add = |byte: u8| self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        for word in words {
            word.bytes().for_each(&mut add);
            // In no UTF-8 text.
            add(0xff);
        }
        add(0xfe);
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A crate's lines in a lock file: its name, version, source and checksum.
fn package<'a>(lock: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let wanted = format!("name = \"{name}\"");
    let entry = lock.split("[[package]]").find(|entry| entry.lines().any(|line| line == wanted))?;
    Some(entry.lines().filter(|line| line.contains(" = \"")).collect())
}

/// Names of the modules that have a file of their own.
fn declared<'a>(tokens: &'a [&str]) -> impl Iterator<Item = &'a str> {
    tokens.windows(3).filter(|three| three[0] == "mod" && three[2] == ";").map(|three| three[1])
}

/// The file of a module that is declared in the file at `path`.
fn file_of(path: &Path, module: &str) -> Result<PathBuf, String> {
    let is_root = path.file_name().is_some_and(|name| name == "lib.rs" || name == "mod.rs");
    let dir = if is_root { path.with_file_name("") } else { path.with_extension("") };
    let candidates = [dir.join(format!("{module}.rs")), dir.join(module).join("mod.rs")];
    let [file, in_folder] = &candidates;
    candidates.iter().find(|candidate| candidate.is_file()).cloned().ok_or_else(|| {
        format!(
            "declares the module {module}, but there is neither {} nor {}",
            file.display(),
            in_folder.display()
        )
    })
}

/// The tokens of Rust code, without comments and without what is compiled for tests alone.
pub fn normalise(source: &str) -> Result<Vec<&str>, String> {
    let tokens = tokens(source)?;
    let (mut kept, mut rest) = (Vec::with_capacity(tokens.len()), tokens.as_slice());
    while let Some((first, after)) = rest.split_first() {
        match TESTS_ALONE.iter().find_map(|attribute| rest.strip_prefix(*attribute)) {
            Some(item) => rest = after_item(item).ok_or("what is compiled for tests alone does not end")?,
            None => {
                kept.push(*first);
                rest = after;
            }
        }
    }
    Ok(kept)
}

/// What follows the item, statement or field that `tokens` begin with.
fn after_item<'a, 'b>(tokens: &'a [&'b str]) -> Option<&'a [&'b str]> {
    let tokens = after_head(tokens)?;
    let is_field = tokens.get(1) == Some(&":") && tokens.get(2) != Some(&":");
    let ends_by_semicolon = match *tokens.first()? {
        "use" | "static" | "type" | "let" => true,
        "const" => !matches!(tokens.get(1), Some(&("fn" | "unsafe"))),
        _ => false,
    };
    let mut depth = 0_i32;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            // The last field needs no comma: the brace is that of what it is in.
            "}" if depth == 0 && is_field => return Some(&tokens[at..]),
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            "<" if is_field => depth += 1,
            ">" if is_field => depth -= 1,
            _ => {}
        }
        let ends = match *token {
            ";" => true,
            "}" => !is_field && !ends_by_semicolon,
            "," => is_field,
            _ => false,
        };
        if ends && depth == 0 {
            return Some(&tokens[at + 1..]);
        }
    }
    None
}

/// What follows attributes and a visibility.
fn after_head<'a, 'b>(mut tokens: &'a [&'b str]) -> Option<&'a [&'b str]> {
    loop {
        let group = match tokens {
            ["#", "[", ..] => &tokens[1..],
            ["pub", "(", ..] => &tokens[1..],
            ["pub", rest @ ..] => {
                tokens = rest;
                continue;
            }
            _ => return Some(tokens),
        };
        let mut depth = 0_i32;
        let end = group.iter().position(|token| {
            depth += i32::from(matches!(*token, "(" | "[")) - i32::from(matches!(*token, ")" | "]"));
            depth == 0
        })?;
        tokens = &group[end + 1..];
    }
}

/// Names, numbers, literals, lifetimes, and all else character by character.
fn tokens(source: &str) -> Result<Vec<&str>, String> {
    let (mut tokens, mut rest) = (Vec::new(), source.trim_start());
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after).trim_start();
            continue;
        } else if rest.starts_with("/*") {
            rest = after_comment(rest).ok_or("a comment does not end")?.trim_start();
            continue;
        } else if let Some(length) = literal(rest) {
            length.ok_or("a literal does not end")?
        } else {
            let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            name.max(first.len_utf8())
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// What follows a block comment; they nest.
fn after_comment(source: &str) -> Option<&str> {
    let (mut rest, mut depth) = (source.strip_prefix("/*")?, 1);
    while depth != 0 {
        let mark = rest.find(['/', '*'])?;
        rest = &rest[mark..];
        (rest, depth) = if let Some(inside) = rest.strip_prefix("/*") {
            (inside, depth + 1)
        } else if let Some(behind) = rest.strip_prefix("*/") {
            (behind, depth - 1)
        } else {
            (&rest[1..], depth)
        };
    }
    Some(rest)
}

/// If `source` begins with a string, a character or a lifetime: its length, or none where it does not end.
fn literal(source: &str) -> Option<Option<usize>> {
    let prefix = source.find(|c: char| !matches!(c, 'b' | 'c' | 'r')).filter(|length| *length <= 2)?;
    let (prefix, body) = source.split_at(prefix);
    if prefix.ends_with('r') {
        let hashes = body.find(|c| c != '#')?;
        let text = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", &body[..hashes]);
        return Some(text.find(&end).map(|at| prefix.len() + hashes + 1 + at + end.len()));
    }
    let quote = body.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inside = &body[1..];
    let is_lifetime = quote == '\''
        && !inside.starts_with('\\')
        && inside.chars().nth(1).is_none_or(|second| second != '\'');
    if is_lifetime {
        let name = inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len());
        return Some(Some(prefix.len() + 1 + name));
    }
    let mut escaped = false;
    let end = inside.char_indices().find(|&(_, c)| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    Some(end.map(|(at, _)| prefix.len() + 1 + at + 1))
}
