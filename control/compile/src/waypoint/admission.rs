//! How the L4 policies of a destination let its waypoint in (design.md §6).
//!
//! A waypoint checks policies against the original caller; the destination sees the waypoint's identity only. So a policy excepts the
//! waypoints that enforce it, this very version of it: DENY does not deny them, ALLOW allows them. Who enforces a policy is known by
//! acknowledgement. A node proxy knows no exception of its own, so Istio's behaves as ours does.

use std::collections::BTreeSet;

use tropis_model::{
    identity::Identity,
    policy::{Action, Clause, Match, Policy, Rule, StringMatch},
};

/// Lets these in.
#[must_use]
pub fn admit(mut policy: Policy, waypoints: &BTreeSet<Identity>) -> Policy {
    if waypoints.is_empty() {
        return policy;
    }
    let principals = waypoints.iter().map(|identity| StringMatch::Exact(principal(identity).into())).collect();
    match policy.action {
        Action::Allow => {
            let clause = Clause { matches: vec![Match { principals, ..Match::default() }] };
            policy.rules.push(Rule { clauses: vec![clause] });
        }
        Action::Deny => {
            let clause = Clause { matches: vec![Match { not_principals: principals, ..Match::default() }] };
            for rule in &mut policy.rules {
                rule.clauses.push(clause.clone());
            }
        }
    }
    policy
}

/// An identity as policies name it: without its scheme.
fn principal(identity: &Identity) -> String {
    let text = identity.to_string();
    text.strip_prefix("spiffe://").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use tropis_model::policy::{PolicyKey, PolicyScope};

    use super::*;

    fn policy(action: Action, rules: Vec<Rule>) -> Policy {
        Policy { key: PolicyKey("shop/p".into()), namespace: "shop".into(), scope: PolicyScope::Namespace, action, rules, dry_run: false }
    }

    fn waypoints() -> BTreeSet<Identity> {
        [Identity::new("cluster.local", "shop", "waypoint")].into()
    }

    #[test]
    fn deny_excepts_the_waypoint_in_each_rule_even_in_one_that_matches_everything() {
        let admitted = admit(policy(Action::Deny, vec![Rule::default(), Rule::default()]), &waypoints());
        for rule in &admitted.rules {
            let [Clause { matches }] = rule.clauses.as_slice() else { panic!("{rule:?}") };
            assert_eq!(matches[0].not_principals, [StringMatch::Exact("cluster.local/ns/shop/sa/waypoint".into())]);
            assert_eq!(matches.len(), 1);
        }
        assert_eq!(admit(policy(Action::Deny, Vec::new()), &waypoints()).rules, [], "what denies nothing still denies nothing");
    }

    #[test]
    fn allow_gains_a_rule_for_the_waypoint_even_where_it_allows_nobody() {
        let admitted = admit(policy(Action::Allow, Vec::new()), &waypoints());
        let matched = Match { principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/waypoint".into())], ..Match::default() };
        assert_eq!(admitted.rules, [Rule { clauses: vec![Clause { matches: vec![matched] }] }]);
    }

    #[test]
    fn nobody_is_admitted_unless_named() {
        let before = policy(Action::Allow, vec![Rule::default()]);
        assert_eq!(admit(before.clone(), &BTreeSet::new()), before);
    }
}
