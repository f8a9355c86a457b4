//! What every request to the control plane carries: the token, the cluster, and headers that the user adds.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use thiserror::Error;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    service::Interceptor,
};

/// Where the token is.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read for each request: kubelet replaces it before it expires.
    File(PathBuf),
    /// The token itself.
    Literal(String),
    /// There is none; the control plane will refuse whatever needs one.
    None,
}

/// Where Kubernetes puts a proxy's token.
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

impl TokenSource {
    /// From `AUTH_TOKEN`: the file with the token, or the token; unset is the file where Kubernetes puts it, if it is there.
    pub fn from_setting(setting: Option<&str>) -> Self {
        match setting {
            None if Path::new(DEFAULT_TOKEN).exists() => Self::File(DEFAULT_TOKEN.into()),
            None => Self::None,
            // A token of Kubernetes is three parts of base64, which is no path that anybody has.
            Some(literal) if literal.starts_with("ey") && literal.matches('.').count() == 2 && !literal.contains('/') => {
                Self::Literal(literal.to_owned())
            }
            Some(path) => Self::File(path.into()),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal([redacted])"),
            Self::None => f.write_str("None"),
        }
    }
}

/// Puts the token (`authorization: Bearer …`) and fixed headers on each request. A tonic interceptor.
#[derive(Debug, Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    token: TokenSource,
    headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
}

/// A header that cannot be sent.
#[derive(Debug, Error)]
#[error("{name:?} cannot be sent as a header")]
pub struct InvalidHeader {
    /// Its name.
    pub name: String,
}

impl Credentials {
    /// Credentials with these headers besides the token, such as `clusterid`.
    ///
    /// # Errors
    /// A header has a name or value that HTTP does not allow.
    pub fn new<'a>(token: TokenSource, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, InvalidHeader> {
        let headers = headers.into_iter().map(|(name, value)| {
            let key = MetadataKey::from_str(&name.to_ascii_lowercase());
            let value = MetadataValue::from_str(value);
            match (key, value) {
                (Ok(key), Ok(value)) => Ok((key, value)),
                _ => Err(InvalidHeader { name: name.to_owned() }),
            }
        });
        Ok(Self { shared: Arc::new(Shared { token, headers: headers.collect::<Result<_, _>>()? }) })
    }

    fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let token = match &self.shared.token {
            TokenSource::None => return Ok(None),
            TokenSource::Literal(token) => token.clone(),
            TokenSource::File(path) => std::fs::read_to_string(path)
                .map_err(|error| Status::unauthenticated(format!("cannot read the token in {}: {error}", path.display())))?,
        };
        let mut value = MetadataValue::from_str(&format!("Bearer {}", token.trim()))
            .map_err(|_| Status::unauthenticated("the token has characters that a header cannot have"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(bearer) = self.bearer()? {
            request.metadata_mut().insert("authorization", bearer);
        }
        for (key, value) in &self.shared.headers {
            request.metadata_mut().insert(key.clone(), value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(credentials: &mut Credentials) -> Result<String, Status> {
        let request = credentials.call(Request::new(()))?;
        assert_eq!(request.metadata().get("clusterid").unwrap(), "Kubernetes");
        Ok(request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn the_token_file_is_read_for_each_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("istio-token");
        let mut credentials = Credentials::new(TokenSource::File(path.clone()), [("ClusterID", "Kubernetes")]).unwrap();
        assert_eq!(sent(&mut credentials).unwrap_err().code(), tonic::Code::Unauthenticated);
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(sent(&mut credentials).unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(sent(&mut credentials).unwrap(), "Bearer two");
    }

    #[test]
    fn tokens_are_never_shown() {
        let credentials = Credentials::new(TokenSource::Literal("secret".into()), []).unwrap();
        assert!(!format!("{credentials:?}").contains("secret"));
    }

    #[test]
    fn headers_that_http_does_not_allow_are_refused() {
        assert!(Credentials::new(TokenSource::None, [("a b", "c")]).is_err());
        assert!(Credentials::new(TokenSource::None, [("a", "c\n")]).is_err());
    }
}
