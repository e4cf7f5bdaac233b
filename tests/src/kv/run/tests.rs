use super::*;
use crate::kv::serve::serve;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

/// How long an answer may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service that is well: the Linux guest's own.
fn healthy_service() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || serve(&listener, 10 << 20, 1000, |_| {}));
    addr
}

/// Stands between client and service, and hands each answer to `meddle`: `None` cuts the connection.
fn behind(
    service: SocketAddr,
    mut meddle: impl FnMut(&str, String) -> Option<String> + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        'connections: for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut behind = Connection::open(service, PATIENCE).unwrap();
            for request in BufReader::new(client.try_clone().unwrap()).lines() {
                let Ok(request) = request else { continue 'connections };
                let answer = behind.call(&request, PATIENCE).unwrap();
                let Some(answer) = meddle(&request, answer) else { continue 'connections };
                if client.write_all(format!("{answer}\n").as_bytes()).is_err() {
                    continue 'connections;
                }
            }
        }
    });
    addr
}

fn run_for(addr: SocketAddr, requests: u64, change: impl FnOnce(&mut LoadPlan)) -> Summary {
    let mut plan = LoadPlan {
        addr,
        name: "t".to_owned(),
        keys: 9,
        value_bytes: 40,
        rate: None,
        seed: 7,
        timeout: PATIENCE,
        reconnect: false,
        trace: None,
    };
    change(&mut plan);
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() > requests
    };
    run(&plan, &stop, &mut |_| {})
}

#[test]
fn a_service_that_keeps_its_promises_passes() {
    let summary = run_for(healthy_service(), 2000, |_| {});
    assert!(summary.is_good(), "{summary:?}");
    assert_eq!((summary.ops, summary.connections), (2009, 1));
    assert!(summary.acked_writes > 1000, "{summary:?}");
}

#[test]
fn a_service_that_forgets_is_found_out() {
    // From the 500th answer on, one counter has forgotten three increments.
    let mut answers = 0;
    let addr = behind(healthy_service(), move |request, answer| {
        answers += 1;
        let forgotten = answers > 500 && request == "INCR t-0";
        Some(match answer.strip_prefix("INT ").filter(|_| forgotten) {
            Some(n) => {
                answers = 0;
                format!("INT {}", n.parse::<u64>().unwrap() - 3)
            }
            None => answer,
        })
    });
    let summary = run_for(addr, 700, |_| {});
    assert!(!summary.is_good());
    assert_eq!((summary.acked_lost, summary.wrong_answers), (3, 0), "{summary:?}");
    assert!(summary.connection_survived);
}

#[test]
fn an_answer_that_never_was_right_is_found_out() {
    let mut answers = 0;
    let addr = behind(healthy_service(), move |_, answer| {
        answers += 1;
        Some(if answers == 100 { "VALUE nonsense".to_owned() } else { answer })
    });
    let summary = run_for(addr, 300, |_| {});
    assert_eq!((summary.acked_lost, summary.wrong_answers), (0, 1), "{summary:?}");
    assert_eq!(summary.complaints.len(), 1);
}

#[test]
fn a_connection_that_is_cut_has_not_survived() {
    let mut answers = 0;
    let addr = behind(healthy_service(), move |_, answer| {
        answers += 1;
        (answers != 100).then_some(answer)
    });
    let summary = run_for(addr, 300, |_| {});
    assert!(!summary.connection_survived && !summary.verified && !summary.is_good(), "{summary:?}");
    assert_eq!((summary.ops, summary.acked_lost, summary.wrong_answers), (99, 0, 0));
}

#[test]
fn over_a_new_connection_an_unanswered_write_may_have_happened() {
    // Every 50th answer is lost after the service has executed the request.
    let mut answers = 0;
    let addr = behind(healthy_service(), move |_, answer| {
        answers += 1;
        (answers % 50 != 0).then_some(answer)
    });
    let summary = run_for(addr, 500, |plan| plan.reconnect = true);
    assert!(!summary.connection_survived && summary.verified, "{summary:?}");
    assert_eq!((summary.acked_lost, summary.wrong_answers), (0, 0), "{summary:?}");
    assert!(summary.connections > 5);
}

#[test]
fn a_service_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let accepted: std::thread::JoinHandle<TcpStream> =
        std::thread::spawn(move || listener.accept().unwrap().0);
    let summary = run_for(addr, 10, |plan| plan.timeout = Duration::from_millis(300));
    assert!(!summary.connection_survived);
    assert!(summary.client_gap_ms >= 300.0, "{summary:?}");
    drop(accepted.join());
}
