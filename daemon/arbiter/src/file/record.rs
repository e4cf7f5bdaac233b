//! The file of one generation: its name and its content.

use crate::{Cell, lines};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) const FORMAT_VERSION: u32 = 2;
/// The last version of cells without an identity.
const NAMELESS_VERSION: u32 = 1;
/// No cell is longer.
pub(crate) const CELL_BYTES_MAX: u64 = 4096;
const TEMPORARY: &str = ".tmp-";

/// What a file holds, as JSON on its first line; the second line is `crc32c` of the first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) vm: String,
    pub(crate) cell: Cell,
}

/// The name of a generation's file.
pub(crate) fn file_name(generation: u64) -> String {
    format!("{generation:020}")
}

/// The generation whose file has this name, if it is the name of one.
#[must_use]
pub fn generation_of(name: &str) -> Option<u64> {
    (name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit())).then(|| name.parse().ok())?
}

/// The name of a file that is nobody's generation yet.
pub(crate) fn temporary_name(unique: &str) -> String {
    format!("{TEMPORARY}{unique}")
}

pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY)
}

pub(crate) fn encode(record: &Record) -> Vec<u8> {
    lines::write(record)
}

/// Why bytes are no record of a cell.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct NotARecord(String);

pub(crate) fn decode(bytes: &[u8]) -> Result<Record, NotARecord> {
    parse(bytes).map_err(NotARecord)
}

fn parse(bytes: &[u8]) -> Result<Record, String> {
    let (version, json) = lines::read(bytes, CELL_BYTES_MAX as usize).map_err(|error| error.to_string())?;
    if version == NAMELESS_VERSION {
        return Err(format!(
            "it has format version {version}, of an ftd whose cells had no identity: end the VM with that ftd, move \
             the cell's directory away, and start anew"
        ));
    }
    if version != FORMAT_VERSION {
        return Err(format!("it has format version {version}, this ftd knows {FORMAT_VERSION}"));
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CellId, Standby};
    use proptest::prelude::*;

    fn record(cell: Cell) -> Record {
        Record { version: FORMAT_VERSION, vm: "web".into(), cell }
    }

    #[test]
    fn a_cell_without_an_identity_is_refused_with_what_to_do() {
        let json = r#"{"version":1,"vm":"web","cell":{"generation":3,"owner":"beta","standby":null}}"#;
        let file = format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes()));
        let why = decode(file.as_bytes()).err().unwrap().to_string();
        assert!(why.contains("format version 1") && why.contains("move the cell's directory away"), "{why}");
    }

    #[test]
    fn a_generation_from_which_nothing_can_be_counted_is_refused() {
        let cell = |generation| Cell { id: CellId(7), generation, owner: None, standby: None };
        for generation in [crate::GENERATION_MAX + 1, u64::MAX] {
            let why = decode(&encode(&record(cell(generation)))).err().unwrap().to_string();
            assert!(why.contains("no cell has such a generation"), "{why}");
        }
        assert!(decode(&encode(&record(cell(crate::GENERATION_MAX)))).is_ok());
    }

    proptest! {
        #[test]
        fn any_flipped_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut bytes = encode(&record(Cell {
                id: CellId(7),
                generation: 9,
                owner: Some("alpha".into()),
                standby: None,
            }));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn what_is_written_is_read(
            id in any::<u64>().prop_map(CellId),
            generation in 0..=crate::GENERATION_MAX,
            owner in proptest::option::of(".{0,40}"),
            pairing in any::<u64>(),
        ) {
            let standby = owner.clone().map(|node| Standby { node, pairing });
            let cell = Cell { id, generation, owner, standby };
            prop_assert_eq!(decode(&encode(&record(cell.clone()))).unwrap().cell, cell);
        }
    }
}
