//! The behaviour in which processors may differ. The engine does one of the permitted things, always the same. A host
//! that does another agrees with it if everything else is equal, the rest of the program included. No bit is ignored:
//! an entry makes whole outcomes, or whole states to go on from, of the engine's own, and the host's must equal one.
//!
//! Two things stand elsewhere: flags that the manuals call undefined (the decoder's tables know them, see `compare`),
//! and the undefined instructions that no program contains (`forms::exempt`).

mod approximate;
mod ends;
mod registers;
#[cfg(test)]
mod tests;

use super::assemble::{Assembled, Program};
use super::compare::differences;
use super::{Outcome, Runner, State};
use iced_x86::{Instruction, Mnemonic};

/// Set in the flags that faults leave, and not the program's.
pub(super) const RF: u64 = 1 << 16;

/// One thing that is done either way.
struct Latitude {
    /// In the words of the test's report.
    name: &'static str,
    forms: Forms,
    may: May,
    /// What the engine does, what others do, and who says so.
    source: &'static str,
}

enum Forms {
    All,
    Of(&'static [Mnemonic]),
}

enum May {
    /// The instruction completes and leaves another of these states.
    Complete(fn(&Completion<'_>) -> Vec<State>),
    /// The instruction ends the program, with another of these outcomes than the given one.
    End(fn(&mut End<'_>, &Outcome) -> Vec<Outcome>),
    /// The host goes on from where the engine ends: what follows is not compared.
    GoOn(fn(&Instruction, &Outcome, &Outcome) -> bool),
}

/// An instruction that completed in the engine.
struct Completion<'a> {
    instruction: &'a Instruction,
    before: &'a State,
    after: State,
    host: &'a Outcome,
}

/// An instruction that ended the program on the host.
struct End<'a> {
    instruction: &'a Instruction,
    host: &'a Outcome,
    engine: &'a mut dyn Runner,
}

const TABLE: &[Latitude] = &[
    Latitude {
        name: "upper halves of a32 rep",
        forms: Forms::Of(registers::STRINGS),
        may: May::Complete(registers::string_without_elements),
        source: "With a count of zero the engine, as AMD, writes no register; Intel's clear the upper half of RCX, and \
                 for movs and stos those of RSI and RDI (Linux, arch/x86/kvm/emulate.c, string_registers_quirk).",
    },
    Latitude {
        name: "upper halves of a faulting a32 rep",
        forms: Forms::Of(registers::STRINGS),
        may: May::End(registers::string_that_faults),
        source: "When the first element faults the engine, as AMD, writes no register; Intel's (seen on family 6 model \
                 207) have cleared upper halves as above. A 32-bit result is zero-extended (Intel SDM volume 1, \
                 3.4.1.1); when a string instruction has one nothing says.",
    },
    Latitude {
        name: "upper half of bsf and bsr of zero",
        forms: Forms::Of(&[Mnemonic::Bsf, Mnemonic::Bsr]),
        may: May::Complete(registers::scan_of_zero),
        source: "The engine, as AMD (APM volume 3, BSF), leaves the destination alone; some older Intel processors \
                 clear the upper half of a 32-bit one (SDM volume 2, BSF, footnote).",
    },
    Latitude {
        name: "MMX state after a faulting store",
        forms: Forms::Of(&[Mnemonic::Movd, Mnemonic::Movq, Mnemonic::Movntq]),
        may: May::End(ends::mmx_store),
        source: "The engine, as AMD, goes over to MMX when the store has succeeded; Intel's before, or in half: some \
                 (seen on family 6 model 207) have R0 on top and the tags as they were, older ones set the tags alone \
                 (specification updates since Core 2: \"Faulting MMX Instruction May Incorrectly Update x87 FPU Tag \
                 Word\").",
    },
    Latitude {
        name: "MMX state after a faulting conversion or masked store",
        forms: Forms::Of(&[
            Mnemonic::Cvtpi2ps,
            Mnemonic::Cvtps2pi,
            Mnemonic::Cvttps2pi,
            Mnemonic::Cvtpd2pi,
            Mnemonic::Cvttpd2pi,
            Mnemonic::Maskmovq,
        ]),
        may: May::End(ends::mmx_other),
        source: "The engine, as Intel, goes over to MMX when nothing can fault any more; AMD's before. The manuals say \
                 that MMX instructions do, not when (Intel SDM volume 3, \"MMX Technology System Programming\"; AMD \
                 APM volume 1, chapter 5).",
    },
    Latitude {
        name: "x87 state after a faulting store that pops",
        forms: Forms::Of(&[Mnemonic::Fstp, Mnemonic::Fistp, Mnemonic::Fbstp]),
        may: May::End(ends::x87_pop),
        source: "The engine, as AMD, changes nothing when the store faults; Intel's (seen on family 6 model 207) may \
                 have popped, with or without the exception flags of the store.",
    },
    Latitude {
        name: "x87 store that an exception keeps from memory",
        forms: Forms::Of(&[
            Mnemonic::Fst,
            Mnemonic::Fstp,
            Mnemonic::Fist,
            Mnemonic::Fistp,
            Mnemonic::Fisttp,
            Mnemonic::Fbstp,
        ]),
        may: May::GoOn(ends::x87_not_stored),
        source: "With an unmasked invalid operation, overflow or underflow nothing is stored (Intel SDM volume 1, \
                 8.5). Where the operand cannot be written, the engine, as AMD, has that fault; Intel's (seen on \
                 family 6 model 207) do not look, and the exception waits for the next instruction.",
    },
    Latitude {
        name: "which byte of a state image faults",
        forms: Forms::Of(&[
            Mnemonic::Fldenv,
            Mnemonic::Fnstenv,
            Mnemonic::Frstor,
            Mnemonic::Fnsave,
            Mnemonic::Fxsave,
            Mnemonic::Fxsave64,
            Mnemonic::Fxrstor,
            Mnemonic::Fxrstor64,
        ]),
        may: May::End(ends::image_byte),
        source: "The engine names the first byte on the page, AMD's processors the last. CR2 is the address of the \
                 access that faulted (Intel SDM volume 3, 4.7), and in which order an image is accessed nobody says.",
    },
    Latitude {
        name: "which operand of cmps faults",
        forms: Forms::Of(&[Mnemonic::Cmpsb, Mnemonic::Cmpsw, Mnemonic::Cmpsd, Mnemonic::Cmpsq]),
        may: May::End(ends::second_operand),
        source: "The engine, as Intel, reads the first operand first, AMD's processors the second.",
    },
    Latitude {
        name: "faults of masked-out bytes",
        forms: Forms::Of(&[Mnemonic::Maskmovq, Mnemonic::Maskmovdqu]),
        may: May::End(ends::masked_store),
        source: "The engine checks from the first stored byte to the last; whether others fault, and which byte is \
                 reported, is implementation dependent (Intel SDM volume 2, MASKMOVDQU; AMD APM volume 4).",
    },
    Latitude {
        name: "bits 47 to 56 of an address",
        forms: Forms::All,
        may: May::End(ends::five_levels),
        source: "The engine has 48-bit addresses; with five levels of page tables (Intel SDM volume 3, 4.5) an address \
                 that is canonical in 57 bits is not mapped rather than not canonical.",
    },
    Latitude {
        name: "whether the host's kernel has a page there",
        forms: Forms::All,
        may: May::End(ends::kernel_page),
        source: "Bit 0 of a page fault's error code, above user space: the kernels' affair, not the processors'.",
    },
    Latitude {
        name: "inexact beside an unmasked overflow or underflow",
        forms: Forms::All,
        may: May::End(ends::inexact),
        source: "The engine has PE as if the exception were masked; whether the result would be inexact if exponents \
                 were unbounded is what others say (IEEE 754-1985, 7.3 and 7.4; Intel SDM volume 1, 4.9.1).",
    },
    Latitude {
        name: "AMD's mask of misalignment",
        forms: Forms::Of(&[Mnemonic::Ldmxcsr, Mnemonic::Fxrstor, Mnemonic::Fxrstor64]),
        may: May::GoOn(ends::misalignment_mask),
        source: "MXCSR bit 17 is reserved, as the engine has it and Intel, or AMD's (APM volume 1, 4.2.2: MM).",
    },
    Latitude {
        name: "reciprocal approximations",
        forms: Forms::Of(&[Mnemonic::Rcpps, Mnemonic::Rcpss, Mnemonic::Rsqrtps, Mnemonic::Rsqrtss]),
        may: May::Complete(approximate::reciprocal),
        source: "The relative error is at most 1.5 * 2^-12 (Intel SDM volume 2, RCPPS; AMD APM volume 4): two \
                 processors differ by no more than twice that. The engine has the correctly rounded result.",
    },
    Latitude {
        name: "transcendental functions",
        forms: Forms::Of(approximate::TRANSCENDENTAL),
        may: May::Complete(approximate::transcendental),
        source: "The last places, and out of range more, differ (Intel SDM volume 1, 8.3.8 to 8.3.10); the engine \
                 computes in double precision.",
    },
];

impl Latitude {
    fn covers(&self, instruction: &Instruction) -> bool {
        match self.forms {
            Forms::All => true,
            Forms::Of(mnemonics) => mnemonics.contains(&instruction.mnemonic()),
        }
    }
}

fn entries(instruction: &Instruction) -> impl Iterator<Item = &'static Latitude> {
    TABLE.iter().filter(|entry| entry.covers(instruction))
}

/// What came of a comparison.
pub(super) struct Comparison {
    /// Every difference to what the engine did; none when the outcomes agree.
    pub lines: Vec<String>,
    /// Entries of the table by which they agree.
    pub used: Vec<&'static str>,
}

/// Compares the host's outcome with the engine's, and with whatever else is permitted.
pub(super) fn judge(
    program: &Program,
    assembled: &Assembled,
    host: &Outcome,
    soft: &Outcome,
    engine: &mut dyn Runner,
) -> Comparison {
    let lines = differences(program, assembled, host, soft);
    if lines.is_empty() {
        return Comparison { lines, used: Vec::new() };
    }
    let mut search = Search { program, assembled, host, engine, used: Vec::new() };
    if search.agrees_from(0, &program.state, soft) {
        return Comparison { lines: Vec::new(), used: search.used };
    }
    Comparison { lines, used: Vec::new() }
}

/// Looks for a way through the program that leads to the host's outcome.
struct Search<'a> {
    program: &'a Program,
    assembled: &'a Assembled,
    host: &'a Outcome,
    engine: &'a mut dyn Runner,
    used: Vec<&'static str>,
}

impl Search<'_> {
    /// Whether the host's outcome is permitted when everything before the instruction `first` is settled: the engine
    /// has `state` there, and ends in `soft`.
    fn agrees_from(&mut self, first: usize, state: &State, soft: &Outcome) -> bool {
        if differences(self.program, self.assembled, self.host, soft).is_empty() || self.goes_on(soft) {
            return true;
        }
        let ended = self.instruction_at(self.host.rip);
        if ended.is_some_and(|at| at >= first && self.ends_at(at, first, state, soft)) {
            return true;
        }
        let reached = ended.unwrap_or(self.program.instructions().count());
        (first..reached).any(|at| self.completes_otherwise(at, first, state))
    }

