//! The way from the VM's card to the network, watched on either host: a backup whose way is cut would take over a VM
//! that nobody reaches. `interfaces` lists what the kernel has, `faults` judges it, and this file tells each change.

mod faults;
mod interfaces;

pub use faults::{Cable, NetworkFault};

use crate::config::Config;
use crate::outlet::Outlet;
use ft_netbuf::Tap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked at. A change counts once it is seen twice: a link that only blinks is no news.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// All that is wrong with the VM's way to the network on a host. News of this room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkTrouble(Vec<NetworkFault>);

impl NetworkTrouble {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nobody beyond this host reaches the VM here.
    #[must_use]
    pub fn cuts_off(&self) -> bool {
        self.0.iter().any(NetworkFault::cuts_off)
    }
}

impl fmt::Display for NetworkTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.0.iter().enumerate() {
            let separator = if number > 0 { "; " } else { "" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// Watches for as long as it is polled, and tells each change; what is wrong at the start is one.
pub async fn watch(cable: Cable, tap: Arc<Tap>, news: Outlet<NetworkTrouble>) {
    let handle = match connect() {
        Ok(handle) => handle,
        Err(e) => {
            tracing::warn!(
                "cannot ask the kernel for its interfaces, so nobody watches the VM's network: {e}"
            );
            return;
        }
    };
    let (mut told, mut seen) = (NetworkTrouble::default(), NetworkTrouble::default());
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Ok(all) = interfaces::list(&handle).await else { continue };
        let now = NetworkTrouble(faults::faults(&cable, tap.attached_to().as_deref(), &all));
        if now == seen && now != told {
            told = now.clone();
            if news.tell(now.clone()).is_err() {
                return;
            }
        }
        seen = now;
    }
}

/// What is wrong on this host now, for a daemon that does not run.
pub fn look(config: &Config) -> Result<NetworkTrouble, LookError> {
    let Some(cable) = config.cable() else { return Ok(NetworkTrouble::default()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let all = interfaces::list(&connect()?).await?;
        Ok(NetworkTrouble(faults::faults(&cable, Some(&cable.tap), &all)))
    })
}

/// Why the host's interfaces are not known.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No socket or runtime.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] rtnetlink::Error),
}

/// Within a runtime: a socket to the kernel, served in the background for as long as the handle lives.
fn connect() -> std::io::Result<rtnetlink::Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

impl Config {
    /// The VM's way to the network, if it has a card.
    pub(super) fn cable(&self) -> Option<Cable> {
        let net = self.machine.net.as_ref()?;
        Some(Cable { tap: net.tap.clone(), mac: net.mac, mtu: net.mtu, uplink: net.uplink.clone() })
    }
}
