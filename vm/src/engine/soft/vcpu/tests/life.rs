//! The watchdog and the time of day, of a guest that runs, is moved, and stands still.

use super::*;
use crate::devices::WallClockState;
use ft_cpu::{BusEvent, PACES};

const HOUR_S: u64 = 3600;
const MS: u64 = 1_000_000;
/// What the guest gives its watchdog.
const COUNTDOWN_MS: u64 = 200;

/// Starts its watchdog by the platform device's register, and feeds it no more.
fn hung() -> Rig {
    let code = assemble!("mov qword ptr [r13 + 0x100048], 200", "2: inc qword ptr [r12]", "jmp 2b");
    let mut rig = Rig::new(&code, &assemble!("iretq"), |_| ());
    rig.devices.power_on_at(0);
    // A long time in few instructions.
    rig.worker.input(&LogInput::Pace { ns_per_256: *PACES.end() });
    rig
}

/// Executes up to a count; whether the watchdog fired before.
fn fires(rig: &mut Rig, limit: u64) -> bool {
    loop {
        match rig.worker.run(limit) {
            CpuExit::Event(BusEvent::WatchdogFired) => return true,
            CpuExit::Limit => return false,
            CpuExit::Attention => drop(rig.worker.reach.bell.take()),
            exit => panic!("{exit:?} at {:#x}", rig.worker.cpu.rip),
        }
    }
}

#[test]
fn a_watchdog_fires_at_one_instruction_however_the_run_is_split_and_wherever_it_ends() {
    let mut whole = hung();
    assert!(fires(&mut whole, u64::MAX));
    let (count, at_ns) = (whole.worker.cpu.count, whole.worker.virtual_ns());
    assert!((COUNTDOWN_MS * MS..COUNTDOWN_MS * MS + MS).contains(&at_ns), "{at_ns}");
    assert!(!fires(&mut whole, 2 * count), "it is said once");
    for step in [7, 1000, 1 << 16] {
        let mut rig = hung();
        let mut moves = 0;
        loop {
            let limit = rig.worker.cpu.count + step * 64;
            if fires(&mut rig, limit) {
                break;
            }
            if moves < 100 {
                rig.reload();
                moves += 1;
            }
        }
        assert_eq!(rig.worker.cpu.count, count, "steps of {step}");
    }
    // Whoever goes on with one that is over hears of it.
    let elsewhere = &mut Rig::elsewhere(&whole.whole());
    assert!(fires(elsewhere, u64::MAX) && elsewhere.worker.cpu.count == whole.worker.cpu.count);
}

#[test]
fn a_watchdog_does_not_count_the_time_in_which_the_vm_stood_still() {
    let mut rig = hung();
    assert!(!fires(&mut rig, 1000));
    rig.worker.input(&LogInput::StoodStill { ns: HOUR_S * 1000 * MS });
    let begun_ns = rig.worker.virtual_ns();
    assert!(rig.events.try_recv().is_err() && !fires(&mut rig, 2000));
    assert!(fires(&mut rig, u64::MAX));
    let ran_ns = rig.worker.virtual_ns() - begun_ns;
    assert!(ran_ns > COUNTDOWN_MS * MS / 2, "after {} ms", ran_ns / MS);

    let mut rig = hung();
    assert!(!fires(&mut rig, 1000));
    rig.worker.input(&LogInput::Advance { ns: COUNTDOWN_MS * MS });
    assert_eq!(
        rig.events.try_recv(),
        Ok(MachineEvent::WatchdogFired),
        "a guest that idled did not stand still"
    );
}

/// The time of day that the guest reads, in seconds.
fn clock_s(rig: &mut Rig) -> u64 {
    let now_ns = rig.worker.virtual_ns();
    let chips = &mut rig.worker.platform().chips;
    let mut read = |register| {
        let mut byte = [0];
        chips.pio_write(now_ns, 0x70, &[register]);
        chips.pio_read(now_ns, 0x71, &mut byte);
        u64::from(byte[0] >> 4) * 10 + u64::from(byte[0] & 15)
    };
    read(4) * HOUR_S + read(2) * 60 + read(0)
}

#[test]
fn the_time_of_day_goes_on_while_a_state_lies_on_disk_and_guest_time_does_not() {
    let mut rig = hung();
    let before_s = clock_s(&mut rig);
    let mut later = rig.whole();
    let zero_unix_ns = later.devices.wall_clock.zero_unix_ns.map(|ns| ns - (HOUR_S * 1000 * MS) as i64);
    later.devices.wall_clock = WallClockState { zero_unix_ns };
    let mut there = Rig::elsewhere(&later);
    assert_eq!(clock_s(&mut there), before_s, "a state that is taken over is as it was");
    there.worker.resume();
    let passed_s = (clock_s(&mut there) + 24 * HOUR_S - before_s) % (24 * HOUR_S);
    assert!((HOUR_S..HOUR_S + 60).contains(&passed_s), "{passed_s}");
    assert_eq!(there.worker.virtual_ns(), rig.worker.virtual_ns());
    // And no further by being stopped and let go on.
    there.worker.stop();
    there.worker.resume();
    assert!(clock_s(&mut there) - before_s < HOUR_S + 60);
    // One that says nothing of it keeps its own time.
    later.devices.wall_clock = WallClockState::default();
    let mut there = Rig::elsewhere(&later);
    there.worker.resume();
    assert_eq!(clock_s(&mut there), before_s);
}

#[test]
fn a_state_that_says_two_times_is_refused() {
    let mut rig = hung();
    fires(&mut rig, 1000);
    let mut whole = rig.whole();
    let good = whole.devices.clone();
    whole.devices.platform.guest_time_ns += 1;
    let mut there = Rig::empty();
    there.worker.load(&whole.state).unwrap();
    let error = there.devices.restore(&whole.devices).unwrap_err().to_string();
    assert!(error.contains("by the processor's count"), "{error}");
    there.take_over(&whole.state, &good);
}
