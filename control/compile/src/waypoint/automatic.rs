//! The waypoints that the control plane makes by itself: how they are called, and which of them carries a Service whose waypoint no user
//! chose.
//!
//! By the namespace's [`Scope`] there is one for all of its Services, or one for each account: that carries the Services all of whose pods
//! run as it. A Service over several accounts goes through the namespace's, which is made for it beside the others. One without pods stays
//! where it is, and makes none: so what scales to nothing and back moves no Deployment, and finds its policies in force. Which waypoints
//! there should be is decided in [`super::needed`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tropis_crds::{Finding, Kind, Object, codes};

use super::{AUTOMATIC, Attached, Traffic, account, binding::Found, is_leaving, is_waypoint, usable};
use crate::{
    Index,
    index::{Key, service_selector},
};

/// The name of a namespace's one, and what those of accounts begin with; so are its account, its Deployment and its Service called.
pub const NAME: &str = "automatic-waypoint";
/// Label of a namespace: [`Scope`], whatever holds for the mesh.
pub const SCOPE: &str = "tropis.io/automatic-waypoint-scope";
/// Values of [`SCOPE`].
const SCOPES: [(&str, Scope); 2] = [("namespace", Scope::Namespace), ("service-account", Scope::ServiceAccount)];
/// The longest name of a Service (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 63;
/// Bytes of the digest in a name.
const DIGEST: usize = 8;

/// Whose Services an automatic waypoint carries. A namespace's label [`SCOPE`] says otherwise for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// A namespace's.
    #[default]
    Namespace,
    /// An account's: the Services all of whose pods run as it.
    ServiceAccount,
}

impl Scope {
    /// Reads it, as labels and settings have it.
    pub fn of(text: &str) -> Option<Self> {
        SCOPES.iter().find(|(name, _)| *name == text).map(|(_, scope)| *scope)
    }

    /// The one that holds in a namespace.
    pub(crate) fn in_namespace(index: &Index, namespace: &str) -> Self {
        let own = index.namespace(namespace).and_then(|object| Self::of(object.label(SCOPE)?));
        own.unwrap_or(index.settings().automatic_waypoint_scope)
    }
}

/// The name of a namespace's automatic waypoint, or of that of an account; it may be a Service's: at most 63 lower-case letters, digits and
/// hyphens. An account's name is in it as it is, or else as far as it fits and with its digest. Those have a second hyphen, with which no
/// account's name begins, so that they are never the name of another account's.
pub fn name(account: Option<&str>) -> String {
    let Some(account) = account else { return NAME.to_owned() };
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let longest = LONGEST_NAME - NAME.len() - "-".len();
    let fits = account.len() <= longest
        && account.starts_with(plain)
        && account.ends_with(plain)
        && account.chars().all(|letter| plain(letter) || letter == '-');
    if fits {
        return format!("{NAME}-{account}");
    }
    let digest: String = Sha256::digest(account.as_bytes()).iter().take(DIGEST).map(|byte| format!("{byte:02x}")).collect();
    let room = LONGEST_NAME - NAME.len() - "---".len() - digest.len();
    let readable: String = account.chars().map(|letter| if plain(letter) { letter } else { '-' }).take(room).collect();
    format!("{NAME}--{readable}-{digest}")
}

/// Whether an object is the Gateway of one: it bears the mark, and the name that belongs to what it is for.
pub fn is_automatic(object: &Object) -> bool {
    object.kind == Kind::Gateway && object.label(AUTOMATIC).is_some() && object.metadata.name == name(account(object))
}

/// What there is to tell about a namespace's labels.
pub(super) fn label_findings(object: &Object) -> Vec<Finding> {
    let finding = |(label, accepted): (&str, [&str; 2])| {
        let value = object.label(label).filter(|value| !accepted.contains(value))?;
        let finding = Finding::warning(codes::UNREADABLE_VALUE, object.reference()).field(format!("metadata.labels[{label}]"));
        let finding = finding.found(format!("{value:?}")).problem("is none of its values").accepted(accepted.join(" or "));
        Some(finding.effect("what tropisd is set to holds for the namespace"))
    };
    [(AUTOMATIC, ["true", "false"]), (SCOPE, SCOPES.map(|(name, _)| name))].into_iter().filter_map(finding).collect()
}

