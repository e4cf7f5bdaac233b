//! The report of a mismatch, and of the forms that were covered.

use super::assemble::{Assembled, Program};
use super::latitude::{Comparison, judge};
use super::{GS_BASE, Outcome, Runner, SCRATCH, WINDOW};
use iced_x86::{Code, Decoder, DecoderOptions, Formatter, NasmFormatter};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Runs a program on both sides. None: it cannot be encoded.
pub(super) fn run(
    program: &Program,
    host: &mut dyn Runner,
    soft: &mut dyn Runner,
) -> Option<(Assembled, Outcome, Comparison)> {
    let assembled = program.assemble()?;
    let on_host = host.run(&assembled.code, program.entry, &program.state);
    let in_engine = soft.run(&assembled.code, program.entry, &program.state);
    let comparison = judge(program, &assembled, &on_host, &in_engine, soft);
    Some((assembled, on_host, comparison))
}

/// The shortest program that still differs, by leaving out steps.
fn minimise(program: &Program, host: &mut dyn Runner, soft: &mut dyn Runner) -> Program {
    let mut shortest = program.clone();
    let mut step = 0;
    while step < shortest.steps.len() && shortest.steps.len() > 1 {
        let shorter = shortest.without(step);
        match run(&shorter, host, soft) {
            Some((_, _, comparison)) if !comparison.lines.is_empty() => shortest = shorter,
            _ => step += 1,
        }
    }
    shortest
}

/// The whole story of a mismatch.
pub(super) fn mismatch(
    seed: u64,
    case: u64,
    program: &Program,
    host: &mut dyn Runner,
    soft: &mut dyn Runner,
) -> String {
    let shortest = minimise(program, host, soft);
    let Some((assembled, _, comparison)) = run(&shortest, host, soft) else {
        return format!("seed {seed} case {case}: differs, and cannot be encoded again");
    };
    let mut text =
        format!("seed {seed} case {case} differs; what remains of {} steps:\n", program.steps.len());
    let mut formatter = NasmFormatter::new();
    let mut decoder = Decoder::with_ip(64, &assembled.code, shortest.entry, DecoderOptions::NONE);
    while decoder.can_decode() {
        let (at, instruction) = (decoder.position(), decoder.decode());
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let bytes: String =
            assembled.code[at..decoder.position()].iter().map(|byte| format!("{byte:02x}")).collect();
        _ = writeln!(text, "  {:#x}  {bytes:24}  {line:44} {:?}", instruction.ip(), instruction.code());
    }
    let state = &shortest.state;
    for (at, value) in state.regs.iter().enumerate() {
        _ = write!(text, "{}r{at:<2} {value:#018x}", if at % 4 == 0 { "\n  " } else { "  " });
    }
    let fx = &state.fx;
    _ = writeln!(
        text,
        "\n  rflags {:#x}  gs {GS_BASE:#x}  window {WINDOW:#x}  scratch {SCRATCH:#x}  x87 control {:02x}{:02x} status \
         {:02x}{:02x} tags {:02x}  mxcsr {:02x}{:02x}",
        state.rflags, fx[1], fx[0], fx[3], fx[2], fx[4], fx[25], fx[24]
    );
    let hex = |bytes: &[u8]| bytes.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
    for pair in 0..4 {
        let at = 32 + pair * 32;
        _ = writeln!(text, "  st {}: {}  {}", pair * 2, hex(&fx[at..at + 10]), hex(&fx[at + 16..at + 26]));
    }
    for pair in 0..8 {
        let at = 160 + pair * 32;
        _ = writeln!(text, "  xmm {:2}: {}  {}", pair * 2, hex(&fx[at..at + 16]), hex(&fx[at + 16..at + 32]));
    }
    for operand in memory_operands(&shortest) {
        if let Some(at) = operand.checked_sub(WINDOW).filter(|&at| at + 16 <= super::WINDOW_BYTES) {
            let at = at as usize;
            _ = writeln!(text, "  at {operand:#x}: {}", hex(&state.memory[at..at + 16]));
        }
    }
    for line in comparison.lines {
        _ = writeln!(text, "    {line}");
    }
    text
}

/// Addresses of memory operands, as far as the initial registers tell.
fn memory_operands(program: &Program) -> Vec<u64> {
    let value = |register: iced_x86::Register, _: usize, _: usize| {
        Some(match register {
            _ if register.is_gpr() => {
                let value = program.state.regs[register.full_register().number()];
                if register.size() == 4 { value & 0xffff_ffff } else { value }
            }
            iced_x86::Register::GS => GS_BASE,
            _ => 0,
        })
    };
    program
        .instructions()
        .filter_map(|i| (0..i.op_count()).find_map(|at| i.virtual_address(at, 0, value)))
        .collect()
}

/// The host's processor, in the vendors' own numbers.
pub(super) fn host() -> String {
    use std::arch::x86_64::__cpuid;
    let (vendor, version) = (__cpuid(0), __cpuid(1).eax);
    let name: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    let (base, extension) = (version >> 8 & 15, version >> 20 & 0xff);
    let family = if base == 15 { base + extension } else { base };
    let model = version >> 4 & 15 | (version >> 16 & 15) << 4;
    format!("{} family {family} model {model} stepping {}", String::from_utf8_lossy(&name), version & 15)
}

/// How often each form was in a program, and how often it completed.
#[derive(Default)]
pub(super) struct Coverage(BTreeMap<String, (u64, u64)>);

impl Coverage {
    /// Notes a program that ended at `rip`.
    pub(super) fn note(&mut self, program: &Program, assembled: &Assembled, rip: u64) {
        for (instruction, &address) in program.instructions().zip(&assembled.addresses) {
            let (cases, completed) = self.0.entry(format!("{:?}", instruction.code())).or_default();
            *cases += 1;
            *completed += u64::from(address < rip);
        }
    }

    /// Adds another process's counts.
    pub(super) fn add(&mut self, form: &str, cases: u64, completed: u64) {
        let counts = self.0.entry(form.to_owned()).or_default();
        *counts = (counts.0 + cases, counts.1 + completed);
    }

    /// Cases and completions of each form.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&String, &(u64, u64))> {
        self.0.iter()
    }

    /// Forms that were in no program.
    pub(super) fn missing(&self, forms: &[Code]) -> Vec<String> {
        forms.iter().map(|code| format!("{code:?}")).filter(|name| !self.0.contains_key(name)).collect()
    }

    /// One line for each mnemonic: forms, cases, completed.
    pub(super) fn table(&self, forms: &[Code]) -> String {
        let mut by_mnemonic: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
        for code in forms {
            let (cases, completed) = self.0.get(&format!("{code:?}")).copied().unwrap_or_default();
            let line = by_mnemonic.entry(format!("{:?}", code.mnemonic()).to_lowercase()).or_default();
            *line = (line.0 + 1, line.1 + cases, line.2 + completed);
        }
        let mut text = format!("{:14}{:>6}{:>10}{:>11}\n", "instruction", "forms", "cases", "completed");
        for (mnemonic, (forms, cases, completed)) in by_mnemonic {
            _ = writeln!(text, "{mnemonic:14}{forms:>6}{cases:>10}{completed:>11}");
        }
        text
    }
}
