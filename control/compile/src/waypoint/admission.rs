//! How the L4 policies of a destination let its waypoint in (design.md §6, docs/adr/0008).
//!
//! A waypoint checks policies against the original caller; the destination sees the waypoint's identity only. So a policy excepts the
//! waypoints that enforce it, this very version of it, at the destinations that are theirs and nowhere else: DENY does not deny them,
//! ALLOW allows them. Who enforces a policy is known by acknowledgement. A node proxy knows no exception of its own, and only fields that
//! every one of them reads are used, so Istio's behaves as ours does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use tropis_model::{
    identity::Identity,
    policy::{Action, Clause, Match, Policy, Rule, StringMatch},
};

/// Waypoints, each with the addresses of the workloads whose waypoint it is. Without an address it is let in nowhere.
pub type Admitted = BTreeMap<Identity, BTreeSet<IpAddr>>;

/// Lets these in, at their destinations.
#[must_use]
pub fn admit(mut policy: Policy, waypoints: &Admitted) -> Policy {
    // An empty list of addresses would mean every address.
    for (identity, addresses) in waypoints.iter().filter(|(_, addresses)| !addresses.is_empty()) {
        let principals = vec![StringMatch::Exact(identity.principal().into())];
        let addresses: Vec<IpNet> = addresses.iter().copied().map(IpNet::from).collect();
        match policy.action {
            Action::Allow => {
                let both = Match { principals, destination_ips: addresses, ..Match::default() };
                policy.rules.push(Rule { clauses: vec![Clause { matches: vec![both] }] });
            }
            Action::Deny => {
                let somebody_else = Match { not_principals: principals, ..Match::default() };
                let elsewhere = Match { not_destination_ips: addresses, ..Match::default() };
                let clause = Clause { matches: vec![somebody_else, elsewhere] };
                for rule in &mut policy.rules {
                    rule.clauses.push(clause.clone());
                }
            }
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tropis_model::{
        authorize::{ConnectionFacts, policy_matches},
        policy::{PolicyKey, PolicyScope},
    };

    use super::*;

    fn policy(action: Action, rules: Vec<Rule>) -> Policy {
        Policy { key: PolicyKey("shop/p".into()), namespace: "shop".into(), scope: PolicyScope::Namespace, action, rules, dry_run: false }
    }

    fn waypoint(name: &str) -> Identity {
        Identity::new("cluster.local", "shop", name)
    }

    /// Two waypoints with a destination each, and one that has none.
    fn waypoints() -> Admitted {
        let of = |addresses: &[&str]| addresses.iter().map(|text| text.parse().unwrap()).collect();
        [(waypoint("one"), of(&["10.1.0.1", "fd00::1"])), (waypoint("two"), of(&["10.1.0.2"])), (waypoint("idle"), of(&[]))].into()
    }

    /// Whether the policy matches a connection of `account` to `destination`.
    fn matches(policy: &Policy, account: &str, destination: &str) -> bool {
        let destination = SocketAddr::new(destination.parse().unwrap(), 80);
        policy_matches(policy, &ConnectionFacts { peer: Some(waypoint(account)), source: "10.9.0.1".parse().unwrap(), destination })
    }

    #[test]
    fn deny_excepts_a_waypoint_at_its_own_destinations_only_even_in_a_rule_that_matches_everything() {
        let admitted = admit(policy(Action::Deny, vec![Rule::default(), Rule::default()]), &waypoints());
        for (account, destination, denied) in [
            ("one", "10.1.0.1", false),
            ("one", "fd00::1", false),
            ("one", "10.1.0.2", true),
            ("one", "10.1.0.3", true),
            ("two", "10.1.0.2", false),
            ("two", "10.1.0.1", true),
            ("idle", "10.1.0.1", true),
            ("cart", "10.1.0.1", true),
        ] {
            assert_eq!(matches(&admitted, account, destination), denied, "{account} to {destination}");
        }
        assert_eq!(admit(policy(Action::Deny, Vec::new()), &waypoints()).rules, [], "what denies nothing still denies nothing");
    }

    #[test]
    fn allow_gains_a_rule_for_a_waypoint_at_its_own_destinations_even_where_it_allows_nobody() {
        let admitted = admit(policy(Action::Allow, Vec::new()), &waypoints());
        for (account, destination, allowed) in [
            ("one", "10.1.0.1", true),
            ("one", "fd00::1", true),
            ("one", "10.1.0.2", false),
            ("two", "10.1.0.2", true),
            ("idle", "10.1.0.1", false),
            ("cart", "10.1.0.1", false),
        ] {
            assert_eq!(matches(&admitted, account, destination), allowed, "{account} to {destination}");
        }
    }

    #[test]
    fn every_match_says_something_because_an_empty_one_never_holds_for_istios_node_proxy() {
        for action in [Action::Allow, Action::Deny] {
            let admitted = admit(policy(action, vec![Rule::default()]), &waypoints());
            let clauses = admitted.rules.iter().flat_map(|rule| &rule.clauses);
            assert!(clauses.flat_map(|clause| &clause.matches).all(|one| *one != Match::default()));
        }
    }

    #[test]
    fn nobody_is_admitted_unless_named() {
        let before = policy(Action::Allow, vec![Rule::default()]);
        assert_eq!(admit(before.clone(), &Admitted::new()), before);
    }
}
