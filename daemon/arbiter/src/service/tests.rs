//! The store under damage and failures, and the two ends of a connection with a stranger at the other.

use super::frame::{HEAD_BYTES, ServiceFrame, receive, send};
use super::message::{Question, Reply, enclose, open};
use super::store::{Opener, builder};
use super::*;
use crate::{Arbiter, Cell, CellId, Outcome, Trouble};
use ft_tls::{Channel, Protection};
use redb::backends::FileBackend;
use redb::{Database, StorageBackend, TableDefinition};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn cell(generation: u64, owner: &str) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some(owner.to_owned()), standby: None }
}

pub(super) fn pace() -> ServicePace {
    ServicePace { connect: Duration::from_millis(1500), answer: Duration::from_millis(1500) }
}

pub(super) struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        let rig = Self { directory: tempfile::tempdir().unwrap() };
        CellStore::create(&rig.path()).unwrap();
        rig
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("cells")
    }

    /// A store in which each of two VMs has had three generations.
    fn filled(&self) -> CellStore {
        let mut store = CellStore::open(&self.path()).unwrap();
        for generation in 1..=3 {
            for vm in ["db", "web"] {
                store.commit(&[(vm.to_owned(), cell(generation, "alpha"))]).unwrap();
            }
        }
        store
    }

    fn serve(&self, limits: ServerLimits) -> CellServer {
        serve(CellStore::open(&self.path()).unwrap(), limits)
    }
}

pub(super) fn serve(store: CellStore, limits: ServerLimits) -> CellServer {
    CellServer::start(TcpListener::bind("0.0.0.0:0").unwrap(), store, limits, Protection::None).unwrap()
}

pub(super) fn at(server: &CellServer) -> SocketAddr {
    ([127, 0, 0, 1], server.address().port()).into()
}

fn call(address: SocketAddr) -> Channel {
    Channel::clear(TcpStream::connect(address).unwrap())
}

pub(super) fn arbiter(address: SocketAddr, vm: &str) -> ServiceArbiter {
    ServiceArbiter::new(address, vm, pace())
}

#[test]
fn a_store_that_is_not_there_or_was_cut_to_nothing_is_no_empty_one() {
    let rig = Rig::new();
    assert!(matches!(CellStore::create(&rig.path()), Err(CellStoreError::Exists(_))));
    drop(CellStore::open(&rig.path()).unwrap());
    OpenOptions::new().write(true).open(rig.path()).unwrap().set_len(0).unwrap();
    assert!(CellStore::open(&rig.path()).is_err());
    fs::remove_file(rig.path()).unwrap();
    assert!(matches!(CellStore::open(&rig.path()), Err(CellStoreError::Missing(_))));
    assert!(!rig.path().exists());
}

#[test]
fn a_store_is_its_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(Rig::new().path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn one_store_has_one_server() {
    let rig = Rig::new();
    let _first = CellStore::open(&rig.path()).unwrap();
    let error = CellStore::open(&rig.path()).unwrap_err();
    assert!(matches!(&error, CellStoreError::InUse(_)), "{error}");
}

/// Every bit of the head, where redb says which commit counts, and a sample of the rest.
#[test]
fn no_flipped_bit_and_no_cut_takes_a_cell_back() {
    let rig = Rig::new();
    let store = rig.filled();
    let told = store.cells.clone();
    // As a service that is killed leaves it: one that is closed commits once more.
    let whole = fs::read(rig.path()).unwrap();
    drop(store);
    let copy = rig.directory.path().join("damaged");
    let (mut refused, mut sound) = (0, 0);
    let mut try_it = |what: String, bytes: &[u8]| {
        fs::write(&copy, bytes).unwrap();
        match CellStore::open(&copy) {
            Err(_) => refused += 1,
            Ok(store) => {
                sound += 1;
                let of = |vm: &str| store.cells.get(vm).cloned();
                for (vm, cell) in &told {
                    assert!(
                        of(vm) == Some(cell.clone()) || of(vm).is_some_and(|cell| cell.is_err()),
                        "{what}: {vm}"
                    );
                }
            }
        }
    };
    let used: Vec<usize> = (320..whole.len()).filter(|at| whole[*at] != 0).collect();
    let sample = used.iter().step_by(used.len() / 300 + 1).map(|at| at * 8 + at % 8);
    for bit in (0..320 * 8).step_by(3).chain(9 * 8..10 * 8).chain(sample) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        try_it(format!("bit {} of byte {}", bit % 8, bit / 8), &bytes);
    }
    for len in (0..whole.len()).step_by(whole.len() / 40) {
        try_it(format!("cut to {len}"), &whole[..len]);
    }
    assert!(refused > 100 && sound > 0, "{refused} refused, {sound} sound");
}

