//! Requests to the members of an etcd cluster, one HTTP connection each: which of them is asked, with which token, and
//! how certain it is after a failure that nothing was done.
//!
//! Only what certainly was not carried out is sent again, and reads and probes, which may be carried out any number of
//! times. A transaction that sets the cell is never sent a second time once it is in doubt, although its compare would
//! make that harmless: if the second one finds the cell changed, the first may have done it, and others may have gone
//! on from there. Who asked reads the cell instead.

use super::message::{self, Answered, Refusal};
use super::trouble::{EtcdTrouble, Failed};
use super::{EtcdLogin, EtcdSettings, EtcdTls};
use ft_tls::Material;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, Transport};
use ureq::{Agent, Error};

/// No answer that is waited for is longer: a cell has some hundred bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 16;
/// Nor is a password.
const PASSWORD_BYTES_MAX: usize = 1024;

/// What is asked.
pub(super) struct Request {
    pub(super) path: &'static str,
    pub(super) body: serde_json::Value,
    /// It may be carried out any number of times.
    pub(super) is_repeatable: bool,
}

#[derive(Debug)]
pub(super) struct Gateway {
    endpoints: Vec<String>,
    /// The one that is asked first: it answered last.
    current: usize,
    login: Option<EtcdLogin>,
    token: Option<String>,
    /// The cell's key, for messages.
    key: String,
    cluster: Option<u64>,
    answer_limit: Duration,
    tls: Option<EtcdTls>,
    /// Asks with `material`, and is made anew when that has changed.
    agent: Agent,
    material: Option<Arc<Material>>,
    is_connected: Arc<AtomicBool>,
}

impl Gateway {
    pub(super) fn new(settings: &EtcdSettings, key: &str) -> Self {
        let is_connected = Arc::new(AtomicBool::new(false));
        Self {
            endpoints: settings.endpoints.clone(),
            current: 0,
            login: settings.login.clone(),
            token: None,
            key: key.to_owned(),
            cluster: None,
            answer_limit: settings.answer_limit,
            tls: settings.tls.clone(),
            agent: agent(settings.answer_limit, None, &is_connected),
            material: None,
            is_connected,
        }
    }

    /// Has the agent ask with what the files of certificates hold now.
    fn refresh(&mut self) -> Result<(), Failed> {
        let Some(tls) = &self.tls else {
            let endpoint = self.endpoint();
            let why = "it wants TLS, and there is no certificate for that here".to_owned();
            return match endpoint.starts_with("https:") {
                true => Err(Failed::elsewhere(EtcdTrouble::Unreachable { endpoint, why })),
                false => Ok(()),
            };
        };
        let material = tls.credentials.material();
        if self.material.as_ref().is_some_and(|known| Arc::ptr_eq(known, &material)) {
            return Ok(());
        }
        let config = tls_config(&material, tls.ca.as_deref())
            .map_err(|(path, why)| Failed::refused(EtcdTrouble::Authority { path, why }))?;
        self.agent = agent(self.answer_limit, Some(config), &self.is_connected);
        self.material = Some(material);
        Ok(())
    }

