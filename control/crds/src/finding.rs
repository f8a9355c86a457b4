//! What a user is told about an object: which field, what was found, what is accepted, and what happens now.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::kind::Kind;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Good to know.
    Info,
    /// Something does not do what it seems to.
    Warning,
    /// Something was refused.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        })
    }
}

/// Names an object: kind, namespace (empty for a cluster-scoped one) and name. The key of everything in the index.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// The kind.
    pub kind: Kind,
    /// The namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectRef {
    /// Joins the three parts.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// A cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self::new(kind, "", name)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.namespace.is_empty(), self.name.is_empty()) {
            (_, true) => write!(f, "{}", self.kind),
            (true, false) => write!(f, "{} {}", self.kind, self.name),
            (false, false) => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

impl Serialize for ObjectRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The file and line that a document was read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The file, relative to the folder that the user knows.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One thing that a user should know about an object. The same text appears in logs, in `status.conditions`, in the webhook's answer
/// and in the CLI.
///
/// ```
/// use tropis_crds::{Finding, Kind, ObjectRef, codes};
/// let finding = Finding::error(codes::UNREADABLE_VALUE, ObjectRef::new(Kind::VirtualService, "shop", "checkout"))
///     .field("spec.http[1].timeout")
///     .found("\"5x\"")
///     .problem("is not a duration")
///     .accepted("for example \"5s\"")
///     .effect("the last good version stays in force");
/// assert_eq!(
///     finding.to_string(),
///     "Error [TRP0004] (VirtualService shop/checkout) spec.http[1].timeout: \"5x\" is not a duration (for example \"5s\"); \
///      the last good version stays in force"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// One of [`crate::CODES`].
    pub code: &'static str,
    /// The object it is about.
    pub object: ObjectRef,
    /// Where the object was read, when it came from a file.
    pub origin: Option<Origin>,
    /// The path of the field, `spec.rules[0].from[0].source.principals[0]`.
    pub field: Option<String>,
    /// What was found, as written (strings in quotes).
    pub found: Option<String>,
    /// What is the matter with it; continues the sentence that `found` begins.
    pub problem: String,
    /// What would be accepted.
    pub accepted: Option<String>,
    /// What happens now.
    pub effect: String,
}

impl Finding {
    /// A finding of any level about `object`.
    pub fn new(level: Level, code: &'static str, object: ObjectRef) -> Self {
        Self { level, code, object, origin: None, field: None, found: None, problem: String::new(), accepted: None, effect: String::new() }
    }

    /// An error about `object`.
    pub fn error(code: &'static str, object: ObjectRef) -> Self {
        Self::new(Level::Error, code, object)
    }

    /// A warning about `object`.
    pub fn warning(code: &'static str, object: ObjectRef) -> Self {
        Self::new(Level::Warning, code, object)
    }

    /// A note about `object`.
    pub fn info(code: &'static str, object: ObjectRef) -> Self {
        Self::new(Level::Info, code, object)
    }

    /// Sets the path of the field.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Sets what was found.
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into());
        self
    }

    /// Sets what is the matter.
    pub fn problem(mut self, problem: impl Into<String>) -> Self {
        self.problem = problem.into();
        self
    }

    /// Sets what would be accepted.
    pub fn accepted(mut self, accepted: impl Into<String>) -> Self {
        self.accepted = Some(accepted.into());
        self
    }

    /// Sets what happens now.
    pub fn effect(mut self, effect: impl Into<String>) -> Self {
        self.effect = effect.into();
        self
    }

    /// Sets where the object was read.
    pub fn origin(mut self, file: impl Into<String>, line: u64) -> Self {
        self.origin = Some(Origin { file: file.into(), line });
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] ({}", self.level, self.code, self.object)?;
        if let Some(origin) = &self.origin {
            write!(f, " {origin}")?;
        }
        f.write_str(")")?;
        if let Some(field) = &self.field {
            write!(f, " {field}:")?;
        }
        for part in self.found.iter().chain(Some(&self.problem).filter(|problem| !problem.is_empty())) {
            write!(f, " {part}")?;
        }
        if let Some(accepted) = &self.accepted {
            write!(f, " ({accepted})")?;
        }
        if !self.effect.is_empty() {
            write!(f, "; {}", self.effect)?;
        }
        Ok(())
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The shape of `-o json`: istioctl's items with our parts beside them.
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Item<'a> {
            code: &'a str,
            level: Level,
            origin: &'a ObjectRef,
            #[serde(skip_serializing_if = "Option::is_none")]
            reference: Option<String>,
            message: String,
            kind: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            namespace: &'a str,
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            found: Option<&'a str>,
            problem: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            accepted: Option<&'a str>,
            effect: &'a str,
        }
        let text = self.to_string();
        Item {
            code: self.code,
            level: self.level,
            origin: &self.object,
            reference: self.origin.as_ref().map(Origin::to_string),
            message: text.split_once(") ").map_or(text.clone(), |(_, message)| message.to_owned()),
            kind: self.object.kind.as_str(),
            namespace: &self.object.namespace,
            name: &self.object.name,
            field: self.field.as_deref(),
            found: self.found.as_deref(),
            problem: &self.problem,
            accepted: self.accepted.as_deref(),
            effect: &self.effect,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    #[test]
    fn text_leaves_out_what_is_not_known() {
        let finding =
            Finding::warning(codes::KIND_NOT_HONOURED, ObjectRef::cluster(Kind::GatewayClass, "istio")).problem("is not obeyed yet");
        assert_eq!(finding.to_string(), "Warning [TRP0005] (GatewayClass istio) is not obeyed yet");
    }

    #[test]
    fn json_has_the_parts() {
        let finding = Finding::error(codes::SCHEMA_VALIDATION_ERROR, ObjectRef::new(Kind::PeerAuthentication, "shop", "strict"))
            .origin("policies.yaml", 7)
            .field("spec.mtls.mode")
            .found("\"STRONG\"")
            .problem("is not a mode")
            .accepted("UNSET, DISABLE, PERMISSIVE or STRICT")
            .effect("never applied");
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(json["origin"], "PeerAuthentication shop/strict");
        assert_eq!(json["reference"], "policies.yaml:7");
        assert_eq!(json["level"], "Error");
        assert_eq!(json["message"], "spec.mtls.mode: \"STRONG\" is not a mode (UNSET, DISABLE, PERMISSIVE or STRICT); never applied");
    }
}
