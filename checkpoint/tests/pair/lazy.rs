//! Take-over on a memory whose backlog is still to be applied: no reader ever sees a stale page, and no page is applied
//! over a later write of the guest.

use crate::support::{self, Backup, Primary, stream};
use ft_checkpoint::lazy::{EAGER_PAGES_MAX, LazyApply};
use ft_checkpoint::page::{Page, ZERO_PAGE};
use ft_checkpoint::receiver::{Limits, SealedImage};
use ft_ram::{GuestRam, PageIndex};
use std::sync::atomic::{AtomicU32, Ordering};

fn kernel_serves() -> bool {
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok();
    if !usable {
        eprintln!("NOTE: no access to /dev/userfaultfd: this run covers only the eager way");
    }
    usable
}

/// Word 0 of a page says which page it is and of which epoch.
fn stamped(page: PageIndex, epoch: u32) -> Page {
    let mut content = ZERO_PAGE;
    content[..4].copy_from_slice(&stamp(page, epoch).to_le_bytes());
    content[4000] = 5;
    content
}

fn stamp(page: PageIndex, epoch: u32) -> u32 {
    epoch << 16 | page
}

/// A backup with three unapplied checkpoints: all pages of the first half in epoch 1 or 2, every third of the memory in
/// epoch 3 (so that there are holes in the memory behind it), some of them zero.
fn backlog() -> (GuestRam, SealedImage) {
    let mut primary = Primary::new(1, 0);
    let mut backup = Backup::new(Limits { epoch_pages: 4096, backlog_pages: 3 * 4096 });
    backup.feed_all(&primary.protect(9));
    for epoch in 2..=3 {
        for page in (0..4096).filter(|p| expected_epoch(*p) >= epoch && (epoch == 3 || *p < 2048)) {
            primary.write(page, &if page % 50 == 7 { ZERO_PAGE } else { stamped(page, epoch) });
        }
        backup.feed_all(&stream(|out| primary.checkpoint(out).unwrap()));
    }
    (backup.ram, backup.receiver.into_sealed().ok().unwrap())
}

/// 0: not ours, whatever the random beginning left there.
fn expected_epoch(page: PageIndex) -> u32 {
    match page {
        _ if page.is_multiple_of(3) && page % 1000 < 800 => 3,
        0..2048 => 2,
        _ => 0,
    }
}

fn expected(page: PageIndex) -> Option<u32> {
    match expected_epoch(page) {
        0 => None,
        _ if page % 50 == 7 => Some(0),
        epoch => Some(stamp(page, epoch)),
    }
}

/// Addresses of the pages' words in the guest's mapping.
fn words(ram: &GuestRam, page: PageIndex) -> (&AtomicU32, &AtomicU32) {
    let slot = ram.slots()[0];
    // SAFETY: within the slot's mapping, aligned, and accessed only as atomics and by the kernel.
    unsafe {
        let base = slot.host.add(page as usize * 4096).cast::<AtomicU32>();
        (&*base, &*base.add(1))
    }
}

