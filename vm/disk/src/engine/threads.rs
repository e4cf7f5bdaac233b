//! A pool of threads, each with one order at a time.

use super::ordered::{Next, Ordered};
use super::task::{Call, Task};
use super::{Finish, layered, tell};
use crate::image::RawImage;
use crate::io::{IoDone, IoOrder};
use ft_confine::ThreadKind;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Orders that are under way at once.
const THREADS: usize = 8;

pub(super) fn start(
    image: Arc<RawImage>,
    name: &str,
    orders: &Arc<Ordered>,
    finish: &Arc<dyn Finish>,
) -> io::Result<()> {
    for number in 0..THREADS {
        let (image, orders, finish) = (Arc::clone(&image), Arc::clone(orders), Arc::clone(finish));
        let thread = std::thread::Builder::new().name(format!("{name}-{number}"));
        let begun = Arc::clone(&orders);
        begun.begin();
        thread
            .spawn(move || {
                ft_confine::this_thread(ThreadKind::Disk);
                work(&image, &orders, finish.as_ref());
                drop(image);
                orders.ended();
            })
            .inspect_err(|_| {
                begun.ended();
                begun.end(std::time::Duration::ZERO);
            })?;
    }
    Ok(())
}

fn work(image: &RawImage, orders: &Ordered, finish: &dyn Finish) {
    let mut done = Vec::new();
    loop {
        match orders.wait() {
            Next::End => return,
            Next::Nudge => {}
            Next::Order(order) => done.push(carry_out(image, order)),
        }
        if !orders.is_ending() {
            tell(finish, &mut done);
        }
    }
}

/// On this thread.
pub(super) fn carry_out(image: &RawImage, order: IoOrder) -> IoDone {
    match image.overlay() {
        Some(overlay) => layered::carry_out(image, overlay, order),
        None => carry_out_on_image(image, order),
    }
}

/// On the image itself, whatever is under it.
pub(super) fn carry_out_on_image(image: &RawImage, order: IoOrder) -> IoDone {
    let mut task = Task::new(order);
    loop {
        let Some(call) = task.call() else { return task.done(Ok(())) };
        if let Some(result) = task.advance(perform(image, call)) {
            return task.done(result);
        }
    }
}

/// Bytes, or a negative error number.
fn perform(image: &RawImage, call: Call) -> i64 {
    let fd = image.file().as_raw_fd();
    let result = match call {
        // SAFETY: the task that said so owns so many bytes there, and nobody else uses them now.
        Call::Read { into, bytes, offset } => unsafe {
            libc::pread(fd, into.cast(), bytes as usize, offset as i64) as i64
        },
        // SAFETY: the task that said so owns so many bytes there.
        Call::Write { from, bytes, offset } => unsafe {
            libc::pwrite(fd, from.cast(), bytes as usize, offset as i64) as i64
        },
        // SAFETY: takes numbers alone.
        Call::Allocate { mode, offset, bytes } => unsafe {
            i64::from(libc::fallocate(fd, mode, offset as i64, bytes as i64))
        },
        // SAFETY: takes a number alone.
        Call::Sync => unsafe { i64::from(libc::fdatasync(fd)) },
    };
    if result < 0 {
        -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    } else {
        result
    }
}
