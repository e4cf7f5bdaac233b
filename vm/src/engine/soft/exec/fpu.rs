//! The floating point and vector unit's registers.

/// x87, MMX and SSE state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fpu {
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}
