//! One spelling for each path (MeshConfig `pathNormalization`, RFC 3986 §6.2.2), or a refusal.

use std::borrow::Cow;

use thiserror::Error;

/// How paths are made canonical (MeshConfig `pathNormalization.normalization`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PathNormalization {
    /// Not at all; only what no path may hold is refused.
    None,
    /// Dot segments are resolved (`%2e` is a dot), `\` is `/`, letters that need no escape lose it, other escapes are upper case.
    #[default]
    Base,
    /// And `//` becomes `/`.
    MergeSlashes,
    /// And `%2F` and `%5C` are slashes, before all of this.
    DecodeAndMergeSlashes,
}

/// A request's path in its only spelling. Borrowed if it was sent that way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    /// Begins with `/` (or is `*`, the target of `OPTIONS *`).
    pub path: Cow<'a, str>,
    /// What follows the first `?`, as sent.
    pub query: Option<&'a str>,
}

/// The path may mean different things to different readers. Answer 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AmbiguousPath {
    /// It does not begin with `/`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A control character or a blank, in path or query.
    #[error("the path or the query holds a control character or a blank")]
    ControlCharacter,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a percent sign that escapes nothing")]
    BadEscape,
    /// `%00` to `%1F` or `%7F`.
    #[error("the path holds an escaped control character")]
    EscapedControlCharacter,
    /// `/..;x/`: some servers cut the parameter and then climb.
    #[error("the path holds a dot segment with parameters")]
    DotSegmentWithParameters,
    /// `/..%2fx`: servers that decode the slash climb.
    #[error("the path holds a dot segment beside an escaped slash")]
    DotSegmentBesideEscapedSlash,
    /// A rewrite made a dot segment out of two harmless halves.
    #[error("the rewritten path holds a dot segment")]
    RewrittenDotSegment,
}

/// The canonical path of a request target in origin form (`/path?query`). A fragment is dropped, as Istio does: no server may see one.
/// Canonical paths are their own canonical paths.
pub fn canonical(target: &str, normalization: PathNormalization) -> Result<CanonicalPath<'_>, AmbiguousPath> {
    let target = target.split_once('#').map_or(target, |(before, _)| before);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(AmbiguousPath::ControlCharacter);
    }
    if path == "*" {
        return Ok(CanonicalPath { path: path.into(), query });
    }
    let slash_first = path.starts_with('/') || (normalization != PathNormalization::None && path.starts_with('\\'));
    if !slash_first {
        return Err(AmbiguousPath::NotAbsolute);
    }
    if normalization == PathNormalization::None || !may_change(path, normalization) {
        return Ok(CanonicalPath { path: path.into(), query });
    }
    let decode_slashes = normalization == PathNormalization::DecodeAndMergeSlashes;
    let merge = normalization >= PathNormalization::MergeSlashes;
    let spelled = respell(path, decode_slashes)?;
    let mut resolved = resolve(&spelled)?;
    if merge {
        merge_slashes(&mut resolved);
    }
    Ok(CanonicalPath { path: resolved.into(), query })
}

/// Whether a path has a segment `.` or `..`, escaped or not, with parameters or not; or would have one for a reader that decodes its
/// slashes, in whichever case these are escaped.
pub fn has_dot_segment(path: &str) -> bool {
    path.split(['/', '\\']).any(|segment| dots(segment).is_some() || hides_dots(segment))
}

/// A cheap look that most paths pass: nothing in it could need work.
fn may_change(path: &str, normalization: PathNormalization) -> bool {
    let merge = normalization >= PathNormalization::MergeSlashes;
    let bytes = path.as_bytes();
    bytes.iter().enumerate().any(|(at, byte)| match byte {
        b'%' | b'\\' => true,
        b'.' => at > 0 && bytes[at - 1] == b'/',
        b'/' => merge && at > 0 && bytes[at - 1] == b'/',
        _ => false,
    })
}

/// Escapes and slashes in their only spelling.
fn respell(path: &str, decode_slashes: bool) -> Result<String, AmbiguousPath> {
    let mut spelled = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        spelled.push_str(&rest[..at]);
        if rest.as_bytes()[at] == b'\\' {
            spelled.push('/');
            rest = &rest[at + 1..];
            continue;
        }
        let byte = escaped(rest.as_bytes().get(at + 1..at + 3)).ok_or(AmbiguousPath::BadEscape)?;
        match byte {
            0..0x20 | 0x7f => return Err(AmbiguousPath::EscapedControlCharacter),
            b'/' | b'\\' if decode_slashes => spelled.push('/'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => spelled.push(char::from(byte)),
            _ => {
                spelled.push('%');
                spelled.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])));
            }
        }
        rest = &rest[at + 3..];
    }
    spelled.push_str(rest);
    Ok(spelled)
}

/// The byte that two hexadecimal digits stand for.
fn escaped(digits: Option<&[u8]>) -> Option<u8> {
    let [high, low] = digits? else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Without dot segments (RFC 3986 §5.2.4); `/..` at the root stays at the root.
fn resolve(path: &str) -> Result<String, AmbiguousPath> {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            None if hides_dots(segment) => return Err(AmbiguousPath::DotSegmentBesideEscapedSlash),
            None => {
                resolved.push('/');
                resolved.push_str(segment);
            }
            Some(Dots::WithParameters) => return Err(AmbiguousPath::DotSegmentWithParameters),
            Some(dots) => {
                if dots == Dots::Two {
                    resolved.truncate(resolved.rfind('/').unwrap_or(0));
                }
                if last {
                    resolved.push('/');
                }
            }
        }
    }
    Ok(resolved)
}

/// Whether a segment would hold a dot segment for a reader that decodes its slashes.
fn hides_dots(segment: &str) -> bool {
    if !segment.contains('%') {
        return false;
    }
    let mut rest = segment;
    loop {
        let Some(at) = escaped_slash(rest) else { return rest.len() < segment.len() && dots(rest).is_some() };
        if dots(&rest[..at]).is_some() {
            return true;
        }
        rest = &rest[at + 3..];
    }
}

/// Where the first escaped slash begins.
fn escaped_slash(text: &str) -> Option<usize> {
    text.as_bytes().windows(3).position(|escape| escape[0] == b'%' && matches!(self::escaped(Some(&escape[1..])), Some(b'/' | b'\\')))
}

#[derive(PartialEq, Eq)]
enum Dots {
    One,
    Two,
    WithParameters,
}

/// What kind of dot segment it is, if it is one.
fn dots(segment: &str) -> Option<Dots> {
    let mut rest = segment;
    let mut count = 0;
    loop {
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
        } else if rest.get(..3).is_some_and(|escape| escape.eq_ignore_ascii_case("%2e")) {
            rest = &rest[3..];
        } else {
            break;
        }
        count += 1;
    }
    let parameters = rest.starts_with(';') || rest.get(..3).is_some_and(|escape| escape.eq_ignore_ascii_case("%3b"));
    match (count, rest.is_empty(), parameters) {
        (1, true, _) => Some(Dots::One),
        (2, true, _) => Some(Dots::Two),
        (1 | 2, _, true) => Some(Dots::WithParameters),
        _ => None,
    }
}

fn merge_slashes(path: &mut String) {
    let mut previous = ' ';
    path.retain(|character| {
        let keep = !(character == '/' && previous == '/');
        previous = character;
        keep
    });
}
