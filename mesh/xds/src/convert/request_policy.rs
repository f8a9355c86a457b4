//! `tropis.waypoint.v1.RequestPolicy`.

use tropis_model::{
    bounds,
    policy::{PolicyKey, ServiceAccountMatch, StringMatch},
    request_policy::{
        Attachment, Attribute, Condition, OperationMatch, PathMatch, RequestAction, RequestPolicy, RequestRule, Segment, SourceMatch,
    },
};
use tropis_proto::waypoint::{
    self as wire, condition::Attribute as WireAttribute, path_match, request_policy::Attachment as WireAttachment, string_match,
};

use super::{Interner, InvalidResource, parts};

pub(super) fn from_wire(wire: wire::RequestPolicy, strings: &mut Interner) -> Result<RequestPolicy, InvalidResource> {
    let (namespace, name) = (parts::name("policies.namespace", &wire.namespace, strings)?, &wire.name);
    parts::name("policies.name", name, strings)?;
    let key = format!("{namespace}/{name}");
    let rest = || -> Result<RequestPolicy, InvalidResource> {
        Ok(RequestPolicy {
            key: PolicyKey(strings.get(&key)),
            attachment: attachment(wire.attachment, strings)?,
            action: match wire::RequestAction::try_from(wire.action) {
                Ok(wire::RequestAction::Allow) => RequestAction::Allow,
                Ok(wire::RequestAction::Deny) => RequestAction::Deny,
                Ok(wire::RequestAction::Audit) => RequestAction::Audit,
                Ok(wire::RequestAction::UnspecifiedAction) | Err(_) => {
                    return Err(InvalidResource::UnknownValue { field: "action", found: wire.action });
                }
            },
            rules: parts::list("rules", bounds::RULES, wire.rules, |found| rule(found, strings))?,
            dry_run: wire.dry_run,
        })
    };
    rest().map_err(|cause| cause.within(format!("policy {key}")))
}

fn attachment(wire: Option<WireAttachment>, strings: &mut Interner) -> Result<Attachment, InvalidResource> {
    Ok(match parts::required("attachment", wire)? {
        WireAttachment::Target(()) => Attachment::Target,
        WireAttachment::Service(()) => Attachment::Service,
        WireAttachment::Workloads(found) => Attachment::Workloads {
            namespace: parts::text(found.namespace, strings),
            labels: parts::labels("attachment.labels", found.labels, strings)?,
        },
    })
}

fn rule(wire: wire::RequestRule, strings: &mut Interner) -> Result<RequestRule, InvalidResource> {
    Ok(RequestRule {
        from: parts::list("from", bounds::RULES, wire.from, |found| source(found, strings))?,
        to: parts::list("to", bounds::RULES, wire.to, |found| operation(found, strings))?,
        when: parts::list("when", bounds::RULES, wire.when, |found| condition(found, strings))?,
    })
}

fn source(wire: wire::Source, strings: &mut Interner) -> Result<SourceMatch, InvalidResource> {
    Ok(SourceMatch {
        principals: matches("principals", wire.principals, strings)?,
        not_principals: matches("not_principals", wire.not_principals, strings)?,
        request_principals: matches("request_principals", wire.request_principals, strings)?,
        not_request_principals: matches("not_request_principals", wire.not_request_principals, strings)?,
        namespaces: matches("namespaces", wire.namespaces, strings)?,
        not_namespaces: matches("not_namespaces", wire.not_namespaces, strings)?,
        service_accounts: accounts("service_accounts", wire.service_accounts, strings)?,
        not_service_accounts: accounts("not_service_accounts", wire.not_service_accounts, strings)?,
        ip_blocks: parts::blocks("ip_blocks", &wire.ip_blocks)?,
        not_ip_blocks: parts::blocks("not_ip_blocks", &wire.not_ip_blocks)?,
        remote_ip_blocks: parts::blocks("remote_ip_blocks", &wire.remote_ip_blocks)?,
        not_remote_ip_blocks: parts::blocks("not_remote_ip_blocks", &wire.not_remote_ip_blocks)?,
    })
}

fn accounts(
    field: &'static str,
    wire: Vec<wire::ServiceAccount>,
    strings: &mut Interner,
) -> Result<Vec<ServiceAccountMatch>, InvalidResource> {
    parts::list(field, bounds::TOLD_VALUES, wire, |found| {
        Ok(ServiceAccountMatch { namespace: strings.get(&found.namespace), service_account: strings.get(&found.service_account) })
    })
}

fn operation(wire: wire::Operation, strings: &mut Interner) -> Result<OperationMatch, InvalidResource> {
    let ports = |field, wire| parts::list(field, bounds::TOLD_VALUES, wire, |found| parts::port(field, found));
    Ok(OperationMatch {
        hosts: matches("hosts", wire.hosts, strings)?,
        not_hosts: matches("not_hosts", wire.not_hosts, strings)?,
        ports: ports("ports", wire.ports)?,
        not_ports: ports("not_ports", wire.not_ports)?,
        methods: matches("methods", wire.methods, strings)?,
        not_methods: matches("not_methods", wire.not_methods, strings)?,
        paths: parts::list("paths", bounds::TOLD_VALUES, wire.paths, |found| path("paths", found, strings))?,
        not_paths: parts::list("not_paths", bounds::TOLD_VALUES, wire.not_paths, |found| path("not_paths", found, strings))?,
    })
}

