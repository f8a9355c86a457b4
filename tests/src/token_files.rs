//! Token files that stay fresh, as the kubelet keeps them: a token is replaced when four fifths of its life have passed, or a day.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::secret_file;
use crate::tokens::{Bearer, TokenError, TokenIssuer};

/// No token is kept longer, however long it is good (the kubelet's own limit).
const KEPT_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// The wait after a token that could not be renewed.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// A file with a token in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    path: PathBuf,
    audience: String,
    lifetime: Duration,
    owner: u32,
    renew_at: SystemTime,
}

impl TokenFile {
    /// A file that is not written yet; `owner` alone will read it.
    pub fn new(path: PathBuf, audience: &str, lifetime: Duration, owner: u32) -> Self {
        Self { path, audience: audience.to_owned(), lifetime, owner, renew_at: SystemTime::UNIX_EPOCH }
    }

    /// When [`Self::refresh`] has something to do.
    pub fn renew_at(&self) -> SystemTime {
        self.renew_at
    }

    /// Writes a new token if it is time; says whether it was.
    ///
    /// # Errors
    /// Signing or writing failed: the token before it stays, and the next try comes later.
    pub fn refresh(&mut self, issuer: &TokenIssuer, bearer: impl FnOnce() -> Bearer, now: SystemTime) -> Result<bool, TokenError> {
        if now < self.renew_at {
            return Ok(false);
        }
        self.renew_at = now + TRY_AGAIN;
        let token = issuer.issue(&bearer(), std::slice::from_ref(&self.audience), now, self.lifetime)?;
        let written = secret_file::replace(&self.path, token.as_bytes(), self.owner);
        written.map_err(|cause| TokenError::Write(self.path.display().to_string(), cause))?;
        self.renew_at = now + kept(self.lifetime);
        Ok(true)
    }
}

/// How long a token of that lifetime is kept.
fn kept(lifetime: Duration) -> Duration {
    (lifetime * 4 / 5).min(KEPT_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn bearer() -> Bearer {
        let text = String::new;
        Bearer {
            namespace: "shop".into(),
            service_account: "cart".into(),
            service_account_uid: text(),
            pod: text(),
            pod_uid: text(),
            node: text(),
            node_uid: text(),
        }
    }

    #[test]
    fn a_token_is_replaced_when_four_fifths_of_its_life_have_passed() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = TokenIssuer::create(folder.path()).unwrap();
        let path = folder.path().join("volume/istio-token");
        let mut file = TokenFile::new(path.clone(), "istio-ca", HOUR, nix::unistd::geteuid().as_raw());
        let now = SystemTime::now();
        let mut at = |minutes: u64| {
            let renewed = file.refresh(&issuer, bearer, now + Duration::from_secs(minutes * 60)).unwrap();
            (renewed, std::fs::read_to_string(&path).unwrap())
        };
        let (written, first) = at(0);
        assert!(written);
        assert_eq!(at(47), (false, first.clone()));
        let (renewed, second) = at(48);
        assert!(renewed && second != first, "renewed at 80 %");
        assert_eq!(at(48 + 47), (false, second));
        assert!(at(48 + 48).0, "and again");
    }

    #[test]
    fn a_long_token_is_kept_for_a_day() {
        assert_eq!(kept(12 * HOUR), 12 * HOUR * 4 / 5);
        assert_eq!(kept(100 * HOUR), 24 * HOUR);
    }

    #[test]
    fn what_cannot_be_written_is_tried_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let issuer = TokenIssuer::create(folder.path()).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let mut file = TokenFile::new(folder.path().join("file/token"), "istio-ca", HOUR, nix::unistd::geteuid().as_raw());
        let now = SystemTime::now();
        assert!(file.refresh(&issuer, bearer, now).is_err());
        assert_eq!(file.refresh(&issuer, bearer, now).ok(), Some(false), "not at once");
        assert!(file.refresh(&issuer, bearer, now + TRY_AGAIN).is_err());
    }
}
