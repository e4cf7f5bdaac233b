//! Who else uses an image: locks of open file descriptions, which end with the last descriptor, not with any of the
//! process's; and the names of those who have the file open.

use crate::image::Access;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names that a message has room for.
const HOLDERS_MAX: usize = 3;

/// Locks all of the file: for one writer alone, or for any number of readers. `WouldBlock` when somebody else is there.
pub(crate) fn lock(file: &File, access: Access) -> io::Result<()> {
    let kind = match access {
        Access::Writable => libc::F_WRLCK,
        Access::ReadOnly => libc::F_RDLCK,
    };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one `flock`, which is initialised and outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Who has the file open, for a message. Whom the kernel does not show is not named.
pub(crate) fn holders(file: &File) -> String {
    let names = who_has_open(file);
    match names.len() {
        0 => "a process that is not to be seen from here".into(),
        _ => names.join(", "),
    }
}

fn who_has_open(file: &File) -> Vec<String> {
    let Ok(ours) = file.metadata() else { return Vec::new() };
    let own = std::process::id().to_string();
    let mut names = loops_over(file);
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()) else { continue };
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // Our own descriptor is one; another one is another disk.
        let spare = usize::from(pid == own);
        let same = |fd: &PathBuf| {
            fd.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (ours.dev(), ours.ino()))
        };
        if entries(&process.join("fd")).filter(same).count() > spare {
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            let itself = if pid == own { ", this process itself" } else { "" };
            names.push(format!("{} (process {pid}{itself})", name.trim()));
        }
        if names.len() >= HOLDERS_MAX {
            break;
        }
    }
    names
}

/// The loop devices over this file: the kernel has it open, no process.
pub(crate) fn loops_over(file: &File) -> Vec<String> {
    let Ok(ours) = file.metadata() else { return Vec::new() };
    let backed = |device: PathBuf| {
        let path = std::fs::read_to_string(device.join("loop/backing_file")).ok()?;
        let backing = std::fs::metadata(path.trim_end()).ok()?;
        let same = (backing.dev(), backing.ino()) == (ours.dev(), ours.ino());
        same.then(|| format!("/dev/{}", device.file_name().unwrap_or_default().to_string_lossy()))
    };
    entries(Path::new("/sys/block")).filter_map(backed).collect()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