#[test]
fn a_damaged_record_harms_its_own_vm_only() {
    let rig = Rig::new();
    drop(rig.filled());
    let database = Database::open(rig.path()).unwrap();
    let txn = database.begin_write().unwrap();
    let mut damaged = txn.open_table(TableDefinition::<&str, &[u8]>::new("cells")).unwrap();
    damaged.insert("db", b"{}\n".as_slice()).unwrap();
    drop(damaged);
    txn.commit().unwrap();
    drop(database);
    let server = rig.serve(ServerLimits::default());
    let error = arbiter(at(&server), "db").probe().unwrap_err();
    assert!(matches!(&error.trouble, Trouble::DamagedRecord { vm, .. } if vm == "db"), "{error}");
    let mut web = arbiter(at(&server), "web");
    assert_eq!(web.compare_and_set(Some(3), cell(4, "beta")), Outcome::Won(cell(4, "beta")));
    let listed = ServiceDesk::new(at(&server), pace()).list().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed[0].damage.is_some() && listed[1].cell == Some(cell(4, "beta")), "{listed:?}");
}

/// A disk that fails when told to, and counts its flushes.
#[derive(Debug)]
struct Failing {
    file: FileBackend,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) fails: AtomicBool,
    slow: AtomicBool,
    flushes: AtomicU64,
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.faults.fails.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.faults.slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.faults.flushes.fetch_add(1, Ordering::SeqCst);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}

pub(super) fn over_failing_disk(rig: &Rig) -> (CellServer, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let of_disk = Arc::clone(&faults);
    let opener: Opener = Arc::new(move |path: &Path| {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        builder().create_with_backend(Failing { file: FileBackend::new(file)?, faults: Arc::clone(&of_disk) })
    });
    (serve(CellStore::open_by(&rig.path(), opener).unwrap(), ServerLimits::default()), faults)
}

