//! The VM's way to the network and its disk on each host. In some schedules they come and go, and a VM that nobody
//! reaches, or whose disk stands still, moves. In some the backup's disk images are found to differ.

use ft_checkpoint::wire::Message;
use ft_checkpoint::wire::message::Network;
use ftd::role::{ConnId, Event, Micros, Reach, Whose};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::model::{Input, Msg, NAMES};
use crate::mutant::Mutant;
use crate::schedule::Act;
use crate::stats::Count;
use crate::world::World;

/// What was the matter not longer ago than this may still be what a VM moves for.
const LATELY_US: Micros = 10_000_000;

/// Draws when a node's disk stands still, for a time.
pub fn draw_disks(seed: u64, until: Micros) -> Vec<(Micros, Act)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(24) ^ 0xd15c);
    if !rng.random_bool(0.15) {
        return Vec::new();
    }
    let n = rng.random_range(0..2);
    let from = rng.random_range(100_000..until);
    let to = from + rng.random_range(50_000..3_000_000);
    vec![(from, Act::Disk { n, stands: true }), (to, Act::Disk { n, stands: false })]
}

/// Draws when a comparison shows that the images of a node's backup differ, and when that they do not any more.
pub fn draw_images(seed: u64, until: Micros) -> Vec<(Micros, Act)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(40) ^ 0xd1ff);
    if !rng.random_bool(0.1) {
        return Vec::new();
    }
    let n = rng.random_range(0..2);
    let from = rng.random_range(100_000..until);
    let to = from + rng.random_range(50_000..3_000_000);
    vec![(from, Act::Images { n, differ: true }), (to, Act::Images { n, differ: false })]
}

/// Draws when it comes and goes, on which node, from numbers of its own. Both nodes begin by saying that it is well.
pub fn draw(seed: u64, until: Micros) -> Vec<(Micros, Act)> {
    let mut rng = SmallRng::seed_from_u64(seed.rotate_left(16) ^ 0x7a9e);
    if !rng.random_bool(0.2) {
        return Vec::new();
    }
    let well = (0..2).map(|n| (50_000, Act::Uplink { n, is_cut_off: false }));
    let changes = (0..rng.random_range(1..6)).map(|_| {
        let at = rng.random_range(100_000..until);
        (at, Act::Uplink { n: rng.random_range(0..2), is_cut_off: rng.random_bool(0.6) })
    });
    well.chain(changes.collect::<Vec<_>>()).collect()
}

fn reach(is_cut_off: bool) -> Reach {
    if is_cut_off { Reach::CutOff } else { Reach::Open }
}

/// What a message says of its sender's network.
pub fn seen(network: &Network) -> Event {
    Event::NetworkSeen { whose: Whose::Peers, reach: reach(network.is_cut_off) }
}

impl World {
    /// The network of a node's host is so now, and stays so whatever becomes of the process.
    pub fn uplink(&mut self, n: usize, is_cut_off: bool) {
        self.stats.add(Count::FaultUplink);
        if self.nodes[n].is_cut_off == Some(true) {
            self.nodes[n].was_cut_off_at = Some(self.now);
        }
        self.nodes[n].is_cut_off = Some(is_cut_off);
        self.look_at_network(n);
        for conn in self.nodes[n].exec.links.clone() {
            self.tell_network(n, conn);
        }
    }

    /// A disk of the VM stands still on this node, or goes on again.
    pub fn disk(&mut self, n: usize, stands: bool) {
        self.stats.add(Count::FaultDisk);
        self.nodes[n].disk_stands = stands;
        self.incoming(n, Input::Event(Event::DiskSeen { stands }));
    }

    /// A comparison shows that the images of a node's backup differ, or do not any more.
    pub fn images(&mut self, n: usize, differ: bool) {
        if self.nodes[n].exec.repl.is_some() {
            self.stats.add(Count::FaultImages);
            let differ = differ.then(|| "1 extent of 1 MiB differs".to_owned());
            self.incoming(n, Input::Event(Event::ImagesCompared { differ }));
        }
    }

    /// A node's process hears of its own disk.
    pub fn look_at_disk(&mut self, n: usize) {
        if self.nodes[n].disk_stands {
            self.incoming(n, Input::Event(Event::DiskSeen { stands: true }));
        }
    }

    /// A node's process hears of its own host's network.
    pub fn look_at_network(&mut self, n: usize) {
        if let Some(is_cut_off) = self.nodes[n].is_cut_off {
            let event = Event::NetworkSeen { whose: Whose::Ours, reach: reach(is_cut_off) };
            self.incoming(n, Input::Event(event));
        }
    }

    /// It tells its peer.
    pub fn tell_network(&mut self, n: usize, conn: ConnId) {
        if let Some(is_cut_off) = self.nodes[n].is_cut_off {
            let network = Network { is_cut_off, trouble: String::new() };
            self.send(n, conn, Msg::Said(Message::Network(network)));
        }
    }

    /// What the core gets to hear; and what was true of it, for the check.
    pub fn hear_of_surroundings(&mut self, n: usize, event: Event) -> Event {
        match event {
            Event::NetworkSeen { whose: Whose::Peers, reach } => {
                self.nodes[n].exec.peer_reach = reach;
                let reach = if self.mutant == Some(Mutant::MovesAnywhere) { Reach::Open } else { reach };
                Event::NetworkSeen { whose: Whose::Peers, reach }
            }
            Event::DiskSeen { stands } => {
                let exec = &mut self.nodes[n].exec;
                exec.disk_stands = stands;
                Event::DiskSeen { stands: stands || self.mutant == Some(Mutant::DiskStandsForEver) }
            }
            Event::ImagesCompared { differ } => {
                // What was found of a pairing that is over is not told.
                if let Some(repl) = &mut self.nodes[n].exec.repl {
                    repl.images_differ = differ.is_some();
                }
                let is_deaf = self.mutant == Some(Mutant::DeafToImages);
                Event::ImagesCompared { differ: differ.filter(|_| !is_deaf) }
            }
            Event::SwitchoverRequested { .. } | Event::StopRequested { .. } => {
                self.nodes[n].exec.was_asked_to_move = true;
                event
            }
            other => other,
        }
    }

    /// A node offers its VM to the other.
    pub fn check_move(&mut self, n: usize) {
        let exec = &self.nodes[n].exec;
        if exec.was_asked_to_move {
            return;
        }
        let (reach, disk_stands) = (exec.peer_reach, exec.disk_stands);
        if exec.repl.as_ref().is_some_and(|repl| repl.images_differ) {
            return self.fail(format!("I9: {} moves the VM by itself to images that differ", NAMES[n]));
        }
        let node = &self.nodes[n];
        let lately = |at: Option<Micros>| at.is_some_and(|at| self.now.saturating_sub(at) < LATELY_US);
        let is_cut_off = node.is_cut_off == Some(true) || lately(node.was_cut_off_at);
        if disk_stands {
            self.stats.add(Count::MovedForDisk);
            if reach == Reach::CutOff && !is_cut_off {
                self.fail(format!(
                    "network: {} moves the VM for its disk to a host that is cut off",
                    NAMES[n]
                ));
            }
            return;
        }
        if !is_cut_off {
            return self.fail(format!("network: {} moves the VM without a cause", NAMES[n]));
        }
        self.stats.add(Count::MovedForNetwork);
        if reach != Reach::Open {
            self.fail(format!("network: {} moves the VM to a host that said: {reach:?}", NAMES[n]));
        }
    }
}
