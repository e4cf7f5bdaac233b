//! Programs from a seed: a form is chosen by the case's number, so that all get their share. Its surroundings, its
//! operands and the state are random; most memory operands lie in the window.

mod operands;

use self::operands::Operands;
use super::assemble::{Program, Step, encodes, label};
use super::forms::is_approximate;
use super::{CODE, CODE_BYTES, Memory, State, WINDOW, values};
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Contents of memory differ between cases by which of these they have.
const MEMORIES: u64 = 8;
const STEPS_MAX: usize = 8;
/// x87 condition codes.
const CONDITIONS: u32 = RflagsBits::C0 | RflagsBits::C1 | RflagsBits::C2 | RflagsBits::C3;

/// Makes the programs of one seed.
pub(super) struct Generator {
    seed: u64,
    forms: Vec<Code>,
    memories: Vec<Box<Memory>>,
    info: InstructionInfoFactory,
}

impl Generator {
    pub(super) fn new(seed: u64, forms: Vec<Code>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let memories = (0..MEMORIES).map(|_| values::memory(&mut rng)).collect();
        Self { seed, forms, memories, info: InstructionInfoFactory::new() }
    }

    /// The program of one case.
    pub(super) fn program(&mut self, case: u64) -> Program {
        let mut rng = StdRng::seed_from_u64(self.seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let form = self.forms[(case % self.forms.len() as u64) as usize];
        let state = self.state(&mut rng, case);
        let count = if is_approximate(form) { 1 } else { rng.random_range(1..=STEPS_MAX) };
        let place = if count == 1 { 0 } else { rng.random_range(0..count) };
        let mut operands = Operands::new(&state);
        let mut steps: Vec<Step> = Vec::with_capacity(count);
        // What may be undefined before each step, by what stands before it.
        let mut undefined = vec![0; count + 1];
        for at in 0..count {
            let mut tries = 0;
            let step = loop {
                tries += 1;
                let code = match at == place && tries < 32 {
                    true => form,
                    false => self.forms[rng.random_range(0..self.forms.len())],
                };
                // Alone, because nothing may depend on them; or first and last, because they always fault.
                if code != form && (is_approximate(code) || code.is_privileged()) {
                    continue;
                }
                let to = label(rng.random_range(at + 1..=count));
                let step = operands.step(&mut rng, code, to);
                if step.iter().all(encodes) && undefined_after(&step, undefined[at]).is_some() {
                    break step;
                }
            };
            let after = undefined_after(&step, undefined[at]).unwrap_or(0);
            let before = undefined[at];
            undefined[at + 1] |= after;
            for (to, undefined) in undefined.iter_mut().enumerate().take(count + 1).skip(at + 1) {
                if step.iter().any(|i| leads_to(i, label(to))) {
                    *undefined |= after | before;
                }
            }
            self.note_writes(&step, &mut operands);
            steps.push(step);
        }
        let page_end = CODE + CODE_BYTES / 2;
        let entry = match rng.random_range(0..8) {
            0 => page_end - rng.random_range(1..64),
            _ => CODE + rng.random_range(0..1024),
        };
        Program { steps, entry, state }
    }

    fn state(&self, rng: &mut StdRng, case: u64) -> State {
        let mut regs = [0; 16];
        for (at, value) in regs.iter_mut().enumerate() {
            let pointer = WINDOW + rng.random_range(0..0x2000);
            *value = match at {
                // RSP: the window's middle.
                4 if rng.random_bool(0.95) => WINDOW + 0x800 + rng.random_range(0..0x80) * 16,
                3 | 5 | 6 | 7 | 13 if rng.random_bool(0.85) => pointer,
                8 | 12 if rng.random_bool(0.8) => pointer & !15,
                1 if rng.random_bool(0.5) => rng.random_range(0..0x28),
                9 | 10 if rng.random_bool(0.6) => rng.random_range(0..0x200),
                _ if rng.random_bool(0.1) => pointer,
                _ => values::integer(rng),
            };
        }
        // CF, PF, AF, ZF, SF, OF, and seldom DF; IF as always in user mode, and the bit that is always set.
        let status = rng.random::<u64>() & 0x8d5;
        let direction = if rng.random_bool(0.2) { 0x400 } else { 0 };
        let memory = self.memories[(case / 3 % MEMORIES) as usize].clone();
        State { regs, rflags: status | direction | 0x202, fx: values::fx_image(rng), memory }
    }

    /// Forgets the values of registers that a step writes.
    fn note_writes(&mut self, step: &Step, operands: &mut Operands) {
        for instruction in step {
            for used in self.info.info(instruction).used_registers() {
                let register = used.register();
                if register.is_gpr()
                    && !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead)
                {
                    operands.forget(register.full_register().number());
                }
            }
        }
    }
}

fn leads_to(instruction: &Instruction, target: u64) -> bool {
    instruction.near_branch64() == target
        || (instruction.is_ip_rel_memory_operand() && instruction.memory_displacement64() == target)
}

/// Flags that may be undefined after a step if those in `before` may be before it; none if the step would use one.
fn undefined_after(step: &Step, before: u32) -> Option<u32> {
    step.iter().try_fold(before, |undefined, i| {
        let after = undefined_after_instruction(i, undefined);
        let conditions_used = matches!(
            i.mnemonic(),
            Mnemonic::Fnstsw | Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Fxsave | Mnemonic::Fxsave64
        );
        let used = i.rflags_read() | if conditions_used { CONDITIONS } else { 0 };
        (used & undefined == 0).then_some(after)
    })
}

/// Flags that may be undefined after one instruction.
pub(super) fn undefined_after_instruction(i: &Instruction, before: u32) -> u32 {
    let written = i.rflags_written() | i.rflags_cleared() | i.rflags_set();
    // A count in CL, or of a repetition, may be zero and then writes nothing.
    let conditional = i.op_count() > 0
        && (0..i.op_count()).any(|at| i.op_kind(at) == OpKind::Register && i.op_register(at) == Register::CL)
        || i.has_rep_prefix()
        || i.has_repne_prefix();
    match i.mnemonic() {
        // They bring their own.
        Mnemonic::Fldenv | Mnemonic::Frstor | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Fninit => {
            before & !CONDITIONS
        }
        // Whatever the count, but for one.
        Mnemonic::Rcl | Mnemonic::Rcr if i.op1_kind() == OpKind::Immediate8 && i.immediate8() & 31 != 1 => {
            before | i.rflags_undefined() | RflagsBits::OF
        }
        _ if conditional => before | i.rflags_undefined(),
        _ => before & !written | i.rflags_undefined(),
    }
}
