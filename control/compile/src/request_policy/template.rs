//! Templates of paths: `{*}` is one segment, `{**}` the rest.

use tropis_model::request_policy::Segment;

const ACCEPTED: &str = "segments, of which {*} is any one, and {**} at the end any number";

/// Reads a template; `None` for a path without any, an error for one that is not well made.
pub(super) fn read(text: &str) -> Option<Result<Vec<Segment>, &'static str>> {
    // Braces without an asterisk are characters like others.
    if !text.contains("{*") && !text.contains("*}") {
        return None;
    }
    let Some(rest) = text.strip_prefix('/') else { return Some(Err(ACCEPTED)) };
    let count = rest.split('/').count();
    let segments = rest.split('/').enumerate().map(|(index, segment)| match segment {
        "{*}" => Ok(Segment::One),
        "{**}" if index + 1 == count => Ok(Segment::Rest),
        plain if plain.contains(['{', '}', '*']) => Err(ACCEPTED),
        plain => Ok(Segment::Literal(plain.into())),
    });
    Some(segments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read_by_segments() {
        let literal = |text: &str| Segment::Literal(text.into());
        assert_eq!(read("/a/b"), None);
        assert_eq!((read("/a/*"), read("/{a}")), (None, None));
        assert_eq!(read("/a/{*}/b"), Some(Ok(vec![literal("a"), Segment::One, literal("b")])));
        assert_eq!(read("/a/{**}"), Some(Ok(vec![literal("a"), Segment::Rest])));
        assert_eq!(read("/{*}/"), Some(Ok(vec![Segment::One, literal("")])));
        for bad in ["{*}", "/{**}/a", "/a{*}", "/{*}b", "/{*", "/*/{*}", "/{*}/*"] {
            assert!(matches!(read(bad), Some(Err(_))), "{bad}");
        }
    }
}
