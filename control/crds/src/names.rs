//! What the API server accepts as a name, a label or a port.

/// A DNS-1123 label: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
pub fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// A DNS-1123 subdomain: labels joined by dots, at most 253 characters.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// A DNS-1035 label, as a Service is named: a DNS-1123 label that begins with a letter.
pub fn is_service_name(text: &str) -> bool {
    is_dns_label(text) && text.as_bytes()[0].is_ascii_lowercase()
}

/// A path segment, as RBAC objects are named: neither `.` nor `..`, without `/` and `%`.
pub fn is_path_segment(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '%'])
}

/// A name within a label key, or a label value that is not empty: at most 63 of letters, digits, `-`, `_` and `.`, beginning and
/// ending with a letter or digit.
pub fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// The key of a label or annotation: a part, or `DNS-SUBDOMAIN/part`.
pub fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, part)) => is_dns_subdomain(prefix) && is_qualified_part(part),
        None => is_qualified_part(text),
    }
}

/// The value of a label: empty, or a part.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified_part(text)
}

/// The name of a container's port: at most 15 of `a-z`, `0-9` and `-` with a letter among them, no `-` at an end or doubled (RFC 6335).
pub fn is_port_name(text: &str) -> bool {
    is_dns_label(text) && text.len() <= 15 && text.bytes().any(|byte| byte.is_ascii_lowercase()) && !text.contains("--")
}

/// A number from 1 to 65535.
pub fn is_port(number: i64) -> bool {
    (1..=65535).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-b", "9a", "reviews-v1", &"x".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"x".repeat(64)] {
            assert!(!is_dns_label(bad), "{bad}");
        }
        assert!(is_dns_subdomain("a.b-c.d") && !is_dns_subdomain("a..b") && !is_dns_subdomain(""));
        assert!(is_service_name("web") && !is_service_name("9web"));
    }

    #[test]
    fn labels_and_ports() {
        assert!(is_label_key("app") && is_label_key("istio.io/dataplane-mode") && !is_label_key("a/b/c") && !is_label_key("/a"));
        assert!(is_label_value("") && is_label_value("v1.2_x") && !is_label_value("a b") && !is_label_value("*"));
        assert!(is_port_name("http-web") && !is_port_name("8080") && !is_port_name("a--b") && !is_port_name("waytoolongaportname"));
        assert!(is_port(1) && is_port(65535) && !is_port(0) && !is_port(65536));
    }
}
