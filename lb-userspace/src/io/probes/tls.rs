//! How far a certificate is trusted → a TLS client, and a connection → one that is encrypted.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::ProbeError;
use crate::core::config::Tls;

/// A check cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The configured authorities cannot be read.
    #[error("health.ca: {file}: {cause}")]
    Authorities {
        /// The file.
        file: String,
        /// Why.
        cause: String,
    },
    /// The system has none.
    #[error(
        "health.type = \"https\": this host trusts no certificate authority ({0}); install ca-certificates, or set \
         `ca` or verify = false"
    )]
    NoSystemStore(String),
    /// The TLS library.
    #[error("TLS: {0}")]
    Library(#[from] Error),
}

/// TLS clients by how far they trust: services share them.
#[derive(Debug, Default)]
pub struct TlsClients(HashMap<Tls, Arc<ClientConfig>>);

impl TlsClients {
    /// The client that trusts so far; what it needs is read the first time.
    pub fn client(&mut self, tls: &Tls) -> Result<Arc<ClientConfig>, PrepareError> {
        if let Some(client) = self.0.get(tls) {
            return Ok(client.clone());
        }
        let client = Arc::new(client(tls)?);
        self.0.insert(tls.clone(), client.clone());
        Ok(client)
    }
}

fn client(tls: &Tls) -> Result<ClientConfig, PrepareError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut client = match tls {
        Tls::Unverified => {
            let anything = Arc::new(Anything(provider));
            builder.dangerous().with_custom_certificate_verifier(anything).with_no_client_auth()
        }
        Tls::System => builder.with_root_certificates(system()?).with_no_client_auth(),
        Tls::Authorities(file) => builder.with_root_certificates(authorities(file)?).with_no_client_auth(),
    };
    // A session that is resumed shows no certificate, which may have expired meanwhile.
    client.resumption = Resumption::disabled();
    Ok(client)
}

fn system() -> Result<RootCertStore, PrepareError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    // Some stores hold certificates that no library understands; the others do.
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let cause = if errors.is_empty() { "its store is empty".to_owned() } else { errors.join("; ") };
        return Err(PrepareError::NoSystemStore(cause));
    }
    Ok(store)
}

fn authorities(file: &str) -> Result<RootCertStore, PrepareError> {
    let failed = |cause: String| PrepareError::Authorities { file: file.to_owned(), cause };
    let mut reader = BufReader::new(File::open(file).map_err(|error| failed(error.to_string()))?);
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_reader_iter(&mut reader) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        store.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(failed("no certificate in it; expected a PEM file".to_owned()));
    }
    Ok(store)
}

/// The name that a certificate must be for, and that is sent as SNI if it is no address: the host of the `Host` header, else
/// the address that is asked.
pub(super) fn server_name(host: Option<&str>, asked: SocketAddr) -> Result<ServerName<'static>, ProbeError> {
    let Some(host) = host else { return Ok(ServerName::IpAddress(asked.ip().into())) };
    let bare = match host.rsplit_once(':') {
        _ if host.parse::<IpAddr>().is_ok() => host,
        Some((name, _)) => name,
        None => host,
    };
    let bare = bare.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(bare).map_err(|error| ProbeError::InvalidRequest(error.to_string()))
}

/// Encrypts a connection.
pub(super) async fn encrypt(
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, ProbeError> {
    let shown = name.to_str().into_owned();
    TlsConnector::from(client).connect(name, stream).await.map_err(|error| told(error, &shown))
}

/// The operator's words for what the library says.
fn told(error: io::Error, name: &str) -> ProbeError {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => ProbeError::Closed,
            _ => error.into(),
        };
    };
    let why = match tls {
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer => {
                "its certificate comes from no authority that is trusted here".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is not for {name}")
            }
            // The library has no name of its own for it.
            CertificateError::Other(cause) if format!("{cause:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is an authority's (CA:TRUE), with which no server may answer; give it one that is not".to_owned()
            }
            other => format!("its certificate is refused: {other}"),
        },
        Error::InvalidMessage(_) => "the answer is no TLS".to_owned(),
        other => other.to_string(),
    };
    ProbeError::Tls(why)
}

/// Accepts every certificate.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
