use super::*;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use proptest::prelude::*;

#[derive(Default)]
struct TestMachine {
    load: Load,
    now_ns: u64,
}

impl Machine for TestMachine {
    fn set_load(&mut self, load: Load) -> Result<(), LoadError> {
        if load.working_set_pages > 100 {
            return Err(LoadError { pages_max: 100 });
        }
        self.load = load;
        Ok(())
    }
    fn digest_load(&mut self) -> (u64, u64) {
        (0xabc, self.load.working_set_pages)
    }
    fn now_ns(&mut self) -> u64 {
        self.now_ns += 500_000;
        self.now_ns
    }
    fn stats(&mut self, out: &mut dyn Write) {
        let _ = out.write_str(" test=1");
    }
}

fn ask_in(store: &mut Store, line: &str) -> String {
    let mut out = Vec::new();
    answer(store, &mut TestMachine::default(), line.as_bytes(), &mut out);
    let text = String::from_utf8(out).unwrap();
    text.strip_suffix('\n').expect("one line").to_string()
}

#[test]
fn every_request_has_the_answer_that_the_protocol_says() {
    let mut store = Store::new(100_000);
    for (request, expected) in [
        ("PING", "PONG"),
        ("GET a", "NONE"),
        ("SET a one two  three", "OK"),
        ("GET a", "VALUE one two  three"),
        ("SET empty ", "OK"),
        ("GET empty", "VALUE "),
        ("APPEND a !", "OK 15"),
        ("APPEND b xy", "OK 2"),
        ("GET b", "VALUE xy"),
        ("INCR n", "INT 1"),
        ("INCR n", "INT 2"),
        ("GET n", "VALUE 2"),
        ("INCR b", "ERR value is not a number that can be incremented"),
        ("SET n 18446744073709551615", "OK"),
        ("INCR n", "ERR value is not a number that can be incremented"),
        ("DEL n", "OK 1"),
        ("DEL n", "OK 0"),
        ("LOAD 10 100 text", "OK"),
        ("LOAD 10 101", "ERR working set: at most 100 pages here"),
        ("LOAD 10 100 noise", "ERR pattern: want count, random or text"),
        ("LOAD 1", "ERR working set pages: missing, not a decimal number, or out of range"),
        ("LOAD 1 0", "ERR working set pages: missing, not a decimal number, or out of range"),
        ("LOAD 0 0", "OK"),
        ("LOAD -1 4", "ERR pages per second: missing, not a decimal number, or out of range"),
        ("MEMDIGEST", "MEMDIGEST 0000000000000abc 0"),
        ("SPIN 1", "SPUN 100000 1000"),
        ("SPIN 10001", "ERR milliseconds: missing, not a decimal number, or out of range"),
        ("STATS", "STATS uptime_ns=500000 keys=3 store_bytes=425 store_bytes_max=100000 test=1"),
        ("POWEROFF", "OK"),
        ("", "ERR empty line"),
        ("ping", "ERR unknown command"),
        ("PING x", "ERR too many words"),
        ("GET a b", "ERR too many words"),
        ("GET", "ERR key: want a word of 1 to 128 bytes"),
        ("GET ", "ERR key: want a word of 1 to 128 bytes"),
        ("SET a", "ERR value missing"),
        ("GET \t", "ERR bytes outside printable ASCII"),
        ("G\u{e9}T a", "ERR bytes outside printable ASCII"),
    ] {
        assert_eq!(ask_in(&mut store, request), expected, "{request:?}");
    }
}

#[test]
fn a_full_store_says_so_and_keeps_what_it_has() {
    let mut store = Store::new(1000);
    assert_eq!(ask_in(&mut store, &format!("SET a {}", "x".repeat(300))), "OK");
    let before = store.digest();
    assert_eq!(ask_in(&mut store, &format!("SET b {}", "x".repeat(300))), "ERR full");
    assert_eq!(ask_in(&mut store, &format!("APPEND a {}", "x".repeat(300))), "ERR full");
    assert_eq!((store.keys(), store.digest()), (1, before));
    assert_eq!(ask_in(&mut store, "DEL a"), "OK 1");
    assert_eq!(store.bytes(), 0);
    assert_eq!(ask_in(&mut store, &format!("SET b {}", "x".repeat(300))), "OK");
}

#[test]
fn a_value_does_not_grow_beyond_its_bound() {
    let mut store = Store::new(10 << 20);
    let chunk = vec![b'x'; 1000];
    let mut length = 0;
    while length + 1000 <= VALUE_MAX {
        length = store.append(b"k", &chunk).unwrap();
    }
    assert_eq!(store.append(b"k", &chunk), Err(StoreError::TooLong));
    assert_eq!(store.get(b"k").unwrap().len(), length);
}

