//! The running daemon as the control socket sees it: the published status, the console, and the operator's wishes,
//! which go to the executor.

use super::api::{Failure, Status};
use super::asking::Asking;
use super::server::{ConsoleAttachment, Controlled};
use super::wish::{Wish, WishError, WishReply};
use crate::disks::{Disks, OnDifference, VerifyError};
use crate::host::ConsoleHub;
use crate::observe::Publisher;
use crate::outlet::{Outlet, OutletClosed};
use crate::role::{Done, Leave, Role, Start, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

/// See the module.
pub struct Desk {
    /// What is shown.
    pub publisher: Arc<Publisher>,
    /// The guest's console.
    pub console: ConsoleHub,
    /// Where wishes go.
    pub wishes: Outlet<Wish>,
    /// Those who wait for an answer.
    pub asking: Asking,
    /// The writable disks, if the VM has any.
    pub disks: Option<Arc<Disks>>,
    /// Does what needs files or threads: clients are served by a confined one.
    pub worker: Handle,
}

/// How much longer than the core an answer is waited for.
const GRACE: Duration = Duration::from_secs(30);

impl From<WishError> for Failure {
    fn from(error: WishError) -> Self {
        match error {
            WishError::Refused(why) if why.is_timeout() => Self::TimedOut(why.to_string()),
            WishError::Refused(why) => Self::Refused(why.to_string()),
            WishError::Ending => Self::Failed(error.to_string()),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::UnderWay | VerifyError::Alone | VerifyError::Executed => {
                Self::Refused(error.to_string())
            }
            VerifyError::Image(_) | VerifyError::Thread(_) => Self::Failed(error.to_string()),
        }
    }
}

impl Desk {
    /// Tells a wish, and waits for its own answer.
    async fn wish(&self, limit: Duration, wish: impl FnOnce(WishReply) -> Wish) -> Result<Done, Failure> {
        // Counted until the answer is on its way to the client: see [`Desk::has_answered`].
        let _asking = self.asking.begin();
        let (done, outcome) = oneshot::channel();
        let reply = Box::new(move |result| {
            // Who asked may have gone.
            let _ = done.send(result);
        });
        self.wishes.tell(wish(reply)).map_err(ending)?;
        match tokio::time::timeout(limit.saturating_add(GRACE), outcome).await {
            Ok(Ok(outcome)) => Ok(outcome?),
            // The executor has dropped the reply.
            Ok(Err(_)) => Err(ending(OutletClosed)),
            Err(_) => Err(Failure::TimedOut("the daemon does not answer; see ftctl status".into())),
        }
    }

    /// Whether nobody waits for an answer to a wish.
    pub fn has_answered(&self) -> bool {
        self.asking.count() == 0
    }
}

impl Controlled for Desk {
    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.publisher.subscribe()
    }

    async fn switchover(&self, timeout: Duration) -> Result<String, Failure> {
        self.wish(timeout, |reply| Wish::Switchover { within: timeout, reply }).await?;
        let status = self.publisher.status();
        Ok(format!("{} runs the VM now; this node is its backup", status.peer.node))
    }

    async fn stop(&self, power_off: Option<Duration>) -> Result<String, Failure> {
        let vm = match power_off {
            None => Leave::Move,
            Some(within) => Leave::PowerOff { within_us: within.as_micros() as u64 },
        };
        match self.wish(power_off.unwrap_or_default(), |reply| Wish::Stop { vm, reply }).await? {
            Done::Stopped(why) => Ok(format!("{why}; the daemon ends")),
            Done::Moved => Ok("the VM moved".into()),
            Done::Started(how) => Ok(how),
        }
    }

    async fn start(&self, how: Start, timeout: Duration) -> Result<String, Failure> {
        match self.wish(timeout, |reply| Wish::Start { how, within: timeout, reply }).await? {
            Done::Started(how) => Ok(format!("this node runs the VM now: {how}")),
            Done::Moved | Done::Stopped(_) => Ok("this node runs the VM now".into()),
        }
    }

    async fn verify_disks(&self, bytes_per_s: u64, on_difference: OnDifference) -> Result<String, Failure> {
        let Some(disks) = self.disks.clone() else {
            return Err(Failure::Refused("the VM has no writable disk".into()));
        };
        let Status { role, state, .. } = *self.publisher.status();
        if !matches!((role, state), (Role::Primary, State::Protected | State::Degraded)) {
            return Err(Failure::Refused(format!(
                "disks are compared on the node that runs the VM, while it is protected; this one is {role}, {state}"
            )));
        }
        let publisher = Arc::clone(&self.publisher);
        let begun = self.worker.spawn(async move {
            disks.verify(bytes_per_s, on_difference)?;
            // Whoever looks now shall not take the last one's end for this one's.
            publisher.refresh();
            Ok("the disks are being compared with the backup's".into())
        });
        begun.await.unwrap_or_else(|_| Err(ending(OutletClosed)))
    }

    fn console(&self) -> Result<ConsoleAttachment, Failure> {
        let (recent, output) = self.console.attach();
        let (input, mut typed) = mpsc::channel::<Vec<u8>>(16);
        let console = self.console.clone();
        tokio::spawn(async move {
            while let Some(bytes) = typed.recv().await {
                console.input(&bytes);
            }
        });
        Ok(ConsoleAttachment { recent, output, input })
    }

    fn metrics(&self) -> String {
        self.publisher.metrics()
    }
}

fn ending(_: OutletClosed) -> Failure {
    Failure::Failed("the daemon is ending".into())
}
