//! A metric that is exported is fed: code sets it, and a test sees it move. The tests name each metric beside the
//! scenario in which it moves, and look.

use std::collections::BTreeSet;

use crate::source::identifier;
use crate::tree::{Breach, SourceFile, file, files, must_be_empty};

const METRICS: &str = "daemon/src/observe/metrics.rs";
/// The tests that see metrics move.
const SEEN: [&str; 2] = ["tests/e2e/metrics.rs", "tests/e2e/disks.rs"];
/// What no pair can be brought to without harm, or without another build: each metric, the test of the counter that it
/// shows, and how the test calls it.
const COUNTED: [(&str, &str, &str); 21] = [
    (
        "ftd_guest_watchdog_firings_total",
        "tests/e2e/guest.rs",
        "metric(\"ftd_guest_watchdog_firings_total\")",
    ),
    ("ftd_guest_panics_total", "tests/e2e/guest.rs", "metric(\"ftd_guest_panics_total\")"),
    ("ftd_copy_same_bytes", "tests/e2e/copy.rs", "metric(\"ftd_copy_same_bytes\")"),
    ("ftd_rehearsals_failed_total", "tests/e2e/rehearsal.rs", "failures(&beta) > 1"),
    ("ftd_frames_discarded_total", "netbuf/tests/buffer.rs", "stats().discarded"),
    ("ftd_muted_offers_total", "netbuf/tests/buffer.rs", "stats().muted_offers"),
    ("ftd_disk_read_errors_total", "vm/src/devices/tests/block.rs", "counters().block_host_errors"),
    ("ftd_device_refusals_total", "vm/tests/hostile/cases.rs", "after.malformed - before.malformed"),
    ("ftd_disk_mismatches_total", "tests/e2e/disk_verify.rs", "\"ftd_disk_mismatches_total{\""),
    ("ftd_disk_verified_bytes", "tests/e2e/disk_verify.rs", "\"ftd_disk_verified_bytes{\""),
    ("ftd_unknown_instructions_total", "vm/tests/machine.rs", "machine.unknown_instructions()"),
    ("ftd_throttle_permille", "daemon/src/keeper/log_cutter.rs", "throttles, [0, 0, 6, 29"),
    ("ftd_arbiter_member_answers", "tests/e2e/services.rs", "\"ftd_arbiter_member_answers{{vm"),
    ("ftd_arbiter_hanging_calls", "daemon/src/replica/arbiter_thread.rs", "rig.left(), LEFT_MAX"),
    (
        "ftd_certificate_expiry_timestamp_seconds",
        "tests/e2e/tls.rs",
        "\"ftd_certificate_expiry_timestamp_seconds{{vm",
    ),
    ("ftd_degraded", "tests/e2e/arbiter.rs", "\"ftd_degraded{\""),
    ("ftd_output_unpermitted", "tests/e2e/loss.rs", "\"ftd_output_unpermitted{\""),
    ("ftd_refused_system_calls_total", "vm/tests/confined.rs", "is counted"),
    ("ftd_log_lines_lost_total", "daemon/src/host/log/queue.rs", "queue.lost() < 10"),
    ("ftd_scrub_mismatches_total", "tests/e2e/scrub.rs", "mismatches(&beta) > 0"),
    ("ftd_divergences_total", "tests/e2e/replay.rs", "divergences(status) > 1"),
];
/// What a metric of the table can be.
const KINDS: [&str; 4] = ["Counter", "Counters", "Gauge", "Gauges"];
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
            .filter(|(_, rest)| KINDS.iter().any(|kind| rest.split(' ').next() == Some(kind)));
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
    let text = |path: &str| files.iter().find(|file| file.path == path).map_or("", |file| &file.text);
    let seen: BTreeSet<_> = SEEN.iter().flat_map(|path| text(path).split('"')).collect();
    let is_counted = |name: &str| {
        let mut tests = COUNTED.iter().filter(|(counted, ..)| *counted == name);
        tests.any(|(_, path, counter)| text(path).contains(counter))
    };
    let metrics = metrics(source).into_iter();
    let unseen = metrics.filter(|metric| !seen.contains(metric.name.as_str()) && !is_counted(&metric.name));
    unseen.map(|metric| source.breach(metric.line, format!("no test sees {} move", metric.name))).collect()
}

#[test]
fn every_metric_is_fed_and_seen_to_move_by_a_test() {
    let source = file(METRICS);
    let exported = metrics(source).len();
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
        SourceFile::new(SEEN[0], "const X: [&str; 2] = [\"ftd_a\", \"ftd_c\"];"),
    ];
    assert_eq!(unfed(&source, &files).iter().map(|found| found.line).collect::<Vec<_>>(), [2]);
    assert_eq!(unseen(&source, &files).iter().map(|found| found.line).collect::<Vec<_>>(), [2]);
}