fn matches(field: &'static str, wire: Vec<wire::StringMatch>, strings: &mut Interner) -> Result<Vec<StringMatch>, InvalidResource> {
    parts::list(field, bounds::TOLD_VALUES, wire, |found| string_match(field, found, strings))
}

fn string_match(field: &'static str, wire: wire::StringMatch, strings: &mut Interner) -> Result<StringMatch, InvalidResource> {
    Ok(match wire.kind.ok_or(InvalidResource::UnknownMatch(field))? {
        string_match::Kind::Exact(text) => StringMatch::Exact(strings.get(&text)),
        string_match::Kind::Prefix(text) => StringMatch::Prefix(strings.get(&text)),
        string_match::Kind::Suffix(text) => StringMatch::Suffix(strings.get(&text)),
        string_match::Kind::Presence(()) => StringMatch::Presence,
    })
}

fn path(field: &'static str, wire: wire::PathMatch, strings: &mut Interner) -> Result<PathMatch, InvalidResource> {
    Ok(match wire.kind.ok_or(InvalidResource::UnknownMatch(field))? {
        path_match::Kind::Text(text) => PathMatch::Text(string_match(field, text, strings)?),
        path_match::Kind::Template(template) => {
            let last = template.segments.len().saturating_sub(1);
            let mut place = 0;
            PathMatch::Template(parts::list(field, bounds::SEGMENTS, template.segments, |found| {
                let segment = segment(field, found, strings)?;
                if segment == Segment::Rest && place != last {
                    return Err(InvalidResource::Unsupported { field, found: "a rest before the end of a template" });
                }
                place += 1;
                Ok(segment)
            })?)
        }
    })
}

fn segment(field: &'static str, wire: path_match::Segment, strings: &mut Interner) -> Result<Segment, InvalidResource> {
    Ok(match wire.kind.ok_or(InvalidResource::UnknownMatch(field))? {
        path_match::segment::Kind::Literal(text) => Segment::Literal(strings.get(&text)),
        path_match::segment::Kind::One(()) => Segment::One,
        path_match::segment::Kind::Rest(()) => Segment::Rest,
    })
}

fn condition(wire: wire::Condition, strings: &mut Interner) -> Result<Condition, InvalidResource> {
    let attribute = wire.attribute.ok_or_else(|| InvalidResource::UnknownCondition("when".to_owned()))?;
    Ok(Condition {
        attribute: match attribute {
            WireAttribute::RequestHeader(header) => Attribute::RequestHeader(parts::name("when.request_header", &header, strings)?),
            WireAttribute::SourceIp(()) => Attribute::SourceIp,
            WireAttribute::RemoteIp(()) => Attribute::RemoteIp,
            WireAttribute::SourceNamespace(()) => Attribute::SourceNamespace,
            WireAttribute::SourcePrincipal(()) => Attribute::SourcePrincipal,
            WireAttribute::SourceServiceAccount(()) => Attribute::SourceServiceAccount,
            WireAttribute::DestinationIp(()) => Attribute::DestinationIp,
            WireAttribute::DestinationPort(()) => Attribute::DestinationPort,
            WireAttribute::ServerName(()) => Attribute::ServerName,
            WireAttribute::TokenPrincipal(()) => Attribute::TokenPrincipal,
            WireAttribute::TokenAudiences(()) => Attribute::TokenAudiences,
            WireAttribute::TokenPresenter(()) => Attribute::TokenPresenter,
            WireAttribute::TokenClaim(claim) => Attribute::TokenClaim(parts::texts("when.token_claim", &claim.path, strings)?),
        },
        values: matches("when.values", wire.values, strings)?,
        not_values: matches("when.not_values", wire.not_values, strings)?,
    })
}

pub(super) fn to_wire(policy: &RequestPolicy) -> wire::RequestPolicy {
    let (namespace, name) = policy.key.0.split_once('/').unwrap_or(("", &policy.key.0));
    wire::RequestPolicy {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        attachment: Some(match &policy.attachment {
            Attachment::Target => WireAttachment::Target(()),
            Attachment::Service => WireAttachment::Service(()),
            Attachment::Workloads { namespace, labels } => WireAttachment::Workloads(wire::request_policy::Workloads {
                namespace: parts::text_to_wire(namespace),
                labels: parts::labels_to_wire(labels),
            }),
        }),
        action: match policy.action {
            RequestAction::Allow => wire::RequestAction::Allow,
            RequestAction::Deny => wire::RequestAction::Deny,
            RequestAction::Audit => wire::RequestAction::Audit,
        }
        .into(),
        rules: policy.rules.iter().map(rule_to_wire).collect(),
        dry_run: policy.dry_run,
    }
}

