//! Replay mode: both hosts' machines make the same changes, each in its own time. Wherever the two images are not the
//! same, durably, one of the two maps says so.

use super::super::desk::{Desk, Order, Place};
use super::*;
use std::collections::VecDeque;

const PAIRING: u64 = 5;
const EXTENTS: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The guest asks for the change of this number.
    Taken(usize),
    /// It is shown that it is made.
    Shown(usize),
}

/// A host, and what became of each change there.
struct Host {
    desk: Desk,
    /// Extents that its map has, durably.
    map: BTreeSet<u64>,
    /// Of each extent, the change that the image has last: now, and durably.
    image: [[usize; 2]; EXTENTS as usize],
    /// Taken and not made, in order, and whether the image was asked for each.
    open: VecDeque<(usize, bool)>,
}

impl Host {
    fn new() -> Self {
        let desk = Desk::new([].into(), [(0, None)].into(), 0);
        Self { desk, map: BTreeSet::new(), image: Default::default(), open: VecDeque::new() }
    }

    fn is_made(&self, change: usize) -> bool {
        !self.open.iter().any(|(open, _)| *open == change)
    }

    /// The image is asked for the first change that nothing is in the way of.
    fn issue(&mut self, places: &[Place]) {
        for at in 0..self.open.len() {
            let (change, is_issued) = self.open[at];
            let place = places[change];
            let is_blocked = self.open.range(..at).any(|(earlier, _)| places[*earlier] == place);
            if is_issued || is_blocked {
                continue;
            }
            if self.desk.may_execute([place].into_iter()) == Clearance::Given {
                assert!(self.map.contains(&place.extent), "a change before its bit");
                self.desk.begun(Order { disk: 0, queue: 0, tag: change as u64 }, vec![place]);
                self.open[at].1 = true;
            }
            // Later ones wait as well.
            return;
        }
    }

    fn make(&mut self, places: &[Place]) {
        let Some(at) = self.open.iter().position(|(_, is_issued)| *is_issued) else { return };
        let (change, _) = self.open.remove(at).unwrap();
        self.image[places[change].extent as usize][0] = change + 1;
        self.desk.ended(Order { disk: 0, queue: 0, tag: change as u64 }, Outcome::Done);
    }

    fn flush(&mut self) {
        self.image.iter_mut().for_each(|[now, durable]| *durable = *now);
    }

    /// The thread of the map does what there is to do.
    fn carry_out(&mut self) {
        let Some(work) = self.desk.take() else { return };
        if !work.clear.is_empty() {
            self.flush();
        }
        self.map.extend(work.set.iter().map(|place| place.extent));
        for place in &work.clear {
            self.map.remove(&place.extent);
        }
        self.desk.done(&work);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u64),
    Issue(usize),
    Make(usize),
    CarryOut(usize),
    /// The primary's guest is shown one.
    Show(prop::sample::Index),
    Cut,
    Execute,
    /// The backup's images are flushed behind what it has executed, and it says so.
    Settle,
    /// The primary hears of it.
    Hear,
}

struct Pair {
    hosts: [Host; 2],
    places: Vec<Place>,
    /// With the epoch of each.
    log: Vec<(u64, Entry)>,
    epoch: u64,
    executed: usize,
    unshown: Vec<usize>,
    told: u64,
}

impl Pair {
    fn new() -> Self {
        let mut hosts = [Host::new(), Host::new()];
        hosts[0].desk.begin_pairing();
        hosts[0].desk.settled(PAIRING, 1);
        hosts[1].desk.same(PAIRING);
        let (places, log, unshown) = (Vec::new(), Vec::new(), Vec::new());
        Self { hosts, places, log, epoch: 2, executed: 0, unshown, told: 1 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Take(extent) => {
                let change = self.places.len();
                self.places.push(Place { disk: 0, extent });
                self.hosts[0].open.push_back((change, false));
                self.unshown.push(change);
                self.log.push((self.epoch, Entry::Taken(change)));
            }
            Step::Issue(host) => self.hosts[host].issue(&self.places),
            Step::Make(host) => self.hosts[host].make(&self.places),
            Step::CarryOut(host) => self.hosts[host].carry_out(),
            Step::Show(which) => {
                let made: Vec<usize> =
                    self.unshown.iter().copied().filter(|one| self.hosts[0].is_made(*one)).collect();
                if !made.is_empty() {
                    let change = made[which.index(made.len())];
                    self.unshown.retain(|other| *other != change);
                    self.hosts[0].desk.shown([self.places[change]].into_iter(), self.epoch);
                    self.log.push((self.epoch, Entry::Shown(change)));
                }
            }
            Step::Cut => self.epoch += 1,
            Step::Execute => {
                let Some((epoch, entry)) = self.log.get(self.executed).copied() else { return };
                match entry {
                    _ if epoch == self.epoch => return,
                    Entry::Taken(change) => self.hosts[1].open.push_back((change, false)),
                    Entry::Shown(change) if self.hosts[1].is_made(change) => {
                        self.hosts[1].desk.shown([self.places[change]].into_iter(), self.epoch - 1);
                    }
                    Entry::Shown(_) => return,
                }
                self.executed += 1;
            }
            Step::Settle => {
                let next = self.log.get(self.executed).map_or(self.epoch, |(epoch, _)| *epoch);
                self.told = self.told.max(next.min(self.epoch) - 1);
                self.hosts[1].flush();
                self.hosts[1].desk.settled(PAIRING, self.told);
            }
            Step::Hear => drop(self.hosts[0].desk.settled(PAIRING, self.told)),
        }
    }

    fn check(&self) {
        for extent in 0..EXTENTS {
            let [one, other] = [0, 1].map(|host| self.hosts[host].image[extent as usize]);
            let is_same = one == other && one[0] == one[1];
            let is_set = self.hosts.iter().any(|host| host.map.contains(&extent));
            assert!(is_same || is_set, "extent {extent}: {one:?} and {other:?}, and no map has it");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let host = || 0usize..2;
    let step = prop_oneof![
        4 => (0..EXTENTS).prop_map(Step::Take),
        6 => host().prop_map(Step::Issue),
        6 => host().prop_map(Step::Make),
        4 => host().prop_map(Step::CarryOut),
        4 => any::<prop::sample::Index>().prop_map(Step::Show),
        3 => Just(Step::Cut),
        8 => Just(Step::Execute),
        3 => Just(Step::Settle),
        2 => Just(Step::Hear),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn where_two_machines_have_not_made_the_same_one_of_the_maps_says_so(steps in steps()) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
            pair.check();
        }
    }
}
