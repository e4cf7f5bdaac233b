//! What the fuzz targets reach that is nobody else's business: the answers of etcd.

use super::message::{Answered, probed, ranged, refusal, token, was_set};

/// What an answer says to everything that could have been asked; none if it is no answer of etcd's.
#[must_use]
pub fn answer(body: &[u8], key: &str) -> Option<String> {
    let refused = refusal(body);
    let answered = Answered::new(body.to_vec()).ok()?;
    let said = (ranged(&answered, key), was_set(&answered, key), probed(&answered, key), token(&answered));
    Some(format!("{refused:?} {said:?}"))
}
