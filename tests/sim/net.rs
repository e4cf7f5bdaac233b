//! Links between the two nodes, each a stream and a pulse: bytes in order on either, delays, black holes in either
//! direction, resets that reach the two ends at different times or not at all.

use std::collections::BTreeMap;

use ft_checkpoint::wire::Message;
use ftd::peer::Outgoing;
use ftd::role::{ConnId, Micros};
use rand::Rng;

use crate::model::{Input, Item, Msg};
use crate::schedule::Act;
use crate::stats::Count;
use crate::trace;
use crate::world::World;

/// One link. Side 0 dialled.
#[derive(Clone, Debug)]
pub struct Conn {
    pub node: [usize; 2],
    pub inc: [u32; 2],
    pub open: [bool; 2],
    /// What each side sends, by [`Lane`].
    ways: [[Way; 2]; 2],
    /// What this side sends is lost.
    lost: [bool; 2],
    /// The stream swallows everything, both ways, and stays open.
    pub stuck: bool,
}

/// The two connections of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Stream,
    Pulse,
}

/// One direction of a connection.
#[derive(Clone, Debug, Default)]
struct Way {
    /// How many items have been sent.
    sent: u64,
    /// How many have been delivered: bytes stay in order.
    delivered: u64,
    /// Came in ahead of something that is still under way.
    early: BTreeMap<u64, Item>,
    /// Fell into a black hole: repeated when it is over.
    stalled: Vec<(u64, Item)>,
    /// When what was sent so far has left its host: one item after the other.
    leaves_at: Micros,
}

/// The network.
#[derive(Clone, Debug, Default)]
pub struct Net {
    pub conns: Vec<Conn>,
    /// Nothing passes from this node.
    pub cut_from: [bool; 2],
    /// How many cuts of that direction are under way.
    pub cuts: [u32; 2],
    pub lag_us: Micros,
    /// What a KiB takes on the link.
    pub us_per_kib: Micros,
    /// The nodes do not fit each other: every hello is refused for good.
    pub misfit: bool,
}

impl World {
    fn delay(&mut self) -> Micros {
        let base = self.knobs.net_us;
        let jitter = self.rng.random_range(0..=base);
        base / 4 + jitter + if self.net.lag_us > 0 { self.rng.random_range(0..=self.net.lag_us) } else { 0 }
    }

    /// Opens a connection from node `n`; its hello is the first message on it.
    pub fn connect(&mut self, n: usize, hello: Msg) -> ConnId {
        let conn = self.net.conns.len() as ConnId;
        self.net.conns.push(Conn {
            node: [n, 1 - n],
            inc: [self.nodes[n].inc, 0],
            open: [true, false],
            ways: Default::default(),
            lost: [false; 2],
            stuck: false,
        });
        self.post(conn, 0, Lane::Stream, Item::Msg(hello));
        conn
    }

    fn side(&self, n: usize, conn: ConnId) -> usize {
        usize::from(self.net.conns[conn as usize].node[0] != n)
    }

    /// Whether this node's process holds an open end of the connection.
    pub fn is_open(&self, n: usize, conn: ConnId) -> bool {
        let side = self.side(n, conn);
        let conn = &self.net.conns[conn as usize];
        conn.open[side] && conn.inc[side] == self.nodes[n].inc
    }

    /// Sends a message; into nothing when the connection is closed.
    pub fn send(&mut self, n: usize, conn: ConnId, msg: Msg) {
        if self.is_open(n, conn) {
            trace!(self, "{} sends on {conn}: {msg:?}", crate::model::NAMES[n]);
            let side = self.side(n, conn);
            self.post(conn, side, Lane::Stream, Item::Msg(msg));
        }
    }

    /// A pulse's writer takes up what it is to say. A heartbeat is stamped now.
    pub fn take_beat(&mut self, n: usize, conn: ConnId) {
        let pulses = &mut self.nodes[n].exec.pulses;
        let Some(at) = pulses.iter().position(|(known, _)| *known == conn) else { return };
        let (_, outgoing) = pulses.swap_remove(at);
        if !self.is_open(n, conn) {
            return;
        }
        let message = match outgoing {
            Outgoing::Heartbeat { lease } => {
                Message::Heartbeat { stamp_us: self.nodes[n].clock(self.now), lease_us: lease }
            }
            Outgoing::Echo { stamp, lease } => Message::Echo { stamp_us: stamp, lease_us: lease },
        };
        let side = self.side(n, conn);
        self.post(conn, side, Lane::Pulse, Item::Msg(Msg::Said(message)));
    }

    fn post(&mut self, id: ConnId, from: usize, lane: Lane, item: Item) {
        let takes_us = match &item {
            Item::Msg(msg) => msg.kib() * self.net.us_per_kib,
            Item::Fin => 0,
        };
        let way = &mut self.net.conns[id as usize].ways[from][lane as usize];
        let nth = way.sent;
        way.sent += 1;
        let leaves_at = way.leaves_at.max(self.now) + takes_us;
        way.leaves_at = leaves_at;
        let delay = leaves_at - self.now + self.delay();
        self.later(delay, Act::Deliver { conn: id, from, lane, nth, item });
    }

