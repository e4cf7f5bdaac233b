//! `[arbiter]`: where the cell is.

use super::tls::{MUST_BE_SAFE, is_loopback as is_loopback_ip};
use super::validate::{BadValue, refuse, within};
use super::{Name, services};
use ft_arbiter::etcd::{ANSWER_LIMIT, EtcdLogin, EtcdSettings, EtcdTls};
use ft_arbiter::majority::{MajorityPace, MemberRoll};
use ft_arbiter::service::{ARBITER_NAME, ServiceArbiter, ServicePace, ServicePlace};
use ft_arbiter::{Arbiter, EtcdArbiter, FileArbiter, MajorityArbiter};
use ft_tls::{Credentials, Protection};
use serde::Deserialize;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// So many that each can be waited for before an operation is given up.
const ENDPOINTS_MAX: u64 = 9;
const PREFIX: &str = "/ftd/";
const HTTPS: &str = "https://";

/// Who decides.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArbiterConfig {
    /// The back end.
    #[serde(default)]
    pub kind: ArbiterKind,
    /// The cell's directory, on storage that both nodes share. With the kind "file" only, and always.
    pub path: Option<PathBuf>,
    /// Where `ftd arbiter` listens. With the kind "service" only; this or the next one always.
    pub address: Option<SocketAddr>,
    /// Where several of them listen, of which a majority decides.
    pub addresses: Option<Vec<SocketAddr>>,
    /// etcd's members, `http://HOST:PORT` or `https://HOST:PORT`. With the kind "etcd" only, and always; so are the
    /// three that follow, where they are given.
    pub endpoints: Option<Vec<String>>,
    /// Before the VM's name in etcd's keys.
    pub prefix: Option<String>,
    /// etcd's user.
    pub user: Option<String>,
    /// Holds that user's password.
    pub password_file: Option<PathBuf>,
    /// Who answers there, by its certificate. With the kind "service" only; "arbiter" unless given.
    pub name: Option<Name>,
    /// Who answers at each of the addresses, in their order, where they have unlike names.
    pub names: Option<Vec<Name>>,
    /// The certificates of those who sign the members', if not the site's. With the kind "etcd" only.
    pub ca: Option<PathBuf>,
    /// What protects the connections.
    pub security: Option<Security>,
}

/// The arbiter's back end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArbiterKind {
    /// A directory on shared storage.
    #[default]
    File,
    /// `ftd arbiter` on a third machine.
    Service,
    /// An etcd cluster.
    Etcd,
}

/// What protects connections: TLS, where there is a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// Nothing, whatever there is: the network is trusted.
    None,
}

impl ArbiterConfig {
    /// `tls`: whether this host has a certificate.
    pub(super) fn validate(&self, tls: bool) -> Result<(), BadValue> {
        let kind = self.kind;
        belongs(
            "arbiter.path",
            self.path.as_ref().map(|path| path.display()),
            kind == ArbiterKind::File,
            "file",
        )?;
        belongs("arbiter.address", self.address, kind == ArbiterKind::Service, "service")?;
        belongs("arbiter.name", self.name.as_ref(), kind == ArbiterKind::Service, "service")?;
        let several = self.addresses.as_deref().map(services::told);
        belongs("arbiter.addresses", several, kind == ArbiterKind::Service, "service")?;
        let names = self.names.as_deref().map(services::told);
        belongs("arbiter.names", names, kind == ArbiterKind::Service, "service")?;
        let etcd = kind == ArbiterKind::Etcd;
        belongs("arbiter.endpoints", self.endpoints.as_ref().map(|list| list.join(", ")), etcd, "etcd")?;
        belongs("arbiter.prefix", self.prefix.as_ref(), etcd, "etcd")?;
        belongs("arbiter.user", self.user.as_ref(), etcd, "etcd")?;
        let password_file = self.password_file.as_ref().map(|path| path.display());
        belongs("arbiter.password_file", password_file, etcd, "etcd")?;
        belongs("arbiter.ca", self.ca.as_ref().map(|path| path.display()), etcd, "etcd")?;
        match kind {
            ArbiterKind::File => {
                if self.security.is_some() {
                    return refuse("arbiter.security", "none", "belongs to the kinds that have connections");
                }
                match &self.path {
                    Some(_) => Ok(()),
                    None => refuse("arbiter.path", "nothing", "must be the cell's directory"),
                }
            }
            ArbiterKind::Service if self.addresses.is_some() => self.validate_several(tls),
            ArbiterKind::Service if self.names.is_some() => {
                refuse("arbiter.names", "names", "belongs to arbiter.addresses; one service has arbiter.name")
            }
            ArbiterKind::Service => match self.address {
                Some(address) if address.port() != 0 => {
                    let is_safe = tls || is_loopback_ip(address.ip());
                    self.must_be_safe("arbiter.address", address.to_string(), is_safe)
                }
                address => {
                    let value = address.map_or("nothing".to_owned(), |address| address.to_string());
                    let must = "must be the service's IP address and port; or addresses be given, of several";
                    refuse("arbiter.address", value, must)
                }
            },
            ArbiterKind::Etcd => self.validate_etcd(tls),
        }
    }

