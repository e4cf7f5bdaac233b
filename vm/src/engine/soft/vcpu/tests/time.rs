//! Virtual time of a guest that works in short pieces.

use super::*;
use crate::engine::soft::vcpu::live::AHEAD_NS;
use ft_cpu::PACES;

/// Works for so many instructions, idles for 100 ms, and goes on.
const PIECE: u64 = 4000;

#[test]
fn short_work_at_a_wrong_pace_does_not_let_time_run_ahead() {
    let code = assemble!(
        "2: mov ecx, 2000",
        "3: dec ecx",
        "jnz 3b",
        // The platform device's idle register.
        "mov qword ptr [r13 + 0x100008], 100000",
        "jmp 2b",
    );
    let mut rig = Rig::new(&code, &assemble!("iretq"), |_| ());
    rig.start_devices();
    rig.worker.resume();
    // As a host leaves it that did not let the guest run for a while.
    rig.worker.input(&LogInput::Pace { ns_per_256: *PACES.end() });
    let mut most = 0;
    for _ in 0..250 {
        let count = rig.worker.cpu.count;
        for _ in 0..1000 {
            rig.worker.reach.bell.take();
            rig.worker.live();
            if rig.worker.idle_until_ns.is_some() {
                break;
            }
        }
        assert!(rig.worker.idle_until_ns.is_some(), "it idles when its work is done");
        assert!(rig.worker.cpu.count >= count + PIECE);
        // It idles, until something comes.
        rig.worker.reach.bell.ring();
        rig.worker.live();
        rig.worker.input(&LogInput::Frame { card: 0, packet: plain_packet(&[0; 60]) });
        assert_eq!(rig.worker.idle_until_ns, None, "a frame ends it");
        most = most.max(rig.worker.virtual_ns().saturating_sub(rig.worker.host_time.due_ns()));
    }
    assert!(most < AHEAD_NS / 2, "{} ms ahead of the host's", most / 1_000_000);
}
