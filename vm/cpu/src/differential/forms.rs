//! The instruction forms of the programs: every form that the engine offers in 64-bit mode and that a program in user
//! mode can test.

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};

/// The features that the engine's CPUID offers (and those that go without saying).
const OFFERED: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::CLFSH,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::POPCNT,
];

/// Offered forms that no program contains, and why.
fn exempt(code: Code) -> Option<&'static str> {
    let info = code.op_code();
    Some(match code.mnemonic() {
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Syscall | Mnemonic::Sysenter => "enters the host's kernel",
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Sysret | Mnemonic::Sysexit => {
            "leaves for where the stack says"
        }
        Mnemonic::Cpuid | Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Rdpmc => "the processors differ",
        Mnemonic::Sgdt | Mnemonic::Sidt | Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => {
            "the host may forbid them to user mode (UMIP)"
        }
        Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw => "read the host's descriptor table",
        Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => "load from the host's descriptor table",
        Mnemonic::Popf | Mnemonic::Popfd => "AMD and Intel agree, but nothing uses it",
        Mnemonic::Xbegin | Mnemonic::Xabort => "not offered",
        Mnemonic::Fstpnce => "undocumented",
        Mnemonic::Reservednop => "undocumented hints",
        Mnemonic::Ud0 | Mnemonic::Ud1 => "lengths differ between processors",
        _ => match code {
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
                "load from the host's descriptor table"
            }
            Code::Popw_FS | Code::Popw_GS | Code::Popq_FS | Code::Popq_GS => {
                "load from the host's descriptor table"
            }
            Code::Movsxd_r16_rm16 => "AMD's processors read four bytes",
            Code::Bswap_r16 => "undefined result",
            Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16 => {
                "AMD and Intel differ on 16-bit near branches"
            }
            _ if info.fwait() => "is two instructions",
            _ if info.op_kinds().iter().any(|&kind| {
                matches!(
                    kind,
                    OpCodeOperandKind::br16_1
                        | OpCodeOperandKind::br16_2
                        | OpCodeOperandKind::br32_1
                        | OpCodeOperandKind::br32_4
                        | OpCodeOperandKind::farbr2_2
                        | OpCodeOperandKind::farbr4_2
                        | OpCodeOperandKind::brdisp_2
                        | OpCodeOperandKind::brdisp_4
                )
            }) =>
            {
                "AMD and Intel differ on 16-bit near branches"
            }
            _ => match code.flow_control() {
                FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
                    if !matches!(
                        code,
                        Code::Jmp_rm64 | Code::Call_rm64 | Code::Retnq | Code::Retnq_imm16
                    ) =>
                {
                    "far transfer: loads from the host's descriptor table"
                }
                _ => return None,
            },
        },
    })
}

/// Whether the engine is to have it.
fn offered(code: Code) -> bool {
    let info = code.op_code();
    code != Code::INVALID
        && info.is_instruction()
        && info.encoding() == EncodingKind::Legacy
        && info.mode64()
        && info.intel_decoder64()
        && info.amd_decoder64()
        && code.cpuid_features().iter().all(|feature| OFFERED.contains(feature))
}

/// All forms that programs are made of.
pub(super) fn forms() -> Vec<Code> {
    Code::values().filter(|&code| offered(code) && exempt(code).is_none()).collect()
}

/// Those of the forms that one of the words names: a mnemonic, a feature (`sse2`), or a form (`add_rm8_r8`).
pub(super) fn named(words: &str) -> Vec<Code> {
    let words: Vec<String> = words.split(',').map(str::to_lowercase).collect();
    let names = |code: &Code| {
        let features = code.cpuid_features().iter().map(|feature| format!("{feature:?}"));
        features
            .chain([format!("{:?}", code.mnemonic()), format!("{code:?}")])
            .any(|name| words.contains(&name.to_lowercase()))
    };
    forms().into_iter().filter(names).collect()
}

/// Instructions whose result is an approximation or is computed in double precision: alone in their program, so that
/// nothing else sees the difference, and compared within bounds.
pub(super) fn is_approximate(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        Mnemonic::Rcpps
            | Mnemonic::Rcpss
            | Mnemonic::Rsqrtps
            | Mnemonic::Rsqrtss
            | Mnemonic::Fsin
            | Mnemonic::Fcos
            | Mnemonic::Fsincos
            | Mnemonic::Fptan
            | Mnemonic::Fpatan
            | Mnemonic::F2xm1
            | Mnemonic::Fyl2x
            | Mnemonic::Fyl2xp1
    )
}

/// Where in the scratch page an instruction's image of the x87 or SSE state lies, if it loads or stores one.
pub(super) fn image(code: Code) -> Option<Image> {
    Some(match code {
        Code::Fldenv_m14byte | Code::Fnstenv_m14byte => Image::Environment14,
        Code::Fldenv_m28byte | Code::Fnstenv_m28byte => Image::Environment28,
        Code::Frstor_m94byte | Code::Fnsave_m94byte => Image::State94,
        Code::Frstor_m108byte | Code::Fnsave_m108byte => Image::State108,
        Code::Fxsave_m512byte | Code::Fxrstor_m512byte => Image::Fx32,
        Code::Fxsave64_m512byte | Code::Fxrstor64_m512byte => Image::Fx64,
        _ => return None,
    })
}

/// A kind of state image, which has a place of its own.
#[derive(Clone, Copy)]
pub(super) enum Image {
    Environment14,
    Environment28,
    State94,
    State108,
    Fx32,
    Fx64,
}

impl Image {
    pub(super) const ALL: [Self; 6] =
        [Self::Environment14, Self::Environment28, Self::State94, Self::State108, Self::Fx32, Self::Fx64];

    /// Offset in the scratch page.
    pub(super) fn offset(self) -> u64 {
        self as u64 * 512
    }

    /// What processors store differently: the last instruction's and operand's addresses, opcode, reserved bytes.
    #[expect(clippy::single_range_in_vec_init, reason = "other forms have more than one range")]
    fn vague(self) -> &'static [std::ops::Range<usize>] {
        match self {
            Self::Environment14 | Self::State94 => &[6..14],
            Self::Environment28 | Self::State108 => &[2..4, 6..8, 10..28],
            Self::Fx32 | Self::Fx64 => &[
                6..24,
                28..32,
                42..48,
                58..64,
                74..80,
                90..96,
                106..112,
                122..128,
                138..144,
                154..160,
                416..512,
            ],
        }
    }

    /// Clears what is not compared in the scratch page.
    pub(super) fn blur(scratch: &mut [u8]) {
        for image in Self::ALL {
            for range in image.vague() {
                let at = image.offset() as usize;
                scratch[at + range.start..at + range.end].fill(0);
            }
        }
    }
}
