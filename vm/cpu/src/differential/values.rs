//! Operand values: mostly the edges at which arithmetic behaves differently.

use super::forms::Image;
use super::{Memory, SCRATCH_BYTES, WINDOW_BYTES};
use rand::Rng;
use rand::rngs::StdRng;

/// A general register's or memory word's value.
pub(super) fn integer(rng: &mut StdRng) -> u64 {
    let edges = [0u64, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let bit = rng.random_range(0..64);
    match rng.random_range(0..10) {
        0 | 1 => edges[rng.random_range(0..edges.len())],
        2 => edges[rng.random_range(0..edges.len())].wrapping_neg(),
        3 => [i64::MAX as u64, i64::MIN as u64, u64::MAX][rng.random_range(0..3)],
        4 => 1 << bit,
        5 => (1 << bit) - 1,
        6 => rng.random_range(0..72),
        7 => u64::from(rng.random::<u32>()),
        _ => rng.random(),
    }
}

fn single(rng: &mut StdRng) -> u32 {
    let edges =
        [0u32, 0x3f80_0000, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001, 1, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff];
    let sign = u32::from(rng.random::<bool>()) << 31;
    sign | match rng.random_range(0..6) {
        0 | 1 => edges[rng.random_range(0..edges.len())],
        2 => (rng.random_range(-70_000..70_000) as f32 / 2.0).to_bits(),
        // Near what converts to integers of 32 and 64 bits.
        3 => ((127 + rng.random_range(28..66)) << 23) | rng.random_range(0..1 << 23),
        4 => ((127 - 12 + rng.random_range(0..24)) << 23) | rng.random_range(0..1 << 23),
        _ => rng.random::<u32>() >> 1,
    }
}

fn double(rng: &mut StdRng) -> u64 {
    let edges = [
        0u64,
        0x3ff0_0000_0000_0000,
        0x7ff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        0x7ff0_0000_0000_0001,
        1,
        0x000f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x3800_0000_0000_0001,
        0x47ef_ffff_f000_0000,
    ];
    let sign = u64::from(rng.random::<bool>()) << 63;
    let mantissa = rng.random_range(0..1u64 << 52);
    sign | match rng.random_range(0..6) {
        0 | 1 => edges[rng.random_range(0..edges.len())],
        2 => (f64::from(rng.random_range(-70_000..70_000)) / 2.0).to_bits() & !(1 << 63),
        3 => (1023 + rng.random_range(28..66)) << 52 | mantissa,
        4 => (1023 - 12 + rng.random_range(0..24)) << 52 | mantissa,
        _ => rng.random::<u64>() >> 1,
    }
}

/// An x87 register: ten bytes.
pub(super) fn extended(rng: &mut StdRng) -> [u8; 10] {
    let integer_bit = 1u64 << 63;
    let mantissa = rng.random::<u64>() | integer_bit;
    let (exponent, mantissa) = match rng.random_range(0..12) {
        0 => (0, 0),
        1 => (0x7fff, integer_bit),
        2 => (0x7fff, [integer_bit | 1, integer_bit | 1 << 62, mantissa][rng.random_range(0..3)]),
        3 => (0, [1, integer_bit - 1, mantissa & !integer_bit][rng.random_range(0..3)]),
        4 => (0x3fff, integer_bit),
        5 => (0x3fff + rng.random_range(0..66), mantissa),
        6 => (0x3fff + rng.random_range(0..16), mantissa & !((1 << 50) - 1)),
        7 => (rng.random_range(1..0x7fff), mantissa),
        8 => (0x3c00 + rng.random_range(0..0x800), mantissa & (u64::MAX << rng.random_range(0..63))),
        _ => (0x3fff - 20 + rng.random_range(0..40), mantissa),
    };
    let sign = u16::from(rng.random::<bool>()) << 15;
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}

/// An SSE register.
pub(super) fn vector(rng: &mut StdRng) -> u128 {
    match rng.random_range(0..4) {
        0 => (0..4).fold(0, |v, _| v << 32 | u128::from(single(rng))),
        1 => u128::from(double(rng)) << 64 | u128::from(double(rng)),
        2 => u128::from(integer(rng)) << 64 | u128::from(integer(rng)),
        _ => rng.random(),
    }
}

/// A state image of an x87 unit and SSE registers, as `fxsave64` stores it.
pub(super) fn fx_image(rng: &mut StdRng) -> [u8; 512] {
    let mut fx = [0; 512];
    // Control word: exceptions mostly masked; precision 24, 53 or 64 bits, mostly 64; rounding.
    let masks = if rng.random_bool(0.85) { 0x3f } else { rng.random_range(0..0x40) };
    let precision = if rng.random_bool(0.7) { 3 } else { [0, 2, 3][rng.random_range(0..3)] };
    let rounding = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..4) };
    let control: u16 = 0x40 | masks | precision << 8 | rounding << 10;
    fx[..2].copy_from_slice(&control.to_le_bytes());
    // Status word: any top; condition codes; exception flags that the control word masks, and now and then pending.
    let mut flags = if rng.random_bool(0.7) { 0 } else { rng.random_range(0..0x40u16) };
    if rng.random_bool(0.95) {
        flags &= control;
    }
    let summary = if flags & !control & 0x3f != 0 { 0x8080 } else { 0 };
    let status = flags | rng.random_range(0..8) << 11 | (rng.random::<u16>() & 0x4700) | summary;
    fx[2..4].copy_from_slice(&status.to_le_bytes());
    fx[4] = match rng.random_range(0..4) {
        0 => 0,
        1 => rng.random(),
        _ => 0xff,
    };
    let masks = if rng.random_bool(0.85) { 0x3f } else { rng.random_range(0..0x40u32) };
    let flags = if rng.random_bool(0.7) { 0 } else { rng.random_range(0..0x40u32) };
    let rounding = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..4u32) };
    // Denormals are zeros and flush to zero.
    let zeros = if rng.random_bool(0.9) { 0 } else { rng.random::<u32>() & 0x8040 };
    fx[24..28].copy_from_slice(&(flags | masks << 7 | rounding << 13 | zeros).to_le_bytes());
    fx[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    for at in 0..8 {
        fx[32 + at * 16..][..10].copy_from_slice(&extended(rng));
    }
    for at in 0..16 {
        fx[160 + at * 16..][..16].copy_from_slice(&vector(rng).to_le_bytes());
    }
    fx
}

