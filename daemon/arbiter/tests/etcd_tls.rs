//! The back end "etcd" where etcd speaks TLS, and asks for its clients' certificates.

#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Cluster, ClusterTls};
use ft_arbiter::etcd::{EtcdSettings, EtcdTls};
use ft_arbiter::{Arbiter, Cell, CellId, EtcdArbiter, Outcome};
use ft_tls::{CertificateSite, CredentialFiles, Credentials, Party, PartyKind, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn credentials(site: &Path) -> Arc<Credentials> {
    let files = CredentialFiles::within(&site.join("alpha"));
    Arc::new(Credentials::load(files, &[PartyKind::Node], Some("alpha")).unwrap())
}

/// A site with the node alpha.
fn make_site(directory: &Path) -> CertificateSite {
    let site = CertificateSite::create(directory).unwrap();
    site.issue(&[Party::new(PartyKind::Node, "alpha").unwrap()], Validity::default()).unwrap();
    site
}

/// etcd's own authority, and a member's certificate of it: `etcd-ca.pem` and `etcd.pem`.
fn make_etcd_certificates(directory: &Path) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    fs::write(directory.join("etcd-ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let authority = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut member = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    // A member's gateway is a client of the member itself.
    member.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = member.signed_by(&key, &authority).unwrap().pem();
    fs::write(directory.join("etcd.pem"), format!("{certificate}{}", key.serialize_pem())).unwrap();
}

#[test]
fn a_node_asks_in_tls_and_is_asked_for_its_certificate() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let site = make_site(&path("site"));
    let foreign = path("foreign");
    make_site(&foreign);
    make_etcd_certificates(home.path());
    let both = ["etcd-ca.pem", "site/ca.pem"].map(|name| fs::read_to_string(path(name)).unwrap()).concat();
    fs::write(path("trusted.pem"), both).unwrap();
    let client = EtcdTls { credentials: credentials(&path("site")), ca: Some(path("etcd-ca.pem")) };
    let tls = ClusterTls { identity: path("etcd.pem"), trusted: path("trusted.pem"), client };
    let Some(cluster) = Cluster::start("a_node_asks_in_tls", 1, Some(tls)) else { return };
    let settings = cluster.settings("/ftd/");
    let mut arbiter = EtcdArbiter::new(&settings, "web");
    let cell = Cell { id: CellId(0xce11), generation: 1, owner: Some("alpha".into()), standby: None };
    assert_eq!(arbiter.probe(), Ok(None));
    assert_eq!(arbiter.compare_and_set(None, cell.clone()), Outcome::Won(cell.clone()));
    let with = |tls: Option<EtcdTls>| EtcdSettings { tls, ..settings.clone() };
    let refused = |settings: &EtcdSettings, says: &str| {
        let why = EtcdArbiter::new(settings, "web").read().unwrap_err().to_string();
        assert!(why.contains(says), "{why}");
    };
    // A node of another site; an etcd of another authority; a file of authorities that is none; no certificate.
    let tls = settings.tls.clone().unwrap();
    refused(&with(Some(EtcdTls { credentials: credentials(&foreign), ..tls.clone() })), "https://127.0.0.1:");
    refused(&with(Some(EtcdTls { ca: None, ..tls.clone() })), "UnknownIssuer");
    refused(&with(Some(EtcdTls { ca: Some(path("none.pem")), ..tls })), "none.pem: No such file");
    refused(&with(None), "there is no certificate for that here");
    // A renewed certificate is taken up.
    site.renew(&[], Validity::default()).unwrap();
    assert_eq!(arbiter.read(), Ok(Some(cell)));
}
