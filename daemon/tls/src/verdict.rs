//! What certificates say, who is admitted, and what is told of those who are not.

use crate::party::Party;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a certificate says of its holder, whoever has signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who holds it.
    pub party: Party,
    /// From when it is valid.
    pub begins: SystemTime,
    /// Until when it is.
    pub expires: SystemTime,
}

/// Reads a certificate.
pub fn read(certificate: &CertificateDer<'_>) -> Result<Said, String> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| format!("not a certificate: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| format!("its names: {e}"))?;
    let names: Vec<_> = names.iter().flat_map(|names| &names.value.general_names).collect();
    let [GeneralName::DNSName(name)] = names[..] else {
        return Err("the certificate does not have one DNS name and no other".to_owned());
    };
    let party =
        name.parse().map_err(|_| format!("the certificate names {name:?}, which is no name of ftd's"))?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    let validity = parsed.validity();
    Ok(Said {
        party,
        begins: at(validity.not_before.timestamp()),
        expires: at(validity.not_after.timestamp()),
    })
}

/// Says a reason against whoever is not taken.
type Admits = dyn Fn(&Party) -> Result<(), String> + Send + Sync;

/// Whom a listener, or one who dials, takes; and of one who was not taken, why. A clone knows the same.
#[derive(Clone)]
pub struct Admission {
    admits: Arc<Admits>,
    refused: Arc<Mutex<Option<String>>>,
}

impl Admission {
    /// Takes those whom `admits` does not say a reason against.
    pub fn new(admits: impl Fn(&Party) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self { admits: Arc::new(admits), refused: Arc::default() }
    }

    /// Why nobody was taken.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().take()
    }

    fn refuse(&self, why: String) -> rustls::Error {
        *self.refused.lock() = Some(why);
        CertificateError::ApplicationVerificationFailure.into()
    }

    fn pass(&self, party: &Party) -> Result<(), rustls::Error> {
        (self.admits)(party).map_err(|why| self.refuse(why))
    }
}

/// Takes a client whose certificate is one of the site's, and whom the listener admits.
pub struct Doorkeeper {
    pub of_the_site: Arc<dyn ClientCertVerifier>,
    pub admission: Admission,
}

impl std::fmt::Debug for Doorkeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Doorkeeper")
    }
}

impl ClientCertVerifier for Doorkeeper {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.of_the_site.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.of_the_site.verify_client_cert(end_entity, intermediates, now)?;
        let said = read(end_entity).map_err(|why| self.admission.refuse(why))?;
        self.admission.pass(&said.party)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_the_site.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_the_site.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_the_site.supported_verify_schemes()
    }
}

/// Takes a listener whose certificate is one of the site's, whatever its name, and whom the one who dials admits.
pub struct Visitor {
    pub of_the_site: Arc<dyn ServerCertVerifier>,
    pub admission: Admission,
}

impl std::fmt::Debug for Visitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Visitor")
    }
}

impl ServerCertVerifier for Visitor {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _nobodys: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let party = read(end_entity).map_err(|why| self.admission.refuse(why))?.party;
        let name = party.server_name();
        let verified =
            self.of_the_site.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)?;
        self.admission.pass(&party)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_the_site.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of_the_site.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_the_site.supported_verify_schemes()
    }
}

/// An error of TLS in an operator's words.
pub fn told(error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(why) => certificate_told(why),
        Error::AlertReceived(alert) => alert_told(*alert),
        Error::InvalidMessage(_) => {
            "the other end does not speak TLS: its security may be \"none\", or it is something else"
                .to_owned()
        }
        Error::NoCertificatesPresented => "the other end has shown no certificate".to_owned(),
        Error::NoApplicationProtocol => "the other end wants another service of ftd than this one".to_owned(),
        Error::PeerIncompatible(why) => {
            format!("the other end has no TLS 1.3 as it is spoken here ({why:?})")
        }
        other => format!("TLS: {other}"),
    }
}

fn certificate_told(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the other end's certificate has expired: renew it (ftd keygen renew), or set this host's clock"
                .to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the other end's certificate is not valid yet: this host's clock, or its maker's, is wrong"
                .to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the other end's certificate is of another certificate authority than this one's".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("the other end is {}, and not {}", presented.join(", "), expected.to_str())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the other end's certificate is for another purpose".to_owned()
        }
        other => format!("the other end's certificate is not taken: {other}"),
    }
}

fn alert_told(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "this one's certificate is of another certificate authority than its own"
        }
        AlertDescription::CertificateExpired => {
            "this one's certificate has expired, or is not valid yet, by its clock: ftd keygen renew"
        }
        AlertDescription::AccessDenied => "by its certificate, this one is not whom it takes there",
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "this one's certificate is not of the kind or the name that it takes"
        }
        AlertDescription::CertificateRequired => "it wants a certificate",
        AlertDescription::NoApplicationProtocol => "it is another service of ftd",
        other => return format!("the other end ends the TLS connection ({other:?})"),
    };
    format!("the other end refuses: {why}")
}
