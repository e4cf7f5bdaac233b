//! What an arbiter is told and what it keeps: frames of its service, the questions and replies in them, records of its
//! store and of a member's, the files of a cell on shared storage, and the answers of etcd. An input says which;
//! checksums are put right.

use crate::input::FuzzInput;
use ft_arbiter::etcd;
use ft_arbiter::service::frame::{FrameHead, HEAD_BYTES, PAYLOAD_BYTES_MAX, ServiceFrame};
use ft_arbiter::service::{CellChange, fuzzing as service};
use ft_arbiter::{Arbiter, Cell, CellId, FileArbiter, Outcome, Standby};
use std::path::PathBuf;

const VM: &str = "web";
const KINDS: u8 = 8;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    match input.u8() % KINDS {
        0 => frame(input.rest()),
        1 => same_again(service::question, input.rest()),
        2 => same_again(service::reply, input.rest()),
        3 => same_again(|bytes| service::stored(VM, bytes), &summed(input.rest())),
        4 => cell_files(&mut input),
        6 => same_again(|bytes| service::register(VM, bytes), &summed(input.rest())),
        7 => same_again(service::members, &summed(input.rest())),
        _ => drop(etcd::fuzzing::answer(input.rest(), VM)),
    }
}

fn frame(bytes: &[u8]) {
    let Some((head, payload)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return };
    let mut head = *head;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..20]), payload);
    head[20..].copy_from_slice(&crc.to_le_bytes());
    assert!(FrameHead::decode(&head).is_err() || payload.len() <= PAYLOAD_BYTES_MAX);
    if let Ok(frame) = ServiceFrame::decode(&head, payload.to_vec()) {
        let again = frame.encode();
        let (head, payload) = again.split_first_chunk().expect("it has a head");
        assert_eq!(ServiceFrame::decode(head, payload.to_vec()), Ok(frame));
    }
}

fn same_again(read: fn(&[u8]) -> Option<Vec<u8>>, payload: &[u8]) {
    if let Some(again) = read(payload) {
        assert_eq!(read(&again).as_ref(), Some(&again));
    }
}

/// A line and its checksum.
fn summed(line: &[u8]) -> Vec<u8> {
    let sum = format!("\ncrc32c {:08x}\n", crc32c::crc32c(line));
    [line, sum.as_bytes()].concat()
}

/// A cell as storage has it: a file for each of some generations. It is read, or that is refused; nothing is ever won
/// against a generation that is there.
fn cell_files(input: &mut FuzzInput<'_>) {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let cell: PathBuf = directory.path().join("cell");
    std::fs::create_dir(&cell).expect("there is room for a directory");
    let mut newest = 0;
    for _ in 0..3 {
        let (generation, content) = (u64::from(input.u8() % 8), input.piece());
        let name = format!("{generation:020}");
        std::fs::write(cell.join(name), summed(content)).expect("there is room for it");
        newest = newest.max(generation);
    }
    let mut arbiter = FileArbiter::new(&cell, VM);
    let found = match arbiter.read() {
        Ok(found) => found,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let Some(found) = found else { return };
    assert_eq!(found.generation, newest);
    let next = Cell { generation: found.generation + 1, owner: Some("alpha".into()), ..found.clone() };
    assert!(!matches!(arbiter.compare_and_set(Some(found.generation - 1), found), Outcome::Won(_)));
    assert_eq!(arbiter.compare_and_set(Some(newest), next.clone()), Outcome::Won(next.clone()));
    assert_eq!(arbiter.read().expect("it was set"), Some(next));
}

fn cell(generation: u64) -> Cell {
    let standby = Some(Standby { node: "beta".into(), pairing: 0x17 });
    Cell { id: CellId(0xce11), generation, owner: Some("alpha".into()), standby }
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let of_cell = serde_json::to_string(&cell(4)).expect("it has a JSON form");
    let question = format!(r#"{{"set":{{"vm":"web","expected":3,"new":{of_cell}}}}}"#);
    let change = CellChange { at_unix_ms: 5, cell: cell(4) };
    let change = serde_json::to_string(&change).expect("it has a JSON form");
    let reply = format!(r#"{{"changes":[{change}]}}"#);
    let stored = format!(r#"{{"version":1,"vm":"web","at_unix_ms":5,"cell":{of_cell}}}"#);
    let mut files = vec![4];
    for generation in [4, 3, 2] {
        let record = format!(
            r#"{{"version":2,"vm":"web","cell":{}}}"#,
            serde_json::to_string(&cell(generation)).expect("it has a JSON form")
        );
        files.push(generation as u8);
        crate::input::put_piece(&mut files, record.as_bytes());
    }
    let etcd = r#"{"header":{"cluster_id":"7","revision":"9"},"succeeded":true,"responses":[{"response_put":{}},
        {"response_range":{"kvs":[{"key":"d2Vi","mod_revision":"3","value":"YQ=="}],"count":"1"}}]}"#;
    let refused = r#"{"error":"denied","message":"denied","code":16}"#;
    let ballot = r#"{"round":4,"proposer":7}"#;
    let accepted =
        format!(r#"{{"ballot":{ballot},"value":{{"cell":{of_cell},"origin":{ballot},"trail":[{ballot}]}}}}"#);
    let set = r#"["127.0.0.1:1","127.0.0.1:2","127.0.0.1:3"]"#;
    let member = |ask: &str| format!(r#"{{"member":{{"vm":"web","set":{set},"ask":{ask}}}}}"#);
    let register =
        format!(r#"{{"version":1,"vm":"web","register":{{"promised":{ballot},"accepted":{accepted}}}}}"#);
    let members = format!(r#"{{"version":1,"members":{set}}}"#);
    let seed = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    vec![
        seed(0, &ServiceFrame { id: 3, payload: question.clone().into_bytes() }.encode()),
        seed(1, question.as_bytes()),
        seed(1, br#"{"read":{"vm":"web"}}"#),
        seed(2, reply.as_bytes()),
        seed(2, br#"{"refused":{"busy":{"reason":"full"}}}"#),
        seed(3, stored.as_bytes()),
        seed(1, member(&format!(r#"{{"prepare":{ballot}}}"#)).as_bytes()),
        seed(1, member(&format!(r#"{{"accept":{accepted}}}"#)).as_bytes()),
        seed(2, format!(r#"{{"member":{{"has":{accepted}}}}}"#).as_bytes()),
        seed(2, format!(r#"{{"refused":{{"other_set":{{"set":{set}}}}}}}"#).as_bytes()),
        seed(6, register.as_bytes()),
        seed(7, members.as_bytes()),
        files,
        seed(5, etcd.as_bytes()),
        seed(5, refused.as_bytes()),
    ]
}
