//! What those who change a disk and the thread of the maps know of each other: which extents are covered, wanted,
//! changed and under way. It waits for nothing.

use super::{Clearance, Outcome};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// An extent of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) disk: u16,
    pub(super) extent: u64,
}

/// The last change of an extent: its epoch, and its place in the order of all.
#[derive(Clone, Copy, Debug)]
struct Last {
    epoch: u64,
    turn: u64,
}

impl Last {
    /// Before the pairing began: its copy has compared the extent.
    const BEFORE: Self = Self { epoch: 0, turn: 0 };

    fn is_before(self) -> bool {
        self.turn == Self::BEFORE.turn
    }
}

/// A change that an image was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Order {
    pub(super) disk: u16,
    /// Whose it is.
    pub(super) queue: u64,
    /// Its number there.
    pub(super) tag: u64,
}

/// What is made durable next.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) set: Vec<Place>,
    /// The maps' new base, before anything is cleared.
    pub(super) base: Option<u64>,
    pub(super) clear: Vec<Place>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Desk {
    /// Set, durably, and not being cleared: changes there may be made.
    covered: HashSet<Place>,
    /// What the maps are relative to, durably.
    bases: BTreeMap<u16, Option<u64>>,
    /// A change there waits.
    wanted: BTreeSet<Place>,
    /// Being cleared. Until that is durable they may be set.
    leaving: HashSet<Place>,
    /// Of those that are covered. What is not in it was changed in no epoch that counts.
    changed: HashMap<Place, Last>,
    turn: u64,
    /// The pairing whose epochs these are, once both images were the same in it; and the maps' base, until that is
    /// durable.
    pairing: Option<u64>,
    base: Option<u64>,
    /// Through this epoch the peer's image is durable; looked at by the thread or not.
    settled: Option<u64>,
    is_settled_new: bool,
    /// The same on both hosts, if nothing was changed there since.
    equal: BTreeSet<Place>,
    /// Replay mode: how many changes there the guest has not been shown as made. The other host's machine may have made
    /// them or not.
    unshown: HashMap<Place, u32>,
    /// Changes that the image was asked for, with their extents.
    under_way: HashMap<Order, Vec<Place>>,
    /// The image may lack a change that the peer's has. Only a comparison of the two ends that.
    doubtful: HashSet<Place>,
    /// Extents, of all disks, that stay set: those that were changed last in this pairing. Beyond twice as many, what
    /// may be cleared is.
    kept: usize,
    pub(super) trouble: Option<String>,
    pub(super) closed: bool,
}

impl Desk {
    pub(super) fn new(covered: HashSet<Place>, bases: BTreeMap<u16, Option<u64>>, kept: usize) -> Self {
        Self { covered, bases, kept, ..Self::default() }
    }

    fn is_large(&self) -> bool {
        self.covered.len() > 2 * self.kept
    }

    pub(super) fn may_change(
        &mut self,
        places: impl Iterator<Item = Place> + Clone,
        epoch: u64,
    ) -> Clearance {
        let mut leave = Clearance::Given;
        for place in places.clone().filter(|place| !self.covered.contains(place)) {
            self.wanted.insert(place);
            leave = Clearance::Later;
        }
        if leave == Clearance::Given {
            self.turn += 1;
            let last = Last { epoch, turn: self.turn };
            for place in places {
                self.changed.insert(place, last);
                self.equal.remove(&place);
            }
        }
        leave
    }

    pub(super) fn may_execute(&mut self, places: impl Iterator<Item = Place> + Clone) -> Clearance {
        let leave = self.may_change(places.clone(), u64::MAX);
        if leave == Clearance::Given {
            places.for_each(|place| *self.unshown.entry(place).or_default() += 1);
        }
        leave
    }

    pub(super) fn shown(&mut self, places: impl Iterator<Item = Place>, epoch: u64) {
        for place in places {
            let Entry::Occupied(mut unshown) = self.unshown.entry(place) else { continue };
            *unshown.get_mut() -= 1;
            if *unshown.get() == 0 {
                unshown.remove();
                self.turn += 1;
                self.changed.insert(place, Last { epoch, turn: self.turn });
            }
        }
    }

    pub(super) fn begun(&mut self, order: Order, places: Vec<Place>) {
        self.under_way.insert(order, places);
    }

    pub(super) fn ended(&mut self, order: Order, outcome: Outcome) {
        let places = self.under_way.remove(&order).unwrap_or_default();
        if outcome == Outcome::InDoubt {
            self.doubtful.extend(places);
        }
    }

    /// Nothing more is heard of what this queue was asked for.
    pub(super) fn abandoned(&mut self, queue: u64) {
        let gone = self.under_way.extract_if(|order, _| order.queue == queue);
        self.doubtful.extend(gone.flat_map(|(_, places)| places));
    }

