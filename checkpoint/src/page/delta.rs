//! Delta of a page against a copy: the words that differ, under two levels of masks. Body: a u64 with a bit for each
//! 64-byte line that differs; for each of those, in order, a byte with a bit for each 8-byte word that differs, then
//! those words. Words replace rather than XOR: the decoder never needs two passes, and lengths follow from the masks,
//! so a body that is too short or too long cannot be taken for another one.

use super::Page;

const LINE: usize = 64;
const WORD: usize = 8;
/// A delta beyond this is no gain over the page itself.
const BODY_MAX: usize = 3072;

/// Bit `i` is set where line `i` of the page differs from the base.
pub(super) fn changed_lines(page: &Page, base: &Page) -> u64 {
    let (page, _) = page.as_chunks::<LINE>();
    let (base, _) = base.as_chunks::<LINE>();
    page.iter().zip(base).enumerate().fold(0, |mask, (i, (a, b))| mask | u64::from(a != b) << i)
}

/// Makes the base equal to the page, where `changed` says it is not.
pub(super) fn patch_lines(page: &Page, base: &mut Page, mut changed: u64) {
    while changed != 0 {
        let at = changed.trailing_zeros() as usize * LINE;
        base[at..at + LINE].copy_from_slice(&page[at..at + LINE]);
        changed &= changed - 1;
    }
}

/// Space to build a delta in.
pub(super) struct Scratch(Box<[u8; BODY_MAX + LINE + 1]>);

impl Scratch {
    /// Space for one delta.
    pub(super) fn new() -> Self {
        Self(Box::new([0; BODY_MAX + LINE + 1]))
    }

    /// The delta's body, or none if it is too long to be worth it.
    pub(super) fn encode(&mut self, page: &Page, base: &Page, changed: u64) -> Option<&[u8]> {
        let (page, _) = page.as_chunks::<LINE>();
        let (base, _) = base.as_chunks::<LINE>();
        let out = &mut self.0[..];
        out[..8].copy_from_slice(&changed.to_le_bytes());
        let mut at = 8;
        let mut lines = changed;
        while lines != 0 {
            let line = lines.trailing_zeros() as usize;
            lines &= lines - 1;
            let (new, _) = page[line].as_chunks::<WORD>();
            let (old, _) = base[line].as_chunks::<WORD>();
            let mask_at = at;
            at += 1;
            let mut mask = 0;
            for word in 0..LINE / WORD {
                // Written whether it differs or not: the position moves only if it does, and no branch is guessed
                // wrong.
                out[at..at + WORD].copy_from_slice(&new[word]);
                let differs = new[word] != old[word];
                mask |= u8::from(differs) << word;
                at += usize::from(differs) * WORD;
            }
            out[mask_at] = mask;
            if at > BODY_MAX - LINE {
                return None;
            }
        }
        Some(&out[..at])
    }
}

/// Applies a delta's body to the copy that it was made against. None if it is not a delta.
pub(super) fn apply(body: &[u8], page: &mut Page) -> Option<()> {
    let (mut lines, mut rest) = body.split_first_chunk::<8>().map(|(m, r)| (u64::from_le_bytes(*m), r))?;
    let (page, _) = page.as_chunks_mut::<LINE>();
    while lines != 0 {
        let (words, _) = page[lines.trailing_zeros() as usize].as_chunks_mut::<WORD>();
        lines &= lines - 1;
        let (&mask, after) = rest.split_first()?;
        rest = after;
        let mut mask = mask;
        while mask != 0 {
            let (word, after) = rest.split_first_chunk::<WORD>()?;
            words[mask.trailing_zeros() as usize] = *word;
            mask &= mask - 1;
            rest = after;
        }
    }
    rest.is_empty().then_some(())
}
