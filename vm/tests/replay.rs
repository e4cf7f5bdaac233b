//! A machine on the deterministic engine, recorded and replayed: the replay comes to the very same state, bit for bit,
//! in this process or in another one, however the log is cut and fed; it never goes beyond the log that it has; and a
//! difference is found and named.

use ft_ram::{GuestRam, PageIndex};
use ft_vm::devices::{Delivered, FrameSink, NET_HEADER_BYTES, Offloads, Transmit, Wiring, plain_packet};
use ft_vm::machine::{Machine, MachineError, MachineEvent};
use ft_vm::replay::{LogError, ReplayPosition};
use ft_vm::spec::{Boot, EngineKind, FreestandingImage, MachineSpec, NetSpec};
use ft_vm::testing::{Remember, content, spec};
use rand::{Rng, SeedableRng};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RAM_BYTES: u64 = 32 << 20;
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0xf7, 0xd0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const PATIENCE: Duration = Duration::from_secs(600);
/// Set for the process that replays: where the files are.
const REPLAY: &str = "FTD_TEST_REPLAY";

type Frames = Arc<Mutex<Vec<Vec<u8>>>>;

/// Keeps the frames, refusing every third one at first.
struct Sink {
    frames: Frames,
    refuses: bool,
    offered: Mutex<usize>,
}

impl FrameSink for Sink {
    fn transmit(&self, _: u8, packet: &[u8]) -> Transmit {
        let mut offered = self.offered.lock().unwrap();
        *offered += 1;
        if self.refuses && offered.is_multiple_of(3) {
            return Transmit::Full;
        }
        self.frames.lock().unwrap().push(packet[NET_HEADER_BYTES..].to_vec());
        Transmit::Taken
    }

    fn set_offloads(&self, _: u8, _: Offloads) {}
}

struct Rig {
    machine: Machine,
    ram: GuestRam,
    console: Remember,
    frames: Frames,
}

fn guest_spec() -> MachineSpec {
    MachineSpec {
        nets: vec![NetSpec { mac: GUEST_MAC, mtu: 1500 }],
        rng: true,
        ..spec(EngineKind::Soft, 1, RAM_BYTES)
    }
}

fn rig(refuses: bool) -> Rig {
    let ram = GuestRam::new(RAM_BYTES).unwrap();
    let console = Remember::default();
    let frames = Frames::default();
    let sink = Sink { frames: Arc::clone(&frames), refuses, offered: Mutex::new(0) };
    let wiring =
        Wiring { frames: Some(Arc::new(sink)), console: Box::new(console.clone()), disks: Vec::new() };
    Rig { machine: Machine::new(&guest_spec(), &ram, wiring).unwrap(), ram, console, frames }
}

fn boot(rig: &mut Rig) {
    let image = FreestandingImage::BuiltIn;
    rig.machine.boot(&Boot::Freestanding { image, cmdline: String::new() }).unwrap();
}

/// An ARP request for the guest's address; the guest answers each.
fn arp() -> Vec<u8> {
    let mut frame = [[0xff; 6], HOST_MAC].concat();
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&HOST_MAC);
    frame.extend_from_slice(&[10, 77, 0, 1, 0, 0, 0, 0, 0, 0, 10, 77, 0, 2]);
    frame
}

/// Something of a protocol that the guest does not know, with a content that shows in its memory.
fn noise(rng: &mut impl Rng) -> Vec<u8> {
    let mut frame = [GUEST_MAC, HOST_MAC].concat();
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.extend((0..rng.random_range(0..1400)).map(|_| rng.random::<u8>()));
    frame
}

fn deliver(rig: &Rig, frame: &[u8]) {
    let port = rig.machine.net(0).unwrap();
    let packet = plain_packet(frame);
    while port.deliver(&packet) != Delivered::Yes {
        port.wait_for_buffers(Duration::from_secs(1));
    }
    port.resume_transmit();
}

fn answers(rig: &Rig) -> usize {
    rig.frames.lock().unwrap().iter().filter(|frame| frame[12..14] == [8, 6]).count()
}

/// Asks every now and then: asking calls the vCPU's thread out of the guest.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "no end of waiting: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Asks for the guest's address, again if the guest was not ready for it, until it answers.
fn ask(rig: &Rig) {
    let before = answers(rig);
    let mut last = None::<Instant>;
    until("the guest answers", || {
        if last.is_none_or(|last| last.elapsed() > Duration::from_millis(500)) {
            deliver(rig, &arp());
            last = Some(Instant::now());
        }
        // The sink has refused it, perhaps.
        rig.machine.net(0).unwrap().resume_transmit();
        answers(rig) > before
    });
}

