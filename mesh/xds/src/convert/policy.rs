//! `istio.security.Authorization`.

use ipnet::IpNet;
use prost::Message;
use std::sync::Arc;

use tropis_model::policy::{Action, Clause, Match, Policy, PolicyKey, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use tropis_proto::{
    security::{self as wire, string_match::MatchType},
    xds::Resource,
};

use super::{Interner, InvalidResource, address};

pub(super) fn from_wire(wire: wire::Authorization, strings: &mut Interner) -> Result<Policy, InvalidResource> {
    if wire.name.is_empty() {
        return Err(InvalidResource::Empty("name"));
    }
    Ok(Policy {
        key: PolicyKey(strings.get(&format!("{}/{}", wire.namespace, wire.name))),
        namespace: strings.get(&wire.namespace),
        scope: scope(wire.scope)?,
        action: match wire::Action::try_from(wire.action) {
            Ok(wire::Action::Allow) => Action::Allow,
            Ok(wire::Action::Deny) => Action::Deny,
            Err(_) => return Err(InvalidResource::UnknownValue { field: "action", found: wire.action }),
        },
        rules: wire.rules.into_iter().map(|rule| from_wire_rule(rule, strings)).collect::<Result<_, _>>()?,
        dry_run: wire.dry_run,
    })
}

fn scope(found: i32) -> Result<PolicyScope, InvalidResource> {
    match wire::Scope::try_from(found) {
        Ok(wire::Scope::Global) => Ok(PolicyScope::Global),
        Ok(wire::Scope::Namespace) => Ok(PolicyScope::Namespace),
        Ok(wire::Scope::WorkloadSelector) => Ok(PolicyScope::WorkloadSelector),
        Err(_) => Err(InvalidResource::UnknownValue { field: "scope", found }),
    }
}

fn from_wire_rule(wire: wire::Rule, strings: &mut Interner) -> Result<Rule, InvalidResource> {
    let mut clauses = Vec::with_capacity(wire.clauses.len());
    for clause in wire.clauses {
        let matches = clause.matches.into_iter().map(|found| from_wire_match(found, strings)).collect::<Result<_, _>>()?;
        clauses.push(Clause { matches });
    }
    Ok(Rule { clauses })
}

fn from_wire_match(wire: wire::Match, strings: &mut Interner) -> Result<Match, InvalidResource> {
    if let Some(unknown) = wire.extensions.into_iter().next() {
        return Err(InvalidResource::UnknownCondition(unknown.name));
    }
    let mut texts = |list: Vec<wire::StringMatch>, field| -> Result<Vec<StringMatch>, InvalidResource> {
        list.into_iter().map(|text| string_match(text, field, strings)).collect()
    };
    let namespaces = texts(wire.namespaces, "namespaces")?;
    let not_namespaces = texts(wire.not_namespaces, "not_namespaces")?;
    let principals = texts(wire.principals, "principals")?;
    let not_principals = texts(wire.not_principals, "not_principals")?;
    let mut accounts = |list: Vec<wire::ServiceAccountMatch>| -> Vec<ServiceAccountMatch> {
        let account = |found: wire::ServiceAccountMatch| ServiceAccountMatch {
            namespace: strings.get(&found.namespace),
            service_account: strings.get(&found.service_account),
        };
        list.into_iter().map(account).collect()
    };
    Ok(Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        service_accounts: accounts(wire.service_accounts),
        not_service_accounts: accounts(wire.not_service_accounts),
        source_ips: blocks(&wire.source_ips, "source_ips")?,
        not_source_ips: blocks(&wire.not_source_ips, "not_source_ips")?,
        destination_ips: blocks(&wire.destination_ips, "destination_ips")?,
        not_destination_ips: blocks(&wire.not_destination_ips, "not_destination_ips")?,
        destination_ports: ports(&wire.destination_ports, "destination_ports")?,
        not_destination_ports: ports(&wire.not_destination_ports, "not_destination_ports")?,
    })
}

fn string_match(wire: wire::StringMatch, field: &'static str, strings: &mut Interner) -> Result<StringMatch, InvalidResource> {
    Ok(match wire.match_type.ok_or(InvalidResource::UnknownMatch(field))? {
        MatchType::Exact(text) => StringMatch::Exact(strings.get(&text)),
        MatchType::Prefix(text) => StringMatch::Prefix(strings.get(&text)),
        MatchType::Suffix(text) => StringMatch::Suffix(strings.get(&text)),
        MatchType::Presence(()) => StringMatch::Presence,
    })
}

