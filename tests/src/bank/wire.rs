//! PostgreSQL's protocol 3.0, as much as a client of simple queries needs (its manual, "Frontend/Backend Protocol").

use crate::kv::connection::{ConnectionError, read_by};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A message longer than this is none that the client has asked for.
const MESSAGE_MAX: usize = 1 << 20;
/// Protocol 3.0.
const PROTOCOL: i32 = 3 << 16;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BankError {
    /// There is no connection, or no longer.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// What came is not of the protocol.
    #[error("not a message of PostgreSQL's: {0}")]
    Malformed(&'static str),
    /// The server wants a password, or does not take the client for another reason.
    #[error("the server refuses the client: {0}")]
    Refused(String),
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// Authentication: this kind is wanted, 0: none, it is done.
    Authentication(i32),
    /// A row's columns, as text.
    Row(Vec<Option<String>>),
    /// A command is complete, with its tag.
    Complete(String),
    /// SQLSTATE and text.
    Error(String),
    /// The server waits for the next query.
    Ready,
    /// What the client need not know.
    Other(u8),
}

/// The first message in what was received, and its bytes. `None`: not all of it is there yet.
pub fn first_message(received: &[u8]) -> Result<Option<(ServerMessage, usize)>, BankError> {
    let Some((head, _)) = received.split_first_chunk::<5>() else { return Ok(None) };
    let [kind, length @ ..] = *head;
    // The length counts itself.
    let length = usize::try_from(i32::from_be_bytes(length)).map_err(|_| BankError::Malformed("length"))?;
    if !(4..=MESSAGE_MAX).contains(&length) {
        return Err(BankError::Malformed("length"));
    }
    let Some(body) = received.get(5..1 + length) else { return Ok(None) };
    let message = match kind {
        b'R' => {
            let kind = body.first_chunk().ok_or(BankError::Malformed("authentication"))?;
            ServerMessage::Authentication(i32::from_be_bytes(*kind))
        }
        b'D' => ServerMessage::Row(row(body).ok_or(BankError::Malformed("row"))?),
        b'C' => ServerMessage::Complete(text(body.strip_suffix(b"\0").unwrap_or(body))),
        b'E' => ServerMessage::Error(error(body)),
        b'Z' => ServerMessage::Ready,
        other => ServerMessage::Other(other),
    };
    Ok(Some((message, 1 + length)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk()?;
        rest = behind;
        columns.push(match i32::from_be_bytes(*length) {
            -1 => None,
            length => {
                let (value, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                rest = behind;
                Some(text(value))
            }
        });
    }
    rest.is_empty().then_some(columns)
}

/// SQLSTATE (field C) and the message (field M).
fn error(body: &[u8]) -> String {
    let field = |kind| body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(&[kind])).map(text);
    format!("{} {}", field(b'C').unwrap_or_default(), field(b'M').unwrap_or_default())
}

/// What a query was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryAnswer {
    /// The rows of all its commands.
    pub rows: Vec<Vec<Option<String>>>,
    /// The tag of the last command that was completed, as `UPDATE 1`.
    pub tag: String,
    /// What failed.
    pub error: Option<String>,
}

/// A connection: one query at a time.
pub struct BankConnection {
    stream: TcpStream,
    received: Vec<u8>,
    answer: QueryAnswer,
}

impl BankConnection {
    /// Connects to the database `bank` as its superuser, whom the server has to trust.
    pub fn open(addr: SocketAddr, timeout: Duration) -> Result<Self, BankError> {
        let connect = |source| ConnectionError::Connect { addr, source };
        let stream = TcpStream::connect_timeout(&addr, timeout).map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        stream.set_write_timeout(Some(timeout)).map_err(connect)?;
        let mut database = Self { stream, received: Vec::new(), answer: QueryAnswer::default() };
        let parameters = b"user\0postgres\0database\0bank\0application_name\0ft-bank\0\0";
        let mut start = (8 + parameters.len() as i32).to_be_bytes().to_vec();
        start.extend(PROTOCOL.to_be_bytes());
        start.extend(parameters);
        database.write(&start)?;
        match database.receive(timeout)? {
            None => Err(ConnectionError::TimedOut(timeout).into()),
            Some(QueryAnswer { error: Some(error), .. }) => Err(BankError::Refused(error)),
            Some(_) => Ok(database),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BankError> {
        Ok(self.stream.write_all(bytes).map_err(ConnectionError::from)?)
    }

    /// Sends one query.
    pub fn send(&mut self, sql: &str) -> Result<(), BankError> {
        let mut query = vec![b'Q'];
        query.extend((5 + sql.len() as i32).to_be_bytes());
        query.extend(sql.as_bytes());
        query.push(0);
        self.write(&query)
    }

    /// Waits up to `wait` for the end of the answer. `None`: not yet.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<QueryAnswer>, BankError> {
        let deadline = Instant::now() + wait;
        loop {
            while let Some((message, bytes)) = first_message(&self.received)? {
                self.received.drain(..bytes);
                match message {
                    ServerMessage::Ready => return Ok(Some(std::mem::take(&mut self.answer))),
                    ServerMessage::Row(row) => self.answer.rows.push(row),
                    ServerMessage::Complete(tag) => self.answer.tag = tag,
                    ServerMessage::Error(error) => self.answer.error = Some(error),
                    ServerMessage::Authentication(0) | ServerMessage::Other(_) => {}
                    ServerMessage::Authentication(_) => {
                        return Err(BankError::Refused("it wants a password".to_owned()));
                    }
                }
            }
            let is_there = read_by(&mut self.stream, &mut self.received, deadline);
            // Before it closes the connection, the server says why.
            match (is_there, self.answer.error.take()) {
                (Ok(true), error) => self.answer.error = error,
                (Ok(false), error) => {
                    self.answer.error = error;
                    return Ok(None);
                }
                (Err(ConnectionError::Closed), Some(error)) => return Err(BankError::Refused(error)),
                (Err(error), _) => return Err(error.into()),
            }
        }
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, sql: &str, timeout: Duration) -> Result<QueryAnswer, BankError> {
        self.send(sql)?;
        Ok(self.receive(timeout)?.ok_or(ConnectionError::TimedOut(timeout))?)
    }
}
