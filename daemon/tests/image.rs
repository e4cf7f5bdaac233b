//! `ftd image show` as a program: what it finds, and that a disk that is none does no harm.

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::io::{Cursor, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

fn show(image: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ftd")).args(["image", "show"]).arg(image).output().unwrap()
}

fn vfat(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; 4 << 20]);
    format_volume(&mut image, FormatVolumeOptions::new()).unwrap();
    {
        let system = FileSystem::new(&mut image, FsOptions::new()).unwrap();
        system.root_dir().create_dir("loader").unwrap().create_dir("entries").unwrap();
        for (path, content) in files {
            system.root_dir().create_file(path).unwrap().write_all(content).unwrap();
        }
    }
    image.into_inner()
}

#[test]
fn the_confined_child_finds_what_an_image_has() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let entry = b"title The \x1b[1mentry\nlinux /k\ninitrd /i\noptions quiet";
    let kernel = vec![7; 3 << 19];
    let disk = vfat(&[("loader/entries/a.conf", entry), ("k", &kernel), ("i", b"initrd")]);
    std::fs::write(&image, disk).unwrap();
    let output = show(&image);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        (said.as_str(), output.status.code()),
        (
            "entry    The ?[1mentry\n\
             found in /loader/entries/a.conf of the whole disk (vfat)\n\
             kernel   /k of the whole disk (vfat) (1572864 bytes)\n\
             version  unknown\n\
             initrd   /i (6 bytes)\n\
             cmdline  quiet\n",
            Some(0)
        )
    );
}

#[test]
fn the_child_can_do_nothing_else_when_it_asks_for_its_first_byte() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ftd"))
        .args(["read-image", "1048576", "1048576"])
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut question = [0; 17];
    ours.read_exact(&mut question).unwrap();
    let of_it = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    let status = of_it("status");
    let says = |key: &str, value: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        assert_eq!(line.trim(), value, "{key} in {status}");
    };
    // A filter of system calls is in force.
    says("Seccomp:", "2");
    says("NoNewPrivs:", "1");
    says("Threads:", "1");
    let limits = of_it("limits");
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(open_files.split_whitespace().rev().nth(1), Some("0"), "{limits}");
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().collect();
    assert_eq!(open.len(), 3, "{open:?}");
    // Nobody answers it any more: it ends.
    drop(ours);
    child.wait().unwrap();
}

#[test]
fn where_there_is_nothing_it_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let output = show(&image);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(ftd::exit::DaemonExit::Host as u8)), "{said}");
    assert!(said.contains("image: no kernel was found"), "{said}");
}
