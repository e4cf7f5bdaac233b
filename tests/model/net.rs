//! The connections: each a stream and a pulse in either direction, in order. What was sent arrives at the same instant,
//! unless the lane stands still, or one end is given up.

use std::collections::VecDeque;

use ft_checkpoint::wire::message::Standing;
use ftd::role::{ConnId, Event, Gone, Held, Micros, PairingStart};

use crate::mutant::Mutant;
use crate::world::{NAMES, STEP_US, Seal, World};

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    Hello {
        nonce: u64,
        generation: u64,
        held: Option<Held>,
    },
    Welcome {
        generation: u64,
        pairing: u64,
        how: PairingStart,
    },
    Refuse,
    Checkpoint {
        pairing: u64,
        epoch: u64,
        counter: u64,
        stamp: Micros,
    },
    Ack {
        epoch: u64,
        stamp: Micros,
    },
    Heartbeat {
        stamp: Micros,
        lease: Micros,
    },
    Echo {
        stamp: Micros,
        lease: Micros,
    },
    Standing(Standing),
    Paired {
        generation: u64,
    },
    Offer {
        epoch: u64,
    },
    TookOver {
        generation: u64,
    },
    Decline,
    Bye,
    /// The other end is closed.
    Fin,
}

/// One direction of one of a link's two connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lane {
    pub letters: VecDeque<Letter>,
    /// Nothing on it arrives.
    pub stalled: bool,
}

pub const STREAM: usize = 0;
pub const PULSE: usize = 1;

/// A link. `open`: by node, whether that end is.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub conn: ConnId,
    pub open: [bool; 2],
    /// A node whose host is gone without a word.
    pub silent: Option<usize>,
    /// By the sending node, then stream and pulse.
    pub lanes: [[Lane; 2]; 2],
}

impl World {
    pub fn wire(&self, conn: ConnId) -> Option<usize> {
        self.wires.iter().position(|wire| wire.conn == conn)
    }

    pub fn is_open(&self, n: usize, conn: ConnId) -> bool {
        self.wire(conn).is_some_and(|at| self.wires[at].open[n])
    }

    pub fn send(&mut self, n: usize, conn: ConnId, letter: Letter) {
        let Some(at) = self.wire(conn).filter(|at| self.wires[*at].open[n]) else { return };
        let is_pulse = matches!(letter, Letter::Heartbeat { .. } | Letter::Echo { .. });
        let letters = &mut self.wires[at].lanes[n][if is_pulse { PULSE } else { STREAM }].letters;
        if is_pulse && letters.len() > 1 {
            // One is on its way, and the newest takes the place of what still waits.
            letters.pop_back();
        }
        letters.push_back(letter);
    }

    /// Closes this node's end; what it has sent still arrives, or not.
    pub fn close(&mut self, n: usize, conn: ConnId, in_order: bool) {
        let Some(at) = self.wire(conn).filter(|at| self.wires[*at].open[n]) else { return };
        let wire = &mut self.wires[at];
        if !in_order {
            wire.lanes[n].iter_mut().for_each(|lane| lane.letters.clear());
        }
        wire.lanes[n][STREAM].letters.push_back(Letter::Fin);
        self.close_end(n, at);
        self.sweep();
    }

    fn close_end(&mut self, n: usize, at: usize) {
        let wire = &mut self.wires[at];
        let conn = wire.conn;
        wire.open[n] = false;
        wire.lanes[1 - n].iter_mut().for_each(|lane| lane.letters.clear());
        let host = &mut self.nodes[n];
        host.receives.take_if(|(from, _)| *from == conn);
        host.attempt.take_if(|(attempt, _)| *attempt == conn);
        host.links.retain(|link| *link != conn);
        host.arriving.retain(|arriving| *arriving != conn);
    }

    /// A process is gone, and with it its end.
    pub fn abandon_end(&mut self, n: usize, at: usize, silent: bool) {
        if !self.wires[at].open[n] {
            return;
        }
        if silent {
            self.wires[at].silent = Some(n);
        } else {
            self.wires[at].lanes[n][STREAM].letters.push_back(Letter::Fin);
        }
        self.close_end(n, at);
    }

    /// A host is there again: it knows nothing of its old connections, and says so.
    pub fn forget_silent_ends(&mut self, n: usize) {
        for wire in self.wires.iter_mut().filter(|wire| wire.silent == Some(n)) {
            wire.silent = None;
            wire.lanes[n][STREAM].letters.push_back(Letter::Fin);
        }
    }

    /// A connection whose ends are both closed is no more.
    pub fn sweep(&mut self) {
        let awaited = |wire: &Wire| {
            let hello = |n: usize| {
                wire.open[n] && matches!(wire.lanes[n][STREAM].letters.front(), Some(Letter::Hello { .. }))
            };
            wire.open[0] || wire.open[1] || hello(0) || hello(1)
        };
        self.wires.retain(awaited);
    }

    /// Both ends lose a connection, and all that is on it. Each hears of it unless its lane stands still.
    pub fn cut(&mut self, at: usize) {
        for lanes in &mut self.wires[at].lanes {
            lanes.iter_mut().for_each(|lane| lane.letters.clear());
            lanes[STREAM].letters.push_back(Letter::Fin);
        }
    }

    pub fn dial_on(&mut self, n: usize) {
        let patient = 6 * STEP_US;
        match self.nodes[n].attempt {
            _ if !self.nodes[n].dialling => return,
            Some((_, since)) if self.now < since + patient => return,
            Some((conn, _)) => self.close(n, conn, false),
            None => {}
        }
        if !self.nodes[1 - n].is_up() {
            return;
        }
        self.serial.conn += 1;
        let conn = self.serial.conn;
        let open = [n == 0, n == 1];
        self.wires.push(Wire { conn, open, silent: None, lanes: Default::default() });
        let host = &mut self.nodes[n];
        host.attempt = Some((conn, self.now));
        let generation = host.core.as_ref().map_or(0, |core| core.generation());
        let (nonce, held) = (host.nonce, host.image.map(|image| image.held));
        self.send(n, conn, Letter::Hello { nonce, generation, held });
    }

