//! Which daemon `ftctl` speaks to: one of this host by its socket, or one of another machine in TLS.

use super::End;
use clap::Args;
use ft_tls::{BadPartyName, CredentialFiles, Credentials, Party, PartyKind};
use ftd::config::Name;
use ftd::control::client::{Client, ClientError, SOCKET_DIRECTORY, only_socket};
use ftd::control::host::{DaemonPlace, HostPort};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The options that say so.
#[derive(Args)]
pub struct Target {
    /// The VM; not needed when only one runs on this host, and with --host, where it is compared with what is there
    #[arg(long, global = true, conflicts_with = "socket")]
    vm: Option<Name>,
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The daemon at another machine's control.listen, port 7380 unless given, in TLS; needs --keys
    #[arg(long, global = true, value_name = "HOST[:PORT]", conflicts_with = "socket")]
    host: Option<HostPort>,
    /// The name in the certificate of the node at --host; any node of the site unless given
    #[arg(long, global = true, value_name = "NAME", value_parser = node_name)]
    node_name: Option<String>,
    /// An operator's or observer's directory as ftd keygen makes it: for --host, and for a service with a certificate
    #[arg(long, global = true, value_name = "DIRECTORY", env = "FTCTL_KEYS")]
    keys: Option<PathBuf>,
}

fn node_name(text: &str) -> Result<String, BadPartyName> {
    Party::new(PartyKind::Node, text).map(|party| party.name().to_owned())
}

/// Where a command's daemon is.
pub enum Reached {
    /// On this host.
    Here { socket: Option<PathBuf>, vm: Option<Name> },
    /// On another machine.
    There(DaemonPlace),
}

impl Target {
    /// Reads the certificate, if one is needed.
    pub fn reached(&self) -> Result<Reached, End> {
        let Some(at) = &self.host else {
            if self.node_name.is_some() {
                return Err(End::Unconfirmed(
                    "--node-name is of the node at --host, which is not given".into(),
                ));
            }
            return Ok(Reached::Here { socket: self.socket.clone(), vm: self.vm.clone() });
        };
        // clap compares only what stands at the same side of the command.
        if self.socket.is_some() {
            return Err(End::Unconfirmed("--host and --socket name two daemons: give one of them".into()));
        }
        let Some(keys) = &self.keys else {
            let why = "--host needs --keys DIRECTORY (or FTCTL_KEYS): an operator's or an observer's certificate, as \
                       ftd keygen makes it";
            return Err(End::Unconfirmed(why.into()));
        };
        Ok(Reached::There(DaemonPlace {
            at: at.clone(),
            node: self.node_name.clone(),
            vm: self.vm.as_ref().map(Name::to_string),
            credentials: credentials(keys)?.into(),
        }))
    }

    /// For a command that speaks to no daemon of a VM: `what` says what it does instead.
    pub fn must_be_here(&self, what: &str) -> Result<(), End> {
        match &self.host {
            Some(_) => Err(End::Unconfirmed(format!("--host does not go with this command: {what}").into())),
            None => Ok(()),
        }
    }

    /// Where an operator's certificate is, if it is said.
    pub fn keys(&self) -> Option<&Path> {
        self.keys.as_deref()
    }
}

impl Reached {
    /// Connects.
    pub fn connect(&self) -> Result<Client, ClientError> {
        let directory = Path::new(SOCKET_DIRECTORY);
        let path = match self {
            Self::There(place) => return Client::connect_to(place),
            Self::Here { socket: Some(path), .. } => path.clone(),
            Self::Here { socket: None, vm: Some(vm) } => directory.join(format!("{vm}.sock")),
            Self::Here { socket: None, vm: None } => only_socket(directory)?,
        };
        Client::connect(&path)
    }

    /// Between two tries to reach a daemon that is not there yet.
    pub fn retry_interval(&self) -> Duration {
        match self {
            Self::Here { .. } => Duration::from_millis(100),
            Self::There(_) => Duration::from_secs(1),
        }
    }
}

/// An operator's or observer's certificate.
pub fn credentials(directory: &Path) -> Result<Credentials, End> {
    let kinds = [PartyKind::Operator, PartyKind::Observer];
    let credentials = Credentials::load(CredentialFiles::within(directory), &kinds, None);
    credentials.map_err(|e| End::Unconfirmed(e.to_string().into()))
}
