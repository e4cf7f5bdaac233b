//! The report of a difference from the host.

use super::super::Fpu;
use super::host::World;

pub(super) fn explain(before: &World, expected: &World, found: &World) {
    let state = |world: &World| Fpu::from_fxsave(&world.fxsave).unwrap();
    let (b, e, f) = (state(before), state(expected), state(found));
    eprintln!("  mxcsr {:x} -> host {:x} soft {:x}", b.mxcsr, e.mxcsr, f.mxcsr);
    eprintln!(
        "  control {:x} status {:x} -> host {:x} soft {:x}",
        b.control,
        b.status_word(),
        e.status_word(),
        f.status_word()
    );
    eprintln!(
        "  full {:08b} -> host {:08b} soft {:08b}; control host {:x} soft {:x}",
        b.full, e.full, f.full, e.control, f.control
    );
    for i in 0..8u8 {
        let (x, y, z) = (b.x87[usize::from(i)], e.x87[usize::from(i)], f.x87[usize::from(i)]);
        let st = i.wrapping_sub(b.top) & 7;
        if y != z || st < 3 {
            eprintln!(
                "  R{i} (ST{st}) {:04x} {:016x} -> host {:04x} {:016x} soft {:04x} {:016x}",
                x.sign_exponent,
                x.significand,
                y.sign_exponent,
                y.significand,
                z.sign_exponent,
                z.significand
            );
        }
    }
    for i in 0..16 {
        if e.xmm[i] != f.xmm[i] || i < 3 {
            eprintln!("  xmm{i} {:032x} -> host {:032x} soft {:032x}", b.xmm[i], e.xmm[i], f.xmm[i]);
        }
    }
    eprintln!("  rax {:x} -> host {:x} soft {:x}", before.rax, expected.rax, found.rax);
    eprintln!("  rcx {:x} -> host {:x} soft {:x}", before.rcx, expected.rcx, found.rcx);
    eprintln!("  rflags {:x} -> host {:x} soft {:x}", before.rflags, expected.rflags, found.rflags);
    eprintln!(
        "  memory {:02x?} -> host {:02x?} soft {:02x?}",
        &before.memory[..16],
        &expected.memory[..16],
        &found.memory[..16]
    );
}