struct Recording {
    start: Vec<u8>,
    start_memory: Vec<(PageIndex, Box<[u8; 4096]>)>,
    batches: Vec<Vec<u8>>,
    end: Vec<u8>,
    end_memory: Vec<(PageIndex, Box<[u8; 4096]>)>,
    console: String,
}

fn cut(machine: &mut Machine, batches: &mut Vec<Vec<u8>>) -> u64 {
    let mut bytes = Vec::new();
    let called = Arc::new(Mutex::new(false));
    let at_cut = Arc::clone(&called);
    let cut = machine.cut_log(&mut bytes, Box::new(move || *at_cut.lock().unwrap() = true)).unwrap();
    assert!(*called.lock().unwrap(), "the caller's epoch is closed at the cut");
    assert_eq!(cut.bytes, bytes.len());
    batches.push(bytes);
    cut.count
}

/// Runs the built-in guest for `rounds` rounds of traffic, with pauses, captures, harvests and cuts in between, and
/// then on until `time` is over.
fn record(seed: u64, rounds: usize, time: Duration) -> Recording {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut rig = rig(true);
    boot(&mut rig);
    let early = rng.random_range(0..20);
    rig.machine.resume().unwrap();
    std::thread::sleep(Duration::from_millis(early));
    rig.machine.pause().unwrap();
    let before = rig.console.text().len();
    rig.machine.start_recording().unwrap();
    rig.machine.start_dirty_log().unwrap();
    let (mut start, mut batches) = (Vec::new(), Vec::new());
    rig.machine.capture(&mut start).unwrap();
    let start_memory = content(&rig.ram);
    rig.machine.resume().unwrap();

    let begun = Instant::now();
    for _ in 0..rounds {
        for _ in 0..rng.random_range(0..4) {
            deliver(&rig, &noise(&mut rng));
        }
        ask(&rig);
        match rng.random_range(0..6) {
            0 => {
                rig.machine.pause().unwrap();
                if rng.random() {
                    rig.machine.capture(&mut Vec::new()).unwrap();
                }
                rig.machine.resume().unwrap();
            }
            1 => rig.machine.harvest(&mut Vec::new()).unwrap(),
            2 | 3 => drop(cut(&mut rig.machine, &mut batches)),
            4 => rig.machine.console().input(b"typed\n"),
            _ => {}
        }
    }
    // An idle guest goes on looking at its clock.
    until("the time is over", || begun.elapsed() >= time);
    rig.machine.pause().unwrap();
    let mut end = Vec::new();
    rig.machine.capture(&mut end).unwrap();
    let count = cut(&mut rig.machine, &mut batches);
    assert_eq!(count, rig.machine.count());
    let console = rig.console.text()[before..].to_owned();
    Recording { start, start_memory, batches, end, end_memory: content(&rig.ram), console }
}

fn replaying(start: &[u8], memory: &[(PageIndex, Box<[u8; 4096]>)]) -> Rig {
    let mut rig = rig(false);
    let view = rig.ram.view().unwrap();
    memory.iter().for_each(|(index, page)| view.write_page(*index, page));
    rig.machine.restore(start).unwrap();
    rig.machine.start_replaying().unwrap();
    rig
}

/// Feeds the batches in random portions, at random times, and checks that the machine keeps to what it has.
fn replay(rig: &mut Rig, batches: &[Vec<u8>], rng: &mut impl Rng) {
    rig.machine.resume().unwrap();
    let mut rest = batches;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rng.random_range(1..=rest.len()));
        rest = later;
        rig.machine.feed_log(&now.concat()).unwrap();
        if rng.random() {
            assert!(rig.machine.wait_replayed(PATIENCE).unwrap());
        }
        if rng.random() {
            rig.machine.pause().unwrap();
            rig.machine.resume().unwrap();
        }
        let ReplayPosition { count, fed } = rig.machine.replay_position();
        assert!(count <= fed);
    }
    assert!(rig.machine.wait_replayed(PATIENCE).unwrap());
    let ReplayPosition { count, fed } = rig.machine.replay_position();
    assert_eq!(count, fed);
    rig.machine.pause().unwrap();
    assert!(rig.machine.events().try_recv().is_err());
}

