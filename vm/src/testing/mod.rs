//! For tests and benchmarks: a check whether a machine can run on KVM here, a console that keeps its output, and
//! freestanding programs made of assembly in the program itself.

pub mod linux;
pub mod sweep;

use crate::devices::{ConsoleSink, Wiring};
use crate::machine::{Machine, MachineEvent};
use crate::spec::{Boot, BusKind, CpuModel, EngineKind, FreestandingImage, MachineSpec};
use crate::state::EngineState;
use ft_ram::{GuestRam, PageIndex};
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Where programs are loaded.
pub const PROGRAM_BASE: u64 = 0x20_0000;

/// Whether this host has KVM; says loudly when a test cannot run.
pub fn kvm(test: &str) -> bool {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(e) => {
            eprintln!("SKIPPED {test} on KVM: cannot open /dev/kvm: {e}");
            false
        }
    }
}

/// The engines that a test can run on here, or FTD_TEST_ENGINE alone; says loudly when that is not all of them.
pub fn engines(test: &str) -> Vec<EngineKind> {
    let only = std::env::var("FTD_TEST_ENGINE").ok();
    let mut engines = vec![EngineKind::Soft, EngineKind::Kvm];
    if let Some(only) = only {
        engines.retain(|engine| engine.to_string() == only);
        eprintln!("SKIPPED {test} on other engines than FTD_TEST_ENGINE={only}");
    }
    engines.retain(|engine| *engine == EngineKind::Soft || kvm(test));
    engines
}

/// Whether this host's processor has no virtualisation that its KVM could rest on.
pub fn is_kvm_emulated() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    !cpuinfo.split_whitespace().any(|word| matches!(word, "vmx" | "svm"))
}

/// Whether Linux would take minutes to boot on this host's KVM, which is emulated then; says loudly that `test` leaves
/// it out.
pub fn is_too_slow_for_linux(engine: EngineKind, test: &str) -> bool {
    let is_wanted = std::env::var("FTD_TEST_ENGINE").is_ok();
    let is_too_slow = engine == EngineKind::Kvm && is_kvm_emulated() && !is_wanted;
    if is_too_slow {
        eprintln!(
            "SKIPPED {test}, on KVM: it is emulated here, and Linux takes minutes (FTD_TEST_ENGINE=kvm insists)"
        );
    }
    is_too_slow
}

/// A console that remembers.
#[derive(Clone, Default)]
pub struct Remember(pub Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Remember {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

impl Remember {
    /// What it has been told.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A console, and nothing else.
pub fn wiring(console: &Remember) -> Wiring {
    Wiring { frames: None, console: Box::new(console.clone()), disks: Vec::new() }
}

/// With nothing but vCPUs and memory.
pub fn spec(engine: EngineKind, vcpus: u8, ram_bytes: u64) -> MachineSpec {
    let (nets, disks, bus, cpu) = (vec![], Vec::new(), BusKind::Mmio, CpuModel::Host);
    MachineSpec { engine, vcpus, ram_bytes, nets, disks, rng: false, bus, cpu }
}

/// A machine with memory of its own.
pub fn machine(spec: &MachineSpec) -> (Machine, GuestRam, Remember) {
    let ram = GuestRam::new(spec.ram_bytes).unwrap();
    let console = Remember::default();
    (Machine::new(spec, &ram, wiring(&console)).unwrap(), ram, console)
}

/// A captured state without what has another length in another machine: KVM's clock, and how counters are apart from
/// the host's.
pub fn timeless(state: &[u8]) -> Vec<u8> {
    let mut state = crate::state::decode(state).unwrap();
    if let EngineState::Kvm(kvm) = &mut state.engine {
        kvm.vm.clock = Default::default();
        kvm.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_offset = None);
    }
    let mut bytes = Vec::new();
    crate::state::encode(&state, crate::state::STATE_VERSION, &mut bytes).unwrap();
    bytes
}

/// Boots code as a freestanding program at [`PROGRAM_BASE`].
pub fn boot_code(machine: &mut Machine, code: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf(code)).unwrap();
    let image = FreestandingImage::File(file.path().to_owned());
    machine.boot(&Boot::Freestanding { image, cmdline: "a=b".into() }).unwrap();
}

/// The smallest static ELF64 file: one segment, entered at its start.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [PROGRAM_BASE, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [120, PROGRAM_BASE, PROGRAM_BASE, code.len() as u64, code.len() as u64, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

/// The code between two labels of `global_asm`.
///
/// # Safety
/// Both are labels in one block of this program's code, `end` not before `start`.
pub unsafe fn between(start: *const u8, end: *const u8) -> Vec<u8> {
    // SAFETY: all from `start` to `end` is this program's code, which is there to be read.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }.to_vec()
}

/// Every page that is not zero.
pub fn content(ram: &GuestRam) -> Vec<(PageIndex, Box<[u8; 4096]>)> {
    let view = ram.view().unwrap();
    let mut pages = Vec::new();
    let mut page = Box::new([0; 4096]);
    for index in 0..view.pages() {
        view.read_page(index, &mut page);
        if page.iter().any(|&byte| byte != 0) {
            pages.push((index, page.clone()));
        }
    }
    pages
}

/// Waits for the guest to say something.
pub fn event(machine: &Machine) -> MachineEvent {
    machine.events().recv_timeout(std::time::Duration::from_secs(600)).expect("the guest says something")
}

/// The numbers of the model-specific registers that a machine's captured state has, on this host's KVM.
pub fn captured_msrs() -> Vec<u32> {
    let (mut machine, _, _) = machine(&spec(EngineKind::Kvm, 1, 16 << 20));
    boot_code(&mut machine, &[0xf4]);
    let mut state = Vec::new();
    machine.capture(&mut state).unwrap();
    match crate::state::decode(&state).unwrap().engine {
        EngineState::Kvm(kvm) => kvm.vcpus[0].msrs.iter().map(|msr| msr.index).collect(),
        EngineState::Soft(_) => Vec::new(),
    }
}