#[test]
fn a_commit_that_fails_leaves_a_set_in_doubt_and_the_store_unused_until_it_was_opened_anew() {
    let rig = Rig::new();
    let (server, faults) = over_failing_disk(&rig);
    let mut web = arbiter(at(&server), "web");
    assert_eq!(web.compare_and_set(None, cell(1, "alpha")), Outcome::Won(cell(1, "alpha")));
    faults.fails.store(true, Ordering::SeqCst);
    let outcome = web.compare_and_set(Some(1), cell(2, "alpha"));
    assert!(
        matches!(&outcome, Outcome::Unknown(e) if matches!(e.trouble, Trouble::StoreInDoubt { .. })),
        "{outcome:?}"
    );
    // Neither state is told while the disk has not said which it is.
    let refused = |e: &crate::ArbiterError| matches!(e.trouble, Trouble::Refused { .. });
    assert!(web.read().is_err_and(|e| refused(&e)));
    let outcome = web.compare_and_set(Some(1), cell(2, "alpha"));
    assert!(matches!(&outcome, Outcome::NotAttempted(e) if refused(e)), "{outcome:?}");
    faults.fails.store(false, Ordering::SeqCst);
    let deadline = Instant::now() + LIMIT;
    let found = loop {
        match web.read() {
            Ok(found) => break found.unwrap(),
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let next = cell(found.generation + 1, "beta");
    assert_eq!(web.compare_and_set(Some(found.generation), next.clone()), Outcome::Won(next));
}

#[test]
fn a_store_whose_disk_is_well_again_is_opened_anew_although_nodes_ask_all_the_time() {
    let rig = Rig::new();
    let (server, faults) = over_failing_disk(&rig);
    let mut web = arbiter(at(&server), "web");
    assert_eq!(web.compare_and_set(None, cell(1, "alpha")), Outcome::Won(cell(1, "alpha")));
    faults.fails.store(true, Ordering::SeqCst);
    // The disk stays ill for longer than until the first attempt.
    let (began, mut is_well) = (Instant::now(), false);
    while let Err(e) = web.probe() {
        assert!(began.elapsed() < LIMIT, "{e}");
        if !is_well && began.elapsed() > Duration::from_secs(1) {
            faults.fails.store(false, Ordering::SeqCst);
            is_well = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_well, "it answered on a disk that fails");
    assert_eq!(web.read(), Ok(Some(cell(1, "alpha"))));
}

#[test]
fn sets_that_wait_share_a_commit() {
    const VMS: u64 = 24;
    let rig = Rig::new();
    let (server, faults) = over_failing_disk(&rig);
    faults.slow.store(true, Ordering::SeqCst);
    let before = faults.flushes.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        for nth in 0..VMS {
            let mut arbiter = arbiter(at(&server), &format!("vm-{nth}"));
            scope.spawn(move || {
                assert_eq!(arbiter.compare_and_set(None, cell(1, "alpha")), Outcome::Won(cell(1, "alpha")));
            });
        }
    });
    let flushes = faults.flushes.load(Ordering::SeqCst) - before;
    assert!(flushes < VMS, "{VMS} sets took {flushes} flushes");
}

#[test]
fn history_is_bounded_and_outlives_a_cell_that_is_founded_anew() {
    let rig = Rig::new();
    let mut store = CellStore::open(&rig.path()).unwrap();
    for generation in 1..=CHANGES_KEPT as u64 + 20 {
        store.commit(&[("web".to_owned(), cell(generation, "alpha"))]).unwrap();
    }
    store.commit(&[("web".to_owned(), cell(1, "beta")), ("web".to_owned(), cell(2, "beta"))]).unwrap();
    let told = store.history("web").unwrap();
    assert_eq!(told.len(), CHANGES_KEPT);
    assert_eq!(told[CHANGES_KEPT - 3].cell, cell(CHANGES_KEPT as u64 + 20, "alpha"));
    assert_eq!(told[CHANGES_KEPT - 1].cell, cell(2, "beta"));
    assert_eq!(store.history("we").unwrap(), []);
}

#[test]
fn lists_longer_than_an_answer_are_whole() {
    let rig = Rig::new();
    let mut store = CellStore::open(&rig.path()).unwrap();
    let changes: Vec<_> = (0..200).map(|nth| (format!("vm-{nth:03}"), cell(1, "alpha"))).collect();
    store.commit(&changes).unwrap();
    let server = serve(store, ServerLimits::default());
    let listed = ServiceDesk::new(at(&server), pace()).list().unwrap();
    let names: Vec<&str> = listed.iter().map(|listed| listed.vm.as_str()).collect();
    assert_eq!(names, changes.iter().map(|(vm, _)| vm.as_str()).collect::<Vec<_>>());
}

/// What comes until the connection ends.
fn drain(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => panic!("the connection does not end"),
        _ => bytes,
    }
}

#[test]
fn garbage_another_version_and_silence_lose_their_connection_and_harm_nobody() {
    let rig = Rig::new();
    let limits = ServerLimits {
        first: Duration::from_millis(300),
        frame: Duration::from_millis(300),
        ..Default::default()
    };
    let server = rig.serve(limits);
    let mut web = arbiter(at(&server), "web");
    assert_eq!(web.compare_and_set(None, cell(1, "alpha")), Outcome::Won(cell(1, "alpha")));
    let sound = enclose(1, &Question::Read { vm: "web".into() }).encode();
    let mut other_version = sound.clone();
    other_version[4] += 1;
    let mut too_long = sound.clone();
    too_long[16..20].fill(0xff);
    let greeting = enclose(0, &Reply::Welcome).encode();
    let cases: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &other_version, &too_long, b"", &sound[..30]];
    for bytes in cases {
        let mut stream = TcpStream::connect(at(&server)).unwrap();
        stream.write_all(bytes).unwrap();
        let got = drain(&mut stream);
        assert!(greeting.starts_with(&got) || got == greeting, "{bytes:?} is answered with {got:?}");
    }
    assert_eq!(web.read(), Ok(Some(cell(1, "alpha"))));
}

