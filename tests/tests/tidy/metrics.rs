//! A metric that is exported is fed: code sets it, and a test sees it move. The tests name each metric beside the
//! scenario in which it moves, and look.

use std::collections::BTreeSet;

use crate::source::identifier;
use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

const METRICS: &str = "daemon/src/observe/metrics.rs";
/// The tests that see metrics move.
const SEEN: [&str; 2] = ["tests/e2e/metrics.rs", "daemon/src/observe/tests.rs"];
/// How a metric is written.
const WRITES: [&str; 5] = [".set(", ".add(", ".set_total(", ".lock().record(", ".lock().absorb("];

/// A metric: its field, its exported name, and the line.
struct Metric {
    field: String,
    name: String,
    line: usize,
}

/// Those of the table, `field: Kind "name" "help",`, and the windows, `("name", "help", &self.field)`.
fn metrics(source: &SourceFile) -> Vec<Metric> {
    let mut found = Vec::new();
    for (line, text) in source.lines().filter(|(_, text)| text.contains("\"ftd_")) {
        let Some(name) = text.split('"').find(|part| part.starts_with("ftd_") && identifier(part) == *part)
        else {
            continue;
        };
        let of_table = text
            .split_once(": ")
            .filter(|(_, rest)| rest.starts_with("Counter ") || rest.starts_with("Gauge "));
        let field = match (of_table, text.split_once("&self.")) {
            (Some((field, _)), _) => field.trim(),
            (None, Some((_, field))) => identifier(field),
            (None, None) => continue,
        };
        found.push(Metric { field: field.into(), name: name.into(), line });
    }
    found
}

fn unfed(source: &SourceFile, files: &[SourceFile]) -> Vec<Breach> {
    let writers =
        files.iter().filter(|file| file.path.starts_with("daemon/src/") && file.path != source.path);
    let code: String = writers.map(|file| file.code.without_tests()).collect();
    let code: String = code.split_whitespace().collect();
    // A lock that is held for several samples has a name of its own.
    let is_written = |field: &str| {
        WRITES.iter().any(|write| code.contains(&format!(".{field}{write}")))
            || code.contains(&format!("metrics.{field}.lock();for"))
    };
    let metrics = metrics(source).into_iter().filter(|metric| !is_written(&metric.field));
    metrics.map(|metric| source.breach(metric.line, format!("{} is never written", metric.name))).collect()
}

fn unseen(source: &SourceFile, files: &[SourceFile]) -> Vec<Breach> {
    let tests = files.iter().filter(|file| SEEN.contains(&file.path.as_str()));
    let named: BTreeSet<_> = tests.flat_map(|file| file.text.split('"')).collect();
    let metrics = metrics(source).into_iter().filter(|metric| !named.contains(metric.name.as_str()));
    metrics.map(|metric| source.breach(metric.line, format!("no test sees {} move", metric.name))).collect()
}

#[test]
fn every_metric_is_fed_and_seen_to_move_by_a_test() {
    let source = file(METRICS);
    let exported = source.code.text.len().min(metrics(source).len());
    assert!(exported >= 30, "only {exported} metrics are found");
    must_be_empty(&unfed(source, files()));
    must_be_empty(&unseen(source, files()));
}

#[test]
fn a_metric_that_nobody_feeds_or_sees_is_found() {
    let source = SourceFile::new(
        METRICS,
        "    a: Gauge \"ftd_a\" \"A\",\n    b: Counter \"ftd_b_total\" \"B\",\n(\"ftd_c\", \"C\", &self.c),\n",
    );
    let files = [
        SourceFile::new("daemon/src/x.rs", "m.a.set(1); m\n    .c\n    .lock()\n    .record(2); m.b.get();"),
        SourceFile::new(SEEN[0], "const SEEN: [&str; 2] = [\"ftd_a\", \"ftd_c\"];"),
    ];
    assert_eq!(unfed(&source, &files).iter().map(|found| found.line).collect::<Vec<_>>(), [2]);
    assert_eq!(unseen(&source, &files).iter().map(|found| found.line).collect::<Vec<_>>(), [2]);
}
