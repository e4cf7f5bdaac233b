//! ftd and a real QEMU on one image: whoever comes second while the image is written, or to write it, is refused.

use ft_disk::{Access, RawImage, Readers, open_locked};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const QEMU: &str = "qemu-system-x86_64";

/// Ends with this.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine that never runs, with the image as its disk; or what QEMU says against it.
fn start(image: &Path, read_only: &str) -> Result<Qemu, String> {
    let drive = format!("file={},format=raw,if=virtio,read-only={read_only}", image.display());
    let mut command = Command::new(QEMU);
    command.args(["-accel", "tcg", "-S", "-m", "32", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
    command.args(["-drive", &drive]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut qemu = Qemu(command.spawn().unwrap());
    // It may have ended by now. An answer comes when all is set up.
    let asks = b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"query-status\"}\n";
    let _ = qemu.0.stdin.as_mut().unwrap().write_all(asks);
    let answers = BufReader::new(qemu.0.stdout.take().unwrap()).lines();
    if answers.map_while(Result::ok).any(|line| line.contains("\"running\"")) {
        return Ok(qemu);
    }
    let mut said = String::new();
    qemu.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    Err(said)
}

#[test]
fn ftd_and_qemu_keep_each_other_from_an_image_that_is_written() {
    if Command::new(QEMU).arg("--version").output().is_err() {
        return eprintln!("SKIPPED ftd_and_qemu_keep_each_other: no {QEMU} (package qemu-system-x86)");
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let open = |access| RawImage::open(&image, access);
    let names_qemu = |error: ft_disk::DiskImageError| {
        let text = error.to_string();
        assert!(text.contains("in use by qemu-system-x86"), "{text}");
    };
    let refuses = |read_only, lock: &str| {
        let text = start(&image, read_only).err().expect("QEMU is refused");
        assert!(text.contains(&format!("Failed to {lock}")), "{text}");
    };

    let qemu = start(&image, "off").unwrap();
    names_qemu(open(Access::Writable).unwrap_err());
    names_qemu(open(Access::ReadOnly).unwrap_err());
    names_qemu(open_locked(&image, Readers::One).unwrap_err());
    drop(qemu);

    let qemu = start(&image, "on").unwrap();
    names_qemu(open(Access::Writable).unwrap_err());
    drop((open(Access::ReadOnly).unwrap(), open_locked(&image, Readers::One).unwrap()));
    drop(qemu);

    let writer = open(Access::Writable).unwrap();
    refuses("off", "lock byte");
    refuses("on", "lock byte");
    drop(writer);

    let reader = open_locked(&image, Readers::One).unwrap();
    refuses("off", "get \"write\" lock");
    drop(start(&image, "on").unwrap());
    drop(reader);
    drop(start(&image, "off").unwrap());
}
