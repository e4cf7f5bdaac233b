//! A small record as two lines of text: JSON, and the CRC-32C of that line. People can read it, and a torn or damaged
//! one is never taken for a sound one. The JSON is an object with the `version` of its format.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why bytes are no such record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinesError {
    /// It is longer than any.
    #[error("it is longer than {0} bytes")]
    Long(usize),
    /// It is binary.
    #[error("it is not text")]
    Binary,
    /// It is torn.
    #[error("it is not two whole lines, the second a checksum")]
    Torn,
    /// It is damaged.
    #[error("its checksum is {computed}, it says {stated}")]
    Checksum {
        /// Of the first line.
        computed: String,
        /// In the second.
        stated: String,
    },
    /// It does not say which version of its format it has.
    #[error("it has no version: {0}")]
    Versionless(String),
}

/// The record as bytes.
#[must_use]
pub fn write(record: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("strings and numbers in structs always have a JSON form");
    format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes())).into_bytes()
}

/// The version and the JSON of a sound record of at most `bytes_max` bytes.
pub fn read(bytes: &[u8], bytes_max: usize) -> Result<(u32, &str), LinesError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    if bytes.len() > bytes_max {
        return Err(LinesError::Long(bytes_max));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| LinesError::Binary)?;
    let lines = text.strip_suffix('\n').and_then(|text| text.split_once("\ncrc32c "));
    let (json, stated) = lines.ok_or(LinesError::Torn)?;
    let computed = format!("{:08x}", crc32c::crc32c(json.as_bytes()));
    if stated != computed {
        return Err(LinesError::Checksum { computed, stated: stated.to_owned() });
    }
    let Version { version } =
        serde_json::from_str(json).map_err(|error| LinesError::Versionless(error.to_string()))?;
    Ok((version, json))
}
