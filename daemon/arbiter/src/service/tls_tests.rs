//! A service with a certificate: who is let in, and what each may ask.

use super::*;
use crate::majority::{MajorityArbiter, MajorityPace, MemberAsk, MemberRoll, MemberSet};
use crate::{Arbiter, Cell, CellId, Outcome, Trouble};
use ft_tls::{CertificateSite, CredentialFiles, Credentials, Party, PartyKind, Protection, Validity};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

struct Rig {
    directory: tempfile::TempDir,
    server: CellServer,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        make_site(&directory.path().join("site"));
        let store = directory.path().join("cells");
        CellStore::create(&store).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = CellStore::open(&store).unwrap();
        let own = credentials(&directory.path().join("site"), "arbiter");
        let server = CellServer::start(listener, store, ServerLimits::default(), own).unwrap();
        Self { directory, server }
    }

    fn place(&self, party: &str) -> ServicePlace {
        self.place_with(credentials(&self.directory.path().join("site"), party))
    }

    fn place_with(&self, protection: Protection) -> ServicePlace {
        ServicePlace { protection, ..ServicePlace::from(self.server.address()) }
    }

    fn ask(&self, place: ServicePlace) -> Result<Option<Cell>, Trouble> {
        ServiceArbiter::new(place, "web", pace()).read().map_err(|e| e.trouble)
    }
}

fn make_site(directory: &std::path::Path) {
    let of = |kind, name| Party::new(kind, name).unwrap();
    let parties = [
        of(PartyKind::Node, "alpha"),
        of(PartyKind::Arbiter, "arbiter"),
        of(PartyKind::Arbiter, "another"),
        of(PartyKind::Operator, "ada"),
        of(PartyKind::Observer, "olga"),
    ];
    CertificateSite::create(directory).unwrap().issue(&parties, Validity::default()).unwrap();
}

fn credentials(site: &std::path::Path, party: &str) -> Protection {
    let files = CredentialFiles::within(&site.join(party));
    Protection::Tls(Arc::new(Credentials::load(files, &PartyKind::ALL, None).unwrap()))
}

fn pace() -> ServicePace {
    ServicePace { connect: Duration::from_secs(10), answer: Duration::from_secs(10) }
}

fn cell() -> Cell {
    Cell { id: CellId(0xce11), generation: 1, owner: Some("alpha".to_owned()), standby: None }
}

