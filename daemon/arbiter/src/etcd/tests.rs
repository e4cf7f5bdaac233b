//! Answers that etcd never gives, or gives when something is wrong: whatever comes, no cell is made of it that was not
//! stored, and what is said to be certain is.

use super::message::{Answered, Stored};
use super::*;
use crate::CellId;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

const KEY: &str = "/ftd/web/cell";

fn cell(generation: u64) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some("alpha".into()), standby: None }
}

fn base64(bytes: &[u8]) -> Value {
    message::range(std::str::from_utf8(bytes).unwrap())["key"].clone()
}

fn header() -> Value {
    json!({ "cluster_id": "7", "member_id": "8", "revision": "9", "raft_term": "2" })
}

/// etcd's answer that the key holds this cell.
fn holding(cell: &Cell) -> Value {
    let record = Record { version: FORMAT_VERSION, vm: "web".into(), cell: cell.clone() };
    let kv = json!({
        "key": base64(KEY.as_bytes()), "create_revision": "5", "mod_revision": "6", "version": "2",
        "value": base64(&record::encode(&record)),
    });
    json!({ "header": header(), "kvs": [kv], "count": "1" })
}

fn arbiter(endpoints: Vec<String>) -> EtcdArbiter {
    let answer_limit = Duration::from_secs(60);
    let prefix = "/ftd/".into();
    EtcdArbiter::new(&EtcdSettings { endpoints, prefix, login: None, tls: None, answer_limit }, "web")
}

/// What the three decoders make of one answer.
fn decoded(answer: &Value) -> [Result<Option<Stored>, String>; 3] {
    let body = answer.to_string().into_bytes();
    let _ = message::refusal(&body);
    let answer = match Answered::new(body) {
        Ok(answer) => answer,
        Err(why) => return [(); 3].map(|()| Err(why.clone())),
    };
    let _ = message::token(&answer);
    let set = match message::was_set(&answer, KEY) {
        Ok(Set::Done) => Err("nothing was read".into()),
        Ok(Set::Found(found)) => Ok(found),
        Err(why) => Err(why),
    };
    [message::ranged(&answer, KEY), set, message::probed(&answer, KEY)]
}

fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "header",
        "cluster_id",
        "revision",
        "kvs",
        "count",
        "key",
        "value",
        "mod_revision",
        "succeeded",
        "responses",
        "response_put",
        "response_range",
        "code",
        "message",
        "error",
        "token",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i64>().prop_map(|number| Value::from(number.to_string())),
        Just(base64(KEY.as_bytes())),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(names.clone(), inner, 0..5).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

/// Every place in a value, depth first.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| places(item, &format!("{at}/{index}"), all));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| places(field, &format!("{at}/{name}"), all));
        }
        _ => {}
    }
}

/// Takes a place out of a value.
fn remove(value: &mut Value, at: &str) {
    let Some((parent, name)) = at.rsplit_once('/') else { return *value = Value::Null };
    match value.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.remove(name)),
        Some(Value::Array(items)) => drop(items.remove(name.parse().unwrap())),
        _ => unreachable!("the place was found"),
    }
}

proptest! {
    #[test]
    fn no_json_makes_decoding_panic_or_yields_a_cell(answer in any_json()) {
        for stored in decoded(&answer) {
            if let Ok(Some(stored)) = stored {
                let found = arbiter(vec!["http://127.0.0.1:9".into()]).cell(Some(&stored));
                prop_assert!(found.is_err(), "{found:?}");
            }
        }
    }

    #[test]
    fn an_answer_with_one_thing_wrong_yields_the_cell_that_was_stored_or_an_error(
        at in any::<prop::sample::Index>(),
        other in proptest::option::of(any_json()),
    ) {
        let range = holding(&cell(3));
        let probe = json!({
            "header": header(), "succeeded": true,
            "responses": [{ "response_put": { "header": header() } }, { "response_range": range }],
        });
        let set = json!({ "header": header(), "responses": [{ "response_range": range }] });
        let range_at = ["", "/responses/0/response_range", "/responses/1/response_range"];
        for (which, mut answer) in [range, set, probe].into_iter().enumerate() {
            prop_assert!(matches!(decoded(&answer)[which], Ok(Some(_))));
            let mut all = Vec::new();
            places(&answer, "", &mut all);
            let place = at.get(&all).clone();
            match &other {
                Some(other) => *answer.pointer_mut(&place).unwrap() = other.clone(),
                None => remove(&mut answer, &place),
            }
            let Ok(stored) = decoded(&answer)[which].clone() else { continue };
            let found = arbiter(vec!["http://127.0.0.1:9".into()]).cell(stored.as_ref());
            // Another whole answer may say that there is nothing; one with a wrong part may not.
            let is_other_answer = other.is_some() && range_at[which].starts_with(&place);
            if !(found == Ok(None) && is_other_answer) {
                prop_assert!(found.is_err() || found == Ok(Some(cell(3))), "{place}: {found:?} of {answer}");
            }
        }
    }
}

