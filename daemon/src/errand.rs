//! Work that confined threads have another thread do: it opens files, or needs a capability.

use parking_lot::Mutex;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// A thread that does one thing each time it is asked to.
pub struct Errand<R>(Mutex<(SyncSender<()>, Receiver<R>)>);

impl<R: Send + 'static> Errand<R> {
    /// Starts the thread, which must not be started by a confined one.
    pub fn start(name: &str, work: impl Fn() -> R + Send + 'static) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let (tell, told) = sync_channel(1);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            while let Ok(()) = asked.recv() {
                if tell.send(work()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(Mutex::new((ask, told))))
    }

    /// What has it done each time that it is called.
    pub fn into_fn(self) -> Box<dyn Fn() -> R + Send + Sync> {
        Box::new(move || self.run())
    }

    /// Has it done, one after the other; what came of it.
    ///
    /// # Panics
    ///
    /// Where the work has panicked, now or earlier.
    pub fn run(&self) -> R {
        let ends = self.0.lock();
        let done = ends.0.send(()).ok().and_then(|()| ends.1.recv().ok());
        done.expect("an errand's work does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft_confine::ThreadKind;
    use std::fs::File;

    #[test]
    fn a_confined_thread_has_files_read_and_reads_none() {
        ft_confine::on().unwrap();
        let read = || std::fs::read_to_string("/proc/self/comm").ok();
        let errand = Errand::start("reads", read).unwrap();
        let confined = std::thread::spawn(move || {
            ft_confine::this_thread(ThreadKind::Link);
            (File::open("/proc/self/comm").is_ok(), errand.run(), errand.run())
        });
        let (opened, first, second) = confined.join().unwrap();
        assert!(!opened);
        assert!(first.is_some_and(|comm| !comm.is_empty()) && second.is_some());
    }

    #[test]
    fn a_panic_is_passed_on_and_is_no_hang() {
        let errand = Errand::start("panics", || -> u8 { panic!("no") }).unwrap();
        let run = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| errand.run()));
        assert!(run().is_err() && run().is_err());
    }
}
