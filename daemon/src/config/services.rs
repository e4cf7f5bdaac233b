//! `arbiter.addresses`: several services, of which a majority decides.

use super::tls::is_loopback;
use super::validate::{BadValue, refuse};
use super::{ArbiterConfig, Name};
use ft_arbiter::majority::{BadMembers, MemberSet};
use ft_arbiter::service::{ARBITER_NAME, ServicePlace};
use ft_tls::Protection;
use std::fmt::Display;
use std::net::SocketAddr;

impl ArbiterConfig {
    pub(super) fn validate_several(&self, tls: bool) -> Result<(), BadValue> {
        let addresses = self.addresses.as_deref().unwrap_or_default();
        if let Some(address) = self.address {
            return refuse(
                "arbiter.address",
                address,
                "is for one service: addresses has them all, or leave those out",
            );
        }
        if let Err(e) = members(addresses) {
            return refuse("arbiter.addresses", told(addresses), e.to_string());
        }
        for address in addresses {
            let is_safe = tls || is_loopback(address.ip());
            self.must_be_safe("arbiter.addresses", address.to_string(), is_safe)?;
        }
        match (&self.name, &self.names) {
            (Some(name), Some(_)) => refuse(
                "arbiter.name",
                name,
                "is for services of one name: names has them all, or leave those out",
            ),
            (_, Some(names)) if names.len() != addresses.len() => {
                let must =
                    format!("must be one for each of the {} addresses, in their order", addresses.len());
                refuse("arbiter.names", told(names), must)
            }
            _ => Ok(()),
        }
    }

    /// The set, and each of its members in its order; none where there is one service.
    pub(super) fn several(&self, protection: &Protection) -> Option<(MemberSet, Vec<ServicePlace>)> {
        let addresses = self.addresses.as_deref()?;
        let set = members(addresses).ok()?;
        let named = |nth: usize| match &self.names {
            Some(names) => names.get(nth),
            None => self.name.as_ref(),
        };
        let mut places: Vec<ServicePlace> = addresses
            .iter()
            .enumerate()
            .map(|(nth, address)| ServicePlace {
                address: SocketAddr::new(address.ip().to_canonical(), address.port()),
                name: named(nth).map_or(ARBITER_NAME, Name::as_str).to_owned(),
                protection: protection.clone(),
            })
            .collect();
        places.sort_by_key(|place| place.address);
        Some((set, places))
    }

    /// What the operator should know of two services.
    pub(super) fn two_warning(&self) -> Option<String> {
        let both = self.addresses.as_deref().filter(|addresses| addresses.len() == 2)?;
        Some(format!(
            "arbiter.addresses = {}: of two arbiters the majority is both: while either is away, the pair is degraded \
             and no host takes over. Three survive the loss of one",
            told(both)
        ))
    }
}

/// The set of these addresses.
pub(super) fn members(addresses: &[SocketAddr]) -> Result<MemberSet, BadMembers> {
    MemberSet::new(addresses)
}

