//! Every field of every kind that has a typed form of ours, with how far it is obeyed: what the reference page is made of.

use crate::{
    gateway_api::gateway,
    istio::{Field, authorization_policy, destination_rule, peer_authentication, virtual_service},
    kind::Kind,
};

/// The fields of each kind, in the order in which the page shows them.
pub const FIELDS: &[(Kind, &[Field])] = &[
    (Kind::VirtualService, virtual_service::FIELDS),
    (Kind::DestinationRule, destination_rule::FIELDS),
    (Kind::Gateway, gateway::FIELDS),
    (Kind::AuthorizationPolicy, authorization_policy::FIELDS),
    (Kind::PeerAuthentication, peer_authentication::FIELDS),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Support;

    #[test]
    fn fields_are_told_once_and_of_kinds_that_are_honoured() {
        for (kind, fields) in FIELDS {
            assert_eq!(kind.support(), Support::Honoured, "{kind}");
            let paths: BTreeSet<&str> = fields.iter().map(|field| field.path).collect();
            assert_eq!(paths.len(), fields.len(), "{kind}");
        }
    }
}
