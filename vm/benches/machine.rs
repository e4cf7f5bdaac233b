//! What a checkpoint costs the machine: pausing, capturing, harvesting and resuming against the number of dirty pages,
//! and what a take-over costs a machine that was made beforehand. Prints a table; needs /dev/kvm.

use ft_vm::spec::EngineKind;
use ft_vm::testing::sweep::{self, rounds};
use ft_vm::testing::{boot_code, content, kvm, machine, spec};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 256 << 20;

/// Median and 99th percentile in microseconds.
fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let us = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
    format!("{:>8.0} {:>8.0}", us(50), us(99))
}

fn timed<T>(times: &mut Vec<Duration>, act: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = act();
    times.push(begun.elapsed());
    result
}

fn main() {
    if !kvm("the machine's benchmark") {
        return;
    }
    if std::env::args().any(|arg| arg == "take-over") {
        return take_over();
    }
    println!("microseconds, median and p99; {} MiB of RAM", RAM_BYTES >> 20);
    println!(
        "{:>5} {:>6} {:>17} {:>17} {:>17} {:>17} {:>7}",
        "vcpus", "pages", "pause", "capture", "harvest", "resume", "state"
    );
    for vcpus in [1, 2] {
        for pages in [16u64, 100, 1000, 10_000, 32_768] {
            checkpoint(vcpus, pages);
        }
    }
    take_over();
}

fn checkpoint(vcpus: u8, pages: u64) {
    let (mut machine, ram, _) = machine(&spec(EngineKind::Kvm, vcpus, RAM_BYTES));
    boot_code(&mut machine, &sweep::code());
    sweep::set_pages(&ram, pages);
    machine.start_dirty_log().unwrap();
    machine.resume().unwrap();
    let (mut state, mut dirty) = (Vec::new(), Vec::new());
    let (mut pause, mut capture, mut harvest, mut resume) = (vec![], vec![], vec![], vec![]);
    for _ in 0..200 {
        // A whole round since the last checkpoint.
        let before = rounds(&ram);
        while rounds(&ram) < before + 2 * u64::from(vcpus) {
            std::thread::sleep(Duration::from_micros(500));
        }
        state.clear();
        dirty.clear();
        timed(&mut pause, || machine.pause()).unwrap();
        timed(&mut capture, || machine.capture(&mut state)).unwrap();
        timed(&mut harvest, || machine.harvest(&mut dirty)).unwrap();
        timed(&mut resume, || machine.resume()).unwrap();
        assert!(dirty.len() as u64 > pages, "{} pages", dirty.len());
    }
    println!(
        "{vcpus:>5} {pages:>6} {} {} {} {} {:>7}",
        figures(pause),
        figures(capture),
        figures(harvest),
        figures(resume),
        state.len()
    );
}

fn take_over() {
    let spec = spec(EngineKind::Kvm, 1, RAM_BYTES);
    let (mut primary, ram, _) = machine(&spec);
    boot_code(&mut primary, &sweep::code());
    sweep::set_pages(&ram, 100);
    let (mut make, mut restore, mut first) = (vec![], vec![], vec![]);
    let mut state = Vec::new();
    for _ in 0..30 {
        primary.resume().unwrap();
        let before = rounds(&ram);
        while rounds(&ram) < before + 2 {
            std::thread::yield_now();
        }
        primary.pause().unwrap();
        state.clear();
        primary.capture(&mut state).unwrap();
        let (mut warm, warm_ram, _) = timed(&mut make, || machine(&spec));
        let view = warm_ram.view().unwrap();
        content(&ram).iter().for_each(|(index, page)| view.write_page(*index, page));
        let before = rounds(&warm_ram);
        timed(&mut restore, || {
            warm.restore(&state).unwrap();
            warm.resume().unwrap();
        });
        timed(&mut first, || {
            while rounds(&warm_ram) == before {
                std::hint::spin_loop();
            }
        });
    }
    println!("make a machine beforehand {}", figures(make));
    println!("restore and resume        {}", figures(restore));
    println!("until the guest has run   {}", figures(first));
}
