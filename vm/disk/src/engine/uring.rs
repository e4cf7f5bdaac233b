//! io_uring, on a thread of its own: a submission can block in the file system, which a vCPU's thread must not.

use super::ordered::Ordered;
use super::task::{Call, Task};
use super::{Finish, UNDER_WAY_MAX, tell};
use crate::image::RawImage;
use crate::io::{IoDone, IoFault};
use ft_confine::ThreadKind;
use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// One entry for each order under way, and one for the bell.
const ENTRIES: u32 = 2 * UNDER_WAY_MAX as u32;
/// The bell's place among the tasks' numbers.
const BELL: u64 = u64::MAX;
/// After the kernel had no memory for a submission.
const BREATH: Duration = Duration::from_millis(1);

/// The kernel's part.
pub(super) struct Ring(IoUring);

impl Ring {
    /// A ring takes these operations and no other, for good: it would open files and sockets past any filter of system
    /// calls. The restriction came with Linux 5.10; without it there is no ring.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::PollAdd::CODE,
        ];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it lacks operations on files"));
        }
        ring.submitter().register_restrictions(&mut needed.map(Restriction::sqe_op))?;
        ring.submitter().register_enable_rings()?;
        Ok(Self(ring))
    }
}

pub(super) fn start(
    ring: Ring,
    image: Arc<RawImage>,
    name: &str,
    orders: Arc<Ordered>,
    finish: Arc<dyn Finish>,
) -> io::Result<()> {
    let begun = Arc::clone(&orders);
    begun.begin();
    let tasks = std::iter::repeat_with(|| None).take(UNDER_WAY_MAX).collect();
    let work = move || {
        ft_confine::this_thread(ThreadKind::Disk);
        let free = (0..UNDER_WAY_MAX).rev().collect();
        Worker { ring: ring.0, image, tasks, free, bell_is_set: false }.work(&orders, finish.as_ref());
        orders.ended();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).inspect_err(|_| begun.ended())?;
    Ok(())
}

struct Worker {
    // Dropped first: by then no task is under way.
    ring: IoUring,
    image: Arc<RawImage>,
    /// By the number that the kernel was given.
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    bell_is_set: bool,
}

impl Worker {
    fn work(mut self, orders: &Ordered, finish: &dyn Finish) {
        let (mut taken, mut done) = (Vec::new(), Vec::new());
        loop {
            let ending = orders.is_ending();
            if ending && self.free.len() == UNDER_WAY_MAX {
                return;
            }
            let nudged = orders.take(UNDER_WAY_MAX - self.free.len(), &mut taken);
            for order in taken.drain(..) {
                self.begin(Task::new(order), &mut done);
            }
            if !done.is_empty() || nudged {
                if !ending {
                    tell(finish, &mut done);
                }
                done.clear();
                // Whoever was told may have ordered more.
                continue;
            }
            self.set_bell(orders);
            self.wait(&mut done);
            self.reap(&mut done);
            if !done.is_empty() && !orders.is_ending() {
                tell(finish, &mut done);
            }
            done.clear();
        }
    }

    fn begin(&mut self, task: Task, done: &mut Vec<IoDone>) {
        // No more were taken than there is room for.
        let Some(number) = self.free.pop() else { return };
        self.tasks[number] = Some(task);
        self.go_on(number, done);
    }

    /// Puts a task's next call to the kernel, or puts the task to `done`.
    fn go_on(&mut self, number: usize, done: &mut Vec<IoDone>) {
        let Some(task) = &mut self.tasks[number] else { return };
        match task.call() {
            Some(call) => {
                let entry = entry(&self.image, call).user_data(number as u64);
                self.push(&entry);
            }
            None => self.end(number, Ok(()), done),
        }
    }

    fn end(&mut self, number: usize, result: Result<(), IoFault>, done: &mut Vec<IoDone>) {
        if let Some(task) = self.tasks[number].take() {
            self.free.push(number);
            done.push(task.done(result));
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: a task's memory and the image live until the kernel has answered: the task stays in `tasks` until
        // then, and the thread does not end before. The bell lives as long as `orders`, which the thread holds.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // Full of what was not submitted yet.
            self.submit(0);
        }
    }

    /// Has the kernel answer when something comes in.
    fn set_bell(&mut self, orders: &Ordered) {
        if !std::mem::replace(&mut self.bell_is_set, true) {
            let poll = opcode::PollAdd::new(types::Fd(orders.bell()), libc::POLLIN as u32);
            self.push(&poll.build().user_data(BELL));
        }
    }

    fn submit(&mut self, want: usize) {
        match self.ring.submitter().submit_and_wait(want) {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            // No memory: what is in the queue stays there.
            Err(_) => std::thread::sleep(BREATH),
        }
    }

    fn wait(&mut self, done: &mut Vec<IoDone>) {
        self.reap(done);
        let want = usize::from(done.is_empty() && self.bell_is_set);
        self.submit(want);
    }

    fn reap(&mut self, done: &mut Vec<IoDone>) {
        loop {
            let answer = self.ring.completion().next().map(|answer| (answer.user_data(), answer.result()));
            match answer {
                None => return,
                Some((BELL, _)) => self.bell_is_set = false,
                Some((number, result)) => {
                    let number = number as usize;
                    let Some(task) = self.tasks.get_mut(number).and_then(Option::as_mut) else { continue };
                    match task.advance(i64::from(result)) {
                        Some(result) => self.end(number, result, done),
                        None => self.go_on(number, done),
                    }
                }
            }
        }
    }
}

fn entry(image: &RawImage, call: Call) -> squeue::Entry {
    let fd = types::Fd(image.file().as_raw_fd());
    match call {
        Call::Read { into, bytes, offset } => opcode::Read::new(fd, into, bytes).offset(offset).build(),
        Call::Write { from, bytes, offset } => opcode::Write::new(fd, from, bytes).offset(offset).build(),
        Call::Allocate { mode, offset, bytes } => {
            opcode::Fallocate::new(fd, bytes).offset(offset).mode(mode).build()
        }
        Call::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_opens_no_file() {
        let mut ring = match Ring::new() {
            Ok(ring) => ring.0,
            Err(e) => return eprintln!("SKIPPED a_ring_opens_no_file: no io_uring here: {e}"),
        };
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/dev/null".as_ptr()).build();
        // SAFETY: the path is static, and the only thing that the operation reads.
        unsafe { ring.submission().push(&open) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), -libc::EACCES);
    }
}