fn assert_same(rig: &mut Rig, end: &[u8], memory: &[(PageIndex, Box<[u8; 4096]>)]) {
    let pages = content(&rig.ram);
    for ((index, page), (expected_index, expected)) in pages.iter().zip(memory) {
        assert_eq!(index, expected_index);
        assert!(page == expected, "page {index} differs");
    }
    assert_eq!(pages.len(), memory.len());
    let mut state = Vec::new();
    rig.machine.capture(&mut state).unwrap();
    assert!(state == end, "the state differs");
}

#[test]
#[cfg_attr(feature = "misreplay", ignore = "this build replays wrongly")]
fn a_replay_comes_to_the_same_bits_however_its_log_is_fed() {
    for seed in 0..6 {
        let recording = record(seed, 30, Duration::ZERO);
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        for _ in 0..3 {
            let mut rig = replaying(&recording.start, &recording.start_memory);
            rig.machine.show_replayed_console(true).unwrap();
            replay(&mut rig, &recording.batches, &mut rng);
            assert_same(&mut rig, &recording.end, &recording.end_memory);
            assert!(rig.frames.lock().unwrap().is_empty(), "a replay's frames go nowhere");
            assert_eq!(rig.console.text(), recording.console);
        }
    }
}

fn save_pages(path: &Path, pages: &[(PageIndex, Box<[u8; 4096]>)]) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    for (index, page) in pages {
        file.write_all(&index.to_le_bytes()).unwrap();
        file.write_all(&page[..]).unwrap();
    }
    file.flush().unwrap();
}

fn load_pages(path: &Path) -> Vec<(PageIndex, Box<[u8; 4096]>)> {
    let mut file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let (mut pages, mut index, mut page) = (Vec::new(), [0; 4], Box::new([0; 4096]));
    while file.read_exact(&mut index).is_ok() {
        file.read_exact(&mut page[..]).unwrap();
        pages.push((PageIndex::from_le_bytes(index), page.clone()));
    }
    pages
}

/// Not a test of its own: what the other process does.
#[test]
fn replay_of_files() {
    let Some(dir) = std::env::var_os(REPLAY).map(std::path::PathBuf::from) else { return };
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let mut rig = replaying(&read("start"), &load_pages(&dir.join("start-memory")));
    replay(&mut rig, &[read("log")], &mut rand::rng());
    assert_same(&mut rig, &read("end"), &load_pages(&dir.join("end-memory")));
}

#[test]
#[cfg_attr(feature = "misreplay", ignore = "this build replays wrongly")]
fn a_replay_in_another_process_comes_to_the_same_bits() {
    let recording = record(77, 20, Duration::from_millis(1500));
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("start", &recording.start);
    write("end", &recording.end);
    write("log", &recording.batches.concat());
    save_pages(&dir.path().join("start-memory"), &recording.start_memory);
    save_pages(&dir.path().join("end-memory"), &recording.end_memory);
    let other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "replay_of_files", "--nocapture"])
        .env(REPLAY, dir.path())
        .output()
        .unwrap();
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));
}

#[test]
fn what_differs_is_found_at_the_next_digest_and_nothing_goes_on_from_it() {
    // Long enough for a digest by time.
    let recording = record(5, 10, Duration::from_millis(2500));
    let mut memory = recording.start_memory.clone();
    // The guest's code is not written, so it is a page that changes by itself: the first one that differs at the end.
    let changed = memory.iter().position(|(index, page)| {
        recording.end_memory.iter().any(|(other, end)| other == index && end != page)
    });
    let (index, page) = &mut memory[changed.expect("the guest writes memory")];
    let untouched = recording.end_memory.iter().find(|(other, _)| other == index).unwrap();
    let at = (0..4096).find(|&at| page[at] == untouched.1[at]).expect("a byte that stays");
    page[at] ^= 0x80;
    let mut rig = replaying(&recording.start, &memory);
    rig.machine.resume().unwrap();
    rig.machine.feed_log(&recording.batches.concat()).unwrap();
    let error = rig.machine.wait_replayed(PATIENCE).unwrap_err();
    let MachineEvent::Diverged { count, what } = ft_vm::testing::event(&rig.machine) else {
        panic!("no divergence")
    };
    eprintln!("diverged at {count}: {what}");
    assert!(matches!(error, MachineError::Diverged { .. }), "{error}");
    rig.machine.pause().unwrap();
    assert!(matches!(rig.machine.go_live(), Err(MachineError::Diverged { .. })));
    assert!(matches!(rig.machine.capture(&mut Vec::new()), Err(MachineError::Diverged { .. })));
}

