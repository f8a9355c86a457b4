//! Tables of policies and callers, and the properties that no change may break.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    policy::{Action, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch},
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

/// The meaning of policies, without any index: each is looked at in turn.
fn walk(view: &View, workload: &Workload, facts: &ConnectionFacts) -> Result<Option<Denied>, Denied> {
    let (mut missing, mut denied, mut dry_run_denied) = (None, None, None);
    let (mut allow, mut dry_run_allow) = ((Vec::new(), false), (Vec::new(), false));
    for policy in view.policies_for(workload) {
        let policy = match policy {
            Ok(policy) => policy,
            Err(key) => {
                missing.get_or_insert(key);
                continue;
            }
        };
        let matched = policy_matches(policy, facts);
        match (policy.action, policy.dry_run) {
            (Action::Deny, dry_run) if matched => {
                let denial = if dry_run { &mut dry_run_denied } else { &mut denied };
                denial.get_or_insert(Denied::ByPolicy(policy.key.clone()));
            }
            (Action::Deny, _) => {}
            (Action::Allow, dry_run) => {
                let (keys, allowed) = if dry_run { &mut dry_run_allow } else { &mut allow };
                keys.push(policy.key.clone());
                *allowed |= matched;
            }
        }
    }
    let unmatched = |(keys, allowed): (Vec<PolicyKey>, bool)| (!keys.is_empty() && !allowed).then_some(Denied::ByNone(keys));
    match denied.or(missing.map(Denied::Missing)).or(unmatched(allow)) {
        Some(denied) => Err(denied),
        None => Ok(dry_run_denied.or(unmatched(dry_run_allow))),
    }
}

fn texts(words: &'static [&'static str]) -> impl Strategy<Value = Vec<StringMatch>> {
    let word = || proptest::sample::select(words).prop_map(Arc::<str>::from);
    let text = prop_oneof![
        6 => word().prop_map(StringMatch::Exact),
        1 => word().prop_map(|word| StringMatch::Prefix(word[..word.len() / 2].into())),
        1 => word().prop_map(|word| StringMatch::Suffix(word[word.len() / 2..].into())),
        1 => Just(StringMatch::Presence),
    ];
    few(text)
}

/// Mostly none, as in real policies.
fn few<T: std::fmt::Debug + Clone + 'static>(one: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 2 => proptest::collection::vec(one, 1..3)]
}

fn block() -> impl Strategy<Value = ipnet::IpNet> {
    const BLOCKS: &[&str] =
        &["10.0.0.9/32", "10.0.0.9/24", "10.0.0.0/8", "0.0.0.0/0", "192.168.0.0/16", "fd00::9/128", "fd00::/64", "::/0"];
    proptest::sample::select(BLOCKS).prop_map(|block| block.parse().unwrap())
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> {
    (proptest::sample::select(NAMESPACES), proptest::sample::select(["sleep", "cart"].as_slice()))
        .prop_map(|(namespace, account)| ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() })
}

const NAMESPACES: &[&str] = &["shop", "bank", ""];
const PRINCIPALS: &[&str] = &["cluster.local/ns/shop/sa/sleep", "cluster.local/ns/shop/sa/cart", "cluster.local/ns/bank/sa/sleep", "other"];

fn every_match() -> impl Strategy<Value = Match> {
    let port = || few(proptest::sample::select([80u16, 8080].as_slice()));
    let positive = (texts(NAMESPACES), texts(PRINCIPALS), few(account()), few(block()), few(block()), port());
    let negated = (texts(NAMESPACES), texts(PRINCIPALS), few(account()), few(block()), few(block()), port());
    (positive, negated, any::<bool>()).prop_map(|(positive, negated, both)| {
        let (namespaces, principals, service_accounts, source_ips, destination_ips, destination_ports) = positive;
        let one = Match { namespaces, principals, service_accounts, source_ips, destination_ips, destination_ports, ..Match::default() };
        let (not_namespaces, not_principals, not_service_accounts, not_source_ips, not_destination_ips, not_destination_ports) = negated;
        match both {
            true => Match {
                not_namespaces,
                not_principals,
                not_service_accounts,
                not_source_ips,
                not_destination_ips,
                not_destination_ports,
                ..one
            },
            false => one,
        }
    })
}

fn every_policy() -> impl Strategy<Value = Policy> {
    let matches = proptest::collection::vec(every_match(), 0..3).prop_map(|matches| Clause { matches });
    let rules = proptest::collection::vec(proptest::collection::vec(matches, 0..3).prop_map(|clauses| Rule { clauses }), 0..3);
    let scope = proptest::sample::select([PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector].as_slice());
    (0..8u8, any::<bool>(), proptest::bool::weighted(0.2), scope, rules).prop_map(|(name, allow, dry_run, scope, rules)| {
        let action = if allow { Action::Allow } else { Action::Deny };
        Policy { scope, dry_run, ..policy_of(&format!("p{name}"), action, rules) }
    })
}