    /// Other hosts are spoken to in the clear where the operator says that this is safe, and nowhere else.
    pub(super) fn must_be_safe(
        &self,
        key: &'static str,
        place: String,
        is_safe: bool,
    ) -> Result<(), BadValue> {
        if is_safe || self.security.is_some() { Ok(()) } else { refuse(key, place, MUST_BE_SAFE) }
    }

    fn validate_etcd(&self, tls: bool) -> Result<(), BadValue> {
        const FORM: &str = "must be http://HOST:PORT or https://HOST:PORT, an address of etcd's for clients, and \
                            nothing after the port";
        let endpoints = self.endpoints.as_deref().unwrap_or_default();
        within("arbiter.endpoints (their number)", endpoints.len() as u64, 1..=ENDPOINTS_MAX)?;
        for (index, endpoint) in endpoints.iter().enumerate() {
            let Some(host) = host(endpoint) else { return refuse("arbiter.endpoints", endpoint, FORM) };
            if endpoint.starts_with(HTTPS) && !tls {
                let needs =
                    "needs [tls], with this host's certificate, which etcd asks for (ftd keygen makes it)";
                return refuse("arbiter.endpoints", endpoint, needs);
            }
            if endpoints[..index].contains(endpoint) {
                return refuse("arbiter.endpoints", endpoint, "is there twice");
            }
            let is_safe = endpoint.starts_with(HTTPS) || is_loopback(host) || self.security.is_some();
            if !is_safe {
                let needs = "the connection is not protected: needs https:// and [tls], or security = \"none\" where \
                             nobody but the nodes and the members can reach its network";
                return refuse("arbiter.endpoints", endpoint, needs);
            }
        }
        let prefix = self.prefix();
        if !(1..=256).contains(&prefix.len()) || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(
                "arbiter.prefix",
                prefix,
                "must be 1 to 256 printable ASCII characters without spaces",
            );
        }
        match (self.user.as_deref(), &self.password_file) {
            (Some(""), _) => refuse("arbiter.user", "\"\"", "must name a user of etcd, or be left out"),
            (Some(user), None) => {
                refuse("arbiter.user", user, "needs password_file, which holds the password")
            }
            (None, Some(file)) => {
                refuse("arbiter.password_file", file.display(), "needs user, whose password it holds")
            }
            _ => Ok(()),
        }
    }

    fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or(PREFIX)
    }

    /// Whether the connections are in TLS, where this host has a certificate.
    fn is_secured(&self) -> bool {
        self.security != Some(Security::None)
    }

    /// That other hosts are spoken to in the clear, if so. `tls`: whether this host has a certificate.
    pub(super) fn warning(&self, tls: bool) -> Option<String> {
        let endpoints = self.endpoints.iter().flatten().filter(|endpoint| !endpoint.starts_with(HTTPS));
        let endpoints =
            endpoints.filter(|endpoint| host(endpoint).is_some_and(|host| !is_loopback(host))).cloned();
        let is_safe = |address: &SocketAddr| is_loopback_ip(address.ip()) || tls && self.is_secured();
        let services = self.address.iter().chain(self.addresses.iter().flatten());
        let services = services.filter(|address| !is_safe(address));
        let open: Vec<_> = endpoints.chain(services.map(|address| address.to_string())).collect();
        let password = if self.user.is_some() { ", the password too," } else { "" };
        (!open.is_empty()).then(|| {
            format!(
                "arbiter.security = \"none\": what is said to {}{password} is neither encrypted nor authenticated: \
                 whoever reaches that network can decide who has the VM",
                open.join(" ")
            )
        })
    }

    /// A way to the cell of `vm`, with this host's credentials where it has some. How each of several services answers
    /// is noted in `roll`.
    pub(crate) fn connect(
        &self,
        vm: &Name,
        credentials: Option<&Arc<Credentials>>,
        roll: &MemberRoll,
    ) -> Box<dyn Arbiter> {
        let protection = match credentials {
            Some(credentials) if self.is_secured() => Protection::Tls(Arc::clone(credentials)),
            _ => Protection::None,
        };
        if let Some((set, places)) = self.several(&protection) {
            let pace = MajorityPace::default();
            return Box::new(MajorityArbiter::new(set, &places, vm.as_str(), pace, roll));
        }
        match (self.kind, &self.endpoints, self.address) {
            (ArbiterKind::Service, _, Some(address)) => {
                let name = self.name.as_ref().map_or(ARBITER_NAME, Name::as_str);
                let service = ServicePlace { address, name: name.to_owned(), protection };
                Box::new(ServiceArbiter::new(service, vm.as_str(), ServicePace::default()))
            }
            (ArbiterKind::Etcd, Some(endpoints), _) => {
                let login = self.user.clone().zip(self.password_file.clone());
                let settings = EtcdSettings {
                    endpoints: endpoints.clone(),
                    prefix: self.prefix().to_owned(),
                    login: login.map(|(user, password_file)| EtcdLogin { user, password_file }),
                    tls: credentials.map(|credentials| EtcdTls {
                        credentials: Arc::clone(credentials),
                        ca: self.ca.clone(),
                    }),
                    answer_limit: ANSWER_LIMIT,
                };
                Box::new(EtcdArbiter::new(&settings, vm.as_str()))
            }
            // Validation leaves no other kind without its place.
            _ => Box::new(FileArbiter::new(self.path.as_deref().unwrap_or(Path::new("/")), vm.as_str())),
        }
    }
}