    /// Whether the next letter of this lane can arrive.
    pub fn is_deliverable(&self, at: usize, from: usize, lane: usize) -> bool {
        let found = &self.wires[at].lanes[from][lane];
        !found.stalled && !found.letters.is_empty() && !self.nodes[1 - from].frozen
    }

    /// The next letter arrives.
    pub fn deliver(&mut self, at: usize, from: usize, lane: usize) {
        let n = 1 - from;
        let wire = &mut self.wires[at];
        let conn = wire.conn;
        let Some(letter) = wire.lanes[from][lane].letters.pop_front() else { return };
        let opens = matches!(letter, Letter::Hello { .. });
        if opens && self.nodes[n].is_up() {
            wire.open[n] = true;
        }
        if !wire.open[n] {
            // The kernel of that end resets the connection.
            if wire.silent != Some(n) && wire.open[from] {
                wire.lanes[n][STREAM].letters.push_back(Letter::Fin);
            }
            return;
        }
        let Some(event) = self.take_letter(n, conn, letter) else { return };
        self.feed(n, event);
        self.sweep();
    }

    fn take_letter(&mut self, n: usize, conn: ConnId, letter: Letter) -> Option<Event> {
        Some(match letter {
            Letter::Fin => {
                if !self.nodes[n].links.contains(&conn) {
                    self.nodes[n].dialling &= self.mutant != Some(Mutant::DialsOnce);
                    self.close(n, conn, true);
                    return None;
                }
                Event::PeerGone { conn, why: Gone::Lost("closed".into()) }
            }
            Letter::Hello { nonce, generation, held } => {
                self.nodes[n].arriving.push(conn);
                Event::PeerHello { conn, nonce, generation, held }
            }
            Letter::Refuse if self.nodes[n].links.contains(&conn) => {
                Event::PeerGone { conn, why: Gone::Bye("refused".into()) }
            }
            Letter::Refuse => {
                self.close(n, conn, true);
                Event::DialFailed { why: "refused".into(), permanent: false, answered: true }
            }
            Letter::Welcome { generation, pairing, how } => {
                let host = &mut self.nodes[n];
                (host.attempt, host.dialling) = (None, false);
                host.arriving.push(conn);
                Event::Welcomed { conn, generation, pairing, how }
            }
            Letter::Checkpoint { pairing, epoch, counter, stamp } => {
                return self.seal(n, conn, Seal { held: Held { pairing, epoch }, counter }, stamp);
            }
            Letter::Ack { epoch, stamp } => Event::Ack { conn, epoch, stamp },
            // It is promised nothing, and granted all the same.
            Letter::Heartbeat { stamp, .. } if self.mutant == Some(Mutant::NoPromise) => {
                Event::Heartbeat { conn, stamp, lease: 0 }
            }
            Letter::Heartbeat { stamp, lease } => Event::Heartbeat { conn, stamp, lease },
            Letter::Echo { lease, .. } if self.mutant == Some(Mutant::StampsAtArrival) => {
                Event::Echo { conn, stamp: self.now, lease }
            }
            Letter::Echo { stamp, lease } => Event::Echo { conn, stamp, lease },
            Letter::Standing(said) => Event::Standing { conn, said },
            Letter::Paired { generation } => Event::Paired { conn, generation },
            Letter::Offer { epoch } => Event::SwitchoverOffered { conn, epoch },
            Letter::TookOver { generation } => Event::PeerTookOver { conn, generation },
            Letter::Decline => Event::SwitchoverDeclined { conn, why: "declined".into() },
            Letter::Bye => Event::PeerGone { conn, why: Gone::Bye("bye".into()) },
        })
    }

    /// A checkpoint is complete: it must be the one after what is held.
    fn seal(&mut self, n: usize, conn: ConnId, seal: Seal, stamp: Micros) -> Option<Event> {
        let Held { pairing, epoch } = seal.held;
        if self.nodes[n].receives != Some((conn, pairing)) {
            return None;
        }
        let held = self.nodes[n].image.map(|image| image.held).filter(|held| held.pairing == pairing);
        if held.is_some_and(|held| epoch != held.epoch + 1) {
            return Some(Event::PeerGone { conn, why: Gone::Lost("an epoch is missing".into()) });
        }
        let before = self.nodes[n].image.filter(|_| held.is_some());
        let applied = match (self.mutant, before) {
            (Some(Mutant::AppliesNothing), Some(before)) => Seal { counter: before.counter, ..seal },
            _ => seal,
        };
        self.nodes[n].image = Some(applied);
        self.known.note_sealed(pairing, seal.counter);
        Some(Event::Sealed { conn, pairing, epoch, stamp })
    }

    /// What a primary captured goes to its backup, if there is a connection.
    pub fn send_checkpoint(&mut self, n: usize, epoch: u64, counter: u64) {
        let Some(ships) = &self.nodes[n].ships else { return };
        let (Some(conn), pairing, stamp) = (ships.conn, ships.pairing, self.now) else { return };
        self.send(n, conn, Letter::Checkpoint { pairing, epoch, counter, stamp });
    }

    pub fn describe_wire(&self, at: usize, from: usize, lane: usize) -> String {
        let letter = self.wires[at].lanes[from][lane].letters.front();
        format!("{} -> {}: {letter:?}", NAMES[from], NAMES[1 - from])
    }
}
