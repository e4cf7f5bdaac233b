//! The hash of a disk: the BLAKE3 of the BLAKE3s (32 bytes each) of its extents of 1 MiB, from the first to the last,
//! which may be shorter. So zeroes cost next to nothing. A BLAKE3 of the whole has no such way: in its tree, zeroes in
//! two places are two hashes. Other programs come to the same: `split -b 1M --filter='b3sum --raw' IMAGE | b3sum`.

use super::content::Piece;

/// Bytes of an extent.
pub(super) const EXTENT_BYTES: u64 = 1 << 20;

/// See the module.
pub(super) struct DiskHasher {
    hashes: blake3::Hasher,
    zeroes: blake3::Hash,
}

impl DiskHasher {
    pub(super) fn new() -> Self {
        Self { hashes: blake3::Hasher::new(), zeroes: blake3::hash(&[0; EXTENT_BYTES as usize]) }
    }

    /// The next extent: shorter than the others only if it is the disk's last.
    pub(super) fn update(&mut self, extent: &[u8]) {
        self.hashes.update(blake3::hash(extent).as_bytes());
    }

    /// As many zeroes: whole extents, but for the disk's last.
    pub(super) fn update_zeroes(&mut self, bytes: u64) {
        for _ in 0..bytes / EXTENT_BYTES {
            self.hashes.update(self.zeroes.as_bytes());
        }
        match bytes % EXTENT_BYTES {
            0 => {}
            rest => self.update(&vec![0; rest as usize]),
        }
    }

    /// The next part.
    pub(super) fn take(&mut self, piece: &Piece<'_>) {
        match piece {
            Piece::Zeroes(zeroes) => self.update_zeroes(zeroes.end - zeroes.start),
            Piece::Data(_, extent) => self.update(extent),
        }
    }

    pub(super) fn finish(&self) -> blake3::Hash {
        self.hashes.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the module's first lines say it.
    fn hash(disk: &[u8]) -> blake3::Hash {
        let hashes = disk.chunks(1 << 20).map(|extent| *blake3::hash(extent).as_bytes()).collect::<Vec<_>>();
        blake3::hash(hashes.as_flattened())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn zeroes_that_are_only_counted_hash_as_zeroes_that_are_read(
            runs in prop::collection::vec((1..4_usize, any::<bool>()), 0..6), rest in 0..2048_usize,
            rest_is_zero in any::<bool>(),
        ) {
            let (mut disk, mut hasher) = (Vec::new(), DiskHasher::new());
            let mut put = |bytes: usize, is_zero: bool| {
                let run = vec![u8::from(!is_zero); bytes];
                disk.extend_from_slice(&run);
                match is_zero {
                    true => hasher.update_zeroes(bytes as u64),
                    false => run.chunks(1 << 20).for_each(|extent| hasher.update(extent)),
                }
            };
            runs.iter().for_each(|(extents, is_zero)| put(extents << 20, *is_zero));
            if rest != 0 {
                put(rest * 512, rest_is_zero);
            }
            prop_assert_eq!(hasher.finish(), hash(&disk));
        }
    }
}
