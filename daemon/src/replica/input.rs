//! What reaches the executor, and what it means to the core: the rooms know nothing of the core's events.

use super::arbiter_thread::Answer;
use crate::arbiter;
use crate::control::Wish;
use crate::keeper::{self, Awaiting, FromPrimary};
use crate::peer::{self, Ending};
use crate::role::{ConnId, Event, Gone, Outcome};

/// The news of every room, in one queue.
pub enum Input {
    /// Of the connections.
    Peer(peer::News),
    /// Of the machine.
    Keeper(keeper::News),
    /// Of the arbiter.
    Arbiter(Answer),
    /// Of the operator.
    Control(Wish),
}

impl From<Answer> for Event {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Read(cell) => Self::CellRead(cell.map_err(|e| e.to_string())),
            Answer::Set(outcome) => Self::CellSet(match outcome {
                arbiter::Outcome::Won(cell) => Outcome::Won(cell),
                arbiter::Outcome::Lost(cell) => Outcome::Lost(cell),
                arbiter::Outcome::NotAttempted(e) => Outcome::NotAttempted(e.to_string()),
                arbiter::Outcome::Unknown(e) => Outcome::Unknown(e.to_string()),
            }),
        }
    }
}

impl From<Ending> for Gone {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Lost(e) => Self::Lost(e.to_string()),
            Ending::Bye(why) => Self::Bye(why),
        }
    }
}

impl From<Awaiting> for Event {
    /// All the log is executed.
    fn from(awaited: Awaiting) -> Self {
        match awaited {
            Awaiting::Verification { epoch } => Self::Verified { epoch },
            Awaiting::HandOver { conn, epoch } => Self::HandedOver { conn, epoch },
        }
    }
}

/// What came in from the primary, as the core takes it.
pub(super) fn event_of_primary(conn: ConnId, said: FromPrimary) -> Event {
    match said {
        FromPrimary::Alive => Event::Heard { conn },
        FromPrimary::Heartbeat { stamp } => Event::Heartbeat { conn, stamp },
        FromPrimary::Sealed { pairing, epoch, stamp } => Event::Sealed { conn, pairing, epoch, stamp },
        FromPrimary::Paired { generation } => Event::Paired { conn, generation },
        FromPrimary::HandedOver { epoch } => Event::HandedOver { conn, epoch },
    }
}