    /// An item reaches the other end, or falls into a black hole on the way.
    pub fn deliver(&mut self, id: ConnId, from: usize, lane: Lane, nth: u64, item: Item) {
        let conn = &mut self.net.conns[id as usize];
        if conn.lost[from] || conn.stuck && lane == Lane::Stream {
            return;
        }
        if self.net.cut_from[conn.node[from]] {
            conn.ways[from][lane as usize].stalled.push((nth, item));
            return;
        }
        conn.ways[from][lane as usize].early.insert(nth, item);
        loop {
            let way = &mut self.net.conns[id as usize].ways[from][lane as usize];
            let Some(item) = way.early.remove(&way.delivered) else { return };
            way.delivered += 1;
            self.deliver_next(id, from, item);
        }
    }

    fn deliver_next(&mut self, id: ConnId, from: usize, item: Item) {
        let to = 1 - from;
        let conn = &mut self.net.conns[id as usize];
        if conn.lost[from] {
            return;
        }
        let n = conn.node[to];
        if let Item::Msg(Msg::Hello { .. }) = item
            && self.nodes[n].up
        {
            conn.inc[to] = self.nodes[n].inc;
            conn.open[to] = true;
        }
        if !conn.open[to] || conn.inc[to] != self.nodes[n].inc {
            if !self.nodes[n].silent && conn.open[from] {
                // The kernel of that end resets the connection.
                conn.lost[from] = true;
                let delay = self.delay();
                self.later(delay, Act::Reset { conn: id, side: from });
            }
            return;
        }
        self.incoming(n, Input::Net(id, item));
    }

    /// The kernel of one end learns that the connection is gone.
    pub fn reset(&mut self, id: ConnId, side: usize) {
        let conn = &mut self.net.conns[id as usize];
        let n = conn.node[side];
        if !conn.open[side] || conn.inc[side] != self.nodes[n].inc {
            return;
        }
        if self.net.cut_from[conn.node[1 - side]] {
            self.later(5_000, Act::Reset { conn: id, side });
            return;
        }
        self.incoming(n, Input::Reset(id));
    }

    /// Closes this node's end: in order, or by a reset that overtakes what was sent.
    pub fn close(&mut self, n: usize, id: ConnId, in_order: bool) {
        if !self.is_open(n, id) {
            return;
        }
        let side = self.side(n, id);
        self.net.conns[id as usize].open[side] = false;
        if in_order {
            self.post(id, side, Lane::Stream, Item::Fin);
        } else {
            self.net.conns[id as usize].lost[side] = true;
            let delay = self.delay();
            self.later(delay, Act::Reset { conn: id, side: 1 - side });
        }
        self.forget_conn(n, id);
    }

    /// All ends of a process are gone, with or without its kernel saying so.
    pub fn close_all(&mut self, n: usize, silent: bool) {
        for id in 0..self.net.conns.len() as ConnId {
            if !self.is_open(n, id) {
                continue;
            }
            if silent {
                let side = self.side(n, id);
                self.net.conns[id as usize].open[side] = false;
            } else {
                let in_order = self.rng.random_bool(0.5);
                self.close(n, id, in_order);
            }
        }
    }

    /// Both ends lose the newest connection, each in its own time.
    pub fn break_newest(&mut self, spread_us: Micros, one_side: bool) {
        let Some(id) = self.net.conns.len().checked_sub(1) else { return };
        self.net.conns[id].lost = [true; 2];
        let only = self.rng.random_range(0..2);
        for side in 0..2 {
            if one_side && side != only {
                continue;
            }
            let delay = self.rng.random_range(0..=spread_us);
            self.later(delay, Act::Reset { conn: id as ConnId, side });
        }
    }

    /// The newest link's stream swallows everything from now on; its pulse beats.
    pub fn stick_newest(&mut self) {
        if let Some(conn) = self.net.conns.last_mut() {
            conn.stuck = true;
            self.stats.add(Count::FaultStuck);
        }
    }

    pub fn cut(&mut self, from: usize) {
        self.net.cuts[from] += 1;
        self.net.cut_from[from] = true;
    }

    pub fn heal_cut(&mut self, from: usize) {
        self.net.cuts[from] = self.net.cuts[from].saturating_sub(1);
        if self.net.cuts[from] > 0 || !self.net.cut_from[from] {
            return;
        }
        self.net.cut_from[from] = false;
        for id in 0..self.net.conns.len() {
            let side = usize::from(self.net.conns[id].node[0] != from);
            for lane in [Lane::Stream, Lane::Pulse] {
                let stalled = std::mem::take(&mut self.net.conns[id].ways[side][lane as usize].stalled);
                for (nth, item) in stalled {
                    let delay = self.delay();
                    self.later(delay, Act::Deliver { conn: id as ConnId, from: side, lane, nth, item });
                }
            }
        }
    }
}
