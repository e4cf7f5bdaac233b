//! What a party proves itself by, read from files, and how it makes connections with that.

use crate::SecuredService;
use crate::channel::Channel;
use crate::error::{CredentialError, TlsError};
use crate::party::{Party, PartyKind};
use crate::verdict::{self, Admission, Doorkeeper, Said, Visitor};
use parking_lot::Mutex;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig,
    ServerConnection,
};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Between two looks at the files.
const REFRESH: Duration = Duration::from_secs(1);
/// No file of certificates is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where credentials are. Both files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The certificates of those who may sign certificates of this site: one, or two while one takes over from another.
    pub ca: PathBuf,
    /// This party's certificate and its private key, in one file, so that both change together.
    pub identity: PathBuf,
}

impl CredentialFiles {
    /// As `ftd keygen` names them.
    #[must_use]
    pub fn within(directory: &Path) -> Self {
        Self { ca: directory.join("ca.pem"), identity: directory.join("identity.pem") }
    }
}

/// One party's credentials. Using them reads no file: storage that hangs keeps no handshake and no status waiting.
/// Files that change are read anew by [`Self::refresh`]; where they are no good, what was read before stays.
#[derive(Debug)]
pub struct Credentials {
    files: CredentialFiles,
    kinds: Vec<PartyKind>,
    name: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// Of the files as they were looked at last.
    stamps: [Option<Stamp>; 2],
}

/// Tells one state of a file from another: inode, size, time of change.
type Stamp = (u64, u64, i64, i64);

/// What has been read from the files, for a client of TLS that is not ours.
#[derive(Debug)]
pub struct Material {
    /// The authorities' certificates, in PEM.
    pub ca: Vec<u8>,
    /// This party's certificate, those between it and an authority, and its private key, in PEM.
    pub identity: Vec<u8>,
    /// The algorithms.
    pub provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Loaded {
    said: Said,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    material: Arc<Material>,
}

impl Credentials {
    /// Reads the credentials of a party of one of these kinds, and of this name where one is given. A certificate that
    /// has expired is taken: it is for the other end to judge.
    pub fn load(
        files: CredentialFiles,
        kinds: &[PartyKind],
        name: Option<&str>,
    ) -> Result<Self, CredentialError> {
        let stamps = stamps(&files);
        let loaded = Arc::new(Loaded::read(&files, kinds, name)?);
        let state = Mutex::new(State { loaded, stamps });
        Ok(Self { files, kinds: kinds.to_owned(), name: name.map(str::to_owned), state })
    }

    /// Whose they are.
    #[must_use]
    pub fn party(&self) -> Party {
        self.current().said.party.clone()
    }

    /// Until when the certificate is valid.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.current().said.expires
    }

    /// What was in the files; the same object as before, unless they have changed.
    #[must_use]
    pub fn material(&self) -> Arc<Material> {
        Arc::clone(&self.current().material)
    }

    /// Where they are.
    #[must_use]
    pub fn files(&self) -> &CredentialFiles {
        &self.files
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.state.lock().loaded)
    }

    /// Looks at the files, and reads them anew if they have changed.
    pub fn refresh(&self) {
        let now = stamps(&self.files);
        if now == self.state.lock().stamps {
            return;
        }
        let read = Loaded::read(&self.files, &self.kinds, self.name.as_deref());
        let mut state = self.state.lock();
        state.stamps = now;
        match read {
            Ok(loaded) => {
                tracing::info!("took the new certificate in {}", self.files.identity.display());
                state.loaded = Arc::new(loaded);
            }
            Err(e) => tracing::warn!("the certificate that was read before stays in use: {e}"),
        }
    }

    /// Refreshes them every second, on a thread of its own, for as long as somebody else has them.
    pub fn watch(self: &Arc<Self>) -> io::Result<()> {
        let watched = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("ftd-keys".into());
        thread.spawn(move || {
            while let Some(credentials) = watched.upgrade() {
                credentials.refresh();
                drop(credentials);
                std::thread::sleep(REFRESH);
            }
        })?;
        Ok(())
    }

    /// Shakes hands as the one who has dialled; the other end must be `to`.
    pub fn dial(
        &self,
        socket: TcpStream,
        to: &Party,
        service: SecuredService,
        until: Instant,
    ) -> Result<Channel, TlsError> {
        let config = self.current().client(service)?;
        let connection = ClientConnection::new(Arc::new(config), to.server_name())?;
        let connection = shake(&socket, connection.into(), until)?;
        Ok(Channel::secured(socket, connection, to.clone()))
    }

    /// Shakes hands as the one who has dialled, with somebody whom `admits` admits, or says why not.
    pub fn dial_admitted(
        &self,
        socket: TcpStream,
        service: SecuredService,
        admits: impl Fn(&Party) -> Result<(), String> + Send + Sync + 'static,
        until: Instant,
    ) -> Result<Channel, TlsError> {
        let admission = Admission::new(admits);
        let own = self.current();
        let config = own.visitor(service, admission.clone())?;
        // A name must be given; it is not sent, and the visitor compares it with nothing.
        let connection = ClientConnection::new(Arc::new(config), own.said.party.server_name())?;
        proven(socket, connection.into(), &admission, until)
    }

    /// Shakes hands as the one who was dialled, by somebody whom `admits` admits, or says why not.
    pub fn take(
        &self,
        socket: TcpStream,
        service: SecuredService,
        admits: impl Fn(&Party) -> Result<(), String> + Send + Sync + 'static,
        until: Instant,
    ) -> Result<Channel, TlsError> {
        let admission = Admission::new(admits);
        let config = self.current().server(service, admission.clone())?;
        let connection = ServerConnection::new(Arc::new(config))?;
        proven(socket, connection.into(), &admission, until)
    }
}