/// Contents of the window and the scratch page.
pub(super) fn memory(rng: &mut StdRng) -> Box<Memory> {
    let mut memory = Box::new([0; (WINDOW_BYTES + SCRATCH_BYTES) as usize]);
    for chunk in memory.chunks_mut(16) {
        if rng.random_bool(0.15) {
            chunk[..10].copy_from_slice(&extended(rng));
        } else {
            chunk.copy_from_slice(&vector(rng).to_le_bytes());
        }
    }
    // Packed decimals, for fbld.
    for at in 0..64 {
        let digits: Vec<u8> =
            (0..10).map(|_| rng.random_range(0..10) | rng.random_range(0..10) << 4).collect();
        memory[at * 64..][..10].copy_from_slice(&digits);
        memory[at * 64 + 9] &= 0x80;
    }
    // State images whose exception summary tells the truth.
    for image in Image::ALL {
        let fx = fx_image(rng);
        let place = &mut memory[WINDOW_BYTES as usize + image.offset() as usize..];
        let (step, header) = match image {
            Image::Environment14 | Image::State94 => (2, 14),
            Image::Environment28 | Image::State108 => (4, 28),
            Image::Fx32 | Image::Fx64 => {
                place[..512].copy_from_slice(&fx);
                continue;
            }
        };
        place[..2].copy_from_slice(&fx[..2]);
        place[step..step + 2].copy_from_slice(&fx[2..4]);
        // Tags: empty, or what the processor finds in the register.
        let tags: u16 = (0..8).map(|r| (u16::from(fx[4] >> r & 1 == 0) * 3) << (2 * r)).sum();
        place[2 * step..2 * step + 2].copy_from_slice(&tags.to_le_bytes());
        if matches!(image, Image::State94 | Image::State108) {
            for register in 0..8 {
                place[header + register * 10..][..10].copy_from_slice(&fx[32 + register * 16..][..10]);
            }
        }
    }
    memory
}
