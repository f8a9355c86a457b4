//! Every code that a finding can carry: Istio's where the meaning is the same, ours (`TRP`) where not.

use crate::finding::Level;

/// A code, its name, the level it mostly comes with and what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The stable code, `IST0101` or `TRP0001`.
    pub code: &'static str,
    /// Its name, one word.
    pub name: &'static str,
    /// The level it comes with; a finding may be milder.
    pub level: Level,
    /// What it means, for the reference page.
    pub meaning: &'static str,
}

macro_rules! codes {
    ($($constant:ident = $code:literal $name:literal $level:ident $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $constant: &str = $code;)*
        /// All codes, in order.
        pub const CODES: &[Code] = &[$(Code { code: $code, name: $name, level: Level::$level, meaning: $meaning },)*];
    };
}

codes! {
    DEPRECATED = "IST0002" "Deprecated" Warning
        "A field is used that another has replaced.";
    REFERENCED_RESOURCE_NOT_FOUND = "IST0101" "ReferencedResourceNotFound" Error
        "An object names another that does not exist.";
    SCHEMA_VALIDATION_ERROR = "IST0106" "SchemaValidationError" Error
        "A field is unknown, has the wrong type or a value that its schema forbids; the document is refused.";
    CONFLICTING_HOSTS = "IST0109" "ConflictingMeshGatewayVirtualServiceHosts" Warning
        "Several VirtualServices route one host of the mesh; where they contradict each other the older wins.";
    PORT_SELECTOR_REQUIRED = "IST0112" "VirtualServiceDestinationPortSelectorRequired" Error
        "A destination has several ports and the route does not say which.";
    PORT_NAME = "IST0118" "PortNameIsNotUnderNamingConvention" Info
        "A port's name does not say what is spoken on it.";
    NAMESPACE_MULTIPLE_LABELS = "IST0123" "NamespaceMultipleInjectionLabels" Warning
        "A namespace carries labels that contradict each other about the mesh.";
    NO_MATCHING_WORKLOADS = "IST0127" "NoMatchingWorkloadsFound" Warning
        "A selector matches no workload.";
    UNREACHABLE_RULE = "IST0130" "VirtualServiceUnreachableRule" Warning
        "A route is never taken, because one before it takes all of its traffic.";
    INEFFECTIVE_MATCH = "IST0131" "VirtualServiceIneffectiveMatch" Info
        "A match of a route never decides, because one before it takes all of its traffic.";
    SCHEMA_WARNING = "IST0133" "SchemaWarning" Warning
        "A Kubernetes object has a field that its type does not know; the API server would drop it.";
    INEFFECTIVE_POLICY = "IST0167" "IneffectivePolicy" Warning
        "A policy has no effect where it stands.";
    SUBSET_WITHOUT_PODS = "IST0173" "DestinationRuleSubsetNotSelectPods" Error
        "A subset's labels match no pod of its host.";
    UNKNOWN_RULE_HOST = "IST0174" "UnknownDestinationRuleHost" Warning
        "A DestinationRule's host does not exist.";
    UNREADABLE_DOCUMENT = "TRP0001" "UnreadableDocument" Error
        "A document is not YAML, or not an object with apiVersion, kind and metadata.name.";
    DUPLICATE_OBJECT = "TRP0002" "DuplicateObject" Error
        "One object is defined more than once; one definition wins.";
    LIMIT_EXCEEDED = "TRP0003" "LimitExceeded" Error
        "A file or document is larger, deeper or has more aliases than is read.";
    UNREADABLE_VALUE = "TRP0004" "UnreadableValue" Error
        "A value has the right type but cannot be read as what the field means.";
    KIND_NOT_HONOURED = "TRP0005" "KindNotHonoured" Warning
        "The kind is known and the object valid in shape, but nothing in the mesh obeys it yet.";
    KIND_NOT_READ = "TRP0006" "KindNotRead" Info
        "The kind means nothing to the mesh; the object is skipped.";
    NEEDS_WAYPOINT = "TRP0007" "NeedsWaypoint" Warning
        "Only a waypoint obeys this: a part of a policy that looks at HTTP, or routes and traffic policies of a Service that goes through none.";
    ACTION_UNSUPPORTED = "TRP0008" "ActionUnsupported" Warning
        "The policy's action has no meaning at L4, where nothing is done about it.";
    SIDECAR_LABEL_ENROLS = "TRP0009" "SidecarLabelEnrols" Info
        "A label of the sidecar model enrols into the ambient mesh.";
    FIELD_CONFLICT = "TRP0010" "FieldConflict" Warning
        "Two writers report different values for one field; one keeps it.";
    POLICY_SHADOWED = "TRP0011" "PolicyShadowed" Warning
        "An older policy of the same scope wins.";
    FIELD_NOT_HONOURED = "TRP0012" "FieldNotHonoured" Warning
        "A field is valid but nothing obeys it here.";
    OBJECT_SKIPPED = "TRP0013" "ObjectSkipped" Info
        "The object is valid but gives the mesh nothing to work with.";
    UNKNOWN_IMAGE = "TRP0014" "UnknownImage" Error
        "A pod names a container image that the embedded mesh has no program for.";
    DRY_RUN = "TRP0015" "DryRun" Info
        "A policy is only logged, never enforced, because its annotation says so.";
    FILE_UNFINISHED = "TRP0016" "FileUnfinished" Warning
        "A file is open for writing for long; until it is closed, nothing that it no longer holds is taken away.";
    MIXED_ACCOUNTS = "TRP0017" "MixedServiceAccounts" Warning
        "A waypoint is for one service account, and the pods of a Service run as several.";
    NAME_TAKEN = "TRP0018" "NameTaken" Error
        "A waypoint cannot be deployed, because an object of its name exists that the control plane did not make.";
    AUTOMATIC_WAYPOINT = "TRP0019" "AutomaticWaypoint" Info
        "The control plane made a waypoint for a namespace, or for an account of it, because something there needs one.";
    WAYPOINT_NOT_USABLE = "TRP0020" "WaypointNotUsable" Warning
        "A label names a waypoint that cannot be used: it is of another class, not ready, or does not take this traffic or namespace.";
    REFUSED_BY_PROXY = "TRP0021" "RefusedByProxy" Error
        "A proxy refused what an object became; an older version is in force there, or none.";
}

/// The table's entry of `code`.
pub fn lookup(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|entry| entry.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_order() {
        for pair in CODES.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} before {}", pair[0].code, pair[1].code);
        }
        assert_eq!(lookup("IST0106").map(|code| code.name), Some("SchemaValidationError"));
    }
}
