//! Both ends of connections, with credentials that are as they should be, and with others.

use crate::{
    CertificateSite, Channel, CredentialFiles, Credentials, Party, PartyKind, Protection, SecuredService,
    TlsError, Validity,
};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use time::{Duration as Span, OffsetDateTime};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn node(name: &str) -> Party {
    Party::new(PartyKind::Node, name).unwrap()
}

/// A site with the nodes alpha and beta, an arbiter, an operator and an observer.
fn site() -> (TempDir, CertificateSite) {
    let directory = tempfile::tempdir().unwrap();
    let site = CertificateSite::create(directory.path()).unwrap();
    let others = [PartyKind::Arbiter, PartyKind::Operator, PartyKind::Observer];
    let others = others.map(|kind| Party::new(kind, kind.word()).unwrap());
    site.issue(&[&[node("alpha"), node("beta")], &others[..]].concat(), Validity::default()).unwrap();
    (directory, site)
}

fn protection(site: &Path, name: &str) -> Protection {
    let files = CredentialFiles::within(&site.join(name));
    Protection::Tls(Arc::new(Credentials::load(files, &PartyKind::ALL, None).unwrap()))
}

fn refresh(protection: &Protection) {
    let Protection::Tls(credentials) = protection else { panic!("it has none") };
    credentials.refresh();
}

/// As nodes take a peer.
fn only_beta(party: &Party) -> Result<(), String> {
    if *party == node("beta") { Ok(()) } else { Err(format!("it is {party}, not node beta")) }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, dialled)
}

/// What came of it at the end that was dialled, and at the end that dialled, once each has said a word.
fn meet(
    taking: Protection,
    dialling: &Protection,
    to: &Party,
) -> (Result<Channel, String>, Result<Channel, String>) {
    let (taken, dialled) = sockets();
    let taking: JoinHandle<Result<Channel, TlsError>> = std::thread::spawn(move || {
        let mut channel = taking.take(taken, SecuredService::Replication, only_beta, soon())?;
        channel.write_all(b"welcome")?;
        let mut word = [0; 5];
        channel.read_exact(&mut word)?;
        Ok(channel)
    });
    let dialled = dialling.dial(dialled, to, SecuredService::Replication, soon()).and_then(|mut channel| {
        let _ = channel.write_all(b"hello");
        let mut word = [0; 7];
        channel.socket().set_read_timeout(Some(Duration::from_secs(60)))?;
        channel.read_exact(&mut word)?;
        Ok(channel)
    });
    // Who has failed has closed, and keeps nobody waiting.
    let dialled = dialled.map_err(|e| e.to_string());
    (taking.join().unwrap().map_err(|e| e.to_string()), dialled)
}

fn refused(taking: Protection, dialling: &Protection, to: &Party) -> (String, String) {
    let (taken, dialled) = meet(taking, dialling, to);
    (taken.expect_err("it was taken"), dialled.expect_err("it was let in"))
}

#[test]
fn two_nodes_of_a_site_know_each_other() {
    let (site, _) = site();
    let (taken, dialled) =
        meet(protection(site.path(), "alpha"), &protection(site.path(), "beta"), &node("alpha"));
    assert_eq!(taken.unwrap().party(), Some(&node("beta")));
    assert_eq!(dialled.unwrap().party(), Some(&node("alpha")));
}

