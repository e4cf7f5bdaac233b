//! Reading and setting the state of one vCPU, and of what the vCPUs share. The order of the ioctls matters, in both
//! directions; each constraint stands where it is obeyed.

use super::counter::{self, CapturedCounter, Moment};
use super::error::KvmError;
use super::host::{Host, XSAVE_BYTES_MIN};
use super::ioctl;
use super::model::ZERO_MSRS;
use crate::boot::entry::{Entry, EntrySegment, Firmware, VcpuEntry};
use crate::state::{Sregs, StateError, VcpuState, VmState};
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_MSR_ENTRIES,
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_dtable, kvm_irqchip, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use std::borrow::Cow;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Offsets of LINT0 and LINT1 in the LAPIC's registers.
const LVT_LINT: [usize; 2] = [0x350, 0x360];
const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// KVM_SREGS2_FLAGS_PDPTRS_VALID
const PDPTRS_VALID: u64 = 1;
/// Frequencies this close (parts per million) count as equal: NTP slews more than that, and so does QEMU count.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Whether a guest that was given a time stamp counter of `theirs` kHz can go on with one of `ours`.
pub(crate) fn tsc_close(theirs: u32, ours: u32) -> bool {
    u64::from(theirs.abs_diff(ours)) * 1_000_000 <= u64::from(ours) * TSC_TOLERANCE_PPM
}

/// Reads a vCPU's state over and over, without allocating.
pub(super) struct Collector {
    /// In chunks of what one ioctl takes; the entries keep their indices.
    msrs: Vec<Msrs>,
    sregs2: bool,
    has_counter_offset: bool,
}

impl Collector {
    /// Finds out once which of KVM's MSRs can be read on this host, and makes an initial state of the right sizes.
    pub(super) fn new(
        vcpu: &VcpuFd,
        host: &Host,
        cpuid: Vec<kvm_cpuid_entry2>,
    ) -> Result<(Self, VcpuState), KvmError> {
        let mut indices = Vec::with_capacity(host.msr_indices.len());
        let mut unreadable = Vec::new();
        for &index in &host.msr_indices {
            match read_msr(vcpu, index) {
                Some(_) => indices.push(index),
                None => unreadable.push(index),
            }
        }
        // The time stamp counter goes first and the deadline last: a deadline is set against the counter.
        indices.sort_unstable_by_key(|&index| match index {
            MSR_IA32_TSC => (0, index),
            MSR_IA32_TSC_DEADLINE => (2, index),
            _ => (1, index),
        });
        tracing::debug!(
            read = indices.len(),
            ?unreadable,
            "model-specific registers that are part of the state"
        );
        let entries: Vec<_> =
            indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let msrs = entries.chunks(KVM_MAX_MSR_ENTRIES).map(msrs_of).collect::<Result<_, _>>()?;
        let has_counter_offset = counter::has_offset(vcpu);
        let mut collector = Self { msrs, sregs2: host.sregs2, has_counter_offset };
        let tsc_khz = vcpu.get_tsc_khz().map_err(KvmError::of("KVM_GET_TSC_KHZ"))?;
        let mut state = VcpuState {
            cpuid,
            tsc_khz,
            tsc_offset: None,
            mp_state: Default::default(),
            regs: Default::default(),
            sregs: Sregs { base: kvm_sregs::default(), pdptrs: None },
            xcrs: Default::default(),
            xsave: vec![0; host.xsave_bytes],
            debug_regs: Default::default(),
            lapic: Default::default(),
            msrs: entries,
            events: Default::default(),
        };
        collector.collect(vcpu, &mut state)?;
        Ok((collector, state))
    }