    /// Asks each endpoint in turn, beginning with the one that answered last, until one has answered. `decode` says
    /// what the answer is, or why it is none.
    pub(super) fn ask<T>(
        &mut self,
        request: &Request,
        decode: impl Fn(&Answered) -> Result<T, String>,
    ) -> Result<T, Failed> {
        let mut failures: Vec<Failed> = Vec::new();
        for _ in 0..self.endpoints.len() {
            let answer = self
                .ask_current(request)
                .and_then(|answered| decode(&answered).map_err(|why| Failed::in_doubt(self.not_etcd(why))));
            let failed = match answer {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if !failed.may_pass {
                return Err(failed);
            }
            self.current = (self.current + 1) % self.endpoints.len();
            let may_repeat = failed.is_certain || request.is_repeatable;
            failures.push(failed);
            if !may_repeat {
                break;
            }
        }
        let is_certain = failures.iter().all(|failed| failed.is_certain);
        let mut troubles: Vec<_> = failures.into_iter().map(|failed| failed.trouble).collect();
        let trouble = match troubles.len() {
            1 => troubles.remove(0),
            _ => EtcdTrouble::All(troubles),
        };
        Err(Failed { trouble, is_certain, may_pass: true })
    }

    /// Asks one endpoint; with a fresh token if it does not know ours any more.
    fn ask_current(&mut self, request: &Request) -> Result<Answered, Failed> {
        self.refresh()?;
        let had_token = self.token.is_some();
        self.log_in()?;
        match self.post(request.path, &request.body)? {
            Reply::Answer(answer) => Ok(answer),
            Reply::TokenRefused(_) if had_token => {
                self.token = None;
                self.log_in()?;
                match self.post(request.path, &request.body)? {
                    Reply::Answer(answer) => Ok(answer),
                    Reply::TokenRefused(said) => Err(self.refused(said)),
                }
            }
            Reply::TokenRefused(said) => {
                self.token = None;
                Err(self.refused(said))
            }
        }
    }

    fn refused(&self, said: String) -> Failed {
        Failed::elsewhere(EtcdTrouble::Refused { endpoint: self.endpoint(), said })
    }

    /// Gets a token, if there is a login and no token. While this fails, nothing of a request was sent.
    fn log_in(&mut self) -> Result<(), Failed> {
        let Some(login) = self.login.clone().filter(|_| self.token.is_none()) else { return Ok(()) };
        let password = login.password().map_err(|why| {
            Failed::refused(EtcdTrouble::Password { path: login.password_file.clone(), why })
        })?;
        let body = message::login(&login.user, &password);
        let reply = self.post("/v3/auth/authenticate", &body);
        let reply = reply.map_err(|failed| Failed { is_certain: true, ..failed })?;
        match reply {
            Reply::Answer(answer) => {
                let token = message::token(&answer);
                self.token = Some(token.map_err(|why| Failed::elsewhere(self.not_etcd(why)))?);
                Ok(())
            }
            Reply::TokenRefused(said) => Err(self.refused(said)),
        }
    }

    fn post(&mut self, path: &str, body: &serde_json::Value) -> Result<Reply, Failed> {
        self.is_connected.store(false, Ordering::Relaxed);
        let mut request = self
            .agent
            .post(format!("{}{path}", self.endpoint()))
            .header("Content-Type", "application/json")
            // A member that knows of no leader says so at once, before it does anything.
            .header("Grpc-Metadata-Hasleader", "true");
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        let answer = request.send(body.to_string()).and_then(|mut response| {
            let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
            Ok((response.status().as_u16(), body))
        });
        let (status, body) = answer.map_err(|error| self.failed(error))?;
        if status != 200 {
            return self.judge(status, &body);
        }
        let answer = Answered::new(body).map_err(|why| Failed::in_doubt(self.not_etcd(why)))?;
        let known = *self.cluster.get_or_insert(answer.cluster);
        if answer.cluster != known {
            let (endpoint, found) = (self.endpoint(), answer.cluster);
            return Err(Failed::in_doubt(EtcdTrouble::OtherCluster { endpoint, found, known }));
        }
        Ok(Reply::Answer(answer))
    }

    /// What an answer says that is no success.
    fn judge(&self, status: u16, body: &[u8]) -> Result<Reply, Failed> {
        let endpoint = self.endpoint();
        let Some(Refusal { code, said }) = message::refusal(body) else {
            return Err(match status {
                404 => Failed::elsewhere(EtcdTrouble::NoGateway { endpoint }),
                _ => Failed::in_doubt(self.not_etcd(format!("HTTP status {status}"))),
            });
        };
        if said.contains("invalid auth token") || said.contains("revision of auth store is old") {
            return Ok(Reply::TokenRefused(said));
        }
        let user = self.login.as_ref().map_or("a user", |login| &login.user).to_owned();
        Err(match code {
            PERMISSION_DENIED => Failed::refused(EtcdTrouble::Denied { user, key: self.key.clone(), said }),
            INVALID_ARGUMENT if said.contains("user name is empty") => {
                Failed::refused(EtcdTrouble::LoginNeeded { said })
            }
            INVALID_ARGUMENT if said.contains("authentication failed") => {
                Failed::refused(EtcdTrouble::WrongLogin { said })
            }
            FAILED_PRECONDITION if said.contains("authentication is not enabled") => {
                Failed::refused(EtcdTrouble::LoginUnknown { said })
            }
            RESOURCE_EXHAUSTED if said.contains("space exceeded") => {
                Failed::refused(EtcdTrouble::Full { said })
            }
            INVALID_ARGUMENT | FAILED_PRECONDITION | RESOURCE_EXHAUSTED | UNAUTHENTICATED => {
                Failed::elsewhere(EtcdTrouble::Refused { endpoint, said })
            }
            // Said before anything is done, to requests that ask for a leader.
            UNAVAILABLE if said == "etcdserver: no leader" => {
                Failed::elsewhere(EtcdTrouble::NoQuorum { endpoint, said })
            }
            UNAVAILABLE | DEADLINE_EXCEEDED => Failed::in_doubt(EtcdTrouble::NoQuorum { endpoint, said }),
            _ => Failed::in_doubt(EtcdTrouble::Refused { endpoint, said }),
        })
    }

    /// No answer came.
    fn failed(&self, error: Error) -> Failed {
        let endpoint = self.endpoint();
        if !self.is_connected.load(Ordering::Relaxed) {
            let why = match error {
                Error::Timeout(_) => "no connection in time".into(),
                error => error.to_string(),
            };
            return Failed::elsewhere(EtcdTrouble::Unreachable { endpoint, why });
        }
        Failed::in_doubt(match error {
            Error::Timeout(_) => EtcdTrouble::Silent { endpoint, limit_ms: self.answer_limit.as_millis() },
            Error::Io(error) => EtcdTrouble::Broken { endpoint, why: error.to_string() },
            error => self.not_etcd(error.to_string()),
        })
    }

    fn not_etcd(&self, why: String) -> EtcdTrouble {
        EtcdTrouble::NotEtcd { endpoint: self.endpoint(), why }
    }

    fn endpoint(&self) -> String {
        self.endpoints[self.current].clone()
    }
}

/// Status codes of gRPC.
const INVALID_ARGUMENT: u32 = 3;
const DEADLINE_EXCEEDED: u32 = 4;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const FAILED_PRECONDITION: u32 = 9;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

enum Reply {
    Answer(Answered),
    /// The token is not known, or not any more. Nothing was done.
    TokenRefused(String),
}

impl EtcdLogin {
    /// The password: the first line of its file, which nobody else may read.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file.
    pub(super) fn password(&self) -> Result<String, String> {
        use io::Read;
        let file = fs::File::open(&self.password_file).map_err(|error| error.to_string())?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        let mode = metadata.permissions().mode() & 0o777;
        if !metadata.is_file() {
            return Err("it is not a regular file".into());
        }
        if mode & 0o007 != 0 {
            return Err(format!("everybody may use it (mode {mode:o}): chmod o= takes that away"));
        }
        let mut text = String::new();
        let mut head = file.take(PASSWORD_BYTES_MAX as u64 + 1);
        head.read_to_string(&mut text).map_err(|error| error.to_string())?;
        let password = text.lines().next().unwrap_or_default();
        match password.len() {
            0 => Err("its first line is empty".into()),
            len if len > PASSWORD_BYTES_MAX => Err(format!("it is longer than {PASSWORD_BYTES_MAX} bytes")),
            _ => Ok(password.to_owned()),
        }
    }
}

/// Asks with `tls`, where there is some.
fn agent(answer_limit: Duration, tls: Option<TlsConfig>, is_connected: &Arc<AtomicBool>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        // Each request on a connection of its own: before it is made, nothing can have been sent.
        .max_idle_connections(0)
        .timeout_connect(Some(answer_limit / 2))
        .timeout_global(Some(answer_limit))
        .tls_config(tls.unwrap_or_default())
        .build();
    let connector = DefaultConnector::new().chain(Mark(Arc::clone(is_connected)));
    Agent::with_parts(config, connector, DefaultResolver::default())
}

/// This host's certificate, and the authorities whom members' certificates must be of; or which file is no good.
fn tls_config(material: &Material, ca: Option<&Path>) -> Result<TlsConfig, (PathBuf, String)> {
    let path = ca.unwrap_or(Path::new("tls.ca"));
    let pem = match ca {
        None => material.ca.clone(),
        Some(path) => fs::read(path).map_err(|error| (path.to_owned(), error.to_string()))?,
    };
    let authorities = certificates(&pem).map_err(|why| (path.to_owned(), why))?;
    let of_identity = |why: String| (PathBuf::from("tls.identity"), why);
    let chain = certificates(&material.identity).map_err(of_identity)?;
    let key = PrivateKey::from_pem(&material.identity).map_err(|error| of_identity(error.to_string()))?;
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&authorities))
        .client_cert(Some(ClientCert::new_with_certs(&chain, key)))
        .unversioned_rustls_crypto_provider(Arc::clone(&material.provider))
        .build())
}

/// One or more certificates in PEM.
fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>, String> {
    let mut found = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| error.to_string())? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err("there is no certificate in it".into()) } else { Ok(found) }
}

/// Comes after the connectors that make a connection, and notes that there is one.
#[derive(Debug)]
struct Mark(Arc<AtomicBool>);

impl<In: Transport> Connector<In> for Mark {
    type Out = In;

    fn connect(&self, _: &ConnectionDetails<'_>, made: Option<In>) -> Result<Option<In>, Error> {
        self.0.store(made.is_some(), Ordering::Relaxed);
        Ok(made)
    }
}
