//! The floating point and vector unit's registers.

/// x87, MMX and SSE state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fpu {
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}

pub(crate) fn lower(
    _: &iced_x86::Instruction,
    _: &mut crate::engine::soft::op::Op,
) -> Option<crate::engine::soft::op::Handler> {
    None
}
