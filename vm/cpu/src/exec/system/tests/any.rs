//! Random system instructions.

use super::*;
use proptest::prelude::*;

/// The beginnings of system instructions; what follows them is random.
const OPCODES: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x21],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0xa2],
    &[0x8e],
    &[0x8c],
    &[0x48, 0xcf],
    &[0xcf],
    &[0x66, 0xcf],
    &[0xcb],
    &[0x48, 0xcb],
    &[0xca],
    &[0xcd],
    &[0xff],
    &[0x0f, 0xa1],
    &[0x0f, 0xa9],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0xf3, 0x6c],
    &[0x6e],
    &[0xec],
    &[0xef],
    &[0xfb],
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever a guest does with system instructions, at either level: an exit, no panic, and a valid state.
    #[test]
    fn no_system_instruction_leads_out_of_the_valid_states(
        opcodes in proptest::collection::vec((prop::sample::select(OPCODES), any::<[u8; 3]>()), 1..12),
        registers in any::<[u64; 16]>(),
        selectors in any::<[prop::sample::Index; 16]>(),
        user in any::<bool>(),
    ) {
        let mut code = Vec::new();
        for (opcode, operands) in opcodes {
            code.extend_from_slice(opcode);
            code.extend_from_slice(&operands);
        }
        let guest = Guest::new(&code);
        let mut guest = if user { guest.user() } else { guest };
        // Plausible values, random ones, and plausible addresses.
        let plausible = [
            u64::from(USER_DATA), u64::from(USER_CODE), u64::from(KERNEL_CODE), 0x8005_0033, 0x6a0, 0xd01, DATA, GDT,
            0xc000_0080, 0xc000_0081, 0x10, 0x6e0, 0, CODE, registers[0], registers[1],
        ];
        for (register, selector) in guest.cpu.regs.iter_mut().zip(&selectors) {
            *register = *selector.get(&plausible);
        }
        for index in 0..64 {
            guest.put(DATA + index * 8, plausible[(index as usize * 7 + 3) % 16]);
        }
        for _ in 0..8 {
            let limit = guest.cpu.count + 8;
            run_to(&mut guest.cpu, limit);
            guest.cpu.sys.validate(guest.cpu.cpl).unwrap();
        }
    }
}
