//! What the fuzz targets reach that is nobody else's business: a line of the control socket.

use super::api::{PROTOCOL_VERSION, RequestLine};
use super::caller::RequestEffect;
use super::server::parse;

/// What is known of a line that is a request.
pub struct ReadLine {
    /// What it does.
    pub effect: RequestEffect,
    /// What it is called.
    pub name: &'static str,
    /// Encoded again.
    pub again: Vec<u8>,
}

/// A request's line, decoded, classed and encoded again; none: it is none.
#[must_use]
pub fn request(line: &[u8]) -> Option<ReadLine> {
    let request = parse(line).ok()?;
    let (effect, name) = (request.effect(), request.name());
    let again = serde_json::to_vec(&RequestLine { version: PROTOCOL_VERSION, request }).ok()?;
    Some(ReadLine { effect, name, again })
}
