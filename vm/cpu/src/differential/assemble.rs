//! Programs, and their bytes.

use super::{CODE, State};
use iced_x86::{BlockEncoder, BlockEncoderOptions, Code, Encoder, Instruction, InstructionBlock, OpKind};

/// Instructions that stand together: those that set the stage, then the one that is tested. Branches lead to the
/// beginnings of steps.
pub(super) type Step = Vec<Instruction>;

/// A program and the state it starts from.
#[derive(Clone)]
pub(super) struct Program {
    pub steps: Vec<Step>,
    /// Address of its first byte.
    pub entry: u64,
    pub state: State,
}

/// A program's bytes.
pub(super) struct Assembled {
    pub code: Vec<u8>,
    /// Address of each instruction, and last of the `ud2` that ends the program.
    pub addresses: Vec<u64>,
}

/// Addresses that stand for steps until the program is assembled: branch targets, and what `lea` loads.
pub(super) fn label(step: usize) -> u64 {
    0x1800_0000 + step as u64 * 0x1000
}

impl Program {
    pub(super) fn instructions(&self) -> impl Iterator<Item = &Instruction> {
        self.steps.iter().flatten()
    }

    /// The program without one of its steps; branches to it lead to what followed it.
    pub(super) fn without(&self, step: usize) -> Self {
        let mut shorter = self.clone();
        shorter.steps.remove(step);
        let moved =
            |target: u64| (step + 1..=self.steps.len()).find(|&s| label(s) == target).map(|s| label(s - 1));
        for instruction in shorter.steps.iter_mut().flatten() {
            if let Some(target) = moved(instruction.near_branch64()) {
                instruction.set_near_branch64(target);
            }
            if instruction.is_ip_rel_memory_operand()
                && let Some(target) = moved(instruction.memory_displacement64())
            {
                instruction.set_memory_displacement64(target);
            }
        }
        shorter
    }

    /// None: an operand that this form cannot encode.
    pub(super) fn assemble(&self) -> Option<Assembled> {
        let mut instructions = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            for (i, instruction) in step.iter().enumerate() {
                let mut instruction = *instruction;
                instruction.set_ip(label(at) + i as u64);
                instructions.push(instruction);
            }
        }
        let mut end = Instruction::with(Code::Ud2);
        end.set_ip(label(self.steps.len()));
        instructions.push(end);
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let block = InstructionBlock::new(&instructions, self.entry);
        let encoded = BlockEncoder::encode(64, block, options).ok()?;
        debug_assert!(self.entry >= CODE);
        Some(Assembled {
            code: encoded.code_buffer,
            addresses: encoded.new_instruction_offsets.iter().map(|&at| self.entry + u64::from(at)).collect(),
        })
    }
}

/// Whether an instruction can be encoded. Branches can.
pub(super) fn encodes(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::NearBranch64 || Encoder::new(64).encode(instruction, CODE).is_ok()
}