#[test]
fn nodes_set_cells_and_operators_look_at_them() {
    let rig = Rig::new();
    let mut node = ServiceArbiter::new(rig.place("alpha"), "web", pace());
    assert_eq!(node.probe(), Ok(None));
    assert_eq!(node.compare_and_set(None, cell()), Outcome::Won(cell()));
    let refused = |outcome: Result<(), crate::ArbiterError>, party: &str| match outcome.unwrap_err().trouble {
        Trouble::Refused { reason } => assert_eq!(reason, format!("{party} may not ask this")),
        other => panic!("{other}"),
    };
    refused(ServiceDesk::new(rig.place("alpha"), pace()).list().map(drop), "node alpha");
    refused(ServiceDesk::new(rig.place("alpha"), pace()).registers().map(drop), "node alpha");
    let set = MemberSet::new(&[([10, 0, 0, 3], 1).into(), ([10, 0, 0, 3], 2).into()]).unwrap();
    for (name, party) in [("ada", "operator ada"), ("olga", "observer olga")] {
        let mut desk = ServiceDesk::new(rig.place(name), pace());
        assert_eq!(desk.list().unwrap()[0].cell, Some(cell()));
        assert_eq!(desk.history("web").unwrap().len(), 1);
        let mut arbiter = ServiceArbiter::new(rig.place(name), "web", pace());
        assert_eq!(arbiter.read(), Ok(Some(cell())));
        refused(arbiter.probe().map(drop), party);
        assert_eq!(desk.registers(), Ok(None));
        let mut member = MemberLine::new(rig.place(name), "web", set.clone(), pace());
        let no_vote = member.ask(MemberAsk::Look).unwrap_err();
        assert_eq!(no_vote.trouble, Trouble::Refused { reason: format!("{party} may not ask this") });
        let mut next = cell();
        next.generation = 2;
        match arbiter.compare_and_set(Some(1), next) {
            Outcome::NotAttempted(e) => refused(Err(e), party),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(node.read(), Ok(Some(cell())), "no cell is harmed");
}

#[test]
fn each_of_several_services_proves_that_it_is_the_one_of_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let site = directory.path().join("site");
    make_site(&site);
    let names = ["arbiter", "another"];
    let listeners = names.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    let set = MemberSet::new(&addresses).unwrap();
    let _servers: Vec<CellServer> = std::iter::zip(names, listeners)
        .map(|(name, listener)| {
            let store = directory.path().join(format!("cells-{name}"));
            CellStore::create_member(&store, &set, &BTreeMap::new()).unwrap();
            let store = CellStore::open(&store).unwrap();
            CellServer::start(listener, store, ServerLimits::default(), credentials(&site, name)).unwrap()
        })
        .collect();
    let arbiter = |names: [&str; 2]| {
        let place = |(name, address): (&str, SocketAddr)| ServicePlace {
            address,
            name: name.to_owned(),
            protection: credentials(&site, "alpha"),
        };
        let mut places: Vec<ServicePlace> = std::iter::zip(names, addresses).map(place).collect();
        places.sort_by_key(|place| place.address);
        let pace = MajorityPace { member: pace(), whole: Duration::from_secs(20) };
        MajorityArbiter::new(set.clone(), &places, "web", pace, &MemberRoll::default())
    };
    assert_eq!(arbiter(names).compare_and_set(None, cell()), Outcome::Won(cell()));
    let error = arbiter(["another", "another"]).read().unwrap_err();
    let Trouble::NoMajority { members, .. } = &error.trouble else { panic!("{error}") };
    assert!(matches!(&*members[0].trouble, Trouble::Unproven { .. }), "{error}");
    assert_eq!((members.len(), members[0].address), (1, addresses[0]));
}

#[test]
fn what_a_service_does_is_counted_and_its_cells_are_kept_for_another_store() {
    let rig = Rig::new();
    let mut node = ServiceArbiter::new(rig.place("alpha"), "web", pace());
    assert_eq!(node.compare_and_set(None, cell()), Outcome::Won(cell()));
    assert_eq!(node.compare_and_set(None, cell()), Outcome::Lost(Some(cell())));
    assert_eq!(node.read(), Ok(Some(cell())));
    assert!(ServiceDesk::new(rig.place("alpha"), pace()).list().is_err());
    let listed = ServiceDesk::new(rig.place("olga"), pace()).list().unwrap();
    let _ = rig.ask(ServicePlace { name: "another".into(), ..rig.place("alpha") });
    let metrics = rig.server.figures().metrics();
    for line in [
        "ftd_arbiter_cells 1",
        "ftd_arbiter_store_open 1",
        "ftd_arbiter_reads_total 1",
        "ftd_arbiter_sets_won_total 1",
        "ftd_arbiter_sets_lost_total 1",
        "ftd_arbiter_refusals_total 1",
        "ftd_arbiter_doubts_total 0",
        "ftd_arbiter_probes_total 0",
        "ftd_arbiter_commits_total 1",
        "ftd_arbiter_commit_failures_total 0",
        "ftd_arbiter_turned_away_total 0",
    ] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line}: {metrics}");
    }
    for name in ["ftd_arbiter_connections", "ftd_arbiter_commit_us_total", "ftd_arbiter_commit_us_max"] {
        assert!(metrics.contains(&format!("\n{name} ")), "{name}: {metrics}");
    }
    let unproven = std::time::Instant::now();
    while !rig.server.figures().metrics().contains("ftd_arbiter_unproven_total 1") {
        assert!(unproven.elapsed() < Duration::from_secs(60), "{metrics}");
    }
    let kept = CellBackup::decode(&CellBackup::of(listed, 1).unwrap().encode()).unwrap();
    let path = rig.directory.path().join("restored");
    CellStore::create_with(&path, &kept.cells).unwrap();
    assert!(matches!(CellStore::create_with(&path, &kept.cells), Err(CellStoreError::Exists(_))));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = CellStore::open(&path).unwrap();
    let server = CellServer::start(listener, store, ServerLimits::default(), Protection::None).unwrap();
    let mut desk = ServiceDesk::new(server.address(), pace());
    assert_eq!(desk.list().unwrap()[0].cell, Some(cell()));
    assert_eq!(desk.history("web").unwrap().len(), 1);
    let mut node = ServiceArbiter::new(server.address(), "web", pace());
    let next = Cell { generation: 2, ..cell() };
    assert_eq!(node.compare_and_set(Some(1), next.clone()), Outcome::Won(next));
    assert_eq!(desk.history("web").unwrap().len(), 2, "what comes later is later");
}

#[test]
fn strangers_and_impostors_are_told_apart_from_an_arbiter_that_is_away() {
    let rig = Rig::new();
    let foreign = tempfile::tempdir().unwrap();
    make_site(&foreign.path().join("site"));
    let unproven = |outcome: Result<Option<Cell>, Trouble>, says: &str| match outcome.unwrap_err() {
        Trouble::Unproven { reason } => assert!(reason.contains(says), "{reason}"),
        other => panic!("{other}"),
    };
    let site = foreign.path().join("site");
    unproven(rig.ask(rig.place_with(credentials(&site, "alpha"))), "another certificate authority");
    unproven(rig.ask(rig.place("another")), "this one");
    let wrong_name = ServicePlace { name: "another".into(), ..rig.place("alpha") };
    unproven(rig.ask(wrong_name), "the other end is");
    // In the clear, to a service with a certificate, and the reverse.
    let plain = rig.ask(ServicePlace::from(rig.server.address())).unwrap_err();
    assert!(
        matches!(plain, Trouble::Cut { .. } | Trouble::ServiceSilent { .. } | Trouble::NotAService { .. }),
        "{plain}"
    );
    let store = rig.directory.path().join("plain");
    CellStore::create(&store).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = CellStore::open(&store).unwrap();
    let server = CellServer::start(listener, store, ServerLimits::default(), Protection::None).unwrap();
    let address: SocketAddr = server.address();
    unproven(rig.ask(ServicePlace { address, ..rig.place("alpha") }), "does not speak TLS");
    // All this has kept nobody out.
    assert_eq!(rig.ask(rig.place("alpha")), Ok(None));
}
