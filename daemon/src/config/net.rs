//! The network cards.

use super::ValueError;
use crate::role::OnUplinkLoss;
use ft_vm::spec::MTU_DEFAULT;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt::{self, Display};
use std::net::IpAddr;

/// A network card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// TAP interface on this host.
    pub tap: String,
    /// The guest's MAC address, equal on both nodes.
    pub mac: Mac,
    /// The guest's addresses, announced when it begins to run here.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The MTU that the card tells the guest, equal on both nodes.
    #[serde(default = "mtu_default")]
    pub mtu: u16,
    /// The interface that leads to the network, if it is not to be told from the TAP's bridge.
    pub uplink: Option<String>,
    /// What happens to the VM when nobody reaches it here any more.
    #[serde(default)]
    pub on_uplink_loss: OnUplinkLoss,
    /// What the card tells the guest of its link.
    #[serde(default)]
    pub link: CardLink,
}

/// What a card tells the guest of its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CardLink {
    /// It is always there.
    #[default]
    Up,
    /// It is not there while the card reaches nobody on this host.
    Uplink,
}

fn mtu_default() -> u16 {
    MTU_DEFAULT
}

/// A table, or a list of tables.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<NetConfig>, D::Error> {
    struct Cards;
    impl<'de> Visitor<'de> for Cards {
        type Value = Vec<NetConfig>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[machine.net], or [[machine.net]] for each of several cards")
        }

        fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
            NetConfig::deserialize(MapAccessDeserializer::new(table)).map(|card| vec![card])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    value.deserialize_any(Cards)
}

/// A unicast MAC address, aa:bb:cc:dd:ee:ff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl TryFrom<String> for Mac {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| ValueError::MacForm(text.clone()))?;
        }
        if parts.next().is_some() {
            return Err(ValueError::MacLength(text));
        }
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(ValueError::MacNotUnicast(text));
        }
        Ok(Self(mac))
    }
}

impl Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
