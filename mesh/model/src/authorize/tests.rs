//! Tables of policies and callers, and the properties that no change may break.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    policy::{PolicyScope, ServiceAccountMatch},
    view::Change,
};

fn facts(peer: Option<&str>) -> ConnectionFacts {
    ConnectionFacts {
        peer: peer.map(|peer| peer.parse().unwrap()),
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1:8080".parse().unwrap(),
    }
}

const SLEEP: &str = "spiffe://cluster.local/ns/shop/sa/sleep";

fn policy(name: &str, action: Action, matches: Vec<Match>) -> Policy {
    let rules = vec![Rule { clauses: vec![Clause { matches }] }];
    policy_of(name, action, rules)
}

fn policy_of(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    let key = PolicyKey(format!("shop/{name}").into());
    Policy { key, namespace: "shop".into(), scope: PolicyScope::Namespace, action, rules, dry_run: false }
}

fn principal(value: StringMatch) -> Match {
    Match { principals: vec![value], ..Match::default() }
}

fn strict() -> Policy {
    policy("strict", Action::Deny, vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }])
}

fn decide(policies: &[Policy], facts: &ConnectionFacts) -> Result<Permit, Denied> {
    let workload = Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w"));
    let view = View::default().apply(policies.iter().cloned().map(|policy| Change::Policy(Arc::new(policy))));
    inbound(&view, &workload, facts)
}

fn denied(policies: &[Policy], facts: &ConnectionFacts) -> Option<String> {
    decide(policies, facts).err().map(|denied| denied.to_string())
}

#[test]
fn allows_when_there_is_no_policy() {
    assert_eq!(denied(&[], &facts(None)), None);
}

#[test]
fn strict_denies_only_callers_without_an_identity() {
    assert_eq!(denied(&[strict()], &facts(None)).as_deref(), Some("denied by policy shop/strict"));
    assert_eq!(denied(&[strict()], &facts(Some(SLEEP))), None);
}

#[test]
fn a_denial_names_the_allow_policies_that_did_not_match() {
    let policies = [
        policy("one", Action::Allow, vec![principal(StringMatch::Exact("cluster.local/ns/shop/sa/other".into()))]),
        policy_of("none", Action::Allow, vec![]),
    ];
    let text = denied(&policies, &facts(Some(SLEEP))).unwrap();
    assert!(text.contains("shop/one") && text.contains("shop/none"), "{text}");
}

#[test]
fn each_field_matches_what_it_says() {
    let account = |name: &str| ServiceAccountMatch { namespace: "shop".into(), service_account: name.into() };
    let text = |value: &str| StringMatch::Exact(value.into());
    let default = Match::default;
    // (match, holds for the identified caller, holds for a caller without identity)
    let cases = [
        (default(), false, false),
        (principal(text("cluster.local/ns/shop/sa/sleep")), true, false),
        (principal(text("spiffe://cluster.local/ns/shop/sa/sleep")), false, false),
        (principal(StringMatch::Prefix("cluster.local/ns/shop/".into())), true, false),
        (principal(StringMatch::Suffix("/sa/sleep".into())), true, false),
        (principal(StringMatch::Prefix("".into())), true, false),
        (principal(StringMatch::Presence), true, false),
        (Match { not_principals: vec![StringMatch::Presence], ..default() }, false, true),
        (Match { not_principals: vec![text("cluster.local/ns/shop/sa/other")], ..default() }, true, true),
        (Match { namespaces: vec![text("shop")], ..default() }, true, false),
        (Match { namespaces: vec![text("shop")], principals: vec![text("other")], ..default() }, false, false),
        (Match { not_namespaces: vec![text("shop")], ..default() }, false, true),
        (Match { service_accounts: vec![account("sleep")], ..default() }, true, false),
        (Match { not_service_accounts: vec![account("sleep")], ..default() }, false, true),
        (Match { source_ips: vec!["10.0.0.0/24".parse().unwrap()], ..default() }, true, true),
        (Match { source_ips: vec!["fd00::/8".parse().unwrap()], ..default() }, false, false),
        (Match { not_source_ips: vec!["10.0.0.9/32".parse().unwrap()], ..default() }, false, false),
        (Match { destination_ips: vec!["10.0.0.1/32".parse().unwrap()], ..default() }, true, true),
        (Match { destination_ports: vec![80, 8080], ..default() }, true, true),
        (Match { destination_ports: vec![80], ..default() }, false, false),
        (Match { not_destination_ports: vec![8080], ..default() }, false, false),
    ];
    for (one, identified, anonymous) in cases {
        let policy = policy("p", Action::Deny, vec![one.clone()]);
        assert_eq!(policy_matches(&policy, &facts(Some(SLEEP))), identified, "{one:?} identified");
        assert_eq!(policy_matches(&policy, &facts(None)), anonymous, "{one:?} anonymous");
    }
}

#[test]
fn rules_are_or_clauses_are_and_and_the_empty_ones_are_settled() {
    let yes = Clause { matches: vec![principal(StringMatch::Presence)] };
    let no = Clause { matches: vec![principal(StringMatch::Exact("x".into()))] };
    let matches = |rules: Vec<Vec<Clause>>| {
        let rules = rules.into_iter().map(|clauses| Rule { clauses }).collect();
        policy_matches(&policy_of("p", Action::Deny, rules), &facts(Some(SLEEP)))
    };
    assert!(!matches(vec![]), "no rules never match");
    assert!(matches(vec![vec![]]), "a rule without clauses matches everything");
    assert!(matches(vec![vec![Clause::default()]]), "a clause without matches is true");
    assert!(matches(vec![vec![no.clone()], vec![yes.clone()]]));
    assert!(!matches(vec![vec![no, yes.clone()]]));
    assert!(matches(vec![vec![yes.clone(), yes]]));
}

