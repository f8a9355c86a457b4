//! How objects are named on the command line: `[TYPE/]NAME[.NAMESPACE]` as with `istioctl`, or `NAMESPACE/NAME`.

use anyhow::bail;
use tropis_crds::Kind;

/// Short words for kinds, as `kubectl` has them.
const SHORT: &[(&str, Kind)] = &[
    ("po", Kind::Pod),
    ("svc", Kind::Service),
    ("ns", Kind::Namespace),
    ("no", Kind::Node),
    ("sa", Kind::ServiceAccount),
    ("cm", Kind::ConfigMap),
    ("deploy", Kind::Deployment),
    ("rs", Kind::ReplicaSet),
    ("sts", Kind::StatefulSet),
    ("ds", Kind::DaemonSet),
    ("ep", Kind::EndpointSlice),
    ("vs", Kind::VirtualService),
    ("dr", Kind::DestinationRule),
    ("se", Kind::ServiceEntry),
    ("ap", Kind::AuthorizationPolicy),
    ("pa", Kind::PeerAuthentication),
    ("ra", Kind::RequestAuthentication),
    ("gtw", Kind::Gateway),
];

/// The kind that a word names: singular, plural, short, with or without its group.
pub(crate) fn kind(word: &str) -> anyhow::Result<Kind> {
    let word = word.to_ascii_lowercase();
    let (plain, group) = word.split_once('.').unwrap_or((&word, ""));
    if let Some((_, kind)) = SHORT.iter().find(|(short, _)| *short == plain) {
        return Ok(*kind);
    }
    let means = |kind: &&Kind| {
        let name = kind.as_str().to_ascii_lowercase();
        let plural = match name.strip_suffix('y') {
            Some(stem) if !name.ends_with("ay") => format!("{stem}ies"),
            _ if name.ends_with('s') => format!("{name}es"),
            _ => format!("{name}s"),
        };
        (plain == name || plain == plural) && (group.is_empty() || group == kind.group())
    };
    // Two kinds are called Gateway; the Gateway API's is the one that is obeyed.
    let mut found: Vec<Kind> = Kind::ALL.iter().filter(means).copied().collect();
    found.sort_by_key(|kind| *kind == Kind::IstioGateway);
    match found.first() {
        Some(kind) => Ok(*kind),
        None => {
            bail!("{word:?} is not a kind of object\nTry a kind as it stands in YAML, its plural or a short name: service, services, svc")
        }
    }
}

/// A name with the namespace that it says or means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// `deployment` in `deployment/reviews`; empty if there was none.
    pub(crate) kind: String,
    /// The namespace.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
}

/// Reads `[TYPE/]NAME[.NAMESPACE]` or `NAMESPACE/NAME`. What stands before the slash is a type if it names a kind.
pub(crate) fn name(text: &str, namespace: &str) -> anyhow::Result<Name> {
    let named =
        |kind: &str, namespace: &str, name: &str| Name { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
    if text.is_empty() || text.starts_with('/') || text.ends_with('/') {
        bail!("{text:?} is not a name\nWrite NAME, NAME.NAMESPACE or TYPE/NAME.NAMESPACE");
    }
    let (before, rest) = match text.split_once('/') {
        Some((before, rest)) => (before, rest),
        None => ("", text),
    };
    if !before.is_empty() && kind(before).is_err() {
        return Ok(named("", before, rest));
    }
    let (name, namespace) = rest.split_once('.').unwrap_or((rest, namespace));
    // `reviews.shop.svc.cluster.local` is the Service's own long name.
    let namespace = namespace.split('.').next().unwrap_or(namespace);
    Ok(named(before, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_every_word_that_kubectl_knows() {
        for word in ["virtualservice", "VirtualServices", "vs", "virtualservices.networking.istio.io"] {
            assert_eq!(kind(word).unwrap(), Kind::VirtualService, "{word}");
        }
        for (word, wanted) in [
            ("authorizationpolicies", Kind::AuthorizationPolicy),
            ("gateways", Kind::Gateway),
            ("gateways.networking.istio.io", Kind::IstioGateway),
            ("ingresses", Kind::Ingress),
            ("po", Kind::Pod),
        ] {
            assert_eq!(kind(word).unwrap(), wanted, "{word}");
        }
        assert!(kind("gadget").unwrap_err().to_string().contains("svc"));
        for known in Kind::ALL {
            assert_eq!(kind(&format!("{}.{}", known.as_str(), known.group())).unwrap(), *known);
        }
    }

    #[test]
    fn names_carry_their_namespace_in_either_way() {
        let parts = |text: &str| {
            let name = name(text, "default").unwrap();
            [name.kind, name.namespace, name.name]
        };
        assert_eq!(parts("reviews"), ["", "default", "reviews"]);
        assert_eq!(parts("reviews.shop"), ["", "shop", "reviews"]);
        assert_eq!(parts("deployment/reviews.shop"), ["deployment", "shop", "reviews"]);
        assert_eq!(parts("shop/reviews"), ["", "shop", "reviews"]);
        assert_eq!(parts("reviews.shop.svc.cluster.local"), ["", "shop", "reviews"]);
        assert!(name("/", "default").is_err() && name("", "default").is_err());
    }
}