    /// Reads everything into `state`. The vCPU has come out of KVM_RUN with EINTR, so nothing of it is under way.
    ///
    /// Order:
    /// - MP state first: KVM_GET_MP_STATE takes a pending INIT or SIPI, which changes about everything else.
    /// - MSRs before the LAPIC: a deadline timer that fires in between is then in both (a deadline that has passed,
    ///   and the interrupt) and the guest sees at worst a spurious tick. The other way round it would be in neither.
    /// - Events last: the calls before may turn something pending into something injected.
    pub(super) fn collect(&mut self, vcpu: &VcpuFd, state: &mut VcpuState) -> Result<(), KvmError> {
        // Constant since KVM_SET_CPUID2: `cpuid`, `tsc_khz`.
        let VcpuState {
            cpuid: _,
            tsc_khz: _,
            tsc_offset,
            mp_state,
            regs,
            sregs,
            xcrs,
            xsave,
            debug_regs,
            lapic,
            msrs,
            events,
        } = state;
        *mp_state = vcpu.get_mp_state().map_err(KvmError::of("KVM_GET_MP_STATE"))?;
        msrs.clear();
        for chunk in &mut self.msrs {
            let wanted = chunk.as_slice().len();
            let got = vcpu.get_msrs(chunk).map_err(KvmError::of("KVM_GET_MSRS"))?;
            if got != wanted {
                let index = chunk.as_slice().get(got).map_or(0, |entry| entry.index);
                return Err(KvmError::Msr { index });
            }
            msrs.extend_from_slice(chunk.as_slice());
        }
        if self.has_counter_offset {
            *tsc_offset = Some(counter::read_offset(vcpu).map_err(KvmError::io("KVM_VCPU_TSC_OFFSET"))?);
        }
        *lapic = vcpu.get_lapic().map_err(KvmError::of("KVM_GET_LAPIC"))?;
        *regs = vcpu.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?;
        *sregs = get_sregs(vcpu, self.sregs2)?;
        *xcrs = vcpu.get_xcrs().map_err(KvmError::of("KVM_GET_XCRS"))?;
        ioctl::get_xsave(vcpu, xsave).map_err(KvmError::io("KVM_GET_XSAVE2"))?;
        *debug_regs = vcpu.get_debug_regs().map_err(KvmError::of("KVM_GET_DEBUGREGS"))?;
        *events = vcpu.get_vcpu_events().map_err(KvmError::of("KVM_GET_VCPU_EVENTS"))?;
        Ok(())
    }
}

fn msrs_of(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError::TooMany("model-specific registers"))
}

fn read_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut one = msrs_of(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
    match vcpu.get_msrs(&mut one) {
        Ok(1) => Some(one.as_slice()[0].data),
        _ => None,
    }
}

fn get_sregs(vcpu: &VcpuFd, sregs2: bool) -> Result<Sregs, KvmError> {
    if !sregs2 {
        let base = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
        return Ok(Sregs { base: kvm_sregs { interrupt_bitmap: [0; 4], ..base }, pdptrs: None });
    }
    let kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        flags,
        pdptrs,
    } = ioctl::get_sregs2(vcpu).map_err(KvmError::io("KVM_GET_SREGS2"))?;
    let interrupt_bitmap = [0; 4];
    Ok(Sregs {
        #[rustfmt::skip]
        base: kvm_sregs {
            cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap,
        },
        pdptrs: (flags & PDPTRS_VALID != 0).then_some(pdptrs),
    })
}

fn set_sregs(vcpu: &VcpuFd, sregs: &Sregs, sregs2: bool) -> std::io::Result<()> {
    let Sregs { base, pdptrs } = sregs;
    if !sregs2 {
        // Without pointers of its own the vCPU loads them from memory, as it did where this was captured.
        return vcpu.set_sregs(base).map_err(Into::into);
    }
    #[rustfmt::skip]
    let kvm_sregs {
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap: _,
    } = *base;
    let flags = if pdptrs.is_some() { PDPTRS_VALID } else { 0 };
    let pdptrs = pdptrs.unwrap_or_default();
    #[rustfmt::skip]
    let sregs2 = kvm_sregs2 {
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags, pdptrs,
    };
    ioctl::set_sregs2(vcpu, &sregs2)
}

/// What the guest's counters are apart from, on a host that shows it: the host's own, scaled to this frequency.
pub(super) fn host_counter(
    vcpu: &VcpuFd,
    index: usize,
    host: &Host,
    tsc_khz: u32,
    current: &VcpuState,
) -> Result<Option<u64>, StateError> {
    if !counter::has_offset(vcpu) {
        return Ok(None);
    }
    set_frequency(vcpu, index, host, tsc_khz, current.tsc_khz)?;
    let offset = counter::read_offset(vcpu);
    let offset =
        offset.map_err(|source| StateError::Vcpu { vcpu: index, call: "KVM_VCPU_TSC_OFFSET", source })?;
    Ok(read_msr(vcpu, MSR_IA32_TSC).map(|guests| guests.wrapping_sub(offset)))
}

