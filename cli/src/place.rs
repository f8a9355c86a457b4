//! Where a finding's field stands: the line of the file, for people with what is written there.

use serde::Serialize;
use tropis_crds::{Finding, Kind, Origin};
use tropis_source::yaml::place::{self, Place};

/// A finding with the place of its field, as `-o json` has it.
#[derive(Debug, Serialize)]
pub(crate) struct Placed {
    #[serde(flatten)]
    pub(crate) finding: Finding,
    /// The first character of what is meant, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    /// The line as it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip)]
    width: u64,
}

impl Placed {
    /// Looks for the field in the text of the file that the finding is about. Without the text, or the field, the finding stays where
    /// its document begins. A line of a Secret is not shown.
    pub(crate) fn new(mut finding: Finding, file: Option<&str>) -> Self {
        let place = Self::place(&finding, file);
        if let (Some(place), Some(Origin { line, .. })) = (&place, &mut finding.origin) {
            *line = place.line;
        }
        match place.filter(|_| finding.object.kind != Kind::Secret) {
            Some(Place { column, width, text, .. }) => Self { finding, column: Some(column), text: Some(text), width },
            None => Self { finding, column: None, text: None, width: 0 },
        }
    }

    fn place(finding: &Finding, file: Option<&str>) -> Option<Place> {
        place::of(file?, finding.origin.as_ref()?.line, &finding.object, finding.field.as_deref()?)
    }

    /// The finding, and below it the line with what is meant underlined.
    pub(crate) fn shown(&self) -> String {
        let (Some(column), Some(text), Some(origin)) = (self.column, &self.text, &self.finding.origin) else {
            return format!("{}\n", self.finding);
        };
        let before = text.chars().take(usize::try_from(column - 1).unwrap_or_default());
        // A tab stays one, so that both lines are indented alike.
        let indent: String = before.map(|character| if character == '\t' { '\t' } else { ' ' }).collect();
        let carets = "^".repeat(usize::try_from(self.width).unwrap_or(1));
        format!("{}\n{:>6} | {text}\n{:>6} | {indent}{carets}\n", self.finding, origin.line, "")
    }
}

#[cfg(test)]
mod tests {
    use tropis_crds::{ObjectRef, codes};

    use super::*;

    const FILE: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b}\ndata:\n  key: c2VjcmV0\n";

    #[test]
    fn a_line_is_shown_with_what_is_meant() {
        let finding = |kind| Finding::error(codes::UNREADABLE_VALUE, ObjectRef::new(kind, "b", "a")).origin("a.yaml", 1).field("data.key");
        let placed = Placed::new(finding(Kind::ConfigMap), Some(FILE));
        let shown = placed.shown();
        assert!(shown.contains("a.yaml:5)") && shown.ends_with("     5 |   key: c2VjcmV0\n       |   ^^^^^^^^^^^^^\n"), "{shown}");
        let secret = Placed::new(finding(Kind::Secret), Some(FILE));
        assert!(secret.shown().contains("a.yaml:5)") && !secret.shown().contains("c2V"), "the line of a Secret is not told");
        assert!(Placed::new(finding(Kind::ConfigMap), None).shown().contains("a.yaml:1)"));
    }
}