    /// What was written into this image may not be durable, whatever is said later.
    pub(super) fn doubt(&mut self, disk: u16) {
        let changed = self.changed.keys().filter(|place| place.disk == disk);
        self.doubtful.extend(changed);
    }

    /// The images differ here.
    pub(super) fn differ(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            self.doubtful.insert(place);
            if !self.covered.contains(&place) {
                self.wanted.insert(place);
            }
        }
    }

    /// A pairing begins, whose copy compares every extent that is set: each counts as changed before its first epoch.
    pub(super) fn begin_pairing(&mut self) {
        self.changed = self.covered.iter().map(|place| (*place, Last::BEFORE)).collect();
        (self.pairing, self.base, self.settled) = (None, None, None);
        self.is_settled_new = false;
        self.unshown.clear();
        self.doubtful.clear();
        self.equal.clear();
    }

    /// Whether the thread has something to do now.
    pub(super) fn settled(&mut self, pairing: u64, through: u64) -> bool {
        if self.pairing != Some(pairing) {
            (self.pairing, self.base) = (Some(pairing), Some(pairing));
        }
        self.is_settled_new |= self.settled < Some(through);
        self.settled = self.settled.max(Some(through));
        self.base.is_some() || (self.is_settled_new && self.is_large())
    }

    /// This image was made the same as the peer's, durably, and nobody here changes it.
    pub(super) fn same(&mut self, pairing: u64) {
        self.begin_pairing();
        (self.pairing, self.base) = (Some(pairing), Some(pairing));
        self.equal = self.covered.iter().copied().collect();
        self.changed.clear();
    }

    pub(super) fn base(&self, disk: u16) -> Option<u64> {
        self.bases.get(&disk).copied().flatten()
    }

    /// How many extents are set.
    pub(super) fn count(&self, disk: u16) -> u64 {
        let of = |place: &&Place| place.disk == disk;
        let pending =
            self.leaving.iter().chain(self.wanted.iter().filter(|place| !self.leaving.contains(place)));
        (self.covered.iter().filter(of).count() + pending.filter(of).count()) as u64
    }

    pub(super) fn set(&self, disk: u16) -> Vec<u64> {
        let all = self.covered.iter().chain(&self.leaving).chain(&self.wanted);
        let extents: BTreeSet<u64> =
            all.filter(|place| place.disk == disk).map(|place| place.extent).collect();
        extents.into_iter().collect()
    }

    /// What is to be made durable next, if there is something.
    pub(super) fn take(&mut self) -> Option<Work> {
        let clear = self.take_clearable();
        if self.wanted.is_empty() && clear.is_empty() && self.base.is_none() {
            return None;
        }
        for place in &clear {
            self.covered.remove(place);
            self.changed.remove(place);
            self.equal.remove(place);
            self.leaving.insert(*place);
        }
        Some(Work { set: self.wanted.iter().copied().collect(), base: self.base.take(), clear })
    }

    fn take_clearable(&mut self) -> Vec<Place> {
        let busy: HashSet<Place> = self.under_way.values().flatten().copied().collect();
        let mut clear: Vec<Place> =
            self.equal.iter().filter(|place| !busy.contains(place)).copied().collect();
        if let Some(through) = self.settled
            && std::mem::take(&mut self.is_settled_new)
        {
            let kept = if self.is_large() { self.kept } else { usize::MAX };
            let mut by_turn: Vec<(Place, Last)> =
                self.changed.iter().map(|(place, last)| (*place, *last)).collect();
            by_turn.sort_unstable_by_key(|(_, last)| std::cmp::Reverse(last.turn));
            let is_old = |(at, (_, last)): &(usize, (Place, Last))| {
                last.epoch <= through && (last.is_before() || *at >= kept)
            };
            let may_go = |place: &Place| !busy.contains(place) && !self.doubtful.contains(place);
            let old = by_turn.into_iter().enumerate().filter(is_old).map(|(_, (place, _))| place);
            clear.extend(old.filter(may_go));
        }
        clear
    }

    /// It is durable.
    pub(super) fn done(&mut self, work: &Work) {
        self.trouble = None;
        if work.base.is_some() {
            self.bases.values_mut().for_each(|base| *base = work.base);
        }
        for place in &work.clear {
            self.leaving.remove(place);
        }
        for place in &work.set {
            self.wanted.remove(place);
            self.covered.insert(*place);
        }
    }

    /// It is not, and may be in part. What was to be cleared is set again: a change there waits for that.
    pub(super) fn failed(&mut self, work: Work, why: String) {
        self.trouble = Some(why);
        if work.base.is_some() {
            self.bases.values_mut().for_each(|base| *base = None);
            self.base = self.base.or(work.base);
        }
        for place in work.clear {
            self.leaving.remove(&place);
            self.wanted.insert(place);
        }
    }
}
