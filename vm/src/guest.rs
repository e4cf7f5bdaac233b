//! The guest that is built into this crate: a freestanding key-value service with a memory load (sources in `guest/`,
//! its protocol in `guest/src/kv/mod.rs`). It needs no files, boots at once and runs on every KVM.

use std::fmt;
use std::net::Ipv4Addr;

/// Its ELF image.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// The command line that it is booted with when none is given.
pub const CMDLINE_DEFAULT: &str = "ip=10.77.0.2/24 gw=10.77.0.1 port=7777";

/// Where its service is when the command line does not say.
const PORT: u16 = 7777;
/// Its network's prefix length when the command line does not say.
const PREFIX: u8 = 24;

/// What its command line says: `ip=10.0.0.5/24 gw=10.0.0.1 port=7777`, each word at most once, in any order. Displayed,
/// it is a command line that leaves nothing to defaults: the guest itself has none for its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its address.
    pub address: Ipv4Addr,
    /// How many bits of it are its network's: what is in the network is reached without the router.
    pub prefix: u8,
    /// The router to everything else, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// The TCP port of the service.
    pub port: u16,
}

/// A command line that the built-in guest would not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// A word has no meaning for it.
    #[error("the built-in guest knows ip=, gw= and port=, not {0:?}")]
    Unknown(String),
    /// A word comes again.
    #[error("{0}= is there twice")]
    Twice(&'static str),
    /// A word's value is none.
    #[error("{word:?}: want {want}")]
    Value {
        /// The word.
        word: String,
        /// What it must look like.
        want: &'static str,
    },
}

impl Settings {
    /// Reads a command line. The address is `address` where it does not say another, or else that of
    /// [`CMDLINE_DEFAULT`], with its router.
    pub fn parse(cmdline: &str, address: Option<Ipv4Addr>) -> Result<Self, CmdlineError> {
        let (mut ip, mut gateway, mut port) = (None, None, None);
        for word in cmdline.split_ascii_whitespace() {
            let bad = |want| CmdlineError::Value { word: word.to_owned(), want };
            match word.split_once('=') {
                Some(("ip", value)) => {
                    set(
                        "ip",
                        &mut ip,
                        parse_cidr(value).ok_or_else(|| bad("ip=a.b.c.d or ip=a.b.c.d/1-32"))?,
                    )?;
                }
                Some(("gw", value)) => {
                    set("gw", &mut gateway, value.parse().map_err(|_| bad("gw=a.b.c.d"))?)?;
                }
                Some(("port", value)) => {
                    let number = value.parse().ok().filter(|&number| number != 0);
                    set("port", &mut port, number.ok_or_else(|| bad("port=1 to port=65535"))?)?;
                }
                _ => return Err(CmdlineError::Unknown(word.to_owned())),
            }
        }
        let (address, prefix) = match ip.or(address.map(|address| (address, PREFIX))) {
            Some(ip) => ip,
            None => {
                gateway = gateway.or(Some(Ipv4Addr::new(10, 77, 0, 1)));
                (Ipv4Addr::new(10, 77, 0, 2), PREFIX)
            }
        };
        if address.is_unspecified()
            || address.is_broadcast()
            || address.is_multicast()
            || address.is_loopback()
        {
            let want = "the address of one host in a network";
            return Err(CmdlineError::Value { word: format!("ip={address}"), want });
        }
        Ok(Self { address, prefix, gateway, port: port.unwrap_or(PORT) })
    }
}

fn set<T>(key: &'static str, slot: &mut Option<T>, value: T) -> Result<(), CmdlineError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(CmdlineError::Twice(key)),
    }
}

fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let Some((address, prefix)) = text.split_once('/') else { return Some((text.parse().ok()?, PREFIX)) };
    let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, prefix, gateway, port } = self;
        write!(f, "ip={address}/{prefix}")?;
        if let Some(gateway) = gateway {
            write!(f, " gw={gateway}")?;
        }
        write!(f, " port={port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(given: &str, address: &str) -> Result<String, String> {
        match Settings::parse(given, address.parse().ok()) {
            Ok(settings) => Ok(settings.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_the_command_line_leaves_open_follows_from_the_address() {
        let spelled_out = |given, address| cmdline(given, address).unwrap();
        assert_eq!(spelled_out("", ""), CMDLINE_DEFAULT);
        assert_eq!(spelled_out("", "10.0.0.5"), "ip=10.0.0.5/24 port=7777");
        assert_eq!(spelled_out(" port=80\tgw=10.0.0.1 ", "10.0.0.5"), "ip=10.0.0.5/24 gw=10.0.0.1 port=80");
        assert_eq!(spelled_out("ip=10.0.9.9/16", "10.0.0.5"), "ip=10.0.9.9/16 port=7777");
        assert_eq!(spelled_out("ip=10.0.9.9", ""), "ip=10.0.9.9/24 port=7777");
        let full = spelled_out("ip=10.0.9.9/16 gw=10.0.0.1 port=1", "");
        assert_eq!(spelled_out(&full, "192.0.2.1"), full);
    }

    #[test]
    fn what_the_guest_would_not_take_is_named() {
        for (given, why) in [
            ("ip=10.0.0.5/33", "\"ip=10.0.0.5/33\": want ip=a.b.c.d"),
            ("ip=fd00::5", "\"ip=fd00::5\": want"),
            ("ip=224.0.0.1/24", "\"ip=224.0.0.1\": want the address of one host"),
            ("gw=router", "want gw=a.b.c.d"),
            ("port=0", "want port=1"),
            ("console=ttyS0", "not \"console=ttyS0\""),
            ("ro", "not \"ro\""),
            ("port=1 port=2", "port= is there twice"),
        ] {
            let refused = cmdline(given, "10.0.0.5").unwrap_err();
            assert!(refused.contains(why), "{given}: {refused}");
        }
    }
}
