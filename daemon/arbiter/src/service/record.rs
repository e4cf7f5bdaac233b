//! What the store holds of a cell, and of a change: [two lines of text](crate::lines), which say whose they are.

use super::message::CellChange;
use crate::majority::{MemberSet, Register};
use crate::{Cell, lines};
use serde::{Deserialize, Serialize};

pub(super) const RECORD_VERSION: u32 = 1;
/// Of what a member keeps: its set, and a VM's register.
pub(super) const REGISTER_VERSION: u32 = 1;
const RECORD_BYTES_MAX: usize = 4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCell {
    version: u32,
    vm: String,
    at_unix_ms: u64,
    cell: Cell,
}

/// A change of `vm`'s cell as bytes.
pub(super) fn encode(vm: &str, change: &CellChange) -> Vec<u8> {
    let CellChange { at_unix_ms, cell } = change.clone();
    lines::write(&StoredCell { version: RECORD_VERSION, vm: vm.to_owned(), at_unix_ms, cell })
}

/// The change of `vm`'s cell in these bytes, or what is wrong with them.
pub(super) fn decode(vm: &str, bytes: &[u8]) -> Result<CellChange, String> {
    let (version, json) = lines::read(bytes, RECORD_BYTES_MAX).map_err(|error| error.to_string())?;
    if version != RECORD_VERSION {
        return Err(format!("it has format version {version}, this ftd knows {RECORD_VERSION}"));
    }
    let stored: StoredCell = serde_json::from_str(json).map_err(|error| error.to_string())?;
    match stored.vm == vm {
        true => Ok(CellChange { at_unix_ms: stored.at_unix_ms, cell: stored.cell }),
        false => Err(format!("it is the record of '{}'", stored.vm)),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRegister {
    version: u32,
    vm: String,
    register: Register,
}

/// What a member keeps of `vm`'s cell as bytes.
pub(super) fn encode_register(vm: &str, register: &Register) -> Vec<u8> {
    let register = register.clone();
    lines::write(&StoredRegister { version: REGISTER_VERSION, vm: vm.to_owned(), register })
}

/// The register of `vm`'s cell in these bytes, or what is wrong with them.
pub(super) fn decode_register(vm: &str, bytes: &[u8]) -> Result<Register, String> {
    let stored: StoredRegister =
        serde_json::from_str(versioned(bytes)?).map_err(|error| error.to_string())?;
    match stored.vm == vm {
        true => Ok(stored.register),
        false => Err(format!("it is the record of '{}'", stored.vm)),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSet {
    version: u32,
    members: MemberSet,
}

/// Whose member a store is, as bytes.
pub(super) fn encode_set(members: &MemberSet) -> Vec<u8> {
    lines::write(&StoredSet { version: REGISTER_VERSION, members: members.clone() })
}

/// The set in these bytes, or what is wrong with them.
pub(super) fn decode_set(bytes: &[u8]) -> Result<MemberSet, String> {
    let stored: StoredSet = serde_json::from_str(versioned(bytes)?).map_err(|error| error.to_string())?;
    Ok(stored.members)
}

fn versioned(bytes: &[u8]) -> Result<&str, String> {
    let (version, json) = lines::read(bytes, RECORD_BYTES_MAX).map_err(|error| error.to_string())?;
    match version == REGISTER_VERSION {
        true => Ok(json),
        false => Err(format!("it has format version {version}, this ftd knows {REGISTER_VERSION}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::majority::{AcceptedCell, Ballot, SetCell};
    use crate::{CellId, Standby};
    use proptest::prelude::*;

    fn register(generation: u64) -> Register {
        let ballot = |round| Ballot { round, proposer: 7 };
        let value =
            Some(SetCell { cell: change(generation).cell, origin: ballot(3), trail: vec![ballot(2)] });
        Register { promised: Some(ballot(5)), accepted: Some(AcceptedCell { ballot: ballot(4), value }) }
    }

    #[test]
    fn the_register_of_another_vm_or_version_or_of_a_round_too_high_is_refused() {
        let bytes = encode_register("web", &register(3));
        assert!(decode_register("db", &bytes).unwrap_err().contains("'web'"));
        let json = String::from_utf8(bytes).unwrap().lines().next().unwrap().to_owned();
        let again = |json: String| format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes()));
        let later = again(json.replace("\"version\":1", "\"version\":2"));
        assert!(decode_register("web", later.as_bytes()).unwrap_err().contains("format version 2"));
        let high = again(json.replace("\"round\":5", "\"round\":18446744073709551615"));
        assert!(decode_register("web", high.as_bytes()).unwrap_err().contains("no ballot"));
    }

    #[test]
    fn a_set_is_read_as_it_was_written_and_in_one_form_only() {
        let set = MemberSet::new(&[1, 2, 3].map(|port| ([127, 0, 0, 1], port).into())).unwrap();
        let bytes = encode_set(&set);
        assert_eq!(decode_set(&bytes), Ok(set));
        let json = r#"{"version":1,"members":["127.0.0.1:2","127.0.0.1:1"]}"#;
        let other = format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes()));
        assert!(decode_set(other.as_bytes()).unwrap_err().contains("not in order"));
    }

    fn change(generation: u64) -> CellChange {
        let cell = Cell { id: CellId(7), generation, owner: Some("alpha".into()), standby: None };
        CellChange { at_unix_ms: 1, cell }
    }

    #[test]
    fn the_record_of_another_vm_or_version_is_refused() {
        let bytes = encode("web", &change(3));
        assert!(decode("db", &bytes).unwrap_err().contains("'web'"));
        let json = String::from_utf8(bytes)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .replace("\"version\":1", "\"version\":2");
        let later = format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes()));
        assert!(decode("web", later.as_bytes()).unwrap_err().contains("format version 2"));
    }

    proptest! {
        #[test]
        fn any_change_and_any_cut_of_a_register_is_noticed(
            at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<prop::sample::Index>(),
        ) {
            let whole = encode_register("web", &register(9));
            prop_assert!(decode_register("web", &whole[..cut.index(whole.len())]).is_err());
            let mut bytes = whole;
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode_register("web", &bytes).is_err());
            prop_assert!(decode_set(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_decoding_a_register_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode_register("web", &bytes).is_err());
            prop_assert!(decode_set(&bytes).is_err());
        }

        #[test]
        fn a_register_is_read_as_it_was_written(
            promised in proptest::option::of((0..=u64::MAX / 2, any::<u64>())),
            accepted in proptest::option::of((0..=u64::MAX / 2, proptest::option::of(0..=crate::GENERATION_MAX))),
        ) {
            let ballot = |(round, proposer)| Ballot { round, proposer };
            let accepted = accepted.map(|(round, generation)| AcceptedCell {
                ballot: ballot((round, 3)),
                value: generation.map(|generation| SetCell {
                    cell: change(generation).cell,
                    origin: ballot((1, 2)),
                    trail: vec![ballot((1, 1)); 2],
                }),
            });
            let register = Register { promised: promised.map(ballot), accepted };
            prop_assert_eq!(decode_register("web", &encode_register("web", &register)).unwrap(), register);
        }

        #[test]
        fn any_flipped_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut bytes = encode("web", &change(9));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode("web", &bytes).is_err());
        }

        #[test]
        fn any_cut_is_noticed(cut in any::<prop::sample::Index>()) {
            let bytes = encode("web", &change(9));
            prop_assert!(decode("web", &bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode("web", &bytes).is_err());
        }

        #[test]
        fn what_is_written_is_read(
            id in any::<u64>().prop_map(CellId), generation in 0..=crate::GENERATION_MAX, at_unix_ms: u64, pairing: u64,
            owner in proptest::option::of("[a-z0-9-]{1,64}"),
        ) {
            let standby = owner.clone().map(|node| Standby { node, pairing });
            let change = CellChange { at_unix_ms, cell: Cell { id, generation, owner, standby } };
            prop_assert_eq!(decode("web", &encode("web", &change)).unwrap(), change);
        }
    }
}