#[test]
fn threads_see_only_applied_pages_and_keep_what_they_wrote() {
    kernel_serves();
    for round in 0..5 {
        let (ram, sealed) = backlog();
        let lazy = LazyApply::start(&ram, &sealed);
        std::thread::scope(|scope| {
            for thread in 0..3_u32 {
                let ram = &ram;
                scope.spawn(move || {
                    for step in 0..4096_u32 {
                        // Each thread in another order, from the end where the worker comes last.
                        let page = [4095 - step, (step * 1237 + round) % 4096, step][thread as usize];
                        let (first, second) = words(ram, page);
                        if let Some(value) = expected(page) {
                            assert_eq!(first.load(Ordering::Relaxed), value, "page {page}");
                            second.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let stats = lazy.finish();
        eprintln!("{stats:?}");
        assert!(stats.pages > EAGER_PAGES_MAX);
        for page in 0..4096 {
            if let Some(value) = expected(page) {
                let (first, second) = words(&ram, page);
                let seen = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
                assert_eq!(seen, (value, 3), "page {page} after round {round}");
            }
        }
    }
}

#[test]
fn a_small_backlog_is_applied_at_once() {
    let mut primary = Primary::new(1, 0);
    let mut backup = Backup::unlimited();
    backup.feed_all(&primary.protect(9));
    primary.write(7, &stamped(7, 1));
    backup.feed_all(&stream(|out| primary.checkpoint(out).unwrap()));
    let sealed = backup.receiver.into_sealed().ok().unwrap();
    let lazy = LazyApply::start(&backup.ram, &sealed);
    assert!(lazy.is_finished());
    let view = backup.ram.view().unwrap();
    support::assert_same_memory(&primary.view, &view, "after the eager take-over");
    assert!(lazy.finish().pages <= EAGER_PAGES_MAX);
}

/// 32-bit code: adds up the first word of `count` pages from `start` downwards, and counts each page's second word up.
fn guest_code(start: u32, count: u32) -> Vec<u8> {
    let mut code = vec![0xbb];
    code.extend(start.to_le_bytes()); // mov ebx, start
    code.push(0xb9);
    code.extend(count.to_le_bytes()); // mov ecx, count
    code.extend([0x31, 0xc0]); // xor eax, eax
    code.extend([0x03, 0x03]); // next: add eax, [ebx]
    code.extend([0xff, 0x43, 0x04]); // inc dword [ebx + 4]
    code.extend([0x81, 0xeb, 0, 0x10, 0, 0]); // sub ebx, 4096
    code.extend([0x49, 0x75, 0xf2]); // dec ecx; jnz next
    code.extend([0xba, 0xf8, 3, 0, 0, 0xef]); // mov edx, 0x3f8; out dx, eax
    code.push(0xf4); // hlt
    code
}

#[test]
fn a_kvm_guest_sees_only_applied_pages() {
    use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit};
    let kvm = match Kvm::new() {
        Ok(kvm) if kvm.get_api_version() == KVM_API_VERSION as i32 => kvm,
        other => {
            eprintln!("SKIPPED a_kvm_guest_sees_only_applied_pages: no usable /dev/kvm ({:?})", other.err());
            return;
        }
    };
    let uffd = kernel_serves();
    let (ram, sealed) = backlog();
    let (start, count) = (2047, 2000);
    // The code lies above what the guest looks at, in pages that are not pending.
    let code_page = 2050;
    assert_eq!(expected(code_page), None);
    let mut code = ZERO_PAGE;
    let text = guest_code(start * 4096, count);
    code[..text.len()].copy_from_slice(&text);
    ram.view().unwrap().write_page(code_page, &code);

    let vm = kvm.create_vm().unwrap();
    for (number, slot) in ram.slots().into_iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            flags: 0,
            guest_phys_addr: slot.guest_base,
            memory_size: slot.bytes,
            userspace_addr: slot.host as u64,
        };
        // SAFETY: the guest's own mapping, which outlives the VM.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    // Flat 32-bit protected mode without paging.
    let mut sregs = vcpu.get_sregs().unwrap();
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        (segment.base, segment.limit, segment.selector) = (0, u32::MAX, 8);
        (segment.present, segment.s, segment.db, segment.g, segment.dpl) = (1, 1, 1, 1, 0);
        segment.type_ = 3;
    }
    sregs.cs.type_ = 11;
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    regs.rip = u64::from(code_page) * 4096;
    regs.rflags = 2;
    vcpu.set_regs(&regs).unwrap();

    let lazy = LazyApply::start(&ram, &sealed);
    let sum = match vcpu.run().unwrap() {
        VcpuExit::IoOut(0x3f8, data) => u32::from_le_bytes(data.try_into().unwrap()),
        other => panic!("{other:?}"),
    };
    let stats = lazy.finish();
    eprintln!("{stats:?}");
    let pages = start - count + 1..=start;
    let expected_sum = pages.clone().fold(0_u32, |sum, page| sum.wrapping_add(expected(page).unwrap()));
    assert_eq!(sum, expected_sum);
    for page in pages {
        assert_eq!(words(&ram, page).1.load(Ordering::Relaxed), 1, "page {page}");
    }
    assert!(!uffd || stats.faults > 0, "the guest began while pages were pending");
}
