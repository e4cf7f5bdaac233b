//! The network's part of the command line: `ip=10.77.0.2/24 gw=10.77.0.1 port=7777`.

use crate::kv;
use core::fmt;
use smoltcp::wire::{Ipv4Address, Ipv4Cidr};

/// The network settings.
pub struct Settings {
    /// Own address and the network's prefix length.
    pub address: Ipv4Cidr,
    /// Router for everything else, if any.
    pub gateway: Option<Ipv4Address>,
    /// The service's TCP port.
    pub port: u16,
}

impl Settings {
    /// Parses the command line. Words that it does not know are other programs' business.
    pub fn parse(cmdline: &[u8]) -> Result<Self, &'static str> {
        let text = core::str::from_utf8(cmdline).map_err(|_| "not text")?;
        let (mut address, mut gateway, mut port) = (None, None, kv::PORT);
        for word in text.split([' ', '\0', '\n']) {
            match word.split_once('=') {
                Some(("ip", value)) => address = Some(parse_cidr(value).ok_or("ip: want a.b.c.d/prefix")?),
                Some(("gw", value)) => gateway = Some(value.parse().map_err(|_| "gw: want a.b.c.d")?),
                Some(("port", value)) => port = value.parse().map_err(|_| "port: want 1 to 65535")?,
                _ => {}
            }
        }
        if port == 0 {
            return Err("port: want 1 to 65535");
        }
        Ok(Self { address: address.ok_or("ip=a.b.c.d/prefix is missing")?, gateway, port })
    }
}

fn parse_cidr(text: &str) -> Option<Ipv4Cidr> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some(Ipv4Cidr::new(address.parse().ok()?, prefix))
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.address, self.port)
    }
}
