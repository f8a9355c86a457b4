//! Strings of a policy: the form in which they match, and whether they could ever match what their field means.

use tropis_crds::names;
use tropis_model::policy::StringMatch;

/// What a string of a policy is.
pub(crate) enum Text<'a> {
    /// What the field means.
    Good,
    /// That, with the scheme `spiffe://` before it, with which it would never match; what is accepted.
    Scheme(&'a str, &'static str),
    /// Nothing that could ever match; what is accepted.
    Unreadable(&'static str),
}

const PRINCIPAL: &str = "TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT, PREFIX*, *SUFFIX or *";
const NAMESPACE: &str = "a namespace, PREFIX*, *SUFFIX or *";

/// Reads a principal.
pub(crate) fn principal(text: &str) -> Text<'_> {
    if let Some(rest) = text.strip_prefix("spiffe://") {
        return if matches!(principal(rest), Text::Good) { Text::Scheme(rest, PRINCIPAL) } else { Text::Unreadable(PRINCIPAL) };
    }
    let readable = match string_match(text) {
        StringMatch::Presence => true,
        StringMatch::Prefix(part) | StringMatch::Suffix(part) => !part.is_empty() && part.bytes().all(is_spiffe),
        StringMatch::Exact(whole) => match whole.split('/').collect::<Vec<_>>().as_slice() {
            [domain, "ns", namespace, "sa", account] => {
                [domain, namespace, account].iter().all(|part| !part.is_empty() && part.bytes().all(is_spiffe))
            }
            _ => false,
        },
    };
    if readable { Text::Good } else { Text::Unreadable(PRINCIPAL) }
}

/// Characters of a SPIFFE ID (SPIFFE ID §2), the separator included.
fn is_spiffe(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_./".contains(&byte)
}

/// Reads a namespace.
pub(crate) fn namespace(text: &str) -> Text<'_> {
    let readable = match string_match(text) {
        StringMatch::Presence => true,
        StringMatch::Prefix(part) | StringMatch::Suffix(part) => {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        }
        StringMatch::Exact(whole) => names::is_dns_label(&whole),
    };
    if readable { Text::Good } else { Text::Unreadable(NAMESPACE) }
}

/// A string in its form: `*`, `*SUFFIX`, `PREFIX*` or exact.
pub(crate) fn string_match(text: &str) -> StringMatch {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (_, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    }
}