    fn instruction_at(&self, address: u64) -> Option<usize> {
        let count = self.program.instructions().count();
        self.assembled.addresses[..count].iter().position(|&at| at == address)
    }

    fn instruction(&self, at: usize) -> Instruction {
        *self.program.instructions().nth(at).expect("an instruction of the program")
    }

    /// Whether the host goes on from where the engine ended, and may.
    fn goes_on(&mut self, soft: &Outcome) -> bool {
        let Some(at) = self.instruction_at(soft.rip) else { return false };
        let instruction = self.instruction(at);
        let goes =
            |entry: &&Latitude| matches!(entry.may, May::GoOn(may) if may(&instruction, self.host, soft));
        let entry = entries(&instruction).find(goes);
        self.used.extend(entry.map(|entry| entry.name));
        entry.is_some()
    }

    /// Whether the host's end at the instruction `at` is one that the table makes of the engine's.
    fn ends_at(&mut self, at: usize, first: usize, state: &State, soft: &Outcome) -> bool {
        let stopped = match soft.rip == self.host.rip {
            true => Some(soft.clone()),
            // The engine went on: what it had there.
            false => self.stop_at(at, first, state),
        };
        let Some(stopped) = stopped else { return false };
        let instruction = self.instruction(at);
        let mut permitted = vec![(stopped, Vec::new())];
        for entry in entries(&instruction) {
            let May::End(may) = entry.may else { continue };
            for (outcome, used) in permitted.clone() {
                let mut end = End { instruction: &instruction, host: self.host, engine: self.engine };
                let used = [used, vec![entry.name]].concat();
                permitted.extend(may(&mut end, &outcome).into_iter().map(|other| (other, used.clone())));
            }
        }
        let same = |(outcome, _): &&(Outcome, Vec<_>)| {
            differences(self.program, self.assembled, self.host, outcome).is_empty()
        };
        let Some((_, used)) = permitted.iter().find(same) else { return false };
        self.used.extend(used);
        true
    }

