//! `ftctl disk verify`: has the daemon compare the disks with the backup's, and follows that to its end.

use super::{End, print};
use ftd::control::api::{DisksVerifyStatus, Failure, Request, STATUS_SCHEMA, VerifyState};
use ftd::control::client::{Client, ClientError};
use ftd::control::show;
use ftd::exit::CtlExit;
use std::io::{self, IsTerminal};
use std::time::Duration;

/// Between two looks at how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Carries it out. What differs, and was not sent anew, is a failure.
pub fn verify(mut client: Client, mib_s: u64, repair: bool, json: bool) -> Result<CtlExit, End> {
    client.request(Request::VerifyDisks { mib_s, repair })?;
    let verify = loop {
        let disks = client.status()?.disks;
        let verify =
            disks.and_then(|disks| disks.verify).ok_or_else(|| failed("the daemon has begun anew"))?;
        if verify.state != VerifyState::Running {
            break verify;
        }
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}", show::verify(&verify));
        }
        std::thread::sleep(LOOK_INTERVAL);
    };
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    if json {
        let line = serde_json::json!({ "schema": STATUS_SCHEMA, "verify": verify });
        print(&format!("{line}\n"))?;
    } else {
        print(&report(&verify))?;
    }
    match (verify.state, verify.why) {
        (VerifyState::BrokenOff, why) => Err(failed(&why.unwrap_or_default()).into()),
        _ if verify.differing_bytes > verify.repaired_bytes => Ok(CtlExit::Failure),
        _ => Ok(CtlExit::Ok),
    }
}

fn failed(why: &str) -> ClientError {
    ClientError::Failure(Failure::Failed(why.into()))
}

fn report(verify: &DisksVerifyStatus) -> String {
    let mut text = String::new();
    for place in &verify.differing {
        text += &format!("disk {}: bytes {} to {} differ\n", place.disk, place.from, place.to);
    }
    text + &show::verify(verify) + "\n"
}