/// Refuses what is given and belongs to another kind.
fn belongs(key: &'static str, value: Option<impl Display>, does: bool, kind: &str) -> Result<(), BadValue> {
    match value {
        Some(value) if !does => refuse(key, value, format!("belongs to kind = \"{kind}\"")),
        _ => Ok(()),
    }
}

/// The host in `http://HOST:PORT` or `https://HOST:PORT`; an IPv6 address is in brackets.
fn host(endpoint: &str) -> Option<&str> {
    let place = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix(HTTPS))?;
    let (host, port) = place.rsplit_once(':')?;
    let is_port =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_name(host),
    };
    (is_port && is_host).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Result<ArbiterConfig, String> {
        let config: ArbiterConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate(false).map_err(|bad| format!("{} = {}: {}", bad.key, bad.value, bad.allowed))?;
        Ok(config)
    }

    #[test]
    fn etcd_needs_endpoints_and_takes_what_is_its_own() {
        let config = judge(
            "kind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\", \"http://[::1]:2379\"]\n\
             user = \"ftd\"\npassword_file = \"/etc/ftd/etcd.password\"",
        );
        let place = config
            .unwrap()
            .connect(&"web".to_owned().try_into().unwrap(), None, &MemberRoll::default())
            .place()
            .to_string();
        assert_eq!(place, "etcd http://127.0.0.1:2379 http://[::1]:2379, key /ftd/web/cell");
        let one = "kind = \"etcd\"\nendpoints = [\"http://localhost:2379\"]\n";
        let cases = [
            ("kind = \"etcd\"", "arbiter.endpoints (their number) = 0: must be 1 to 9"),
            (
                &format!("{one}path = \"/shared/web.cell\""),
                "arbiter.path = /shared/web.cell: belongs to kind = \"file\"",
            ),
            (
                "path = \"/c\"\nendpoints = [\"http://a:1\"]",
                "arbiter.endpoints = http://a:1: belongs to kind = \"etcd\"",
            ),
            ("path = \"/c\"\nprefix = \"/x/\"", "arbiter.prefix = /x/: belongs"),
            ("path = \"/c\"\nuser = \"u\"", "arbiter.user = u: belongs"),
            ("path = \"/c\"\npassword_file = \"/p\"", "arbiter.password_file = /p: belongs"),
            ("path = \"/c\"\nsecurity = \"none\"", "arbiter.security = none: belongs"),
            (&format!("{one}prefix = \"\""), "arbiter.prefix = : must be 1 to 256"),
            (&format!("{one}prefix = \"a b\""), "arbiter.prefix = a b: must be 1 to 256"),
            (&format!("{one}user = \"\""), "arbiter.user = \"\": must name"),
            (&format!("{one}user = \"ftd\""), "arbiter.user = ftd: needs password_file"),
            (&format!("{one}password_file = \"/p\""), "arbiter.password_file = /p: needs user"),
            (&format!("{one}security = \"tls\""), "unknown variant `tls`"),
        ];
        for (text, reason) in cases {
            let why = judge(text).unwrap_err();
            assert!(why.contains(reason), "{text}: {why}");
        }
    }

    #[test]
    fn an_endpoint_has_a_scheme_a_host_and_a_port_and_nothing_else() {
        let wrong = [
            "10.0.0.3:2379",
            "http://10.0.0.3",
            "http://:2379",
            "http://a:0",
            "http://a:+1",
            "http://a:65536",
            "http://a:2379/",
            "http://u@a:2379",
            "http://a b:2379",
            "http://[a]:2379",
            "http://::1:2379",
            "ftp://a:1",
        ];
        for endpoint in wrong {
            let why = judge(&format!("kind = \"etcd\"\nsecurity = \"none\"\nendpoints = [\"{endpoint}\"]"));
            assert!(
                why.clone().unwrap_err().contains("must be http://HOST:PORT or https"),
                "{endpoint}: {why:?}"
            );
        }
        let tls = judge("kind = \"etcd\"\nendpoints = [\"https://a:2379\"]").unwrap_err();
        assert!(tls.contains("needs [tls], with this host's certificate"), "{tls}");
        let twice =
            judge("kind = \"etcd\"\nendpoints = [\"http://[::1]:1\", \"http://[::1]:1\"]").unwrap_err();
        assert!(twice.contains("is there twice"), "{twice}");
    }

    #[test]
    fn other_hosts_are_spoken_to_in_the_clear_only_where_that_is_said_to_be_safe() {
        for endpoint in ["http://10.0.0.3:2379", "http://etcd-1.example:2379", "http://[2001:db8::3]:2379"] {
            let text = format!("kind = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\", \"{endpoint}\"]");
            let why = judge(&text).unwrap_err();
            assert!(why.contains(endpoint) && why.contains("needs https:// and [tls]"), "{why}");
            let config = judge(&format!("{text}\nsecurity = \"none\"")).unwrap();
            let warning = config.warning(false).unwrap();
            assert!(warning.contains(endpoint) && !warning.contains("127.0.0.1"), "{warning}");
        }
    }
}
