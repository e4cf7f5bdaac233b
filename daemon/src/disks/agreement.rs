//! What the maps of two hosts say together when a copy begins: which extents of a disk are to be compared. Each tells
//! its own. If both have the same base, what is set in neither is the same on both; else everything is compared.

use super::equalize::extents;
use super::images::NumberedImage;
use super::intents::Intents;
use ft_checkpoint::wire::disk::EXTENT_BYTES;
use ft_checkpoint::wire::message::DiskMap;
use std::ops::Range;

/// Bytes of bits in a message.
const PART_BYTES: usize = 64 << 10;

/// A disk's.
#[derive(Debug)]
pub(super) struct Agreement {
    pub(super) disk: u16,
    extents: u32,
    base: Option<u64>,
    /// Set here, or in what the peer has told.
    bits: Vec<u8>,
    /// What the peer has told, from the first extent on.
    told: u32,
    has_same_base: bool,
}

impl Agreement {
    /// With what this host knows of a disk: its intent map; or, until both images have been the same once, which parts
    /// an overlay has, since the others are its base's on any host that has the same one.
    pub(super) fn of_this_host(intents: &Intents, (disk, image): &NumberedImage) -> Self {
        let (mut base, mut set) = intents.map(*disk);
        if let (None, Some(overlay)) = (base, image.overlay()) {
            base = Some(overlay.base());
            let extents = |run: Range<u64>| run.start / EXTENT_BYTES..run.end.div_ceil(EXTENT_BYTES);
            set.extend(overlay.present().into_iter().flat_map(extents));
        }
        Self::new(*disk, extents(image.bytes()), (base, set))
    }

    /// With this host's map.
    fn new(disk: u16, extents: u32, (base, set): (Option<u64>, Vec<u64>)) -> Self {
        let mut bits = vec![0; extents.div_ceil(8) as usize];
        for extent in set.into_iter().filter(|extent| *extent < u64::from(extents)) {
            bits[(extent / 8) as usize] |= 1 << (extent % 8);
        }
        Self { disk, extents, base, bits, told: 0, has_same_base: false }
    }

    /// This host's map, to be told before the peer's is taken.
    pub(super) fn parts(&self) -> Vec<DiskMap> {
        let part = |(at, bits): (usize, &[u8])| DiskMap {
            disk: self.disk,
            base: self.base,
            at: (at * PART_BYTES * 8) as u32,
            bits: bits.to_vec(),
        };
        self.bits.chunks(PART_BYTES).enumerate().map(part).collect()
    }

    /// A part of the peer's. One that does not follow the last means that nothing is known.
    pub(super) fn take(&mut self, part: &DiskMap) {
        if part.at == 0 {
            self.has_same_base = self.base.is_some() && part.base == self.base;
        }
        let at = (part.at / 8) as usize;
        let fits = part.at == self.told && at + part.bits.len() <= self.bits.len() && !part.bits.is_empty();
        if !fits || part.base != self.base {
            (self.has_same_base, self.told) = (false, self.extents);
            return;
        }
        for (ours, theirs) in self.bits[at..].iter_mut().zip(&part.bits) {
            *ours |= theirs;
        }
        self.told = self.extents.min(part.at.saturating_add(8 * part.bits.len() as u32));
    }

    /// Whether the peer has told all of its.
    pub(super) fn is_whole(&self) -> bool {
        self.told == self.extents
    }

    /// The extents that are to be compared, as runs.
    pub(super) fn differing(&self) -> Vec<Range<u32>> {
        if !self.has_same_base {
            return std::iter::once(0..self.extents).collect();
        }
        let mut runs: Vec<Range<u32>> = Vec::new();
        for extent in (0..self.extents).filter(|extent| self.has(*extent)) {
            match runs.last_mut() {
                Some(run) if run.end == extent => run.end += 1,
                _ => runs.push(extent..extent + 1),
            }
        }
        runs
    }

    fn has(&self, extent: u32) -> bool {
        self.bits[(extent / 8) as usize] & 1 << (extent % 8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn extents_of(agreement: &Agreement) -> BTreeSet<u32> {
        agreement.differing().into_iter().flatten().collect()
    }

    proptest! {
        #[test]
        fn both_hosts_compare_what_is_set_on_either_or_everything(
            extents in 1..1_200_000_u32,
            ours in prop::collection::btree_set(0..1_200_000_u64, 0..9),
            theirs in prop::collection::btree_set(0..1_200_000_u64, 0..9),
            bases in (prop::option::of(1..3_u64), prop::option::of(1..3_u64)),
        ) {
            let set = |of: &BTreeSet<u64>| of.iter().copied().collect();
            let mut here = Agreement::new(3, extents, (bases.0, set(&ours)));
            let mut there = Agreement::new(3, extents, (bases.1, set(&theirs)));
            let (of_here, of_there) = (here.parts(), there.parts());
            prop_assert!(!here.is_whole());
            of_there.iter().for_each(|part| here.take(part));
            of_here.iter().for_each(|part| there.take(part));
            prop_assert!(here.is_whole() && there.is_whole());
            prop_assert_eq!(here.differing(), there.differing());
            let union = ours.union(&theirs).map(|extent| *extent as u32).filter(|extent| *extent < extents);
            match bases {
                (Some(one), Some(other)) if one == other => {
                    prop_assert_eq!(extents_of(&here), union.collect::<BTreeSet<_>>());
                }
                _ => prop_assert_eq!(extents_of(&here), (0..extents).collect::<BTreeSet<_>>()),
            }
        }

        #[test]
        fn parts_that_do_not_follow_each_other_mean_that_nothing_is_known(
            parts in prop::collection::vec((0..200_u32, prop::collection::vec(any::<u8>(), 0..30)), 1..5),
        ) {
            let mut here = Agreement::new(0, 100, (Some(1), vec![7]));
            for (at, bits) in parts {
                here.take(&DiskMap { disk: 0, base: Some(1), at, bits });
                let compared = extents_of(&here);
                prop_assert!(!here.is_whole() || compared.contains(&7));
                prop_assert!(compared.iter().all(|extent| *extent < 100));
            }
        }
    }
}
