//! The key-value service on an operating system with threads and sockets: the Linux guest's service, and the stand-in
//! for a guest in the tests of its clients. The protocol, the store and the load's patterns are the built-in guest's
//! (see `protocol`).

use super::protocol::{
    Digest, Line, Lines, Load, LoadError, Machine, PAGE, Pacer, Power, Store, answer, answer_overlong,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections at a time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Longest sleep of the load's thread, and so the longest that a change of load waits.
const LOAD_SLEEP_MAX: Duration = Duration::from_millis(20);
/// Length of the sleeps that are counted.
const SLEEP: Duration = Duration::from_millis(100);
/// Pages that the load writes between two looks at the clock.
const BATCH: u64 = 16;

/// Serves everybody who connects, for good. A request to stop the machine is handed to `stop` once it is answered.
pub fn serve(
    listener: &TcpListener,
    store_bytes_max: usize,
    load_pages_max: u64,
    stop: impl Fn(Power) + Clone + Send + 'static,
) {
    let state = Arc::new(Mutex::new((Store::new(store_bytes_max), Host::new(load_pages_max))));
    let connections = Arc::new(());
    for stream in listener.incoming().flatten() {
        // Our own count is one of them.
        if Arc::strong_count(&connections) > CONNECTIONS_MAX {
            continue;
        }
        let (state, stop, connection) = (Arc::clone(&state), stop.clone(), Arc::clone(&connections));
        std::thread::spawn(move || {
            // An error is the end of one connection; its peer notices.
            if let Ok(Some(power)) = serve_connection(stream, &state) {
                stop(power);
            }
            drop(connection);
        });
    }
}

fn serve_connection(mut stream: TcpStream, state: &Mutex<(Store, Host)>) -> std::io::Result<Option<Power>> {
    stream.set_nodelay(true)?;
    let (mut lines, mut input, mut answers) = (Lines::default(), [0; 4096], Vec::new());
    loop {
        let bytes = stream.read(&mut input)?;
        if bytes == 0 {
            return Ok(None);
        }
        let mut rest = &input[..bytes];
        let mut power = None;
        while let Some(line) = lines.next(&mut rest) {
            match line {
                Line::Complete(line) => {
                    let mut state = lock(state);
                    let (store, host) = &mut *state;
                    host.requests += 1;
                    power = answer(store, host, &line, &mut answers).or(power);
                }
                Line::Overlong => answer_overlong(&mut answers),
            }
        }
        stream.write_all(&answers)?;
        answers.clear();
        if power.is_some() {
            return Ok(power);
        }
    }
}

/// What the requests find besides the store.
struct Host {
    started: Instant,
    requests: u64,
    load_pages_max: u64,
    arena: Arc<Mutex<Vec<[u64; PAGE / 8]>>>,
    written: Arc<AtomicU64>,
    running: Option<RunningLoad>,
    sleeps: Arc<AtomicU64>,
}

struct RunningLoad {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Host {
    fn new(load_pages_max: u64) -> Self {
        Self {
            started: Instant::now(),
            requests: 0,
            load_pages_max,
            arena: Arc::default(),
            written: Arc::default(),
            running: None,
            sleeps: count_sleeps(),
        }
    }
}

/// Counts sleeps, one after the other: by them others see how time goes by for a guest at rest.
fn count_sleeps() -> Arc<AtomicU64> {
    let sleeps = Arc::new(AtomicU64::new(0));
    let counted = Arc::downgrade(&sleeps);
    std::thread::spawn(move || {
        while let Some(sleeps) = counted.upgrade() {
            sleeps.fetch_add(1, Ordering::Relaxed);
            drop(sleeps);
            std::thread::sleep(SLEEP);
        }
    });
    sleeps
}

impl Machine for Host {
    fn set_load(&mut self, load: Load) -> Result<(), LoadError> {
        if load.working_set_pages > self.load_pages_max {
            return Err(LoadError { pages_max: self.load_pages_max });
        }
        if let Some(RunningLoad { stop, thread }) = self.running.take() {
            stop.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            // A thread that panicked has stopped as well.
            let _ = thread.join();
        }
        if load.pages_per_second == 0 {
            return Ok(());
        }
        let mut arena = lock(&self.arena);
        let pages = arena.len().max(load.working_set_pages as usize);
        arena.resize(pages, [0; PAGE / 8]);
        drop(arena);
        let (arena, written, stop) =
            (Arc::clone(&self.arena), Arc::clone(&self.written), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run_load(load, &arena, &written, &stopped));
        self.running = Some(RunningLoad { stop, thread });
        Ok(())
    }

    fn digest_load(&mut self) -> (u64, u64) {
        let arena = lock(&self.arena);
        let mut digest = Digest::default();
        arena.iter().flatten().for_each(|word| digest.word(*word));
        (digest.finish(), arena.len() as u64)
    }

    fn now_ns(&mut self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn stats(&mut self, out: &mut dyn std::fmt::Write) {
        let load_pages = self.written.load(Ordering::Relaxed);
        let sleeps = self.sleeps.load(Ordering::Relaxed);
        let _ = write!(out, " requests={} load_pages={load_pages} sleeps={sleeps}", self.requests);
    }
}

fn run_load(load: Load, arena: &Mutex<Vec<[u64; PAGE / 8]>>, written: &AtomicU64, stopped: &AtomicBool) {
    let started = Instant::now();
    let now_ns = || started.elapsed().as_nanos() as u64;
    let mut pacer = Pacer::new(load.pages_per_second, 0);
    let mut round = 0_u64;
    while !stopped.load(Ordering::Relaxed) {
        let batch = pacer.due(now_ns()).min(BATCH);
        if batch == 0 {
            let due_in = pacer.due_in_ns(now_ns()).map_or(LOAD_SLEEP_MAX, Duration::from_nanos);
            std::thread::park_timeout(due_in.min(LOAD_SLEEP_MAX));
            continue;
        }
        let mut arena = lock(arena);
        for _ in 0..batch {
            round += 1;
            load.pattern.fill(&mut arena[(round % load.working_set_pages) as usize], round);
        }
        pacer.wrote(batch);
        written.fetch_add(batch, Ordering::Relaxed);
    }
}

/// A poisoned lock guards plain data, which is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
