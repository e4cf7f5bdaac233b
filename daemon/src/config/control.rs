//! `[control]`: where operators on other machines are served, if at all.

use super::Config;
use super::validate::{BadValue, refuse};
use serde::Deserialize;
use std::net::SocketAddr;

/// Where a daemon serves remote operators, unless `ftctl --host` is told otherwise.
pub const CONTROL_PORT: u16 = 7380;

/// Operators on other machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where they are served in TLS, if at all.
    pub listen: Option<SocketAddr>,
}

impl Config {
    /// There is no such port in the clear, on loopback neither: nobody would be told from anybody there. Whoever needs
    /// one on this host has the control socket.
    pub(super) fn validate_control(&self) -> Result<(), BadValue> {
        let Some(listen) = self.control.listen else { return Ok(()) };
        if self.tls.is_none() {
            let allowed = "operators are served in TLS alone: needs [tls] with this host's certificate (ftd keygen \
                           makes it)";
            return refuse("control.listen", listen, allowed);
        }
        for (key, other) in
            [("replication.listen", self.replication.listen), ("metrics.listen", self.metrics.listen)]
        {
            if other == Some(listen) {
                return refuse("control.listen", listen, format!("must differ from {key}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn judge(more: &str) -> Result<Config, String> {
        let text = format!(
            "vm = \"web\"\nnode = \"alpha\"\nstart_as = \"primary\"\narbiter = {{ path = \"/shared/cell\" }}\n\
             peer = {{ node = \"beta\", address = \"127.0.0.2:7400\" }}\n{more}"
        );
        Config::parse(&text, Path::new("ftd.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn operators_are_served_in_tls_alone_and_at_a_port_of_their_own() {
        assert_eq!(judge("").unwrap().control.listen, None);
        let at = "control = { listen = \"127.0.0.1:7380\" }\n";
        let why = judge(at).unwrap_err();
        assert!(why.contains("control.listen = 127.0.0.1:7380: operators are served in TLS alone"), "{why}");
        assert!(judge(&format!("{at}[tls]")).is_ok());
        for section in ["replication", "metrics"] {
            let why =
                judge(&format!("{at}{section} = {{ listen = \"127.0.0.1:7380\" }}\n[tls]")).unwrap_err();
            assert!(why.contains(&format!("must differ from {section}.listen")), "{why}");
        }
        let why = judge("control = { security = \"none\" }").unwrap_err();
        assert!(why.contains("unknown field `security`"), "{why}");
    }
}