/// cargo test -p ft-vm --features misreplay --test replay
#[cfg(feature = "misreplay")]
#[test]
fn one_byte_of_one_frame_replayed_wrongly_is_found_and_named() {
    let recording = record(21, 30, Duration::from_millis(2500));
    let mut rig = replaying(&recording.start, &recording.start_memory);
    rig.machine.resume().unwrap();
    rig.machine.feed_log(&recording.batches.concat()).unwrap();
    assert!(rig.machine.wait_replayed(PATIENCE).is_err());
    let MachineEvent::Diverged { count, what } = ft_vm::testing::event(&rig.machine) else {
        panic!("no divergence")
    };
    eprintln!("diverged at {count}: {what}");
    assert!(!what.is_empty());
}

#[test]
fn a_replay_goes_live_where_its_log_ends_and_not_before() {
    let recording = record(9, 10, Duration::ZERO);
    let mut rig = replaying(&recording.start, &recording.start_memory);
    let port = rig.machine.net(0).unwrap();
    assert_eq!(port.deliver(&plain_packet(&arp())), Delivered::Paused, "nothing comes in but by the log");
    rig.machine.feed_log(&recording.batches.concat()).unwrap();
    assert!(matches!(rig.machine.go_live(), Err(MachineError::Mode { .. })));
    rig.machine.resume().unwrap();
    assert_eq!(port.deliver(&plain_packet(&arp())), Delivered::Paused);
    assert!(rig.machine.wait_replayed(PATIENCE).unwrap());
    assert!(matches!(rig.machine.go_live(), Err(MachineError::Mode { .. })), "it runs");
    rig.machine.pause().unwrap();
    rig.machine.go_live().unwrap();
    // It can be recorded in its turn.
    rig.machine.start_recording().unwrap();
    rig.machine.resume().unwrap();
    ask(&rig);
    let mut batches = Vec::new();
    cut(&mut rig.machine, &mut batches);
    assert!(!batches[0].is_empty());
}

#[test]
#[cfg_attr(feature = "misreplay", ignore = "this build replays wrongly")]
fn a_log_that_is_not_the_next_is_refused_and_the_replay_goes_on_with_the_right_one() {
    let recording = record(11, 30, Duration::ZERO);
    assert!(recording.batches.len() > 2, "{}", recording.batches.len());
    let mut rig = replaying(&recording.start, &recording.start_memory);
    rig.machine.resume().unwrap();
    let refused = |machine: &mut Machine, bytes: &[u8]| match machine.feed_log(bytes) {
        Err(MachineError::Log(e)) => e,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&mut rig.machine, &recording.batches[1]), LogError::Missing { .. }));
    rig.machine.feed_log(&recording.batches[0]).unwrap();
    assert!(matches!(refused(&mut rig.machine, &recording.batches[0]), LogError::Repeated { .. }));
    let mut damaged = recording.batches[1].clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(matches!(refused(&mut rig.machine, &damaged), LogError::Crc { .. }));
    replay(&mut rig, &recording.batches[1..], &mut rand::rng());
    assert_same(&mut rig, &recording.end, &recording.end_memory);
}

#[test]
fn recording_and_replaying_are_refused_where_they_cannot_be() {
    let mut rig = rig(false);
    assert!(matches!(rig.machine.start_replaying(), Err(MachineError::Incomplete)));
    boot(&mut rig);
    assert!(matches!(rig.machine.feed_log(&[]), Err(MachineError::Mode { .. })));
    assert!(matches!(rig.machine.cut_log(&mut Vec::new(), Box::new(|| ())), Err(MachineError::Mode { .. })));
    assert!(matches!(rig.machine.wait_replayed(Duration::ZERO), Err(MachineError::Mode { .. })));
    rig.machine.resume().unwrap();
    assert!(matches!(rig.machine.start_recording(), Err(MachineError::Mode { .. })));
    assert!(matches!(rig.machine.start_replaying(), Err(MachineError::Mode { .. })));
    rig.machine.pause().unwrap();
    rig.machine.start_recording().unwrap();
    assert!(matches!(rig.machine.start_recording(), Err(MachineError::Mode { .. })));
    assert!(matches!(rig.machine.start_replaying(), Err(MachineError::Mode { .. })));
    rig.machine.stop_recording().unwrap();
    assert!(matches!(rig.machine.cut_log(&mut Vec::new(), Box::new(|| ())), Err(MachineError::Mode { .. })));
}
