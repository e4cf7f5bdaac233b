//! What the store holds of a cell, and of a change: [two lines of text](crate::lines), which say whose they are.

use super::message::CellChange;
use crate::{Cell, lines};
use serde::{Deserialize, Serialize};

pub(super) const RECORD_VERSION: u32 = 1;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CellId, Standby};
    use proptest::prelude::*;

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
