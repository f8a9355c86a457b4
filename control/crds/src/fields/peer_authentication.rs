//! The fields of `PeerAuthentication`.

use super::Field;

const TESTS: &[&str] = &["peer_authentication_in_all_modes_and_scopes"];

pub(super) const FIELDS: &[Field] = &[
    Field::honoured(
        "selector.matchLabels",
        "Picks the workloads by their labels; without it the policy is the namespace's, or the mesh's in the root namespace, where one with a \
         selector is ignored.",
        TESTS,
    ),
    Field::honoured(
        "mtls.mode",
        "STRICT admits tunnels only; PERMISSIVE plain traffic too; DISABLE is read as PERMISSIVE; UNSET is as the next wider policy says.",
        TESTS,
    ),
    Field::honoured("portLevelMtls", "The mode of single ports, by the workload's own numbers; it needs a selector.", TESTS),
];