#[test]
fn one_source_cannot_take_all_places() {
    let rig = Rig::new();
    let limits = ServerLimits { connections_max: 12, per_source_max: 4, ..Default::default() };
    let server = rig.serve(limits);
    // The wildcard listener takes loopback's other addresses, too: what comes to 127.0.0.2 comes from 127.0.0.2.
    let idle: Vec<Channel> = (0..20)
        .map(|_| {
            let mut stream = call(at(&server));
            receive(&mut stream, LIMIT, LIMIT).unwrap();
            stream
        })
        .collect();
    let error = arbiter(at(&server), "web").read().unwrap_err();
    assert!(error.to_string().contains("127.0.0.1 has 4 connections already"), "{error}");
    let elsewhere = |last: u8| SocketAddr::from(([127, 0, 0, last], server.address().port()));
    assert_eq!(from(elsewhere(2)), Reply::Welcome);
    drop(idle);
    let deadline = Instant::now() + LIMIT;
    while let Err(e) = arbiter(at(&server), "web").read() {
        assert!(Instant::now() < deadline, "{e}");
    }
}

/// The greeting that a connection from another address of loopback gets.
fn from(address: SocketAddr) -> Reply {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let SocketAddr::V4(address) = address else { panic!("loopback has IPv4") };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    use std::os::fd::AsRawFd;
    bind(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(*address.ip(), 0))).unwrap();
    connect(socket.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
    open(&receive(&mut Channel::clear(socket.into()), LIMIT, LIMIT).unwrap()).unwrap()
}

/// A service that does `then` with the first question after its greeting.
fn impostor(then: impl FnOnce(&mut Channel, ServiceFrame) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = Channel::clear(listener.accept().unwrap().0);
        send(&mut stream, &enclose(0, &Reply::Welcome), LIMIT).unwrap();
        let question = receive(&mut stream, LIMIT, LIMIT).unwrap();
        then(&mut stream, question);
    });
    address
}

#[test]
fn an_answer_to_another_question_is_no_answer() {
    let address = impostor(|stream, question| {
        send(stream, &enclose(question.id + 1, &Reply::Won), LIMIT).unwrap();
        drain(&mut stream.socket().try_clone().unwrap());
    });
    let outcome = arbiter(address, "web").compare_and_set(None, cell(1, "alpha"));
    assert!(
        matches!(&outcome, Outcome::Unknown(e) if matches!(e.trouble, Trouble::NotAService { .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_connection_that_ends_after_the_question_leaves_it_in_doubt_and_it_is_read_back() {
    let rig = Rig::new();
    let server = rig.serve(ServerLimits::default());
    let real = at(&server);
    let address = impostor(move |_, question| {
        // The question arrives, and its answer is lost.
        let mut service = call(real);
        receive(&mut service, LIMIT, LIMIT).unwrap();
        send(&mut service, &question, LIMIT).unwrap();
        receive(&mut service, LIMIT, LIMIT).unwrap();
    });
    let outcome = arbiter(address, "web").compare_and_set(None, cell(1, "alpha"));
    assert!(
        matches!(&outcome, Outcome::Unknown(e) if matches!(e.trouble, Trouble::Cut { .. })),
        "{outcome:?}"
    );
    let mut arbiter = arbiter(real, "web");
    assert_eq!(arbiter.read(), Ok(Some(cell(1, "alpha"))));
    assert_eq!(arbiter.compare_and_set(None, cell(1, "alpha")), Outcome::Lost(Some(cell(1, "alpha"))));
}

/// What a client says of a listener that begins with `bytes`.
fn greeted_with(bytes: Vec<u8>) -> Trouble {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&bytes).unwrap();
        drain(&mut stream);
    });
    match arbiter(address, "web").compare_and_set(None, cell(1, "alpha")) {
        Outcome::NotAttempted(e) => e.trouble,
        other => panic!("nothing was sent: {other:?}"),
    }
}

#[test]
fn a_stranger_on_the_port_is_told_from_a_service_and_nothing_is_attempted() {
    let banner = greeted_with(b"SSH-2.0-OpenSSH_10.0 Debian-7\r\n".to_vec());
    assert!(matches!(banner, Trouble::NotAService { .. }), "{banner}");
    let mut later = enclose(0, &Reply::Welcome).encode();
    later[4] = 9;
    assert_eq!(greeted_with(later), Trouble::ServiceVersion { theirs: 9, ours: 1 });
    let silent = greeted_with(vec![b'F'; HEAD_BYTES - 1]);
    assert!(matches!(silent, Trouble::ServiceSilent { .. }), "{silent}");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = arbiter(free, "web").compare_and_set(None, cell(1, "alpha"));
    assert!(
        matches!(&outcome, Outcome::NotAttempted(e) if matches!(e.trouble, Trouble::Unreachable { .. })),
        "{outcome:?}"
    );
}
