//! Text matches, as VirtualServices write them and as they are decided.

use std::sync::Arc;

use tropis_crds::istio::value::{StringMatch, StringMatches};
use tropis_model::route::{TextMatch, UnanchoredPattern, ValueMatch};

/// A regular expression that does not compile, alone or anchored. Decoding refuses those; should one come all the same, its rule refuses.
pub(crate) struct BadPattern {
    /// Below the rule.
    pub(crate) field: String,
    /// As written.
    pub(crate) pattern: String,
    /// What is wrong.
    pub(crate) reason: String,
}

/// A match that says something; `None` for one that only asks for presence.
pub(super) fn text(wanted: &StringMatch, field: &str) -> Result<Option<TextMatch>, BadPattern> {
    Ok(Some(match wanted {
        StringMatch::Present => return Ok(None),
        StringMatch::Exact(text) => TextMatch::Exact(text.as_str().into()),
        StringMatch::Prefix(text) => TextMatch::Prefix(text.as_str().into()),
        StringMatch::Regex(pattern) => TextMatch::regex(pattern).map_err(|error| bad(field, pattern, &error))?,
    }))
}

/// A match of a field that may be absent.
pub(super) fn optional(wanted: Option<&StringMatch>, field: &str) -> Result<Option<TextMatch>, BadPattern> {
    wanted.map_or(Ok(None), |wanted| text(wanted, field))
}

/// Matches by name; `name` makes the form in which names are compared.
pub(super) fn values(
    wanted: &StringMatches,
    name: impl Fn(&str) -> String,
    field: &str,
) -> Result<Vec<(Arc<str>, ValueMatch)>, BadPattern> {
    let entries = wanted.0.iter().map(|(own, wanted)| {
        let value = match wanted {
            // Presence, as Istio reads it.
            Some(StringMatch::Regex(pattern)) if pattern == "*" => ValueMatch::Present,
            Some(wanted) => text(wanted, &format!("{field}[{own}]"))?.map_or(ValueMatch::Present, ValueMatch::Text),
            None => ValueMatch::Present,
        };
        Ok((name(own).into(), value))
    });
    entries.collect()
}

/// A pattern that may match a part.
pub(super) fn pattern(source: &str, field: &str) -> Result<UnanchoredPattern, BadPattern> {
    UnanchoredPattern::new(source).map_err(|error| bad(field, source, &error))
}

fn bad(field: &str, pattern: &str, error: &impl ToString) -> BadPattern {
    let reason = error.to_string();
    let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
    BadPattern { field: field.to_owned(), pattern: pattern.to_owned(), reason }
}
