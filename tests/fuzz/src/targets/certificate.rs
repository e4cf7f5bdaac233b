//! Certificates and keys as files, and the names in them. An input is a certificate, whoever has signed it; the
//! certificates and the key of two files, which are put into PEM here; or those files as text.

use crate::input::{FuzzInput, file, put_piece};
use ft_tls::fuzzing::read;
use ft_tls::{CertificateSite, CredentialFiles, Credentials, Party, PartyKind, Validity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;

/// See the module.
pub(crate) fn run(input: &[u8]) {
    let mut input = FuzzInput::new(input);
    match input.u8() % 3 {
        0 => judge(input.rest()),
        1 => {
            let [ca, certificate, key] = [input.piece(), input.piece(), input.piece()];
            judge(certificate);
            let identity = [pem("CERTIFICATE", certificate), pem("PRIVATE KEY", key)].concat();
            load(pem("CERTIFICATE", ca).as_bytes(), identity.as_bytes());
        }
        _ => load(input.piece(), input.rest()),
    }
}

/// What a certificate says is a name that there can be.
fn judge(certificate: &[u8]) {
    match read(&certificate.into()) {
        Ok(said) => {
            let party = &said.party;
            assert_eq!(Party::new(party.kind(), party.name()).as_ref(), Ok(party));
            assert_eq!(party.dns_name().parse::<Party>().as_ref(), Ok(party));
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

/// Files are refused with an error that names one of them, or are of the party that their certificate names.
fn load(ca: &[u8], identity: &[u8]) {
    let ((_first, ca), (_second, identity)) = (file(ca), file(identity));
    let files = CredentialFiles { ca, identity };
    match Credentials::load(files.clone(), &[PartyKind::Node, PartyKind::Operator], None) {
        Ok(credentials) => {
            let party = credentials.party();
            assert!(matches!(party.kind(), PartyKind::Node | PartyKind::Operator));
            let pem = &credentials.material().identity;
            let certificate = CertificateDer::from_pem_slice(pem).expect("it was read before");
            assert_eq!(read(&certificate).expect("it was read before").party, party);
            let others = [(PartyKind::Arbiter, party.name()), (party.kind(), "somebody-else-by-far")];
            for (kind, name) in others {
                assert!(Credentials::load(files.clone(), &[kind], Some(name)).is_err());
            }
        }
        Err(error) => assert!(error.to_string().contains("/proc/self/fd/")),
    }
}

/// Bytes as a section of a PEM file.
fn pem(label: &str, content: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for group in content.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at > group.len() { '=' } else { digit.into() });
        }
    }
    text + &format!("\n-----END {label}-----\n")
}

/// See the module.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let site = CertificateSite::create(directory.path()).expect("a site can be made");
    let parties = [PartyKind::Node, PartyKind::Operator]
        .map(|kind| Party::new(kind, kind.word()).expect("it is a name"));
    site.issue(&parties, Validity::default()).expect("certificates can be made");
    let mut seeds = Vec::new();
    for party in &parties {
        let files = CredentialFiles::within(&directory.path().join(party.name()));
        let [ca, identity] = [&files.ca, &files.identity].map(|file| fs::read(file).expect("it was made"));
        let of = |pem: &[u8]| CertificateDer::from_pem_slice(pem).expect("it was made");
        let key = PrivateKeyDer::from_pem_slice(&identity).expect("it was made");
        let mut pieces = vec![1];
        [&of(&ca)[..], &of(&identity), key.secret_der()].iter().for_each(|part| put_piece(&mut pieces, part));
        let mut text = vec![2];
        put_piece(&mut text, &ca);
        seeds.extend([[&[0], &of(&identity)[..]].concat(), pieces, [text, identity].concat()]);
    }
    seeds
}
