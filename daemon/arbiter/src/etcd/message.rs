//! The messages of etcd's JSON gateway: requests as JSON, and what an answer says. Keys and values are base64, 64-bit
//! numbers are strings, and fields that are zero or empty are left out (the JSON mapping of protocol buffers).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The revision of the store at which it was written last.
    pub(super) mod_revision: u64,
    pub(super) value: Vec<u8>,
}

/// What became of a transaction that sets a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Set {
    Done,
    /// The key was not as expected: this is what it holds.
    Found(Option<Stored>),
}

/// Reads a key. Nothing is said of `serializable`, so the read is linearizable.
pub(super) fn range(key: &str) -> Value {
    json!({ "key": encode(key) })
}

/// Sets a key if it still holds what was found, written at that revision; otherwise reads it. The revision alone names
/// one write. The value is compared as well because revisions repeat in a cluster that was restored from a backup.
pub(super) fn set(key: &str, found: Option<&Stored>, value: &[u8]) -> Value {
    let key = encode(key);
    let compare = match found {
        None => json!([{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }]),
        Some(stored) => json!([
            { "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": stored.mod_revision.to_string() },
            { "key": key, "target": "VALUE", "result": "EQUAL", "value": encode(&stored.value) },
        ]),
    };
    json!({
        "compare": compare,
        "success": [{ "request_put": { "key": key, "value": encode(value) } }],
        "failure": [{ "request_range": { "key": key } }],
    })
}

/// Writes beside a key and reads it. No version is below zero, so the other branch is never taken; but etcd asks for
/// the permissions of both, and that one needs the permission to set the key. It would leave the value as it is.
pub(super) fn probe(key: &str, beside: &str) -> Value {
    let key = encode(key);
    json!({
        "compare": [{ "key": key, "target": "VERSION", "result": "GREATER", "version": "-1" }],
        "success": [
            { "request_put": { "key": encode(beside), "value": encode("probe") } },
            { "request_range": { "key": key } },
        ],
        "failure": [{ "request_put": { "key": key, "ignore_value": true } }],
    })
}

/// Asks for a token.
pub(super) fn login(user: &str, password: &str) -> Value {
    json!({ "name": user, "password": password })
}

/// A body that begins as every answer of etcd's does: with a header that names the cluster.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) cluster: u64,
    body: Vec<u8>,
}

impl Answered {
    pub(super) fn new(body: Vec<u8>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Header {
            cluster_id: Number,
            revision: Number,
        }
        #[derive(Deserialize)]
        struct Headed {
            header: Header,
        }
        let Headed { header } = parse(&body)?;
        match (header.cluster_id.0, header.revision.0) {
            (0, _) | (_, 0) => Err("its header names no cluster or no revision".into()),
            (cluster, _) => Ok(Self { cluster, body }),
        }
    }
}

/// The token in the answer to [`login`].
pub(super) fn token(answer: &Answered) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Token {
        token: String,
    }
    let Token { token } = parse(&answer.body)?;
    match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(token),
        false => Err("its token is not one".into()),
    }
}

/// The answer to [`range`].
pub(super) fn ranged(answer: &Answered, key: &str) -> Result<Option<Stored>, String> {
    parse::<Range>(&answer.body)?.stored(key)
}

/// The answer to [`set`].
pub(super) fn was_set(answer: &Answered, key: &str) -> Result<Set, String> {
    let txn: Txn = parse(&answer.body)?;
    match (txn.succeeded, <[Answer; 1]>::try_from(txn.responses)) {
        (true, Ok([Answer::Put {}])) => Ok(Set::Done),
        (false, Ok([Answer::Range(range)])) => range.stored(key).map(Set::Found),
        _ => Err("its answers are not to what was asked".into()),
    }
}

/// The answer to [`probe`].
pub(super) fn probed(answer: &Answered, key: &str) -> Result<Option<Stored>, String> {
    let txn: Txn = parse(&answer.body)?;
    match (txn.succeeded, <[Answer; 2]>::try_from(txn.responses)) {
        (true, Ok([Answer::Put {}, Answer::Range(range)])) => range.stored(key),
        _ => Err("its answers are not to what was asked".into()),
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// A status code of gRPC.
    pub(super) code: u32,
    pub(super) said: String,
}

/// The body of an answer whose HTTP status tells of an error; none if it is not one of the gateway's.
pub(super) fn refusal(body: &[u8]) -> Option<Refusal> {
    const SAID_CHARS_MAX: usize = 200;
    #[derive(Deserialize)]
    struct Said {
        code: u32,
        #[serde(alias = "error")]
        message: Option<String>,
    }
    // Both names at once would be a duplicate of one field: the older gateways send both, with the same text.
    let mut fields: serde_json::Map<String, Value> = parse(body).ok()?;
    if fields.contains_key("message") {
        fields.remove("error");
    }
    let Said { code, message } = serde_json::from_value(Value::Object(fields)).ok()?;
    let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
    Some(Refusal { code, said: message?.chars().take(SAID_CHARS_MAX).map(printable).collect() })
}

/// A 64-bit number as a string.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
struct Number(u64);

impl TryFrom<String> for Number {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    mod_revision: Number,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    count: Number,
}

impl Range {
    /// What the key holds. Whatever does not fit together is no answer: it must never pass for an empty cell.
    fn stored(self, key: &str) -> Result<Option<Stored>, String> {
        match (self.count.0, self.kvs.as_slice()) {
            (0, []) => Ok(None),
            (1, [found]) if found.key == encode(key) && found.mod_revision.0 > 0 => {
                let value = STANDARD.decode(&found.value).map_err(|error| format!("its value: {error}"))?;
                Ok(Some(Stored { mod_revision: found.mod_revision.0, value }))
            }
            _ => Err("it tells of other keys than the one asked for".into()),
        }
    }
}

#[derive(Deserialize)]
enum Answer {
    #[serde(rename = "response_put")]
    Put {},
    #[serde(rename = "response_range")]
    Range(Range),
}

#[derive(Deserialize)]
struct Txn {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<Answer>,
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}
