//! A disk's own cache, which loses what was not flushed when the power goes. A sector that is written stays in the
//! cache, or goes to the image at once, by lot: what is found after a loss is a mixture, in no order, of what was
//! written since the last flush. A request of several sectors is torn between them.

use super::SECTOR;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Sectors that are not in the image yet.
pub struct Cache {
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    lots: StdRng,
}

impl Cache {
    /// An empty one; the seed says which sectors stay in it.
    pub fn new(seed: u64) -> Self {
        Self { sectors: BTreeMap::new(), lots: StdRng::seed_from_u64(seed) }
    }

    /// Reads what was written last, wherever it is.
    pub fn read(&self, image: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
        image.read_exact_at(data, offset)?;
        let end = offset + data.len() as u64;
        let (first, last) = (offset / SECTOR as u64, end.div_ceil(SECTOR as u64));
        for (sector, bytes) in self.sectors.range(first..last) {
            let at = sector * SECTOR as u64;
            // The part of the sector that is asked for.
            let (from, to) = (at.max(offset), (at + SECTOR as u64).min(end));
            let kept = &bytes[(from - at) as usize..(to - at) as usize];
            data[(from - offset) as usize..(to - offset) as usize].copy_from_slice(kept);
        }
        Ok(())
    }

    /// Writes whole sectors, into the cache or into the image.
    pub fn write(&mut self, image: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let (sectors, rest) = data.as_chunks::<SECTOR>();
        if !rest.is_empty() || !offset.is_multiple_of(SECTOR as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (number, bytes) in (offset / SECTOR as u64..).zip(sectors) {
            if self.lots.random() {
                self.sectors.insert(number, *bytes);
            } else {
                self.sectors.remove(&number);
                image.write_all_at(bytes, number * SECTOR as u64)?;
            }
        }
        Ok(())
    }

    /// Writes all of it into the image.
    pub fn write_back(&mut self, image: &File) -> io::Result<()> {
        while let Some((number, bytes)) = self.sectors.pop_first() {
            image.write_all_at(&bytes, number * SECTOR as u64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: usize = 64;

    fn content(image: &File) -> Vec<u8> {
        let mut bytes = vec![0; SECTORS * SECTOR];
        image.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read_and_only_what_was_flushed_is_there_when_the_power_goes() {
        let image = tempfile::tempfile().unwrap();
        image.set_len((SECTORS * SECTOR) as u64).unwrap();
        let mut cache = Cache::new(1);
        cache.write(&image, &[1; SECTORS * SECTOR], 0).unwrap();
        assert_ne!(content(&image), [1; SECTORS * SECTOR], "all has gone to the image");
        let mut read = vec![0; 1000];
        cache.read(&image, &mut read, 700).unwrap();
        assert_eq!(read, [1; 1000]);
        cache.write_back(&image).unwrap();
        assert_eq!(content(&image), [1; SECTORS * SECTOR]);

        cache.write(&image, &[2; SECTORS * SECTOR], 0).unwrap();
        drop(cache);
        let left = content(&image);
        let sectors: Vec<_> = left.chunks(SECTOR).map(|sector| sector[0]).collect();
        assert!(left.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        assert!(sectors.contains(&1) && sectors.contains(&2), "{sectors:?}");
    }
}
