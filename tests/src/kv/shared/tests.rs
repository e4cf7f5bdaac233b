use super::*;
use crate::kv::connection::Connection;
use crate::kv::serve::serve;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How long an answer may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
const KEYS: usize = 4;
const REQUESTS: u64 = 600;

/// A service that is well: the Linux guest's own.
fn healthy_service() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || serve(&listener, 10 << 20, 1000, |_| {}));
    addr
}

/// Answers requests itself or by the healthy service, whose connection it is given: `None` cuts the client's.
type Meddle = dyn FnMut(&str, &mut Connection) -> Option<String> + Send;

/// Stands between clients and a healthy service.
fn behind(meddle: impl FnMut(&str, &mut Connection) -> Option<String> + Send + 'static) -> SocketAddr {
    let service = healthy_service();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let meddle: Arc<Mutex<Box<Meddle>>> = Arc::new(Mutex::new(Box::new(meddle)));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, meddle) = (client.unwrap(), Arc::clone(&meddle));
            std::thread::spawn(move || relay(client, service, &meddle));
        }
    });
    addr
}

fn relay(mut client: TcpStream, service: SocketAddr, meddle: &Mutex<Box<Meddle>>) {
    let mut service = Connection::open(service, PATIENCE).unwrap();
    for request in BufReader::new(client.try_clone().unwrap()).lines() {
        let Ok(request) = request else { return };
        let Some(answer) = (meddle.lock().unwrap())(&request, &mut service) else { return };
        if client.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
    }
}

fn pass_on(request: &str, service: &mut Connection) -> Option<String> {
    Some(service.call(request, PATIENCE).unwrap())
}

fn plan(addr: SocketAddr) -> SharedPlan {
    SharedPlan {
        addr,
        name: "t".to_owned(),
        keys: KEYS,
        connections: 5,
        rate: 1e6,
        seed: 7,
        timeout: PATIENCE,
        history: None,
    }
}

fn run_plan(plan: &SharedPlan) -> SharedSummary {
    let looks = AtomicU64::new(0);
    let stop = || looks.fetch_add(1, Ordering::Relaxed) > REQUESTS;
    run(plan, SharedEnd { stop: &stop, gone: &|| false }, || {}).unwrap()
}

#[test]
fn whatever_a_true_service_answers_has_an_order() {
    let summary = run_plan(&plan(behind(pass_on)));
    assert!(summary.is_good(), "{summary:?}");
    assert_eq!((summary.keys, summary.unanswered), (KEYS, 0));
    assert_eq!(
        summary.operations.keys().copied().collect::<Vec<_>>(),
        ["append", "delete", "increment", "read", "write"]
    );
    assert!(summary.operations.values().sum::<u64>() >= REQUESTS, "{summary:?}");
}

#[test]
fn stale_reads_are_found_and_the_history_kept() {
    // The first value that was read, again and again once others were written: a single one might be explained by what
    // is beside it.
    let (mut first, mut writes) = (None, 0);
    let addr = behind(move |request, service| {
        let answer = pass_on(request, service);
        writes += u64::from(first.is_some() && request.starts_with("SET t-1 "));
        if request == "GET t-1" && writes >= 5 {
            return first.clone();
        }
        if request == "GET t-1" && answer.as_ref().is_some_and(|answer| answer.starts_with("VALUE ")) {
            first.get_or_insert(answer.clone()?);
        }
        answer
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history");
    let summary = run_plan(&SharedPlan { history: Some(path.clone()), ..plan(addr) });
    assert!(matches!(&summary.broken[..], [one] if one.starts_with("t-1: ")), "{summary:?}");
    let history = std::fs::read_to_string(path).unwrap();
    let calls: Vec<serde_json::Value> =
        history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(calls.len() > 40 && calls.iter().all(|call| call["key"] == 1), "{history}");
}

#[test]
fn acknowledged_writes_that_were_lost_are_found() {
    // All but the first ones: an operation beside a single one might explain that nobody sees it.
    let mut writes = 0;
    let addr = behind(move |request, service| {
        let is_one = request.starts_with("SET t-1 ");
        writes += u64::from(is_one);
        if writes > 3 && is_one { Some("OK".to_owned()) } else { pass_on(request, service) }
    });
    let summary = run_plan(&plan(addr));
    assert!(matches!(&summary.broken[..], [one] if one.starts_with("t-1: ")), "{summary:?}");
}

#[test]
fn two_writes_that_took_effect_in_another_order_than_they_were_answered_are_found() {
    // Each but the first ones waits until the next operation on its key is over; once might be beside it.
    let (mut writes, mut waiting) = (0, None::<String>);
    let addr = behind(move |request, service| {
        if request.starts_with("SET t-0 ") {
            writes += 1;
            if writes > 3 {
                waiting = Some(request.to_owned());
                return Some("OK".to_owned());
            }
        }
        let answer = pass_on(request, service);
        if request.contains(" t-0")
            && let Some(late) = waiting.take()
        {
            pass_on(&late, service);
        }
        answer
    });
    let summary = run_plan(&plan(addr));
    assert!(matches!(&summary.broken[..], [one] if one.starts_with("t-0: ")), "{summary:?}");
}

#[test]
fn a_connection_that_is_cut_is_told_and_its_last_write_happened_or_not() {
    let mut writes = 0;
    let addr = behind(move |request, service| {
        writes += u64::from(request.starts_with("INCR"));
        let answer = pass_on(request, service);
        if writes == 20 && request.starts_with("INCR") { None } else { answer }
    });
    let summary = run_plan(&plan(addr));
    assert_eq!((summary.connections_lost, summary.unanswered), (1, 1), "{summary:?}");
    assert!(summary.broken.is_empty() && !summary.is_good(), "{summary:?}");
    assert!(summary.errors[0].contains("closed"), "{summary:?}");
}

#[test]
fn nobody_waits_for_a_service_that_is_said_to_be_gone() {
    let (silent, gone) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let told = Arc::clone(&silent);
    let addr = behind(move |request, service| {
        told.store(true, Ordering::Relaxed);
        // Never answered: the others wait for the lock.
        while request.starts_with("GET") {
            std::thread::park();
        }
        pass_on(request, service)
    });
    let look = || {
        gone.load(Ordering::Relaxed) || {
            gone.store(silent.load(Ordering::Relaxed), Ordering::Relaxed);
            false
        }
    };
    let summary = run(&plan(addr), SharedEnd { stop: &|| false, gone: &look }, || {}).unwrap();
    assert!(summary.is_good() && summary.unanswered > 0, "{summary:?}");
}