/// Shakes hands with somebody of whom only the certificate says who he is.
fn proven(
    socket: TcpStream,
    connection: Connection,
    admission: &Admission,
    until: Instant,
) -> Result<Channel, TlsError> {
    let shaken = shake(&socket, connection, until);
    if let Some(why) = admission.refused() {
        return Err(TlsError::NotAdmitted(why));
    }
    let connection = shaken?;
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let party = certificate.map(verdict::read).transpose().map_err(TlsError::NotAdmitted)?;
    let party = party.ok_or(rustls::Error::NoCertificatesPresented)?.party;
    Ok(Channel::secured(socket, connection, party))
}

impl Loaded {
    fn read(
        files: &CredentialFiles,
        kinds: &[PartyKind],
        name: Option<&str>,
    ) -> Result<Self, CredentialError> {
        let content = |file: &Path, what: String| CredentialError::Content { file: file.to_owned(), what };
        let (ca, identity) = (read_file(&files.ca)?, read_file(&files.identity)?);
        let of_ca = |what| content(&files.ca, what);
        let of_identity = |what| content(&files.identity, what);
        let mode =
            File::open(&files.identity).and_then(|file| file.metadata()).map(|m| m.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o007 != 0) {
            return Err(of_identity(
                "everybody on this host can read the private key in it: chmod o= it".into(),
            ));
        }
        let mut roots = RootCertStore::empty();
        for authority in certificates(&ca).map_err(of_ca)? {
            roots.add(authority).map_err(|e| of_ca(format!("not a certificate authority's: {e}")))?;
        }
        let chain = certificates(&identity).map_err(of_identity)?;
        let key = PrivateKeyDer::from_pem_slice(&identity)
            .map_err(|e| of_identity(format!("no private key that can be read: {e}")))?;
        let said = verdict::read(&chain[0]).map_err(of_identity)?;
        let expected =
            kinds.contains(&said.party.kind()) && name.is_none_or(|name| name == said.party.name());
        if !expected {
            let kinds: Vec<_> = kinds.iter().map(|kind| kind.word()).collect();
            let name = name.map_or(String::new(), |name| format!(" {name}"));
            let wanted = format!("{}{name}", kinds.join(" or "));
            return Err(of_identity(format!(
                "the certificate is of {}, and must be of {wanted}",
                said.party
            )));
        }
        let material = Arc::new(Material { ca, identity, provider: Arc::new(provider()) });
        let loaded = Self { said, roots: Arc::new(roots), chain, key, material };
        loaded.check().map_err(of_identity)?;
        Ok(loaded)
    }