/// Answers each connection as the next of `answers` says; none: it closes without one.
fn serve(answers: Vec<Option<(u16, String)>>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = thread::spawn(move || {
        let serve = |answer: Option<(u16, String)>| {
            let (mut stream, _) = listener.accept().unwrap();
            let asked = request(&mut stream);
            if let Some((status, body)) = answer {
                let len = body.len();
                write!(stream, "HTTP/1.1 {status} Said\r\nContent-Length: {len}\r\n\r\n{body}").unwrap();
            }
            asked
        };
        answers.into_iter().map(serve).collect()
    });
    (url, serving)
}

/// The first line of a request, which is read to its end.
fn request(stream: &mut TcpStream) -> String {
    let (mut read, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() == len.parse::<usize>().unwrap() {
                return text.lines().next().unwrap().to_owned();
            }
        }
        match stream.read(&mut part).unwrap() {
            0 => panic!("half a request: {text}"),
            len => read.extend_from_slice(&part[..len]),
        }
    }
}

fn said(code: u32, message: &str) -> Option<(u16, String)> {
    Some((503, json!({ "error": message, "message": message, "code": code }).to_string()))
}

fn found(cell: &Cell) -> Option<(u16, String)> {
    Some((200, holding(cell).to_string()))
}

/// Nobody listens there.
fn nowhere() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

/// The answer to the transaction decides whether it is certain that nothing was done.
#[test]
fn only_a_clear_refusal_makes_it_certain_that_nothing_was_set() {
    let permission = "etcdserver: permission denied";
    let txn_done = json!({ "header": header(), "succeeded": true, "responses": [] }).to_string();
    let cases = [
        (said(7, permission), true, "needs a role"),
        (said(3, "etcdserver: user name is empty"), true, "authentication enabled"),
        (said(8, "etcdserver: mvcc: database space exceeded"), true, "alarm disarm"),
        (said(14, "etcdserver: no leader"), true, "no quorum"),
        (Some((404, "404 page not found".into())), true, "etcd 3.4 or later"),
        (said(14, "etcdserver: request timed out"), false, "no quorum"),
        (said(14, "etcdserver: leader changed"), false, "no quorum"),
        (said(2, "something new"), false, "something new"),
        (None, false, "broke before its answer"),
        (Some((200, "<html>".into())), false, "is not etcd"),
        (Some((200, txn_done)), false, "is not etcd"),
        (Some((502, "bad gateway".into())), false, "HTTP status 502"),
        (Some((307, String::new())), false, "HTTP status 307"),
    ];
    for (answer, is_certain, words) in cases {
        let (url, serving) = serve(vec![found(&cell(1)), answer.clone()]);
        let outcome = arbiter(vec![url]).compare_and_set(Some(1), cell(2));
        let error = match (&outcome, is_certain) {
            (Outcome::NotAttempted(error), true) | (Outcome::Unknown(error), false) => error.to_string(),
            _ => panic!("{answer:?}: {outcome:?}"),
        };
        assert!(error.contains(words), "{error}");
        assert_eq!(serving.join().unwrap(), ["POST /v3/kv/range HTTP/1.1", "POST /v3/kv/txn HTTP/1.1"]);
    }
}

#[test]
fn what_is_in_doubt_is_not_sent_to_another_member() {
    let (first, asked) = serve(vec![found(&cell(1)), None]);
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    second.set_nonblocking(true).unwrap();
    let url = format!("http://{}", second.local_addr().unwrap());
    let outcome = arbiter(vec![first, url]).compare_and_set(Some(1), cell(2));
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    asked.join().unwrap();
    assert_eq!(second.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_next_member_is_asked_for_one_that_cannot_be_reached_or_has_no_leader() {
    let (lonely, asked) = serve(vec![said(14, "etcdserver: no leader")]);
    let (last, _serving) = serve(vec![found(&cell(4))]);
    assert_eq!(arbiter(vec![nowhere(), lonely, last]).read(), Ok(Some(cell(4))));
    asked.join().unwrap();
    let error = arbiter(vec![nowhere(), nowhere()]).read().unwrap_err().to_string();
    assert!(error.contains("none of the endpoints") && error.contains("check that etcd runs"), "{error}");
}

#[test]
fn a_member_of_another_cluster_is_not_believed() {
    let (first, _serving) = serve(vec![found(&cell(1)), None]);
    let (other, _serving) =
        serve(vec![Some((200, holding(&cell(1)).to_string().replace("\"7\"", "\"70\"")))]);
    let mut arbiter = arbiter(vec![first, other]);
    assert_eq!(arbiter.read(), Ok(Some(cell(1))));
    let error = arbiter.read().unwrap_err().to_string();
    assert!(error.contains("of one cluster"), "{error}");
}
