//! What the daemon may ask of the kernel.

use super::Config;
use serde::Deserialize;

/// Whether the daemon gives up, once it runs, what it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// Threads that handle what others send have filters, and no capabilities.
    #[default]
    Full,
    /// It keeps all that it was started with.
    None,
}

impl Config {
    /// What the operator should know of what protects this host and the VM less than it could.
    #[must_use]
    pub fn security_warnings(&self) -> Vec<String> {
        let unconfined = (self.confinement == Confinement::None).then(|| {
            "confinement = \"none\": whoever makes the daemon run his code, from the guest or from the link, has all \
             of the daemon's rights on this host"
                .to_owned()
        });
        self.connection_warnings().into_iter().chain(unconfined).collect()
    }
}