    /// Whether key and certificate belong together, and to this authority.
    fn check(&self) -> Result<(), String> {
        let pair = CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &self.material.provider);
        pair.map_err(|e| format!("certificate and private key do not belong together ({e})"))?;
        let judge = self.of_clients().map_err(|e| e.to_string())?;
        // Its time is judged at the other end, and told in the status here.
        let midst =
            self.said.begins + self.said.expires.duration_since(self.said.begins).unwrap_or_default() / 2;
        let midst = midst.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match judge.verify_client_cert(&self.chain[0], &self.chain[1..], UnixTime::since_unix_epoch(midst)) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
            )) => Ok(()),
            Err(e) => Err(format!("the certificate is not of the authority in ca.pem ({e})")),
            Ok(_) => Ok(()),
        }
    }

    /// Takes clients with certificates of the site.
    fn of_clients(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.material.provider));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        verifier.map_err(|e| rustls::Error::General(e.to_string()))
    }

    fn client(&self, service: SecuredService) -> Result<ClientConfig, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.material.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![service.protocol()];
        Ok(config)
    }

    fn visitor(&self, service: SecuredService, admission: Admission) -> Result<ClientConfig, TlsError> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.material.provider));
        let of_the_site = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let of_the_site = of_the_site.map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = self.client(service)?;
        config.dangerous().set_certificate_verifier(Arc::new(Visitor { of_the_site, admission }));
        config.enable_sni = false;
        Ok(config)
    }

    fn server(&self, service: SecuredService, admission: Admission) -> Result<ServerConfig, TlsError> {
        let doorkeeper = Doorkeeper { of_the_site: self.of_clients()?, admission };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.material.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(doorkeeper))
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![service.protocol()];
        Ok(config)
    }
}

/// What is used of TLS 1.3: the cheapest of its ciphers first where processors have AES.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

fn stamps(files: &CredentialFiles) -> [Option<Stamp>; 2] {
    [&files.ca, &files.identity].map(|file| {
        let about = std::fs::metadata(file).ok()?;
        Some((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
    })
}

fn read_file(file: &Path) -> Result<Vec<u8>, CredentialError> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let too_long = || io::Error::new(ErrorKind::FileTooLarge, "it is longer than 1 MiB");
    match read {
        Ok(count) if count as u64 > FILE_BYTES_MAX => {
            Err(CredentialError::Read { file: file.to_owned(), source: too_long() })
        }
        Ok(_) => Ok(bytes),
        Err(source) => Err(CredentialError::Read { file: file.to_owned(), source }),
    }
}

/// One or more certificates in PEM.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| format!("its PEM cannot be read: {e}"))?;
    if all.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(all) }
}

/// A socket whose reads and writes must all be over by a deadline.
struct Until<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(into)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left()?;
        self.socket.write(bytes)
    }

    /// All that there is goes out at once: after an error, the alert that says why is written in one attempt.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.left()?;
        self.socket.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The whole handshake. Writes are small enough for any socket's buffer.
fn shake(socket: &TcpStream, mut connection: Connection, deadline: Instant) -> Result<Connection, TlsError> {
    connection.set_buffer_limit(None);
    let mut until = Until { socket, deadline };
    while connection.is_handshaking() || connection.wants_write() {
        connection.complete_io(&mut until).map_err(why_not)?;
    }
    socket.set_read_timeout(None)?;
    Ok(connection)
}

/// What stands behind an error that came by way of the socket.
fn why_not(error: io::Error) -> TlsError {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => TlsError::TimedOut,
        _ => match error.downcast::<rustls::Error>() {
            Ok(of_tls) => TlsError::Tls(of_tls),
            Err(of_socket) => TlsError::Io(of_socket),
        },
    }
}

/// How connections are made.
#[derive(Clone, Debug)]
pub enum Protection {
    /// In the clear: whoever reaches the network reads them, and can pose as anybody.
    None,
    /// In TLS, with these credentials.
    Tls(Arc<Credentials>),
}

impl Protection {
    /// See [`Credentials::dial`]; in the clear nobody is asked who he is.
    pub fn dial(
        &self,
        socket: TcpStream,
        to: &Party,
        service: SecuredService,
        until: Instant,
    ) -> Result<Channel, TlsError> {
        match self {
            Self::None => Ok(Channel::clear(socket)),
            Self::Tls(credentials) => credentials.dial(socket, to, service, until),
        }
    }

    /// See [`Credentials::take`]; in the clear nobody is asked who he is.
    pub fn take(
        &self,
        socket: TcpStream,
        service: SecuredService,
        admits: impl Fn(&Party) -> Result<(), String> + Send + Sync + 'static,
        until: Instant,
    ) -> Result<Channel, TlsError> {
        match self {
            Self::None => Ok(Channel::clear(socket)),
            Self::Tls(credentials) => credentials.take(socket, service, admits, until),
        }
    }

    /// Has this end's certificate, where it has one, read anew when its files change.
    pub fn watch(&self) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Tls(credentials) => credentials.watch(),
        }
    }

    /// Until when this end's certificate is valid, where it has one.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        match self {
            Self::None => None,
            Self::Tls(credentials) => Some(credentials.expires()),
        }
    }
}
