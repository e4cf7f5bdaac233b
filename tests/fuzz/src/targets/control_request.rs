//! A line to the control socket, or from an operator on another machine. Every request has a name and a class, and
//! reads as itself again.

use ftd::control::caller::RequestEffect;
use ftd::control::fuzzing;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let Some(read) = fuzzing::request(input) else { return };
    let shows = matches!(read.name, "status" | "status --watch" | "wait" | "metrics");
    assert_eq!(read.effect == RequestEffect::None, shows, "{}", read.name);
    let again = fuzzing::request(&read.again).expect("it was a request");
    assert_eq!((again.name, &again.again), (read.name, &read.again));
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let requests = [
        r#""status""#,
        r#"{"watch":{"interval_ms":1000}}"#,
        r#"{"switchover":{"timeout_ms":30000}}"#,
        r#"{"failover":{"timeout_ms":30000}}"#,
        r#"{"start":{"how":"fresh","timeout_ms":5}}"#,
        r#"{"start":{"how":{"from":"beta"},"timeout_ms":5}}"#,
        r#"{"wait":{"goal":"protected","timeout_ms":5}}"#,
        r#"{"stop":{"power_off_ms":null}}"#,
        r#"{"stop":{"power_off_ms":60000}}"#,
        r#"{"verify_disks":{"mib_s":32,"repair":true}}"#,
        r#""console""#,
        r#""metrics""#,
    ];
    requests.iter().map(|request| format!("{{\"version\":2,\"request\":{request}}}\n").into_bytes()).collect()
}
