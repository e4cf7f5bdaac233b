//! What this process gives up before it begins.

use super::HostError;
use crate::config::{Config, Confinement};

impl Config {
    /// Confines the threads that are started from now on, each as its kind says.
    pub fn confine(&self) -> Result<(), HostError> {
        match self.confinement {
            Confinement::Full => Ok(ft_confine::on()?),
            Confinement::None => Ok(()),
        }
    }
}
