//! The way from the VM's card to the network, watched on either host: a backup whose way is cut would take over a VM
//! that nobody reaches. `interfaces` lists what the kernel has, `faults` judges it, and this file tells each change.

mod faults;
mod interfaces;

pub use faults::{Cable, NetworkFault};

use crate::config::{CardLink, Config, MachineConfig, NetConfig};
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
pub struct NetworkTrouble {
    faults: Vec<NetworkFault>,
    cuts_off: bool,
    /// Of each card, whether it tells of a link.
    links: Vec<bool>,
}

impl NetworkTrouble {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether nobody beyond this host reaches the VM here, by a card that counts.
    #[must_use]
    pub fn cuts_off(&self) -> bool {
        self.cuts_off
    }

    /// Of each card, whether it is to tell the guest of a link; none where nothing was looked at yet.
    #[must_use]
    pub fn links(&self) -> &[bool] {
        &self.links
    }

    fn add(mut self, cable: &Cable, faults: Vec<NetworkFault>) -> Self {
        let is_cut = faults.iter().any(NetworkFault::cuts_off);
        self.cuts_off |= cable.counts && is_cut;
        self.links.push(!(cable.tells && is_cut));
        self.faults.extend(faults);
        self
    }
}

impl fmt::Display for NetworkTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            let separator = if number > 0 { "; " } else { "" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// Watches the ways of all cards for as long as it is polled, and tells each change; what is wrong at the start is one.
pub async fn watch(cables: Vec<(Cable, Arc<Tap>)>, news: Outlet<NetworkTrouble>) {
    if cables.is_empty() {
        return;
    }
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
        let now = cables.iter().fold(NetworkTrouble::default(), |trouble, (cable, tap)| {
            trouble.add(cable, faults::faults(cable, tap.attached_to().as_deref(), &all))
        });
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
    if config.machine.nets.is_empty() {
        return Ok(NetworkTrouble::default());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let all = interfaces::list(&connect()?).await?;
        Ok(config.machine.cables().iter().fold(NetworkTrouble::default(), |trouble, cable| {
            trouble.add(cable, faults::faults(cable, Some(&cable.tap), &all))
        }))
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

impl MachineConfig {
    /// The ways of the cards to their networks. One whose loss is to move the VM counts; where none is to, all do.
    pub(super) fn cables(&self) -> Vec<Cable> {
        let cable = |net: &NetConfig| Cable {
            tap: net.tap.clone(),
            mac: net.mac,
            mtu: net.mtu,
            uplink: net.uplink.clone(),
            counts: net.on_uplink_loss == self.on_uplink_loss(),
            tells: net.link == CardLink::Uplink,
        };
        self.nets.iter().map(cable).collect()
    }
}