fn rule_to_wire(rule: &RequestRule) -> wire::RequestRule {
    wire::RequestRule {
        from: rule.from.iter().map(source_to_wire).collect(),
        to: rule.to.iter().map(operation_to_wire).collect(),
        when: rule.when.iter().map(condition_to_wire).collect(),
    }
}

fn source_to_wire(source: &SourceMatch) -> wire::Source {
    let accounts = |list: &[ServiceAccountMatch]| -> Vec<wire::ServiceAccount> {
        let account = |account: &ServiceAccountMatch| wire::ServiceAccount {
            namespace: account.namespace.to_string(),
            service_account: account.service_account.to_string(),
        };
        list.iter().map(account).collect()
    };
    wire::Source {
        principals: matches_to_wire(&source.principals),
        not_principals: matches_to_wire(&source.not_principals),
        request_principals: matches_to_wire(&source.request_principals),
        not_request_principals: matches_to_wire(&source.not_request_principals),
        namespaces: matches_to_wire(&source.namespaces),
        not_namespaces: matches_to_wire(&source.not_namespaces),
        service_accounts: accounts(&source.service_accounts),
        not_service_accounts: accounts(&source.not_service_accounts),
        ip_blocks: parts::blocks_to_wire(&source.ip_blocks),
        not_ip_blocks: parts::blocks_to_wire(&source.not_ip_blocks),
        remote_ip_blocks: parts::blocks_to_wire(&source.remote_ip_blocks),
        not_remote_ip_blocks: parts::blocks_to_wire(&source.not_remote_ip_blocks),
    }
}

fn operation_to_wire(operation: &OperationMatch) -> wire::Operation {
    wire::Operation {
        hosts: matches_to_wire(&operation.hosts),
        not_hosts: matches_to_wire(&operation.not_hosts),
        ports: operation.ports.iter().copied().map(u32::from).collect(),
        not_ports: operation.not_ports.iter().copied().map(u32::from).collect(),
        methods: matches_to_wire(&operation.methods),
        not_methods: matches_to_wire(&operation.not_methods),
        paths: operation.paths.iter().map(path_to_wire).collect(),
        not_paths: operation.not_paths.iter().map(path_to_wire).collect(),
    }
}

fn matches_to_wire(list: &[StringMatch]) -> Vec<wire::StringMatch> {
    list.iter().map(match_to_wire).collect()
}

fn match_to_wire(found: &StringMatch) -> wire::StringMatch {
    let kind = match found {
        StringMatch::Exact(text) => string_match::Kind::Exact(text.to_string()),
        StringMatch::Prefix(text) => string_match::Kind::Prefix(text.to_string()),
        StringMatch::Suffix(text) => string_match::Kind::Suffix(text.to_string()),
        StringMatch::Presence => string_match::Kind::Presence(()),
    };
    wire::StringMatch { kind: Some(kind) }
}

fn path_to_wire(path: &PathMatch) -> wire::PathMatch {
    let segment = |segment: &Segment| path_match::Segment {
        kind: Some(match segment {
            Segment::Literal(text) => path_match::segment::Kind::Literal(text.to_string()),
            Segment::One => path_match::segment::Kind::One(()),
            Segment::Rest => path_match::segment::Kind::Rest(()),
        }),
    };
    let kind = match path {
        PathMatch::Text(text) => path_match::Kind::Text(match_to_wire(text)),
        PathMatch::Template(segments) => {
            path_match::Kind::Template(path_match::Template { segments: segments.iter().map(segment).collect() })
        }
    };
    wire::PathMatch { kind: Some(kind) }
}

fn condition_to_wire(condition: &Condition) -> wire::Condition {
    wire::Condition {
        attribute: Some(match &condition.attribute {
            Attribute::RequestHeader(header) => WireAttribute::RequestHeader(header.to_string()),
            Attribute::SourceIp => WireAttribute::SourceIp(()),
            Attribute::RemoteIp => WireAttribute::RemoteIp(()),
            Attribute::SourceNamespace => WireAttribute::SourceNamespace(()),
            Attribute::SourcePrincipal => WireAttribute::SourcePrincipal(()),
            Attribute::SourceServiceAccount => WireAttribute::SourceServiceAccount(()),
            Attribute::DestinationIp => WireAttribute::DestinationIp(()),
            Attribute::DestinationPort => WireAttribute::DestinationPort(()),
            Attribute::ServerName => WireAttribute::ServerName(()),
            Attribute::TokenPrincipal => WireAttribute::TokenPrincipal(()),
            Attribute::TokenAudiences => WireAttribute::TokenAudiences(()),
            Attribute::TokenPresenter => WireAttribute::TokenPresenter(()),
            Attribute::TokenClaim(path) => WireAttribute::TokenClaim(wire::condition::Claim { path: parts::texts_to_wire(path) }),
        }),
        values: matches_to_wire(&condition.values),
        not_values: matches_to_wire(&condition.not_values),
    }
}
