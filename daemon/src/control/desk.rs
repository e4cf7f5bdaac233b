//! The running daemon as the control socket sees it: the published status, the console, and the operator's wishes,
//! which go to the executor.

use super::api::{Failure, Role, State, Status};
use super::server::{ConsoleAttachment, Controlled};
use super::wish::{SwitchoverError, Wish};
use crate::host::ConsoleHub;
use crate::observe::Publisher;
use crate::outlet::{Outlet, OutletClosed};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// See the module.
pub struct Desk {
    /// What is shown.
    pub publisher: Arc<Publisher>,
    /// The guest's console.
    pub console: ConsoleHub,
    /// Where wishes go.
    pub wishes: Outlet<Wish>,
}

impl From<SwitchoverError> for Failure {
    fn from(error: SwitchoverError) -> Self {
        match error {
            SwitchoverError::Failed(why) => Self::Refused(why.to_string()),
            SwitchoverError::Ending => Self::Failed(error.to_string()),
        }
    }
}

impl Controlled for Desk {
    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.publisher.subscribe()
    }

    async fn switchover(&self, timeout: Duration) -> Result<String, Failure> {
        let (done, outcome) = oneshot::channel();
        let reply = Box::new(move |result| {
            // Who asked may have gone; the switchover goes on all the same.
            let _ = done.send(result);
        });
        self.wishes.tell(Wish::Switchover(reply)).map_err(ending)?;
        match tokio::time::timeout(timeout, outcome).await {
            Ok(Ok(Ok(()))) => {
                let status = self.publisher.status();
                Ok(format!("{} runs the VM now; this node is its backup", status.peer.node))
            }
            Ok(Ok(Err(e))) => Err(e.into()),
            // The executor has dropped the reply.
            Ok(Err(_)) => Err(ending(OutletClosed)),
            Err(_) => Err(Failure::TimedOut("the switchover has not ended yet; see ftctl status".into())),
        }
    }

    fn stop(&self) -> Result<String, Failure> {
        let status = self.publisher.status();
        let what = match (status.role, status.state) {
            (Role::Primary, State::Protected) => {
                format!("stopping: the VM moves to {} first", status.peer.node)
            }
            (Role::Primary, _) => "stopping: the VM is shut down".into(),
            (Role::Backup, State::Protected) => "stopping: the VM goes on without a backup".into(),
            (Role::Backup, _) => "stopping".into(),
        };
        self.wishes.tell(Wish::Stop).map_err(ending)?;
        Ok(what)
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
