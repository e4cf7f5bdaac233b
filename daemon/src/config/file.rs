//! The configuration file as text, and as a flat table of keys for those who compare two.

use super::ConfigError;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::{Table, Value};

/// Longest configuration file.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Every value of a configuration file under its whole name, `section.key`, for those who compare two.
pub fn keys(path: &Path) -> Result<BTreeMap<String, Value>, ConfigError> {
    let table: Table = toml::from_str(&read(path)?)
        .map_err(|source| ConfigError::Parse { file: path.to_owned(), source: Box::new(source) })?;
    let mut keys = BTreeMap::new();
    let mut waiting = vec![(String::new(), table)];
    while let Some((prefix, table)) = waiting.pop() {
        for (key, value) in table {
            match value {
                Value::Table(inner) => waiting.push((format!("{prefix}{key}."), inner)),
                other => drop(keys.insert(format!("{prefix}{key}"), other)),
            }
        }
    }
    Ok(keys)
}

/// The whole text.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let read_error = |source| ConfigError::Read { file: path.to_owned(), source };
    let mut text = String::new();
    File::open(path)
        .map_err(read_error)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(read_error)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong { file: path.to_owned() });
    }
    Ok(text)
}
