use super::*;
use crate::config::Config;
use ft_checkpoint::recording::{About, Writer};
use ft_ram::GuestRam;
use ft_vm::devices::Wiring;
use ft_vm::machine::engine_fingerprint;
use ft_vm::replay::log::{Digest, LogInput, LogWriter, REGISTERS};
use ft_vm::spec::{Boot, BusKind, CpuModel, DiskSpec, EngineKind, FreestandingImage, MachineSpec};
use std::fs;
use tempfile::TempDir;

fn about() -> About {
    About {
        vm: "web".into(),
        spec: MachineSpec {
            engine: EngineKind::Soft,
            vcpus: 1,
            ram_bytes: 16 << 20,
            nets: Vec::new(),
            disks: Vec::new(),
            rng: false,
            bus: BusKind::Mmio,
            cpu: CpuModel::Host,
        },
        engine_fingerprint: engine_fingerprint(EngineKind::Soft),
        program: "ftd 9.9.9".into(),
        disks: Vec::new(),
    }
}

/// Replays this file: how it is refused.
fn refusal(file: &[u8], disks: &[PathBuf]) -> (String, DaemonExit) {
    let directory = TempDir::new().unwrap();
    let log = directory.path().join("run.ftdrec");
    fs::write(&log, file).unwrap();
    let options =
        ReplayOptions { log, until: None, proof: Proof::Demanded, quiet: true, disks: disks.to_vec() };
    let error = replay(&options).expect_err("it is refused");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    (text, error.exit())
}

fn recording(about: &About) -> Vec<u8> {
    let ram = GuestRam::new(16 << 20).unwrap().view().unwrap();
    let writer = Writer::begin(Vec::new(), 1, about, b"no state at all", &ram).unwrap();
    writer.end(&ft_checkpoint::recording::End { count: 0, digest: 0, why: EndReason::Stopped }).unwrap()
}

fn says((text, exit): (String, DaemonExit), code: DaemonExit, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "lacks {part:?}: {text}");
    }
    assert_eq!(exit, code, "{text}");
}

#[test]
fn a_file_that_is_no_recording_or_of_another_version_is_refused_by_name() {
    says(refusal(b"", &[]), DaemonExit::Failure, &["this is no recording"]);
    says(refusal(b"\x7fELF...........", &[]), DaemonExit::Failure, &["this is no recording"]);
    let mut newer = recording(&about());
    newer[6] = 7;
    says(refusal(&newer, &[]), DaemonExit::Failure, &["format version 7", "this program reads 2"]);
}

#[test]
fn a_recording_of_another_engine_is_refused_by_both_names() {
    let mut other = about();
    other.engine_fingerprint ^= 1;
    let theirs = format!("{:#018x}", other.engine_fingerprint);
    let ours = format!("{:#018x}", about().engine_fingerprint);
    says(refusal(&recording(&other), &[]), DaemonExit::Failure, &["ftd 9.9.9", &theirs, &ours]);
}

#[test]
fn a_recording_that_is_cut_before_it_begins_is_refused_with_the_place() {
    let whole = recording(&about());
    for length in [7, 20, 60, whole.len() - 80] {
        says(
            refusal(&whole[..length], &[]),
            DaemonExit::Failure,
            &["cut off at byte", "nothing can be replayed"],
        );
    }
}

#[test]
fn a_recording_with_a_flipped_bit_is_refused_with_the_place() {
    let mut bytes = recording(&about());
    bytes[40] ^= 0x10;
    says(refusal(&bytes, &[]), DaemonExit::Failure, &["corrupt at byte 8"]);
}

/// A recording of a machine that has just booted, with a log that the recorder did not write.
fn with_log(log: impl FnOnce(u64) -> Vec<Vec<u8>>) -> Vec<u8> {
    let about = about();
    let ram = GuestRam::new(about.spec.ram_bytes).unwrap();
    let (_, console) = console::open(true, console::WhenFull::Drop).unwrap();
    let wiring = Wiring { frames: None, console, disks: Vec::new() };
    let mut machine = Machine::new(&about.spec, &ram, wiring).unwrap();
    let boot = Boot::Freestanding { image: FreestandingImage::BuiltIn, cmdline: String::new() };
    machine.boot(&boot).unwrap();
    machine.start_recording().unwrap();
    let mut state = Vec::new();
    machine.capture(&mut state).unwrap();
    let mut writer = Writer::begin(Vec::new(), 1, &about, &state, &ram.view().unwrap()).unwrap();
    for batch in log(machine.count()) {
        writer.log(&batch).unwrap();
    }
    writer.end(&ft_checkpoint::recording::End { count: 0, digest: 0, why: EndReason::Stopped }).unwrap()
}