/// Whose automatic waypoint is to carry a Service.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose<'a> {
    /// The namespace's.
    Namespace,
    /// This account's.
    Account(&'a str),
    /// The namespace's, because its pods run as these.
    Mixed(BTreeSet<&'a str>),
    /// It is to have pods and has none, and goes through none yet.
    Unknown,
}

/// Whose automatic waypoint is to carry a Service.
pub(super) fn whose<'a>(index: &'a Index, service: &Object) -> Whose<'a> {
    if Scope::in_namespace(index, &service.metadata.namespace) == Scope::Namespace {
        return Whose::Namespace;
    }
    let accounts = index.accounts_of(service);
    match (accounts.first(), accounts.len()) {
        (Some(account), 1) => Whose::Account(account),
        (Some(_), _) => Whose::Mixed(accounts),
        // Nothing that it leads to is known to run as an account.
        (None, _) if service_selector(service).is_none() => Whose::Namespace,
        (None, _) => match present(index, service).and_then(|present| index.gateway(&present)) {
            Some(gateway) => account(gateway).map_or(Whose::Namespace, Whose::Account),
            None => Whose::Unknown,
        },
    }
}

/// The automatic waypoint that a Service goes through, as its status says: who may write that chooses no other than among those that stand
/// in the Service's namespace, and none is made for it.
pub(super) fn present(index: &Index, service: &Object) -> Option<Key> {
    Found::of(service).present.filter(|present| present.0 == service.metadata.namespace && stands(index, present))
}

/// Whether one is there and not on its way out.
pub(super) fn stands(index: &Index, key: &Key) -> bool {
    index.gateway(key).is_some_and(|gateway| is_waypoint(gateway) && is_automatic(gateway) && !is_leaving(gateway))
}

/// The one that a Service goes through for which no user chose: that which is to carry it; while that one is not there the one that it goes
/// through, so that it is left only for one that is ready; or else the namespace's.
pub(super) fn of_service(index: &Index, service: &Object) -> Option<Attached> {
    let namespace = service.metadata.namespace.as_str();
    if !index.gateways_in(namespace).any(|gateway| is_automatic(gateway)) {
        return None;
    }
    let key = |account: Option<&str>| (namespace.to_owned(), name(account));
    let wanted = match whose(index, service) {
        Whose::Account(account) => Some(key(Some(account))),
        Whose::Namespace | Whose::Mixed(_) => Some(key(None)),
        Whose::Unknown => None,
    };
    let candidates: Vec<Key> = wanted.into_iter().chain(present(index, service)).chain([key(None)]).collect();
    let exists = |key: &&Key| index.gateway(key).is_some_and(|gateway| is_automatic(gateway));
    let found = candidates.iter().find(|key| stands(index, key)).or_else(|| candidates.iter().find(exists))?;
    usable(index, found, namespace, Traffic::Services).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_accounts_waypoint_has_a_name_of_its_own_that_a_service_may_have() {
        let long = "a".repeat(253);
        let odd = ["web", "a", "0-1", "a.b", "a-b", "a..b", "A_b", "-a", "a-", "", "é"];
        let accounts: Vec<&str> = odd.into_iter().chain([44, 45, 252, 253].map(|length| &long[..length])).collect();
        let names: BTreeSet<String> = accounts.iter().map(|account| name(Some(account))).chain([name(None)]).collect();
        assert_eq!(names.len(), accounts.len() + 1, "{names:?}");
        for name in &names {
            let good = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            assert!(name.len() <= 63 && name.starts_with('a') && !name.ends_with('-') && name.chars().all(good), "{name}");
        }
        assert_eq!([name(None), name(Some("web"))], ["automatic-waypoint", "automatic-waypoint-web"]);
        assert_eq!(name(Some("reviews.v1")), name(Some("reviews.v1")));
        // A name that is cut is no plain one: an account of that name has another.
        let cut = name(Some("reviews.v1"));
        assert!(cut.starts_with("automatic-waypoint--reviews-v1-"), "{cut}");
        let rest = cut.strip_prefix("automatic-waypoint-").unwrap();
        assert_ne!(name(Some(rest)), cut);
        assert_ne!(name(Some(rest.strip_prefix('-').unwrap())), cut);
    }
}
