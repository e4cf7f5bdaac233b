//! The build script counts the right files as the deterministic engine's code, and leaves out the others.

#[path = "../build/fingerprint.rs"]
mod fingerprint;

use fingerprint::{CRATES, Fingerprint, OUTSIDE, ROOTS, fingerprint as of, normalise};
use std::path::Path;

fn text(source: &str) -> String {
    normalise(source).unwrap_or_else(|e| panic!("{e}: {source}")).join(" ")
}

#[test]
fn comments_space_and_tests_do_not_count() {
    let code = "fn f<'a>(x: &'a str) -> char { '\\'' }";
    for same in [
        "fn f<'a>(x: &'a str) -> char { '\\'' } // not '\"' this",
        "//! Header.\n/// Says \"what.\nfn f<'a>(x: &'a str) -> char { '\\'' }",
        "fn f<'a>(x:&'a str)->char{/* a /* b */ \" */'\\''}",
        "fn\nf<'a>(x: &'a str)\n    -> char {\n    '\\''\n}\n",
        "#[cfg(test)]\nuse a::{b, c};\nfn f<'a>(x: &'a str) -> char { '\\'' }",
        "fn f<'a>(x: &'a str) -> char { #[cfg(test)] if x == \"}\" { return '}'; } '\\'' }",
        "fn f<'a>(x: &'a str) -> char { '\\'' }\n#[cfg(test)]\nmod tests;",
        "fn f<'a>(x: &'a str) -> char { '\\'' }\n#[cfg(test)]\nmod tests {\n    fn g() { b('{', \"}\"); }\n}\n",
        "#[cfg(test)]\n#[derive(Debug)]\npub(crate) struct A<B, C>(B, C);\nfn f<'a>(x: &'a str) -> char { '\\'' }",
        "#[cfg(feature = \"testing\")] pub fn g<A, B>() -> R<A, B> { [0; 3] }\nfn f<'a>(x: &'a str) -> char { '\\'' }",
        "#[cfg(test)]\nconst A: &[S] = &[S { a: 1 }, S { a: 2 }];\nfn f<'a>(x: &'a str) -> char { '\\'' }",
    ] {
        assert_eq!(text(same), text(code), "{same}");
    }
    assert_eq!(
        text("struct A { a: u8, #[cfg(test)] pub(super) c: Map<u8, (u8, u8)>, b: u8, #[cfg(test)] d: u8 }"),
        text("struct A { a: u8, b: u8, }"),
    );
}

#[test]
fn code_and_literals_count() {
    let different = [
        "let a = 1;",
        "let a = 2;",
        "let a = \"1\";",
        "let a = \"1 \";",
        "let a = \"1  \";",
        "let a = \"// 1\";",
        "let a = \"/* 1 */\";",
        "let a = r\"// 1\\\";",
        "let a = r#\"\" // 1\"#;",
        "let a = r#\"\" // 2\"#;",
        "let a = b\"\\\" // 1\";",
        "let a = b\"\\\" // 2\";",
        "let a = '\"'; // 1",
        "let a = b'\\\\'; let b = \" // 2\";",
        "let a = b'\\\\'; let b = \" // 3\";",
        "let ab = 1;",
        "let a b = 1;",
        "#[cfg(not(test))] let a = 1;",
        "let a = '1';",
        "let a = &'b 1;",
    ];
    let normal: std::collections::BTreeSet<String> = different.iter().map(|source| text(source)).collect();
    assert_eq!(normal.len(), different.len(), "{normal:#?}");
}

#[test]
fn what_does_not_end_is_refused() {
    for source in ["let a = \"", "/* a /* b */", "#[cfg(test)] fn f() {", "let a = r#\"a\"", "let a = '\\'"] {
        assert!(normalise(source).is_err(), "{source}");
    }
}

/// Writes files, and takes the fingerprint of `lib.rs` and its modules but `outside`.
fn tree(files: &[(&str, &str)], outside: &[&str]) -> Result<Fingerprint, String> {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    of(dir.path(), &["lib.rs"], outside, &["a"], &dir.path().join("lock"))
}

const LOCK: (&str, &str) =
    ("lock", "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\n");
const LIB: (&str, &str) = ("lib.rs", "mod a;\n#[cfg(test)]\nmod tests;\nmod b;");
const A: (&str, &str) = ("a.rs", "mod c;");
const B: (&str, &str) = ("b/mod.rs", "mod d;");
const C: (&str, &str) = ("a/c.rs", "fn c() {}");
const D: (&str, &str) = ("b/d.rs", "fn d() {}");

#[test]
fn a_module_that_is_compiled_counts_wherever_its_file_is() {
    let hash = |files: &[(&str, &str)], outside: &[&str]| tree(files, outside).unwrap().hash;
    let whole = hash(&[LOCK, LIB, A, B, C, D], &[]);
    // Test modules and other files are not looked at; names of files are nothing but names.
    assert_eq!(hash(&[LOCK, LIB, A, B, C, D, ("tests.rs", "fn e() {}"), ("e.rs", "fn e() {}")], &[]), whole);
    assert_eq!(hash(&[LOCK, LIB, ("a/mod.rs", "mod c;"), B, C, D], &[]), whole);
    for other in [
        [LOCK, LIB, A, B, ("a/c.rs", "fn c() { 1 }"), D],
        [LOCK, LIB, A, B, C, ("b/d.rs", "fn e() {}")],
        [("lock", "[[package]]\nname = \"a\"\nversion = \"1.0.1\"\n"), LIB, A, B, C, D],
    ] {
        assert_ne!(hash(&other, &[]), whole);
        // Where the module is said to decide nothing it may change.
        let (path, _) = *other.iter().find(|file| ![LOCK, LIB, A, B, C, D].contains(file)).unwrap();
        if path != LOCK.0 {
            assert_eq!(hash(&other, &[path]), hash(&[LOCK, LIB, A, B, C, D], &[path]));
        }
    }
}

#[test]
fn a_module_that_is_missing_is_an_error_and_named() {
    let error = |files: &[(&str, &str)], outside: &[&str]| tree(files, outside).err().expect("an error");
    assert!(error(&[LOCK, LIB, A, B, D], &[]).contains("a/c.rs"));
    assert!(error(&[LOCK, A, B, C, D], &[]).contains("lib.rs"));
    assert!(error(&[LOCK, LIB, A, B, C, D], &["b/e.rs"]).contains("b/e.rs"));
    assert!(error(&[("lock", ""), LIB, A, B, C, D], &[]).contains("no crate a"));
    assert!(error(&[LIB, A, B, C, D], &[]).contains("lock"));
}

#[test]
fn the_engine_is_made_of_what_executes_and_of_no_test() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = of(dir, &ROOTS, &OUTSIDE, &CRATES, &dir.join("../Cargo.lock")).unwrap();
    let has = |path: &str| found.files.iter().any(|file| file.ends_with(path));
    for path in [
        "vm/ram/src/memory.rs",
        "vm/cpu/src/run.rs",
        "vm/cpu/src/exec/fpu/x87/number.rs",
        "vm/cpu/src/chips/lapic.rs",
        "vm/src/devices/virtio/queue.rs",
        "vm/src/engine/soft/vcpu/input.rs",
    ] {
        assert!(has(path), "{path}");
    }
    let alone = ["tests", "tests.rs", "testing.rs", "differential", "live.rs", "kvm", "boot"];
    let strays: Vec<_> = found
        .files
        .iter()
        .filter(|file| {
            file.strip_prefix(dir).unwrap_or(file).iter().any(|part| alone.iter().any(|name| part == *name))
        })
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}
