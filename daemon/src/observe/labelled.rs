//! Numbers that have one name and are told apart by labels. Who counts gives labels of few values.

use super::metrics::write_head;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A label's name and value; the value holds nothing that would need escaping.
pub type Label<'a> = (&'static str, &'a str);

/// Numbers that only grow.
#[derive(Debug, Default)]
pub struct Counters(Mutex<BTreeMap<String, u64>>);

impl Counters {
    /// Counts one more of these.
    pub fn add(&self, labels: &[Label<'_>]) {
        *self.0.lock().entry(key(labels)).or_default() += 1;
    }

    pub(super) fn write(&self, text: &mut String, name: &str, help: &str, common: &str) {
        write_all(text, (name, help, "counter"), common, &self.0.lock());
    }
}

/// Numbers that go up and down.
#[derive(Debug, Default)]
pub struct Gauges(Mutex<BTreeMap<String, u64>>);

impl Gauges {
    /// Sets the one with these labels.
    pub fn set(&self, labels: &[Label<'_>], value: u64) {
        self.0.lock().insert(key(labels), value);
    }

    pub(super) fn write(&self, text: &mut String, name: &str, help: &str, common: &str) {
        write_all(text, (name, help, "gauge"), common, &self.0.lock());
    }
}

fn key(labels: &[Label<'_>]) -> String {
    labels.iter().fold(String::new(), |mut key, (label, value)| {
        let _ = write!(key, ",{label}=\"{value}\"");
        key
    })
}

/// Nothing, before there is a sample.
fn write_all(
    text: &mut String,
    (name, help, kind): (&str, &str, &str),
    common: &str,
    samples: &BTreeMap<String, u64>,
) {
    if !samples.is_empty() {
        write_head(text, name, help, kind);
    }
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{{{common}{labels}}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_of_labels_is_a_sample_of_its_own() {
        let counters = Counters::default();
        let mut text = String::new();
        counters.write(&mut text, "refused_total", "Refused", "vm=\"web\"");
        assert_eq!(text, "");
        for reason in ["full", "silent", "full"] {
            counters.add(&[("service", "control"), ("reason", reason)]);
        }
        counters.write(&mut text, "refused_total", "Refused", "vm=\"web\"");
        assert_eq!(
            text,
            "# HELP refused_total Refused\n# TYPE refused_total counter\n\
             refused_total{vm=\"web\",service=\"control\",reason=\"full\"} 2\n\
             refused_total{vm=\"web\",service=\"control\",reason=\"silent\"} 1\n"
        );
        let gauges = Gauges::default();
        gauges.set(&[("member", "a")], 1);
        gauges.set(&[("member", "a")], 0);
        let mut text = String::new();
        gauges.write(&mut text, "answers", "Answers", "vm=\"web\"");
        assert!(text.ends_with("# TYPE answers gauge\nanswers{vm=\"web\",member=\"a\"} 0\n"), "{text}");
    }
}
