//! The guest on QEMU's emulated processor, in a process of its own.

use super::marks::Marks;
use super::{Guest, RAM_MIB, Reading, Run};
use anyhow::{Context, bail};
use ft_vm::devices::ConsoleSink;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::io::{Read, pipe};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const QEMU: &str = "qemu-system-x86_64";

pub(super) struct Qemu {
    child: Child,
    /// Holds the recording, a file `log`.
    recording: Option<TempDir>,
}

/// Starts it: no devices but those that QEMU's default machine cannot do without, and a serial console.
pub(super) fn start(guest: &Guest, mut marks: Marks, record: bool) -> anyhow::Result<(Reading, Qemu)> {
    let recording = record.then(TempDir::new).transpose()?;
    let (mut console, output) = pipe()?;
    let mut command = Command::new(QEMU);
    command.args(["-accel", "tcg,thread=single", "-smp", "1", "-m", &RAM_MIB.to_string()]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.arg("-append").arg(&guest.cmdline);
    if let Some(directory) = &recording {
        let log = directory.path().join("log");
        command.arg("-icount").arg(format!("shift=auto,rr=record,rrfile={}", log.display()));
    }
    // Its input stays open, silent, until it is killed.
    command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
    let at = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot run {QEMU} (Debian's qemu-system-x86)"))?;
    // The command has the pipe's other end, too: it would never end.
    drop(command);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = console.read(&mut bytes) {
            marks.write(&bytes[..count]);
        }
    });
    let log_bytes = recording.is_some().then_some(0);
    Ok((Reading { at, cpu: Duration::ZERO, instructions: None, log_bytes }, Qemu { child, recording }))
}

impl Run for Qemu {
    fn read(&self) -> anyhow::Result<Reading> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.child.id())?))?;
        let cpu = Duration::from(clock_gettime(clock)?);
        let log = self.recording.as_ref().map(|directory| directory.path().join("log"));
        let log_bytes = log.map(std::fs::metadata).transpose()?.map(|file| file.len());
        Ok(Reading { at: Instant::now(), cpu, instructions: None, log_bytes })
    }

    fn tend(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{QEMU} ended: {status}"),
            None => Ok(()),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