    /// Whether the host's outcome is permitted if the instruction `at` leaves another state.
    fn completes_otherwise(&mut self, at: usize, first: usize, state: &State) -> bool {
        let instruction = self.instruction(at);
        let next = at + 1;
        for entry in entries(&instruction) {
            let May::Complete(may) = entry.may else { continue };
            let Some(before) = self.stop_at(at, first, state).map(State::from) else { continue };
            let Some(after) = self.stop_at(next, at, &before).map(State::from) else { continue };
            for other in
                may(&Completion { instruction: &instruction, before: &before, after, host: self.host })
            {
                let soft = self.run(next, &other, None);
                self.used.push(entry.name);
                if self.agrees_from(next, &other, &soft) {
                    return true;
                }
                self.used.pop();
            }
        }
        false
    }

    /// What the engine has when it comes to the instruction `at`, if it does; ended by no exception.
    fn stop_at(&mut self, at: usize, first: usize, state: &State) -> Option<Outcome> {
        let mut outcome = self.run(first, state, Some(at));
        outcome.vector = NO_VECTOR;
        (outcome.rip == self.assembled.addresses[at]).then_some(outcome)
    }

    /// Runs the program from an instruction on; to another one, whose first byte then faults.
    fn run(&mut self, from: usize, state: &State, to: Option<usize>) -> Outcome {
        let entry = self.assembled.addresses[from];
        let mut code = self.assembled.code[(entry - self.program.entry) as usize..].to_vec();
        if let Some(to) = to {
            code[(self.assembled.addresses[to] - entry) as usize] = HLT;
        }
        self.engine.run(&code, entry, state)
    }
}

/// Faults in user mode.
const HLT: u8 = 0xf4;
const UD2: &[u8] = &[0x0f, 0x0b];
const NO_VECTOR: u8 = 0xff;

impl From<Outcome> for State {
    fn from(outcome: Outcome) -> Self {
        let Outcome { regs, rflags, fx, memory, .. } = outcome;
        Self { regs, rflags: rflags & !RF, fx, memory }
    }
}