/// A list, as a message has it.
pub(super) fn told(list: &[impl Display]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_arbiter::majority::MemberRoll;
    use std::path::Path;

    fn judge(arbiter: &str) -> Result<ArbiterConfig, String> {
        let config: ArbiterConfig =
            toml::from_str(&format!("kind = \"service\"\n{arbiter}")).map_err(|e| e.to_string())?;
        config.validate(true).map_err(|bad| format!("{} = {}: {}", bad.key, bad.value, bad.allowed))?;
        Ok(config)
    }

    #[test]
    fn the_order_of_the_addresses_does_not_matter_and_each_keeps_its_name() {
        let vm = "web".to_owned().try_into().unwrap();
        let place = |text: &str| judge(text).unwrap().connect(&vm, None, &MemberRoll::default()).place();
        let one = place("addresses = [\"10.0.0.5:7390\", \"10.0.0.3:7390\", \"[::ffff:10.0.0.4]:7390\"]");
        let other = place("addresses = [\"10.0.0.3:7390\", \"10.0.0.4:7390\", \"10.0.0.5:7390\"]");
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "services 10.0.0.3:7390 10.0.0.4:7390 10.0.0.5:7390");
        let named = judge(
            "addresses = [\"10.0.0.5:7390\", \"10.0.0.3:7390\", \"10.0.0.4:7390\"]\n\
             names = [\"five\", \"three\", \"four\"]",
        );
        let (_, places) = named.unwrap().several(&Protection::None).unwrap();
        let named: Vec<_> = places.iter().map(|place| format!("{} {}", place.address, place.name)).collect();
        assert_eq!(named, ["10.0.0.3:7390 three", "10.0.0.4:7390 four", "10.0.0.5:7390 five"]);
    }

    #[test]
    fn a_list_that_is_no_set_is_refused_by_its_key() {
        let [a, b, c, d] = ["10.0.0.1:7390", "10.0.0.2:7390", "10.0.0.3:7390", "10.0.0.4:7390"];
        let list = |list: &[&str]| format!("addresses = {list:?}");
        let three = list(&[a, b, c]);
        let cases = [
            (list(&[]), "arbiter.addresses = : 0 members: must be 3, 5 or 7"),
            (list(&[a]), "1 members: must be 3, 5 or 7"),
            (list(&[a, b, c, d]), "4 members: must be 3, 5 or 7"),
            (list(&[a, b, a]), "10.0.0.1:7390 is there twice"),
            (list(&[a, b, "[::ffff:10.0.0.1]:7390"]), "10.0.0.1:7390 is there twice"),
            (list(&[a, b, "10.0.0.3:0"]), "10.0.0.3:0: must be the service's IP address and port"),
            (list(&[a, b, "0.0.0.0:7390"]), "0.0.0.0:7390: must be the service's IP address and port"),
            (format!("{three}\naddress = \"{a}\""), "arbiter.address = 10.0.0.1:7390: is for one service"),
            (
                format!("{three}\nnames = [\"x\", \"y\"]"),
                "arbiter.names = x, y: must be one for each of the 3",
            ),
            (
                format!("{three}\nname = \"x\"\nnames = [\"x\", \"y\", \"z\"]"),
                "arbiter.name = x: is for services of",
            ),
            (
                format!("address = \"{a}\"\nnames = [\"x\"]"),
                "arbiter.names = names: belongs to arbiter.addresses",
            ),
        ];
        for (text, reason) in cases {
            let why = judge(&text).unwrap_err();
            assert!(why.contains(reason), "{text}: {why}");
        }
        let config: ArbiterConfig = toml::from_str(&format!("path = \"/c\"\n{three}")).unwrap();
        assert_eq!(config.validate(true).unwrap_err().key, "arbiter.addresses");
        let clear: ArbiterConfig = toml::from_str(&format!("kind = \"service\"\n{three}")).unwrap();
        assert_eq!(clear.validate(false).unwrap_err().value, a);
    }

    #[test]
    fn two_are_taken_and_warned_of() {
        let judge = |list: &str| {
            let text = format!(
                "vm = \"web\"\nnode = \"alpha\"\nstart_as = \"primary\"\npeer = {{ node = \"beta\", address = \
                 \"127.0.0.2:7400\" }}\narbiter = {{ kind = \"service\", addresses = [{list}] }}"
            );
            super::super::Config::parse(&text, Path::new("ftd.toml")).unwrap().connection_warnings()
        };
        let warnings = judge("\"127.0.0.1:1\", \"127.0.0.1:2\"");
        assert!(
            warnings.iter().any(|warning| warning.contains("of two arbiters the majority is both")),
            "{warnings:?}"
        );
        let warnings = judge("\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\"");
        assert!(!warnings.iter().any(|warning| warning.contains("of two arbiters")), "{warnings:?}");
    }
}