/// Batches of a log, each a thousand instructions long.
fn batches(start: u64) -> Vec<Vec<u8>> {
    let mut writer = LogWriter::new(start);
    let batch = |number: u64| {
        let mut out = Vec::new();
        writer.cut(start + 1000 * (number + 1), &mut out).map(|_| out).unwrap()
    };
    (0..3).map(batch).collect()
}

#[test]
fn a_log_that_does_not_go_on_where_the_machine_is_is_refused_with_its_batch() {
    fn order(of: [usize; 3]) -> impl FnOnce(u64) -> Vec<Vec<u8>> {
        move |start| of.map(|i| batches(start)[i].clone()).to_vec()
    }
    fn back(start: u64) -> Vec<Vec<u8>> {
        let mut far = Vec::new();
        LogWriter::new(start).cut(start + 5000, &mut far).unwrap();
        vec![far, batches(start)[1].clone()]
    }
    let cases: [(Vec<u8>, [&str; 2]); 5] = [
        (with_log(order([0, 2, 1])), ["batch 1 of the recording", "batch 2 where batch 1 is due"]),
        (with_log(order([0, 0, 1])), ["batch 1 of the recording", "batch 0 again"]),
        (with_log(order([1, 2, 2])), ["batch 0 of the recording", "the ones before it are missing"]),
        (with_log(|start| batches(start + 7)), ["batch 0 of the recording", "the log has come to"]),
        (with_log(back), ["batch 1 of the recording", "starts at count 1000, the log has come to 5000"]),
    ];
    for (file, parts) in cases {
        says(refusal(&file, &[]), DaemonExit::Failure, &parts);
    }
    // In order it is executed; that the recording states another end is another matter.
    says(refusal(&with_log(batches), &[]), DaemonExit::Diverged, &["it ended at count"]);
}

#[test]
fn a_replay_that_comes_to_something_else_is_told_with_its_count_and_the_first_difference() {
    let file = with_log(|start| {
        let mut writer = LogWriter::new(start);
        let nowhere = Digest { registers: [0; REGISTERS.len()], pages: Vec::new() };
        writer.append(start + 700, &LogInput::Digest(Box::new(nowhere))).unwrap();
        let mut out = Vec::new();
        writer.cut(start + 1000, &mut out).unwrap();
        vec![out]
    });
    says(refusal(&file, &[]), DaemonExit::Diverged, &["at count 700", "register r", "0x0 was recorded"]);
}

#[test]
fn disks_have_to_be_what_they_were() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("root.img");
    fs::write(&image, [7; 1024]).unwrap();
    let mut with_disk = about();
    with_disk.spec.disks.push(DiskSpec { bytes: 1024, read_only: true });
    with_disk.disks.push(hash_image(&image).unwrap().0);
    let bytes = recording(&with_disk);

    fs::write(&image, [8; 1024]).unwrap();
    says(
        refusal(&bytes, &[]),
        DaemonExit::Host,
        &["disk 0", "root.img", "not the image that the recorded VM had", "--disk"],
    );
    fs::remove_file(&image).unwrap();
    says(refusal(&bytes, &[]), DaemonExit::Host, &["disk 0", "root.img", "No such file"]);
    let two = [image.clone(), image];
    says(refusal(&bytes, &two), DaemonExit::Usage, &["given 2 times", "1 disks"]);
}

#[test]
fn a_recording_is_not_overwritten_and_one_vcpu_is_asked_for() {
    let directory = TempDir::new().unwrap();
    let text = r#"
        vm = "web"
        node = "alpha"
        start_as = "primary"
        peer = { node = "beta", address = "127.0.0.1:1" }
        arbiter = { path = "/nowhere/web.cell" }
        machine = { vcpus = 2 }
    "#;
    let mut config = Config::parse(text, Path::new("test.toml")).unwrap();
    let out = directory.path().join("run.ftdrec");
    fs::write(&out, "precious").unwrap();
    let options = RecordOptions { out: out.clone(), limit: None, stdin: false, quiet: true };
    let refused = |config: &Config| {
        let error = record(config, &options).unwrap_err();
        (error.to_string(), error.exit())
    };
    says(refused(&config), DaemonExit::Usage, &["machine.vcpus = 2", "exactly one"]);
    config.machine.vcpus = 1;
    says(refused(&config), DaemonExit::Usage, &["run.ftdrec", "not overwritten"]);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
}
