//! What the fuzz targets reach that is nobody else's business: the messages in frames, and the records of the store.

use super::frame::ServiceFrame;
use super::message::{Question, Reply, enclose, open};
use super::record;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn again<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Option<Vec<u8>> {
    let message: T = open(&ServiceFrame { id: 1, payload: payload.to_vec() }).ok()?;
    Some(enclose(1, &message).payload)
}

/// A question, decoded and encoded again.
#[must_use]
pub fn question(payload: &[u8]) -> Option<Vec<u8>> {
    again::<Question>(payload)
}

/// A reply, decoded and encoded again.
#[must_use]
pub fn reply(payload: &[u8]) -> Option<Vec<u8>> {
    again::<Reply>(payload)
}

/// The record of a VM's cell, decoded and encoded again.
#[must_use]
pub fn stored(vm: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    Some(record::encode(vm, &record::decode(vm, bytes).ok()?))
}

/// What a member keeps of a VM's cell, decoded and encoded again.
#[must_use]
pub fn register(vm: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    Some(record::encode_register(vm, &record::decode_register(vm, bytes).ok()?))
}

/// Whose member a store is, decoded and encoded again.
#[must_use]
pub fn members(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(record::encode_set(&record::decode_set(bytes).ok()?))
}
