//! Control registers, segments, model-specific registers.

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Segment {
    pub selector: u16,
    pub base: u64,
    pub limit: u32,
    /// Descriptor bits 40 to 55 as they stand in the descriptor (type, S, DPL, P at 0 to 7; AVL, L, DB, G at 12 to 15).
    pub attributes: u16,
}

/// What only system code sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct System {
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: (u64, u16),
    pub idtr: (u64, u16),
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr: [u64; 8],
}

pub(crate) fn lower(
    _: &iced_x86::Instruction,
    _: &mut crate::engine::soft::op::Op,
) -> Option<crate::engine::soft::op::Handler> {
    None
}