#[test]
fn the_digest_tells_stores_apart_and_forgets_their_history() {
    let digest = |requests: &[&str]| {
        let mut store = Store::new(100_000);
        for request in requests {
            assert!(ask_in(&mut store, request).starts_with("OK"), "{request}");
        }
        store.digest()
    };
    assert_eq!(digest(&["SET a 1", "SET b 2"]), digest(&["SET b 7", "SET a 1", "DEL b", "SET b 2"]));
    assert_ne!(digest(&["SET a 1", "SET b 2"]), digest(&["SET a 2", "SET b 1"]));
    assert_ne!(digest(&["SET ab c"]), digest(&["SET a bc"]));
    assert_ne!(digest(&["SET a x"]), digest(&[]));
}

#[test]
fn stopping_commands_ask_the_caller_to_stop() {
    let stops = [
        ("POWEROFF", Power::Off),
        ("RESET", Power::Reset),
        ("CRASH", Power::Crash),
        ("PANIC", Power::Panic),
        ("HANG", Power::Hang),
    ];
    for (line, power) in stops {
        let mut out = Vec::new();
        let mut store = Store::new(1000);
        assert_eq!(answer(&mut store, &mut TestMachine::default(), line.as_bytes(), &mut out), Some(power));
        assert_eq!(out, b"OK\n");
    }
}

#[test]
fn a_pacer_keeps_its_rate_and_forgets_a_standstill() {
    let mut pacer = Pacer::new(1000, 0);
    let mut written = 0;
    for step in 1..=100_u64 {
        let due = pacer.due(step * 10_000_000);
        pacer.wrote(due);
        written += due;
    }
    assert_eq!(written, 1000);
    assert_eq!(pacer.due_in_ns(1_000_000_000), Some(1_000_000));
    // An hour of standstill leaves only the backlog's 20 ms.
    assert_eq!(pacer.due(3_600_000_000_000), 20);
    assert_eq!(Pacer::new(0, 0).due(u64::MAX), 0);
    assert_eq!(Pacer::new(0, 0).due_in_ns(5), None);
}

#[test]
fn the_patterns_change_the_page_in_every_round() {
    for pattern in [Pattern::Count, Pattern::Random, Pattern::Text] {
        let (mut a, mut b) = ([0; PAGE / 8], [0; PAGE / 8]);
        pattern.fill(&mut a, 1);
        pattern.fill(&mut b, 2);
        assert_ne!(a, b, "{pattern:?}");
        pattern.fill(&mut b, 1);
        assert_eq!(a, b, "{pattern:?}");
    }
}

#[test]
fn lines_are_the_same_however_the_stream_is_cut() {
    let long = "x".repeat(LINE_MAX + 1);
    let longest = "y".repeat(LINE_MAX);
    let stream = format!("PING\r\nGET a\n{long}\nPING\n{longest}\r\n{long}{long}\r\n\nrest");
    let expected = [
        Line::Complete(b"PING".into()),
        Line::Complete(b"GET a".into()),
        Line::Overlong,
        Line::Complete(b"PING".into()),
        Line::Complete(longest.as_bytes().into()),
        Line::Overlong,
        Line::Complete(Vec::new()),
    ];
    for cut in [1, 2, 3, 7, 1000, 1024, 1025, 5000] {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        for mut part in stream.as_bytes().chunks(cut) {
            while let Some(line) = lines.next(&mut part) {
                got.push(line);
            }
        }
        assert_eq!(got, expected, "cut every {cut}");
    }
}

proptest! {
    #[test]
    fn any_bytes_get_one_answer_line(line in proptest::collection::vec(any::<u8>(), 0..LINE_MAX)) {
        let mut out = Vec::new();
        answer(&mut Store::new(10_000), &mut TestMachine::default(), &line, &mut out);
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        prop_assert_eq!(out.last(), Some(&b'\n'));
    }

    #[test]
    fn the_store_is_a_map_with_exact_accounts(
        operations in proptest::collection::vec((0..4_u8, 0..5_u8, "[a-z]{0,20}"), 0..200)
    ) {
        let mut store = Store::new(4000);
        let mut model = alloc::collections::BTreeMap::<Vec<u8>, Vec<u8>>::new();
        for (kind, key, value) in operations {
            let key = vec![b'k', key];
            let value = value.into_bytes();
            match kind {
                0 => if store.set(&key, &value).is_ok() { model.insert(key, value); },
                1 => if let Ok(length) = store.append(&key, &value) {
                    let entry = model.entry(key).or_default();
                    entry.extend(value);
                    prop_assert_eq!(entry.len(), length);
                },
                2 => prop_assert_eq!(store.delete(&key), model.remove(&key).is_some()),
                _ => prop_assert_eq!(store.get(&key), model.get(&key).map(Vec::as_slice)),
            }
            let charged: usize = model.iter().map(|(k, v)| k.len() + 2 * v.len() + 128).sum();
            prop_assert_eq!(store.bytes(), charged);
            prop_assert!(charged <= 4000);
        }
    }
}