/// The counters of captured vCPUs.
pub(super) fn captured_counters(vcpus: &[VcpuState]) -> impl Iterator<Item = CapturedCounter> {
    vcpus.iter().filter_map(|vcpu| {
        let counter = vcpu.msrs.iter().find(|msr| msr.index == MSR_IA32_TSC)?.data;
        Some(CapturedCounter { counter, offset: vcpu.tsc_offset })
    })
}

fn set_frequency(vcpu: &VcpuFd, index: usize, host: &Host, theirs: u32, ours: u32) -> Result<(), StateError> {
    if theirs == ours {
        Ok(())
    } else if host.tsc_control {
        let set = vcpu.set_tsc_khz(theirs);
        set.map_err(|e| StateError::Vcpu { vcpu: index, call: "KVM_SET_TSC_KHZ", source: e.into() })
    } else if tsc_close(theirs, ours) {
        Ok(())
    } else {
        Err(StateError::TscKhz { vcpu: index, theirs, ours })
    }
}

/// Sets everything. `current` is what the vCPU has now (its CPUID and counter frequency need no second setting).
/// `offset_shift`: see [`counter::offset_shift`]; without it the counter itself is set.
///
/// Order:
/// - CPUID and the counter's frequency first: they decide which values the other calls accept and what they mean.
/// - MP state before the LAPIC and the events, which take a vCPU's INIT and SIPI into account.
/// - SREGS before the LAPIC: the APIC base says whether the LAPIC's identity has the x2APIC format.
/// - SREGS (CR4.OSXSAVE, EFER) before XCRS before XSAVE before the MSRs.
/// - LAPIC before the MSRs: a deadline is dropped while the LAPIC's timer is not in deadline mode.
/// - The counter before the deadline: its offset before the MSRs, among which it comes first ([`Collector::new`]).
/// - REGS before the events: KVM_SET_REGS forgets a pending exception.
/// - Events last.
pub(super) fn apply(
    vcpu: &VcpuFd,
    index: usize,
    host: &Host,
    state: &VcpuState,
    current: &VcpuState,
    offset_shift: Option<u64>,
) -> Result<(), StateError> {
    let VcpuState {
        cpuid,
        tsc_khz,
        tsc_offset,
        mp_state,
        regs,
        sregs,
        xcrs,
        xsave,
        debug_regs,
        lapic,
        msrs,
        events,
    } = state;
    let refused = |call: &'static str| {
        move |source: vmm_sys_util::errno::Error| StateError::Vcpu {
            vcpu: index,
            call,
            source: source.into(),
        }
    };
    let refused_io =
        |call: &'static str| move |source: std::io::Error| StateError::Vcpu { vcpu: index, call, source };

    if *cpuid != current.cpuid {
        let entries = CpuId::from_entries(cpuid)
            .map_err(|_| StateError::Decode(format!("{} CPUID entries", cpuid.len())))?;
        vcpu.set_cpuid2(&entries).map_err(refused("KVM_SET_CPUID2"))?;
    }
    set_frequency(vcpu, index, host, *tsc_khz, current.tsc_khz)?;
    vcpu.set_mp_state(*mp_state).map_err(refused("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(regs).map_err(refused("KVM_SET_REGS"))?;
    set_sregs(vcpu, sregs, host.sregs2).map_err(refused_io("KVM_SET_SREGS2"))?;
    vcpu.set_xcrs(xcrs).map_err(refused("KVM_SET_XCRS"))?;
    let (theirs, ours) = (xsave.len(), host.xsave_bytes);
    let fitting = fit_xsave(xsave, ours).ok_or(StateError::Xsave { vcpu: index, theirs, ours })?;
    ioctl::set_xsave(vcpu, &fitting).map_err(refused_io("KVM_SET_XSAVE"))?;
    vcpu.set_debug_regs(debug_regs).map_err(refused("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(lapic).map_err(refused("KVM_SET_LAPIC"))?;
    let msrs = match (offset_shift, msrs.split_first()) {
        (Some(shift), Some((first, rest))) if first.index == MSR_IA32_TSC => {
            counter::set_offset(vcpu, tsc_offset.unwrap_or(0).wrapping_add(shift))
                .map_err(refused_io("KVM_VCPU_TSC_OFFSET"))?;
            rest
        }
        _ => msrs,
    };
    set_msrs(vcpu, index, msrs)?;
    vcpu.set_vcpu_events(events).map_err(refused("KVM_SET_VCPU_EVENTS"))
}

/// An extended state of the size that this host takes; none where that loses something. From a host with fewer
/// components: those that it did not know are in their initial state. From one with more: the guest has none of those.
fn fit_xsave(xsave: &[u8], bytes: usize) -> Option<Cow<'_, [u8]>> {
    if xsave.len() < XSAVE_BYTES_MIN {
        return None;
    }
    if xsave.len() <= bytes {
        let mut padded = Cow::Borrowed(xsave);
        if xsave.len() < bytes {
            padded.to_mut().resize(bytes, 0);
        }
        return Some(padded);
    }
    let (fitting, beyond) = xsave.split_at(bytes);
    beyond.iter().all(|&byte| byte == 0).then_some(Cow::Borrowed(fitting))
}

/// Registers that begin as the host has them and are zero in a processor with a name. One that is not there, or that
/// is not to be set, has nothing of the host's.
pub(super) fn clear_host_msrs(vcpu: &VcpuFd) {
    for index in ZERO_MSRS {
        if let Ok(entries) = msrs_of(&[kvm_msr_entry { index, ..Default::default() }]) {
            let _ = vcpu.set_msrs(&entries);
        }
    }
}

/// Sets the MSRs in their order. One that KVM will not set is skipped where nothing is lost by it ([`may_skip`]), and
/// is an error otherwise, which names it.
fn set_msrs(vcpu: &VcpuFd, index: usize, msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let failed = |source: std::io::Error| StateError::Vcpu { vcpu: index, call: "KVM_SET_MSRS", source };
        let entries = msrs_of(chunk).map_err(|e| failed(std::io::Error::other(e)))?;
        let set = vcpu.set_msrs(&entries).map_err(|e| failed(e.into()))?;
        rest = &rest[set.min(chunk.len())..];
        if set < chunk.len() {
            let refused = &chunk[set];
            let here = read_msr(vcpu, refused.index);
            if !may_skip(refused.data, here) {
                return Err(StateError::Msr {
                    vcpu: index,
                    index: refused.index,
                    captured: refused.data,
                    here,
                });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

/// Whether a register that cannot be set may be left out: it has the value already (some that can be read are constant
/// on a host), or it does not exist here and held nothing there, as one of a feature that the guest is not offered.
fn may_skip(captured: u64, here: Option<u64>) -> bool {
    here.map_or(captured == 0, |here| here == captured)
}

/// Puts vCPUs that are as after power-on at a guest's entry.
pub(super) fn enter(vcpus: &mut [VcpuState], entry: &Entry) {
    if let Some(firmware) = &entry.firmware {
        vcpus.iter_mut().for_each(|vcpu| set_firmware_registers(vcpu, firmware));
    }
    for (vcpu, entry) in vcpus.iter_mut().zip(&entry.vcpus) {
        let &VcpuEntry { rip, rsp, rbp, rdi, rsi, rdx, code, data, task, gdt, cr0, cr3, cr4, efer } = entry;
        vcpu.mp_state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        vcpu.regs = kvm_regs { rip, rsp, rbp, rdi, rsi, rdx, rflags: 2, ..Default::default() };
        let sregs = &mut vcpu.sregs.base;
        sregs.cs = segment(&code);
        let data = segment(&data);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        if let Some(task) = task {
            sregs.tr = segment(&task);
        }
        sregs.gdt = kvm_dtable { base: gdt.0, limit: gdt.1, ..Default::default() };
        sregs.idt = kvm_dtable::default();
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (cr0, cr3, cr4, efer);
    }
}

fn set_firmware_registers(vcpu: &mut VcpuState, firmware: &Firmware) {
    if let Some(msr) = vcpu.msrs.iter_mut().find(|msr| msr.index == MSR_MTRR_DEF_TYPE) {
        msr.data = firmware.mtrr_def_type;
    }
    for (offset, mode) in LVT_LINT.into_iter().zip(firmware.lint_modes) {
        let register = &mut vcpu.lapic.regs[offset..offset + 4];
        let bytes: [u8; 4] = std::array::from_fn(|i| register[i] as u8);
        let value = (u32::from_le_bytes(bytes) & !0x700) | mode;
        for (to, from) in register.iter_mut().zip(value.to_le_bytes()) {
            *to = from as std::os::raw::c_char;
        }
    }
}

fn segment(segment: &EntrySegment) -> kvm_segment {
    let &EntrySegment { selector, limit, kind, code_or_data, dpl, long, big, granular } = segment;
    kvm_segment {
        selector,
        limit,
        type_: kind,
        present: 1,
        dpl,
        s: code_or_data.into(),
        l: long.into(),
        db: big.into(),
        g: granular.into(),
        ..Default::default()
    }
}

fn get_irqchip(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, KvmError> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(KvmError::of("KVM_GET_IRQCHIP"))?;
    Ok(chip)
}

/// Reads what the vCPUs share. All of them are parked: their time stamp counters were read before the clock, so that
/// a clock computed from both never lies before one that the guest has seen.
pub(crate) fn collect_vm(vm: &VmFd) -> Result<VmState, KvmError> {
    Ok(VmState {
        pic_master: get_irqchip(vm, KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: get_irqchip(vm, KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: get_irqchip(vm, KVM_IRQCHIP_IOAPIC)?,
        pit: vm.get_pit2().map_err(KvmError::of("KVM_GET_PIT2"))?,
        clock: vm.get_clock().map_err(KvmError::of("KVM_GET_CLOCK"))?,
    })
}

/// Sets what the vCPUs share, but for the clock. They have their state already: an interrupt that was waiting in the
/// IOAPIC is delivered to the LAPICs by this call, and would be overwritten by setting those later. The devices come
/// afterwards: the level of their lines is not in the chips' state, they raise them again.
pub(crate) fn apply_vm(vm: &VmFd, state: &VmState) -> Result<(), StateError> {
    let VmState { pic_master, pic_slave, ioapic, pit, clock: _ } = state;
    let refused = |call: &'static str| {
        move |source: vmm_sys_util::errno::Error| StateError::Vm { call, source: source.into() }
    };
    for (chip, id) in [
        (pic_master, KVM_IRQCHIP_PIC_MASTER),
        (pic_slave, KVM_IRQCHIP_PIC_SLAVE),
        (ioapic, KVM_IRQCHIP_IOAPIC),
    ] {
        if chip.chip_id != id {
            return Err(StateError::Decode(format!("interrupt chip {} in the place of {id}", chip.chip_id)));
        }
        vm.set_irqchip(chip).map_err(refused("KVM_SET_IRQCHIP"))?;
    }
    vm.set_pit2(pit).map_err(refused("KVM_SET_PIT2"))
}

/// Lets guest time go on from where it was captured; a moment of it, where KVM tells one. No flags: with
/// KVM_CLOCK_REALTIME the guest would jump by the time between capture and restore, with the outage seen as a jump of
/// the clock by every timer it has.
pub(crate) fn set_clock(vm: &VmFd, clock: &kvm_clock_data) -> Result<Option<Moment>, StateError> {
    let refused =
        |call| move |source: vmm_sys_util::errno::Error| StateError::Vm { call, source: source.into() };
    let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
    vm.set_clock(&clock).map_err(refused("KVM_SET_CLOCK"))?;
    Ok(Moment::of(&vm.get_clock().map_err(refused("KVM_GET_CLOCK"))?))
}

#[cfg(test)]
mod tests {
    use super::{fit_xsave, may_skip};

    #[test]
    fn an_extended_state_fits_a_host_of_another_size_unless_something_is_lost() {
        let mut large = vec![7; 4096];
        large.resize(11_008, 0);
        assert_eq!(fit_xsave(&large, 4096).unwrap()[..], [7; 4096], "no component lies beyond");
        large[11_007] = 1;
        assert_eq!(fit_xsave(&large, 4096), None);
        assert_eq!(fit_xsave(&[7; 4096], 4100).unwrap()[4094..], [7, 7, 0, 0, 0, 0]);
        assert_eq!(fit_xsave(&[7; 4095], 4096), None);
        assert_eq!(fit_xsave(&large, 11_008).unwrap()[..], large[..]);
    }

    #[test]
    fn a_register_that_cannot_be_set_is_left_out_only_where_nothing_is_lost() {
        assert!(may_skip(7, Some(7)), "constant on both hosts");
        assert!(may_skip(0, None), "it does not exist here and held nothing");
        assert!(!may_skip(7, None), "it held something that is lost here");
        assert!(!may_skip(0, Some(7)) && !may_skip(7, Some(0)), "the guest would see another value");
    }
}
