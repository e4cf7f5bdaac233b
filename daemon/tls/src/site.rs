//! The certificates of one site: its authority, and those that it has signed.
//!
//! ```text
//! DIRECTORY/ca.pem                the authority's certificate, which everybody has
//! DIRECTORY/ca.key                its private key: whoever has it can be anybody; keep it off the hosts
//! DIRECTORY/NAME/ca.pem           what one party has, to be put on its machine: a copy,
//! DIRECTORY/NAME/identity.pem     and its certificate with its private key
//! ```

use crate::credentials::CredentialFiles;
use crate::party::{Party, PartyKind};
use crate::verdict;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// The authority outlives what it signs.
const AUTHORITY_DAYS: i64 = 20 * 365;
/// Certificates are valid from so long before they are made: clocks of hosts differ.
const BEFORE: Duration = Duration::hours(1);
/// Longest time for which a certificate is made.
const DAYS_MAX: u32 = 3650;

/// For how long certificates are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    days: u32,
}

impl Validity {
    /// So many days, from 1 to 3650.
    #[must_use]
    pub fn days(days: u32) -> Option<Self> {
        (1..=DAYS_MAX).contains(&days).then_some(Self { days })
    }
}

impl Default for Validity {
    /// Two years.
    fn default() -> Self {
        Self { days: 730 }
    }
}

/// Why certificates are not made.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// There is something that would be lost.
    #[error("{} is there already: it stays as it is", .0.display())]
    Exists(PathBuf),
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", file.display())]
    Storage {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it must.
    #[error("{}: {what}", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Two parties in one directory.
    #[error("{0} and {1} cannot have the same name here: their files would be the same")]
    SameName(Party, Party),
    /// Nobody has a certificate there.
    #[error("there is no certificate in {} to be renewed", .0.display())]
    Nobody(PathBuf),
    /// The maker of certificates failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A site's authority, at hand with its key.
pub struct CertificateSite {
    directory: PathBuf,
    authority: Issuer<'static, KeyPair>,
    authority_pem: String,
}

impl CertificateSite {
    /// Makes a new authority in a directory, which is made if it is not there.
    pub fn create(directory: &Path) -> Result<Self, SiteError> {
        let (certificate, key_file) = (directory.join("ca.pem"), directory.join("ca.key"));
        for file in [&certificate, &key_file] {
            if file.exists() {
                return Err(SiteError::Exists(file.clone()));
            }
        }
        make_directory(directory)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("ftd site {}", OffsetDateTime::now_utc().date()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = span(AUTHORITY_DAYS);
        let pem = params.self_signed(&key)?.pem();
        // The key first: an authority without one is of no use.
        write(&key_file, key.serialize_pem().as_bytes())?;
        write(&certificate, pem.as_bytes())?;
        Self::open(directory)
    }

    /// The authority in a directory.
    pub fn open(directory: &Path) -> Result<Self, SiteError> {
        let (certificate, key_file) = (directory.join("ca.pem"), directory.join("ca.key"));
        let read = |file: &PathBuf| {
            fs::read_to_string(file).map_err(|source| SiteError::Storage { file: file.clone(), source })
        };
        let (authority_pem, key) = (read(&certificate)?, read(&key_file)?);
        let bad = |file: PathBuf| {
            move |e: rcgen::Error| SiteError::Content { file, what: format!("cannot be used: {e}") }
        };
        let key = KeyPair::from_pem(&key).map_err(bad(key_file))?;
        let authority = Issuer::from_ca_cert_pem(&authority_pem, key).map_err(bad(certificate))?;
        Ok(Self { directory: directory.to_owned(), authority, authority_pem })
    }

    /// Makes a certificate and a key for each of `parties`, in directories of their names, which must not be there.
    pub fn issue(&self, parties: &[Party], validity: Validity) -> Result<(), SiteError> {
        for (index, party) in parties.iter().enumerate() {
            if let Some(other) = parties[..index].iter().find(|other| other.name() == party.name()) {
                return Err(SiteError::SameName(other.clone(), party.clone()));
            }
            let directory = self.directory_of(party);
            if directory.exists() {
                return Err(SiteError::Exists(directory));
            }
        }
        parties.iter().try_for_each(|party| self.write(party, span(validity.days.into())))
    }

    /// Makes new certificates and keys for those who have one in the directory: all, or those of these names.
    pub fn renew(&self, names: &[String], validity: Validity) -> Result<Vec<Party>, SiteError> {
        let parties = Self::parties_in(&self.directory)?;
        if let Some(name) = names.iter().find(|name| parties.iter().all(|party| party.name() != *name)) {
            return Err(SiteError::Nobody(self.directory.join(name)));
        }
        let wanted = |party: &Party| names.is_empty() || names.iter().any(|name| name == party.name());
        let parties: Vec<Party> = parties.into_iter().filter(wanted).collect();
        if parties.is_empty() {
            return Err(SiteError::Nobody(self.directory.clone()));
        }
        parties.iter().try_for_each(|party| self.write(party, span(validity.days.into())))?;
        Ok(parties)
    }

    /// Whoever has a certificate in a site's directory, by name.
    pub fn parties_in(directory: &Path) -> Result<Vec<Party>, SiteError> {
        let failed = |source| SiteError::Storage { file: directory.to_owned(), source };
        let mut parties = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let file = CredentialFiles::within(&entry.map_err(failed)?.path()).identity;
            let Ok(pem) = fs::read(&file) else { continue };
            let said = CertificateDer::from_pem_slice(&pem)
                .map_err(|e| e.to_string())
                .and_then(|certificate| verdict::read(&certificate));
            parties.push(said.map_err(|what| SiteError::Content { file, what })?.party);
        }
        parties.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(parties)
    }

    fn directory_of(&self, party: &Party) -> PathBuf {
        self.directory.join(party.name())
    }

    pub(crate) fn write(&self, party: &Party, (from, to): Span) -> Result<(), SiteError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![party.dns_name()])?;
        params.distinguished_name = common_name(&party.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Who serves, and who asks: a node does both.
        params.extended_key_usages = match party.kind() {
            PartyKind::Node => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            PartyKind::Arbiter => vec![ExtendedKeyUsagePurpose::ServerAuth],
            PartyKind::Operator | PartyKind::Observer => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        (params.not_before, params.not_after) = (from, to);
        let certificate = params.signed_by(&key, &self.authority)?.pem();
        let directory = self.directory_of(party);
        make_directory(&directory)?;
        let files = CredentialFiles::within(&directory);
        write(&files.ca, self.authority_pem.as_bytes())?;
        write(&files.identity, format!("{certificate}{}", key.serialize_pem()).as_bytes())
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// When a certificate begins to be valid, and when it ends.
type Span = (OffsetDateTime, OffsetDateTime);

fn span(days: i64) -> Span {
    let now = OffsetDateTime::now_utc();
    (now - BEFORE, now + Duration::days(days))
}

fn make_directory(directory: &Path) -> Result<(), SiteError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| SiteError::Storage { file: directory.to_owned(), source })
}

/// Writes a file that only its owner reads, in the place of one that may be there: whole or not at all.
fn write(file: &Path, content: &[u8]) -> Result<(), SiteError> {
    let new = file.with_extension("new");
    let written = || -> io::Result<()> {
        let _ = fs::remove_file(&new);
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        opened.write_all(content)?;
        opened.sync_all()?;
        fs::rename(&new, file)
    };
    written().map_err(|source| SiteError::Storage { file: file.to_owned(), source })
}
