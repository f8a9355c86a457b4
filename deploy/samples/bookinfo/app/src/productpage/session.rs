//! Who looks at the page: a name in a cookie, believed as it is. It opens nothing; it is there so that routes can choose by user.

use http::{HeaderMap, HeaderValue, header};

/// Name of the cookie.
const COOKIE: &str = "bookinfo-user";
/// Longest user name.
const NAME_BYTES: usize = 32;

/// The user who signed in, if the cookie holds a proper name.
pub(crate) fn user(fields: &HeaderMap) -> Option<String> {
    let cookies = fields.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned()).filter(|name| is_proper(name))
}

/// The cookie for a form `username=NAME&…`; none if the name is not proper.
pub(crate) fn remember(form: &[u8]) -> Option<HeaderValue> {
    let form = std::str::from_utf8(form).ok()?;
    let name = form.split('&').find_map(|pair| pair.strip_prefix("username="))?;
    is_proper(name).then(|| cookie(name, ""))
}

/// The cookie that makes the browser forget.
pub(crate) fn forget() -> HeaderValue {
    cookie("", "; Max-Age=0")
}

fn cookie(value: &str, attributes: &str) -> HeaderValue {
    let text = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax{attributes}");
    HeaderValue::from_str(&text).expect("a proper name is printable ASCII")
}

/// Such a name needs no quoting in a cookie, a form, a header field or a page.
fn is_proper(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_way_to_the_browser_and_back() {
        let cookie = remember(b"username=jason&passwd=").unwrap();
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let mut fields = HeaderMap::new();
        fields.insert(header::COOKIE, format!("theme=dark; {pair}").parse().unwrap());
        assert_eq!(user(&fields).as_deref(), Some("jason"));
    }

    #[test]
    fn improper_names_are_nobody() {
        for form in [&b"username="[..], b"username=a%0d%0ab", b"username=<script>", b"name=jason", b"\xff", &[b'a'; 99]] {
            assert!(remember(form).is_none(), "{form:?}");
        }
        let mut fields = HeaderMap::new();
        fields.insert(header::COOKIE, HeaderValue::from_static("bookinfo-user=\"x\"; a=b"));
        assert_eq!(user(&fields), None);
    }
}
