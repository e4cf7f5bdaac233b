//! Who sends requests, and which of them he may send. Every request is classed here and nowhere else, so that a new one
//! does not compile until it is.

use super::api::{Failure, Request, Response};
use ft_tls::{Party, PartyKind};
use std::fmt;
use std::net::SocketAddr;

/// What a request does to the VM or its daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEffect {
    /// It shows something.
    None,
    /// It changes something, or has the console carry what is typed.
    Change,
}

impl Request {
    /// What it does.
    #[must_use]
    pub fn effect(&self) -> RequestEffect {
        match self {
            Self::Status | Self::Watch { .. } | Self::Wait { .. } | Self::Metrics => RequestEffect::None,
            Self::Switchover { .. }
            | Self::Start { .. }
            | Self::Stop { .. }
            | Self::VerifyDisks { .. }
            | Self::Console => RequestEffect::Change,
        }
    }

    /// What `ftctl` calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        use crate::role::Start;
        match self {
            Self::Status => "status",
            Self::Watch { .. } => "status --watch",
            Self::Switchover { .. } => "failover",
            Self::Start { how: Start::Ended, .. } => "start",
            Self::Start { how: Start::Fresh, .. } => "start --fresh",
            Self::Start { how: Start::From(_), .. } => "release",
            Self::Wait { .. } => "wait",
            Self::Stop { power_off_ms: None } => "stop",
            Self::Stop { power_off_ms: Some(_) } => "stop --power-off",
            Self::VerifyDisks { repair: false, .. } => "disk verify",
            Self::VerifyDisks { repair: true, .. } => "disk verify --repair",
            Self::Console => "console",
            Self::Metrics => "metrics",
        }
    }
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Everything,
    /// Requests without an effect.
    Look,
}

impl Rights {
    /// Those of a certificate.
    fn of(party: &Party) -> Result<Self, NoCaller> {
        match party.kind() {
            PartyKind::Operator => Ok(Self::Everything),
            PartyKind::Observer => Ok(Self::Look),
            PartyKind::Node | PartyKind::Arbiter => Err(NoCaller(party.clone())),
        }
    }

    fn include(self, effect: RequestEffect) -> bool {
        match (self, effect) {
            (Self::Everything, _) | (Self::Look, RequestEffect::None) => true,
            (Self::Look, RequestEffect::Change) => false,
        }
    }
}

/// Whose certificate gives him no rights here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {0}, and neither an operator nor an observer")]
pub struct NoCaller(Party);

/// Who sends requests on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    rights: Rights,
    /// Whom his certificate names, and where he is; none for one who may open the control socket.
    remote: Option<(Party, SocketAddr)>,
}

impl Caller {
    /// One who may open the control socket: he may do everything.
    #[must_use]
    pub fn local() -> Self {
        Self { rights: Rights::Everything, remote: None }
    }

    /// The holder of a certificate, if he has any rights here.
    pub fn remote(party: &Party, from: SocketAddr) -> Result<Self, NoCaller> {
        Ok(Self { rights: Rights::of(party)?, remote: Some((party.clone(), from)) })
    }

    /// Why he may not send this; none: he may.
    #[must_use]
    pub fn refusal(&self, request: &Request) -> Option<Failure> {
        if self.rights.include(request.effect()) {
            return None;
        }
        let who = self.remote.as_ref().map_or("this client".to_owned(), |(party, _)| party.to_string());
        let name = request.name();
        Some(Failure::Refused(format!("{who} may look and change nothing; '{name}' is for operators")))
    }

    /// Writes into the log what a remote operator is about to change: its name, for [`Self::tell_end`].
    pub(super) fn tell_begin(&self, request: &Request) -> Option<&'static str> {
        let is_told = self.remote.is_some() && request.effect() == RequestEffect::Change;
        is_told.then(|| {
            tracing::info!("{self} asks for: {}", request.name());
            request.name()
        })
    }

    /// Writes into the log what became of it.
    pub(super) fn tell_end(&self, name: &str, response: &Response) {
        match response {
            Response::Done(done) => tracing::info!("{self} asked for: {name}: {done}"),
            Response::Error(failure) => tracing::info!("{self} asked for: {name}: {failure}"),
            Response::Status(_) | Response::Console | Response::Metrics(_) | Response::Greeting(_) => {}
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remote {
            Some((party, from)) => write!(f, "{party} at {from}"),
            None => f.write_str("the control socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::Goal;
    use super::*;
    use crate::role::Start;

    fn caller(kind: PartyKind) -> Result<Caller, NoCaller> {
        Caller::remote(&Party::new(kind, "ada").unwrap(), "10.0.0.9:4000".parse().unwrap())
    }

    /// Each request, and whether an observer may send it.
    fn requests() -> [(Request, bool); 12] {
        let timeout_ms = 5;
        [
            (Request::Status, true),
            (Request::Watch { interval_ms: 50 }, true),
            (Request::Wait { goal: Goal::Protected, timeout_ms }, true),
            (Request::Metrics, true),
            (Request::Switchover { timeout_ms }, false),
            (Request::Start { how: Start::Ended, timeout_ms }, false),
            (Request::Start { how: Start::Fresh, timeout_ms }, false),
            (Request::Start { how: Start::From("beta".into()), timeout_ms }, false),
            (Request::Stop { power_off_ms: None }, false),
            (Request::Stop { power_off_ms: Some(1) }, false),
            (Request::VerifyDisks { mib_s: 0, repair: false }, false),
            (Request::Console, false),
        ]
    }

    #[test]
    fn operators_may_do_everything_and_observers_what_changes_nothing() {
        let (operator, observer) =
            (caller(PartyKind::Operator).unwrap(), caller(PartyKind::Observer).unwrap());
        for (request, observers_may) in requests() {
            assert_eq!(Caller::local().refusal(&request), None);
            assert_eq!(operator.refusal(&request), None, "{request:?}");
            match observer.refusal(&request) {
                None => assert!(observers_may, "{request:?}"),
                Some(failure) => {
                    assert!(!observers_may, "{request:?}");
                    let name = request.name();
                    let text = format!(
                        "refused: observer ada may look and change nothing; '{name}' is for operators"
                    );
                    assert_eq!(failure.to_string(), text);
                }
            }
        }
    }

    #[test]
    fn nodes_and_arbiters_are_no_callers() {
        for kind in [PartyKind::Node, PartyKind::Arbiter] {
            let why = caller(kind).unwrap_err();
            assert_eq!(
                why.to_string(),
                format!("it is {} ada, and neither an operator nor an observer", kind.word())
            );
        }
        assert_eq!(caller(PartyKind::Operator).unwrap().to_string(), "operator ada at 10.0.0.9:4000");
    }
}