fn blocks(wire: &[wire::Address], field: &'static str) -> Result<Vec<IpNet>, InvalidResource> {
    wire.iter().map(|block| address::block(&block.address, Some(block.length), field)).collect()
}

fn ports(wire: &[u32], field: &'static str) -> Result<Vec<u16>, InvalidResource> {
    wire.iter().map(|port| address::port(*port, field)).collect()
}

/// What to put in the place of a policy that was refused and of which no earlier version is in force: it denies everything in its
/// scope, as far as the scope can be read, else in its namespace. A missing policy of namespace or mesh scope would allow instead.
///
/// `None` if nothing would be enforced anyway (a dry run), or if the name tells no namespace.
pub fn denying_policy(resource: &Resource) -> Option<Policy> {
    let (namespace, _) = resource.name.split_once('/')?;
    let message = resource.resource.as_ref().and_then(|any| wire::Authorization::decode(any.value.as_slice()).ok());
    if message.as_ref().is_some_and(|message| message.dry_run) {
        return None;
    }
    let scope = message.and_then(|message| scope(message.scope).ok()).unwrap_or(PolicyScope::Namespace);
    Some(Policy {
        key: PolicyKey(resource.name.as_str().into()),
        namespace: namespace.into(),
        scope,
        action: Action::Deny,
        rules: vec![Rule { clauses: Vec::new() }],
        dry_run: false,
    })
}

pub(super) fn to_wire(policy: &Policy) -> wire::Authorization {
    let name = policy.key.0.split_once('/').map_or(&*policy.key.0, |(_, name)| name);
    wire::Authorization {
        name: name.to_owned(),
        namespace: policy.namespace.to_string(),
        scope: match policy.scope {
            PolicyScope::Global => wire::Scope::Global,
            PolicyScope::Namespace => wire::Scope::Namespace,
            PolicyScope::WorkloadSelector => wire::Scope::WorkloadSelector,
        }
        .into(),
        action: match policy.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule_to_wire).collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
}

fn rule_to_wire(rule: &Rule) -> wire::Rule {
    let clause = |clause: &Clause| wire::Clause { matches: clause.matches.iter().map(match_to_wire).collect() };
    wire::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn match_to_wire(found: &Match) -> wire::Match {
    let text = |text: &Arc<str>| text.to_string();
    let texts = |list: &[StringMatch]| -> Vec<wire::StringMatch> {
        let kind = |value: &StringMatch| match value {
            StringMatch::Exact(value) => MatchType::Exact(text(value)),
            StringMatch::Prefix(value) => MatchType::Prefix(text(value)),
            StringMatch::Suffix(value) => MatchType::Suffix(text(value)),
            StringMatch::Presence => MatchType::Presence(()),
        };
        list.iter().map(|value| wire::StringMatch { match_type: Some(kind(value)) }).collect()
    };
    let blocks = |list: &[IpNet]| -> Vec<wire::Address> {
        list.iter().map(|block| wire::Address { address: address::bytes(block.addr()), length: block.prefix_len().into() }).collect()
    };
    let accounts = |list: &[ServiceAccountMatch]| -> Vec<wire::ServiceAccountMatch> {
        let account = |account: &ServiceAccountMatch| wire::ServiceAccountMatch {
            namespace: text(&account.namespace),
            service_account: text(&account.service_account),
        };
        list.iter().map(account).collect()
    };
    wire::Match {
        namespaces: texts(&found.namespaces),
        not_namespaces: texts(&found.not_namespaces),
        principals: texts(&found.principals),
        not_principals: texts(&found.not_principals),
        source_ips: blocks(&found.source_ips),
        not_source_ips: blocks(&found.not_source_ips),
        destination_ips: blocks(&found.destination_ips),
        not_destination_ips: blocks(&found.not_destination_ips),
        destination_ports: found.destination_ports.iter().copied().map(u32::from).collect(),
        not_destination_ports: found.not_destination_ports.iter().copied().map(u32::from).collect(),
        service_accounts: accounts(&found.service_accounts),
        not_service_accounts: accounts(&found.not_service_accounts),
        extensions: Vec::new(),
    }
}