#[test]
fn a_policy_that_has_not_arrived_denies_but_an_explicit_denial_is_named_first() {
    let mut workload = Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w"));
    workload.authorization_policies = vec!["shop/late".into()];
    let missing = inbound(&View::default(), &workload, &facts(Some(SLEEP))).unwrap_err();
    assert_eq!(missing, Denied::Missing(PolicyKey("shop/late".into())));
    let view = View::default().apply([Change::Policy(Arc::new(strict()))]);
    assert!(matches!(inbound(&view, &workload, &facts(None)), Err(Denied::ByPolicy(_))));
}

#[test]
fn dry_run_never_denies_and_is_told() {
    let mut policy = strict();
    policy.dry_run = true;
    let permit = decide(&[policy], &facts(None)).unwrap();
    assert!(matches!(permit.dry_run_denial(), Some(Denied::ByPolicy(_))));
}

#[test]
fn a_permit_is_revoked_by_a_newer_view_and_outlives_its_workload() {
    let workload = Arc::new(Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w")));
    let open = View::default().apply([Change::Workload(workload.clone())]);
    let permit = inbound(&open, &workload, &facts(None)).unwrap();
    let closed = open.apply([Change::Policy(Arc::new(strict()))]);
    assert!(permit.check(&open).is_ok());
    assert!(permit.check(&closed).is_err());
    let mut selected = (*workload).clone();
    selected.authorization_policies = vec!["shop/late".into()];
    assert!(permit.check(&open.apply([Change::Workload(Arc::new(selected))])).is_err(), "attaching a policy counts too");
    assert!(permit.check(&closed.apply([Change::RemoveAddress(workload.uid.0.clone())])).is_ok());
}

fn any_match() -> impl Strategy<Value = Match> {
    let text = prop_oneof![
        Just(StringMatch::Presence),
        Just(StringMatch::Exact("cluster.local/ns/shop/sa/sleep".into())),
        Just(StringMatch::Prefix("other".into()))
    ];
    (proptest::collection::vec(text, 0..3), proptest::collection::vec(prop_oneof![Just(80u16), Just(8080u16)], 0..2), any::<bool>())
        .prop_map(|(principals, ports, negated)| match negated {
            true => Match { not_principals: principals, not_destination_ports: ports, ..Match::default() },
            false => Match { principals, destination_ports: ports, ..Match::default() },
        })
}

fn any_policies() -> impl Strategy<Value = Vec<Policy>> {
    let one = (any::<bool>(), proptest::collection::vec(any_match(), 0..3));
    proptest::collection::vec(one, 0..6).prop_map(|policies| {
        let action = |allow| if allow { Action::Allow } else { Action::Deny };
        let numbered = policies.into_iter().enumerate();
        numbered.map(|(index, (allow, matches))| policy(&format!("p{index}"), action(allow), matches)).collect()
    })
}

proptest! {
    #[test]
    fn deny_wins_over_allow(policies in any_policies(), identified in any::<bool>()) {
        let facts = facts(identified.then_some(SLEEP));
        let must_deny = policies.iter().any(|policy| policy.action == Action::Deny && policy_matches(policy, &facts));
        if must_deny {
            prop_assert!(decide(&policies, &facts).is_err());
        }
    }

    #[test]
    fn order_does_not_matter(policies in any_policies(), identified in any::<bool>()) {
        let facts = facts(identified.then_some(SLEEP));
        let mut reversed = policies.clone();
        reversed.reverse();
        for policy in &mut reversed {
            policy.rules.reverse();
            policy.rules.iter_mut().for_each(|rule| rule.clauses.iter_mut().for_each(|clause| clause.matches.reverse()));
        }
        prop_assert_eq!(decide(&policies, &facts).is_ok(), decide(&reversed, &facts).is_ok());
    }

    #[test]
    fn one_more_deny_policy_never_opens_anything(policies in any_policies(), extra in any_match(), identified in any::<bool>()) {
        let facts = facts(identified.then_some(SLEEP));
        let mut more = policies.clone();
        more.push(policy("extra", Action::Deny, vec![extra]));
        if decide(&policies, &facts).is_err() {
            prop_assert!(decide(&more, &facts).is_err());
        }
    }
}

proptest! {
    #[test]
    fn an_explanation_tells_the_same_story_as_the_decision(policies in any_policies(), identified in any::<bool>()) {
        let facts = facts(identified.then_some(SLEEP));
        let workload = Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w"));
        let view = View::default().apply(policies.iter().cloned().map(|policy| Change::Policy(Arc::new(policy))));
        let told = explain(&view, &workload, &facts);
        prop_assert_eq!(told.len(), policies.len());
        let by = |wanted: Action, matching: bool| told.iter().any(|one| match one {
            Verdict::Asked { policy, rule } => policy.action == wanted && rule.is_some() == matching,
            Verdict::Missing(_) => false,
        });
        let allowed = !by(Action::Deny, true) && (by(Action::Allow, true) || !by(Action::Allow, false));
        prop_assert_eq!(inbound(&view, &workload, &facts).is_ok(), allowed);
    }
}

#[test]
fn an_explanation_names_the_policy_that_is_missing() {
    let mut workload = Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w"));
    workload.authorization_policies = vec!["shop/late".into()];
    assert_eq!(explain(&View::default(), &workload, &facts(None)), [Verdict::Missing(PolicyKey("shop/late".into()))]);
}
