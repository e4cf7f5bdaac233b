//! The house rules, as tests: each test's name is a rule, and a failure lists every place that breaks it as
//! `path:line: text`. A rule is a pure function over the repository's files, and a second test plants a violation, so
//! that no rule can pass without looking.
//!
//! Source is read as text with comments and literals blanked out ([`source`]), not parsed: the rules are about form.

mod attributes;
mod configuration;
mod errors;
mod faults;
mod formats;
mod graph;
mod imports;
mod lengths;
mod metrics;
mod paths;
mod readme;
mod rooms;
mod source;
mod tree;
mod types;
mod unsafety;
mod words;
