//! Where the roots that the control plane is checked against come from.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use thiserror::Error;

/// A source of roots. A file is read at every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The machine's own bundle.
    System,
}

/// There are no roots to check against; nothing is connected to.
#[derive(Debug, Error)]
pub enum RootError {
    /// The file cannot be read.
    #[error("cannot read the root certificates in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing in it that can be used.
    #[error("there is no usable root certificate in {source_name}")]
    Empty {
        /// Where we looked.
        source_name: String,
    },
}

/// Where distributions keep their bundle.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl RootSource {
    /// Reads a setting (`XDS_ROOT_CA`, `CA_ROOT_CA`): `SYSTEM`, PEM text, or a path.
    pub fn from_setting(setting: &str) -> Self {
        match setting {
            "SYSTEM" => Self::System,
            text if text.contains("-----BEGIN") => Self::Pem(text.to_owned()),
            path => Self::File(path.into()),
        }
    }

    /// The roots as they are now.
    ///
    /// # Errors
    /// There are none.
    pub fn load(&self) -> Result<RootCertStore, RootError> {
        match self {
            Self::File(path) => parse(&read(path)?, || path.display().to_string()),
            Self::Pem(text) => parse(text.as_bytes(), || "the text of the setting".to_owned()),
            Self::System => {
                let path = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).unwrap_or(Path::new(SYSTEM_BUNDLES[0]));
                parse(&read(path)?, || path.display().to_string())
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RootError> {
    std::fs::read(path).map_err(|source| RootError::Read { path: path.to_owned(), source })
}

fn parse(pem: &[u8], source_name: impl Fn() -> String) -> Result<RootCertStore, RootError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if store.is_empty() {
        return Err(RootError::Empty { source_name: source_name() });
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_word_a_text_or_a_path() {
        assert_eq!(RootSource::from_setting("SYSTEM"), RootSource::System);
        assert_eq!(RootSource::from_setting("./root.pem"), RootSource::File("./root.pem".into()));
        assert!(matches!(RootSource::from_setting("-----BEGIN CERTIFICATE-----\n"), RootSource::Pem(_)));
    }

    #[test]
    fn no_roots_is_an_error() {
        assert!(matches!(RootSource::Pem("-----BEGIN CERTIFICATE-----\n".into()).load(), Err(RootError::Empty { .. })));
        assert!(matches!(RootSource::File("/nowhere".into()).load(), Err(RootError::Read { .. })));
    }
}