fn every_caller() -> impl Strategy<Value = ConnectionFacts> {
    let peer = proptest::sample::select([None, Some(SLEEP), Some("spiffe://cluster.local/ns/bank/sa/sleep")].as_slice());
    let source = proptest::sample::select(["10.0.0.9", "10.1.0.1", "192.168.3.4", "fd00::9", "fd00:1::1"].as_slice());
    let destination = proptest::sample::select(["10.0.0.1:80", "10.0.0.1:8080", "[fd00::1]:8080"].as_slice());
    (peer, source, destination).prop_map(|(peer, source, destination)| ConnectionFacts {
        peer: peer.map(|peer| peer.parse().unwrap()),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    })
}

/// One thing that happens to a view: a policy comes or changes (or goes), or the workload names others.
fn every_change() -> impl Strategy<Value = Change> {
    let named = proptest::collection::vec(0..8u8, 0..4);
    prop_oneof![
        4 => every_policy().prop_map(|policy| Change::Policy(Arc::new(policy))),
        1 => (0..8u8).prop_map(|name| Change::RemovePolicy(PolicyKey(format!("shop/p{name}").into()))),
        1 => (named, 0..2u8).prop_map(|(named, pod)| {
            let name = format!("w{pod}");
            let mut workload = Workload::new(format!("c//Pod/shop/{name}"), name, Identity::new("cluster.local", "shop", "w"));
            workload.authorization_policies = named.into_iter().map(|name| format!("shop/p{name}").into()).collect();
            Change::Workload(Arc::new(workload))
        }),
        1 => Just(Change::RemoveAddress("c//Pod/shop/w1".into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What is compiled is always that of the present policies, and means what they mean.
    #[test]
    fn compiled_policies_decide_as_a_walk_does(
        changes in proptest::collection::vec(every_change(), 1..16),
        callers in proptest::collection::vec(every_caller(), 1..4),
    ) {
        let mut view = View::default();
        for change in changes {
            view = view.apply([change]);
            for workload in view.workloads() {
                let foreign = (**workload).clone();
                for facts in &callers {
                    let expected = walk(&view, workload, facts);
                    for asked in [workload, &foreign] {
                        let decided = inbound(&view, asked, facts).map(|permit| permit.dry_run_denial().cloned());
                        prop_assert_eq!(&decided, &expected);
                    }
                }
            }
        }
    }
}

/// ALLOW policies of one principal each, by scope, and a caller whom the last of them allows.
fn many(count: usize, scope: PolicyScope) -> (View, Arc<Workload>, ConnectionFacts) {
    let name = |number: usize| format!("cluster.local/ns/shop/sa/account-{number}");
    let policies = (0..count).map(|number| {
        let one = Match { destination_ports: vec![8080], ..principal(StringMatch::Exact(name(number).into())) };
        let policy = policy(&format!("p{number:06}"), Action::Allow, vec![one]);
        Change::Policy(Arc::new(Policy { scope, ..policy }))
    });
    let mut workload = Workload::new("c//Pod/shop/w", "w", Identity::new("cluster.local", "shop", "w"));
    if scope == PolicyScope::WorkloadSelector {
        workload.authorization_policies = (0..count).map(|number| format!("shop/p{number:06}").into()).collect();
    }
    let workload = Arc::new(workload);
    let view = View::default().apply(policies.chain([Change::Workload(workload.clone())]));
    (view, workload, facts(Some(&format!("spiffe://{}", name(count - 1)))))
}

/// The time of one decision, once compiled.
fn time(rounds: u32, decide: impl Fn()) -> std::time::Duration {
    decide();
    let started = std::time::Instant::now();
    (0..rounds).for_each(|_| decide());
    started.elapsed() / rounds
}

#[test]
fn deciding_is_flat_in_the_number_of_policies() {
    for scope in [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector] {
        let decision = |count| {
            let (view, workload, facts) = many(count, scope);
            let once = || assert!(inbound(&view, &workload, &facts).is_ok());
            // The best of some, since other work disturbs.
            (0..5).map(|_| time(200, once)).min().unwrap()
        };
        let (few, many) = (decision(10), decision(5000));
        println!("{scope:?}: 10 policies {few:?}, 5000 policies {many:?}");
        assert!(many < few * 20, "{scope:?}: 500 times the policies took {few:?} to {many:?}");
    }
}

#[test]
#[ignore = "prints what compiling and deciding cost, beside the plain walk"]
fn flat_measured() {
    for count in [1, 10, 100, 1000, 10_000] {
        let (view, workload, facts) = many(count, PolicyScope::Namespace);
        let started = std::time::Instant::now();
        assert!(inbound(&view, &workload, &facts).is_ok());
        let compiled = started.elapsed();
        let walked = time(100, || assert!(walk(&view, &workload, &facts).is_ok()));
        let decided = time(10_000, || assert!(inbound(&view, &workload, &facts).is_ok()));
        println!("{count:6} policies: decide {decided:?}, walk {walked:?}, compile once {compiled:?}");
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