#[test]
fn both_directions_carry_all_at_the_same_time() {
    let (site, _) = site();
    let (taken, dialled) =
        meet(protection(site.path(), "alpha"), &protection(site.path(), "beta"), &node("alpha"));
    let ends = [taken.unwrap(), dialled.unwrap()];
    const BYTES: usize = 24 << 20;
    let pattern = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    // Neither reads before both have filled what lies between them, were a writer to keep a reader waiting.
    let threads: Vec<_> = ends
        .iter()
        .flat_map(|end| {
            let (mut writing, mut reading) = (end.try_clone().unwrap(), end.try_clone().unwrap());
            let writer = std::thread::spawn(move || {
                let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
                for part in bytes.chunks(1_000_003) {
                    writing.write_all(part).unwrap();
                }
            });
            let reader = std::thread::spawn(move || {
                let mut bytes = vec![0; BYTES];
                reading.read_exact(&mut bytes).unwrap();
                assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
            });
            [writer, reader]
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    ends[0].socket().shutdown(Shutdown::Both).unwrap();
    assert_eq!(ends[1].try_clone().unwrap().read(&mut [0; 1]).unwrap(), 0, "it has ended");
}

#[test]
fn nobody_else_is_taken_and_each_end_says_why() {
    let (ours, authority) = site();
    let (theirs, _) = site();
    let at = |name: &str| protection(ours.path(), name);
    let (here, there) = refused(at("alpha"), &protection(theirs.path(), "beta"), &node("alpha"));
    // The one who dialled judges first.
    assert!(there.contains("another certificate authority"), "{there}");
    assert!(here.contains("of another certificate authority than its own"), "{here}");

    let (here, there) = refused(at("alpha"), &at("beta"), &node("gamma"));
    assert!(there.contains("alpha.node.ftd") && there.contains("gamma.node.ftd"), "{there}");
    assert!(here.contains("not of the kind or the name that it takes"), "{here}");

    let (here, there) = refused(at("alpha"), &at("operator"), &node("alpha"));
    assert_eq!(here, "it is operator operator, not node beta");
    assert!(there.contains("this one is not whom it takes"), "{there}");

    // A node's certificate is no arbiter's, nor the reverse.
    let (_, there) = refused(at("alpha"), &at("beta"), &Party::new(PartyKind::Arbiter, "alpha").unwrap());
    assert!(there.contains("alpha.node.ftd") && there.contains("alpha.arbiter.ftd"), "{there}");
    let (here, _) = refused(at("alpha"), &at("arbiter"), &node("alpha"));
    assert!(here.contains("for another purpose"), "{here}");

    let now = OffsetDateTime::now_utc();
    authority.write(&node("beta"), (now - Span::days(2), now - Span::minutes(1))).unwrap();
    let (here, there) = refused(at("alpha"), &at("beta"), &node("alpha"));
    assert!(here.contains("certificate has expired"), "{here}");
    assert!(there.contains("this one's certificate has expired"), "{there}");
    authority.write(&node("beta"), (now + Span::days(1), now + Span::days(2))).unwrap();
    let (here, _) = refused(at("alpha"), &at("beta"), &node("alpha"));
    assert!(here.contains("is not valid yet"), "{here}");
}

/// What comes of it where an operator dials whoever is there, as long as it is a node: at the end that was dialled, and
/// at the operator's, once the listener has said a word.
fn visit(taking: Protection, dialling: &Path) -> (Result<Party, String>, Result<Party, String>) {
    let (taken, dialled) = sockets();
    let taking: JoinHandle<Result<Party, TlsError>> = std::thread::spawn(move || {
        let mut channel = taking.take(taken, SecuredService::Control, only_operators, soon())?;
        channel.write_all(b"welcome")?;
        Ok(channel.party().unwrap().clone())
    });
    let credentials = Credentials::load(CredentialFiles::within(dialling), &PartyKind::ALL, None).unwrap();
    let only_nodes = |party: &Party| match party.kind() {
        PartyKind::Node => Ok(()),
        _ => Err(format!("it is {party}, and no node")),
    };
    let visited = credentials.dial_admitted(dialled, SecuredService::Control, only_nodes, soon());
    let visited = visited.and_then(|mut channel| {
        channel.read_exact(&mut [0; 7])?;
        Ok(channel.party().unwrap().clone())
    });
    let visited = visited.map_err(|e| e.to_string());
    (taking.join().unwrap().map_err(|e| e.to_string()), visited)
}

fn only_operators(party: &Party) -> Result<(), String> {
    if party.kind() == PartyKind::Operator { Ok(()) } else { Err(format!("it is {party}")) }
}

#[test]
fn who_dials_whatever_node_is_there_is_told_which_and_takes_nobody_else() {
    let (ours, authority) = site();
    let (theirs, _) = site();
    let operator = ours.path().join("operator");
    let (taken, visited) = visit(protection(ours.path(), "alpha"), &operator);
    assert_eq!((taken.unwrap().name(), visited.unwrap()), ("operator", node("alpha")));

    let (here, there) = visit(protection(ours.path(), "arbiter"), &operator);
    assert_eq!(there.unwrap_err(), "it is arbiter arbiter, and no node");
    assert!(here.is_err());
    let (_, there) = visit(protection(theirs.path(), "alpha"), &operator);
    assert!(there.as_ref().unwrap_err().contains("another certificate authority"), "{there:?}");
    let (here, there) = visit(protection(ours.path(), "alpha"), &ours.path().join("beta"));
    assert_eq!(here.unwrap_err(), "it is node beta");
    assert!(there.as_ref().unwrap_err().contains("this one is not whom it takes"), "{there:?}");

    let now = OffsetDateTime::now_utc();
    authority.write(&node("alpha"), (now - Span::days(2), now - Span::minutes(1))).unwrap();
    let (_, there) = visit(protection(ours.path(), "alpha"), &operator);
    assert!(there.as_ref().unwrap_err().contains("certificate has expired"), "{there:?}");
}

#[test]
fn a_writer_that_does_not_wait_sends_what_was_encrypted_in_pieces() {
    let (site, _) = site();
    let (taken, dialled) =
        meet(protection(site.path(), "alpha"), &protection(site.path(), "beta"), &node("alpha"));
    let (writing, mut reading) = (taken.unwrap(), dialled.unwrap());
    reading.socket().set_nonblocking(true).unwrap();
    let why = reading.read(&mut [0; 8]).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::WouldBlock);
    let text = vec![7; 100_000];
    let mut sent = Vec::new();
    let first = writing.encrypt(&text, &mut sent).unwrap();
    assert!(first < text.len(), "a bounded part at a time");
    assert_eq!(writing.encrypt(&text[first..], &mut sent).unwrap(), text.len() - first);
    let mut got = Vec::new();
    for piece in sent.chunks(1000) {
        let mut socket = writing.socket();
        socket.write_all(piece).unwrap();
        let mut some = [0; 4096];
        // Half a record is kept, and nothing is lost by not waiting for the rest.
        while let Ok(count) = reading.read(&mut some) {
            got.extend_from_slice(&some[..count]);
        }
    }
    while got.len() < text.len() {
        let mut some = [0; 4096];
        match reading.read(&mut some) {
            Ok(count) => got.extend_from_slice(&some[..count]),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert_eq!(got, text);
}

#[test]
fn the_clear_and_tls_do_not_mix() {
    let (site, _) = site();
    let secured = protection(site.path(), "alpha");
    let (here, _) = meet(secured.clone(), &Protection::None, &node("alpha"));
    assert!(here.as_ref().unwrap_err().contains("does not speak TLS"), "{here:?}");
    let (_, there) = meet(Protection::None, &protection(site.path(), "beta"), &node("alpha"));
    assert!(there.as_ref().unwrap_err().contains("does not speak TLS"), "{there:?}");
    // One of ftd's own listeners, but another.
    let (taken, dialled) = sockets();
    let other = std::thread::spawn(move || secured.take(taken, SecuredService::Arbiter, |_| Ok(()), soon()));
    let beta = protection(site.path(), "beta");
    let there =
        beta.dial(dialled, &node("alpha"), SecuredService::Replication, soon()).unwrap_err().to_string();
    assert!(there.contains("another service of ftd"), "{there}");
    let here = other.join().unwrap().unwrap_err().to_string();
    assert!(here.contains("another service of ftd"), "{here}");
}

#[test]
fn who_says_nothing_is_not_waited_for_and_who_trickles_gets_no_more_time() {
    let (site, _) = site();
    let alpha = protection(site.path(), "alpha");
    let (taken, mut dialled) = sockets();
    let trickling = std::thread::spawn(move || {
        while dialled.write_all(&[22]).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let shortly = Instant::now() + Duration::from_millis(200);
    let why = alpha.take(taken, SecuredService::Replication, only_beta, shortly).unwrap_err();
    assert!(matches!(why, TlsError::TimedOut | TlsError::Tls(_)), "{why}");
    trickling.join().unwrap();
    let (taken, _silent) = sockets();
    let shortly = Instant::now() + Duration::from_millis(50);
    let why = alpha.take(taken, SecuredService::Replication, only_beta, shortly).unwrap_err();
    assert!(matches!(why, TlsError::TimedOut), "{why}");
}

#[test]
fn nothing_is_resumed() {
    let (site, _) = site();
    let (alpha, beta) = (protection(site.path(), "alpha"), protection(site.path(), "beta"));
    let mut first = Vec::new();
    for _ in 0..2 {
        let (taken, dialled) = sockets();
        let mut tapped = dialled.try_clone().unwrap();
        let alpha = alpha.clone();
        let taking =
            std::thread::spawn(move || alpha.take(taken, SecuredService::Replication, only_beta, soon()));
        let channel = beta.dial(dialled, &node("alpha"), SecuredService::Replication, soon()).unwrap();
        let taken = taking.join().unwrap().unwrap();
        // No ticket has been sent, with which it could be.
        tapped.set_nonblocking(true).unwrap();
        assert_eq!(tapped.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        tapped.set_nonblocking(false).unwrap();
        // What one session has carried means nothing in another.
        let mut sent = [0; 64];
        let mut writing = taken.try_clone().unwrap();
        writing.write_all(b"a word").unwrap();
        let count = tapped.read(&mut sent).unwrap();
        if first.is_empty() {
            first = sent[..count].to_vec();
        } else {
            taken.socket().write_all(&first).unwrap();
            let why = channel.try_clone().unwrap().read(&mut [0; 8]).unwrap_err();
            assert_eq!(why.kind(), std::io::ErrorKind::InvalidData, "{why}");
        }
    }
}

#[test]
fn a_byte_that_was_changed_on_the_way_ends_the_connection() {
    let (site, _) = site();
    let (alpha, beta) = (protection(site.path(), "alpha"), protection(site.path(), "beta"));
    let (taken, dialled) = sockets();
    let mut tapped = dialled.try_clone().unwrap();
    let taking =
        std::thread::spawn(move || alpha.take(taken, SecuredService::Replication, only_beta, soon()));
    let mut channel = beta.dial(dialled, &node("alpha"), SecuredService::Replication, soon()).unwrap();
    let mut taken = taking.join().unwrap().unwrap();
    channel.write_all(b"a word").unwrap();
    let mut word = [0; 6];
    taken.read_exact(&mut word).unwrap();
    // A record as it should be, but for its content.
    tapped.write_all(&[23, 3, 3, 0, 24]).and_then(|()| tapped.write_all(&[7; 24])).unwrap();
    let why = taken.read(&mut word).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::InvalidData, "{why}");
}

#[test]
fn a_renewed_certificate_is_used_without_a_break_and_a_broken_one_is_not() {
    let (directory, authority) = site();
    let (alpha, beta) = (protection(directory.path(), "alpha"), protection(directory.path(), "beta"));
    let (taken, dialled) = meet(alpha.clone(), &beta, &node("alpha"));
    let (mut taken, mut dialled) = (taken.unwrap(), dialled.unwrap());
    let before = beta.expires().unwrap();
    let renewed = authority.renew(&["beta".to_owned()], Validity::days(900).unwrap()).unwrap();
    assert_eq!(renewed, [node("beta")]);
    assert_eq!(beta.expires().unwrap(), before, "nobody has looked");
    refresh(&beta);
    assert!(beta.expires().unwrap() > before + Duration::from_secs(86400));
    // What is connected goes on, and who connects anew is known.
    dialled.write_all(b"still").unwrap();
    let mut word = [0; 5];
    taken.read_exact(&mut word).unwrap();
    meet(alpha.clone(), &beta, &node("alpha")).0.unwrap();
    let identity = CredentialFiles::within(&directory.path().join("beta")).identity;
    let whole = std::fs::read(&identity).unwrap();
    for broken in
        [&whole[..whole.len() / 2], b"", b"-----BEGIN CERTIFICATE-----\nzz\n-----END CERTIFICATE-----\n"]
    {
        std::fs::write(&identity, broken).unwrap();
        refresh(&beta);
        assert!(
            Credentials::load(CredentialFiles::within(&directory.path().join("beta")), &PartyKind::ALL, None)
                .is_err()
        );
        meet(alpha.clone(), &beta, &node("alpha")).0.unwrap();
    }
}

#[test]
fn credentials_that_do_not_fit_are_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, _) = site();
    let (other, _) = site();
    let files = CredentialFiles::within(&directory.path().join("alpha"));
    let load = |files: &CredentialFiles, kinds: &[PartyKind], name| {
        Credentials::load(files.clone(), kinds, name).map(|_| ()).map_err(|e| e.to_string())
    };
    load(&files, &[PartyKind::Node], Some("alpha")).unwrap();
    let why = load(&files, &[PartyKind::Node], Some("beta")).unwrap_err();
    assert!(
        why.ends_with("identity.pem: the certificate is of node alpha, and must be of node beta"),
        "{why}"
    );
    let why = load(&files, &[PartyKind::Operator, PartyKind::Observer], None).unwrap_err();
    assert!(why.ends_with("must be of operator or observer"), "{why}");
    let foreign = CredentialFiles { ca: other.path().join("ca.pem"), ..files.clone() };
    let why = load(&foreign, &[PartyKind::Node], None).unwrap_err();
    assert!(why.contains("not of the authority in ca.pem"), "{why}");
    let missing = CredentialFiles { ca: directory.path().join("none.pem"), ..files.clone() };
    let why = load(&missing, &[PartyKind::Node], None).unwrap_err();
    assert!(why.starts_with("cannot read ") && why.contains("none.pem"), "{why}");
    let keyless = CredentialFiles { identity: files.ca.clone(), ..files.clone() };
    assert!(load(&keyless, &PartyKind::ALL, None).unwrap_err().contains("no private key"));
    // Another's key.
    let own = std::fs::read_to_string(&files.identity).unwrap();
    let beta = std::fs::read_to_string(directory.path().join("beta/identity.pem")).unwrap();
    let key = |pem: &str| pem[pem.find("-----BEGIN PRIVATE").unwrap()..].to_owned();
    std::fs::write(&files.identity, own.replace(&key(&own), &key(&beta))).unwrap();
    let why = load(&files, &PartyKind::ALL, None).unwrap_err();
    assert!(why.contains("do not belong together"), "{why}");
    std::fs::write(&files.identity, own).unwrap();
    std::fs::set_permissions(&files.identity, std::fs::Permissions::from_mode(0o644)).unwrap();
    let why = load(&files, &PartyKind::ALL, None).unwrap_err();
    assert!(why.contains("everybody on this host can read the private key"), "{why}");
}

#[test]
fn a_site_loses_nothing_that_it_has() {
    let (directory, authority) = site();
    let ca = std::fs::read(directory.path().join("ca.key")).unwrap();
    assert!(
        CertificateSite::create(directory.path()).err().unwrap().to_string().contains("is there already")
    );
    assert_eq!(std::fs::read(directory.path().join("ca.key")).unwrap(), ca);
    let identity = std::fs::read(directory.path().join("alpha/identity.pem")).unwrap();
    let gamma = node("gamma");
    let why = authority.issue(&[gamma.clone(), node("alpha")], Validity::default()).unwrap_err().to_string();
    assert!(why.contains("alpha is there already"), "{why}");
    assert!(!directory.path().join("gamma").exists(), "all or none");
    let twin = Party::new(PartyKind::Arbiter, "gamma").unwrap();
    let why = authority.issue(&[gamma.clone(), twin], Validity::default()).unwrap_err().to_string();
    assert!(why.contains("node gamma and arbiter gamma cannot have the same name"), "{why}");
    assert_eq!(std::fs::read(directory.path().join("alpha/identity.pem")).unwrap(), identity);
    let again = CertificateSite::open(directory.path()).unwrap();
    assert_eq!(again.renew(&[], Validity::default()).unwrap().len(), 5);
    again.issue(&[gamma], Validity::default()).unwrap();
    let why = again.renew(&["delta".into()], Validity::default()).unwrap_err().to_string();
    assert!(why.contains("no certificate in") && why.contains("delta"), "{why}");
    assert!(Validity::days(0).is_none() && Validity::days(3651).is_none());
    use std::os::unix::fs::PermissionsExt;
    for file in ["ca.key", "alpha/identity.pem"] {
        let mode = std::fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn no_certificate_makes_reading_it_panic() {
    use proptest::test_runner::{Config, TestRunner};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let (directory, _) = site();
    let pem = std::fs::read(directory.path().join("alpha/identity.pem")).unwrap();
    let sound = CertificateDer::from_pem_slice(&pem).unwrap();
    let changes = proptest::collection::vec((0..sound.len(), proptest::num::u8::ANY), 0..4);
    let runner = &mut TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    runner
        .run(&(changes, 0..=sound.len()), |(changes, length)| {
            let mut bytes = sound.to_vec();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(length);
            // What it says may have changed; it says it, or that it cannot be read.
            let _ = crate::verdict::read(&CertificateDer::from(bytes));
            Ok(())
        })
        .unwrap();
}
