//! The rules of a policy, with every field.

use std::sync::Arc;

use ipnet::IpNet;
use tropis_crds::{
    Finding, Level, Object, codes,
    istio::{
        authorization_policy::{self as istio, Operation, Source},
        block,
    },
};
use tropis_model::{
    policy::{ServiceAccountMatch, StringMatch},
    request_policy::{Attribute, Condition, OperationMatch, PathMatch, RequestAction, RequestRule, SourceMatch},
};

use super::template;
use crate::{
    Settings,
    authorization::text::{Text, namespace, principal, string_match},
};

/// The trust domain that stands for the mesh's own, whatever that is called.
const LOCAL_DOMAIN: &str = "cluster.local";

/// Reads the rules of a policy. One that can never match is left out.
pub(super) fn read(settings: &Settings, object: &Object, action: RequestAction, rules: &[istio::Rule]) -> (Vec<RequestRule>, Vec<Finding>) {
    let mut reading = Reading { settings, object, denies: action == RequestAction::Deny, findings: Vec::new() };
    let read = rules.iter().enumerate().flat_map(|(index, rule)| reading.rule(rule, &format!("spec.rules[{index}]"))).collect();
    (read, reading.findings)
}

/// A part of a rule.
enum Part<T> {
    /// It holds when this does.
    Decided(T),
    /// It never holds.
    Never,
}

struct Reading<'a> {
    settings: &'a Settings,
    object: &'a Object,
    denies: bool,
    findings: Vec<Finding>,
}

impl Reading<'_> {
    /// A rule, or several: sources that ask for a trust domain stand in rules of their own, with the domain as a condition.
    fn rule(&mut self, rule: &istio::Rule, path: &str) -> Vec<RequestRule> {
        let mut when = Vec::new();
        for (index, condition) in rule.when.iter().flatten().enumerate() {
            match self.condition(condition, &format!("{path}.when[{index}]")) {
                Part::Decided(condition) => when.extend(condition),
                Part::Never => return Vec::new(),
            }
        }
        let mut to = Vec::new();
        for (index, entry) in rule.to.iter().flatten().enumerate() {
            if let Part::Decided(operation) = self.operation(&entry.operation, &format!("{path}.to[{index}].operation")) {
                to.push(operation);
            }
        }
        let (mut from, mut apart) = (Vec::new(), Vec::new());
        for (index, entry) in rule.from.iter().flatten().enumerate() {
            let path = format!("{path}.from[{index}].source");
            let Part::Decided(source) = self.source(&entry.source, &path) else { continue };
            let lists = (&entry.source.trust_domains, &entry.source.not_trust_domains);
            match self.domains(lists.0, lists.1, [&format!("{path}.trustDomains"), &format!("{path}.notTrustDomains")]) {
                Part::Decided(Some(condition)) => apart.push((source, condition)),
                Part::Decided(None) => from.push(source),
                Part::Never => {}
            }
        }
        // A list that was written and of which nothing is left never holds; an empty one would always.
        if rule.to.is_some() && to.is_empty() {
            return Vec::new();
        }
        let mut rules = Vec::new();
        if rule.from.is_none() || !from.is_empty() {
            rules.push(RequestRule { from, to: to.clone(), when: when.clone() });
        }
        rules.extend(apart.into_iter().map(|(source, condition)| {
            let from = if source == SourceMatch::default() { Vec::new() } else { vec![source] };
            RequestRule { from, to: to.clone(), when: when.iter().cloned().chain([condition]).collect() }
        }));
        rules
    }

    fn source(&mut self, source: &Source, path: &str) -> Part<SourceMatch> {
        let lists = [
            self.identities(&source.principals, true, principal, &format!("{path}.principals")),
            self.identities(&source.not_principals, false, principal, &format!("{path}.notPrincipals")),
            self.identities(&source.namespaces, true, namespace, &format!("{path}.namespaces")),
            self.identities(&source.not_namespaces, false, namespace, &format!("{path}.notNamespaces")),
        ];
        let [Part::Decided(principals), Part::Decided(not_principals), Part::Decided(namespaces), Part::Decided(not_namespaces)] = lists
        else {
            return Part::Never;
        };
        Part::Decided(SourceMatch {
            principals: self.with_aliases(principals),
            not_principals: self.with_aliases(not_principals),
            request_principals: strings(&source.request_principals),
            not_request_principals: strings(&source.not_request_principals),
            namespaces,
            not_namespaces,
            service_accounts: self.accounts(&source.service_accounts),
            not_service_accounts: self.accounts(&source.not_service_accounts),
            ip_blocks: blocks(&source.ip_blocks),
            not_ip_blocks: blocks(&source.not_ip_blocks),
            remote_ip_blocks: blocks(&source.remote_ip_blocks),
            not_remote_ip_blocks: blocks(&source.not_remote_ip_blocks),
        })
    }

    fn operation(&mut self, operation: &Operation, path: &str) -> Part<OperationMatch> {
        let paths = self.paths(&operation.paths, true, &format!("{path}.paths"));
        let not_paths = self.paths(&operation.not_paths, false, &format!("{path}.notPaths"));
        let (Part::Decided(paths), Part::Decided(not_paths)) = (paths, not_paths) else { return Part::Never };
        Part::Decided(OperationMatch {
            hosts: strings(&operation.hosts),
            not_hosts: strings(&operation.not_hosts),
            ports: ports(&operation.ports),
            not_ports: ports(&operation.not_ports),
            methods: strings(&operation.methods),
            not_methods: strings(&operation.not_methods),
            paths,
            not_paths,
        })
    }

    /// A condition; none when it always holds.
    fn condition(&mut self, condition: &istio::Condition, path: &str) -> Part<Option<Condition>> {
        let (values, not_values) = (&condition.values, &condition.not_values);
        if condition.key == "source.trustDomain" {
            return self.domains(values, not_values, [&format!("{path}.values"), &format!("{path}.notValues")]);
        }
        let Some(attribute) = attribute(&condition.key) else {
            self.findings.push(
                Finding::warning(codes::FIELD_NOT_HONOURED, self.object.reference())
                    .field(format!("{path}.key"))
                    .found(format!("{:?}", condition.key))
                    .problem("is not known to a waypoint")
                    .effect(if self.denies {
                        "the rule denies on its other parts alone, which is more"
                    } else {
                        "the rule allows nothing"
                    }),
            );
            return if self.denies { Part::Decided(None) } else { Part::Never };
        };
        let (values, not_values) = match attribute {
            Attribute::SourcePrincipal | Attribute::SourceNamespace => {
                let read = if attribute == Attribute::SourcePrincipal { principal } else { namespace };
                let lists = [
                    self.identities(values, true, read, &format!("{path}.values")),
                    self.identities(not_values, false, read, &format!("{path}.notValues")),
                ];
                let [Part::Decided(with), Part::Decided(without)] = lists else { return Part::Never };
                match attribute {
                    Attribute::SourcePrincipal => (self.with_aliases(with), self.with_aliases(without)),
                    _ => (with, without),
                }
            }
            Attribute::SourceServiceAccount => (self.account_texts(values), self.account_texts(not_values)),
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => (block_texts(values), block_texts(not_values)),
            Attribute::DestinationPort => (exact(values), exact(not_values)),
            _ => (strings(values), strings(not_values)),
        };
        if values.is_empty() && not_values.is_empty() {
            return Part::Decided(None);
        }
        Part::Decided(Some(Condition { attribute, values, not_values }))
    }

    /// A condition on the caller's trust domain; none when nothing is asked of it.
    fn domains(&mut self, values: &[String], not_values: &[String], paths: [&str; 2]) -> Part<Option<Condition>> {
        let problem = "cannot be told from a principal";
        let lists = [
            self.kept(values, values.iter().map(|text| domain(text)).collect(), true, problem, paths[0]),
            self.kept(not_values, not_values.iter().map(|text| domain(text)).collect(), false, problem, paths[1]),
        ];
        let [Part::Decided(values), Part::Decided(not_values)] = lists else { return Part::Never };
        let asked = !values.is_empty() || !not_values.is_empty();
        Part::Decided(asked.then_some(Condition { attribute: Attribute::SourcePrincipal, values, not_values }))
    }

    /// Reads identities; what cannot be read is read in the way that allows less, and told. An empty list holds.
    fn identities(&mut self, list: &[String], positive: bool, read: fn(&str) -> Text<'_>, path: &str) -> Part<Vec<StringMatch>> {
        let texts = list.iter().map(|text| match read(text) {
            Text::Good => Ok(string_match(text)),
            // Without its scheme it would match: right where matching is the safe side.
            Text::Scheme(rest, _) if self.denies == positive => Ok(string_match(rest)),
            Text::Scheme(_, accepted) | Text::Unreadable(accepted) => Err(accepted),
        });
        let texts = texts.collect();
        self.kept(list, texts, positive, "matches no identity", path)
    }

    fn paths(&mut self, list: &[String], positive: bool, path: &str) -> Part<Vec<PathMatch>> {
        let texts = list.iter().map(|text| match template::read(text) {
            None => Ok(PathMatch::Text(string_match(text))),
            Some(Ok(segments)) => Ok(PathMatch::Template(segments)),
            Some(Err(accepted)) => Err(accepted),
        });
        let texts = texts.collect();
        self.kept(list, texts, positive, "is not a template of paths", path)
    }

    /// The values that could be read. When some could not: in a list that must match, a denial holds for whatever matches the rest and a
    /// permission without them; in a list that must not match, a denial excepts nobody by them and a permission is void.
    fn kept<T>(&mut self, list: &[String], texts: Vec<Result<T, &'static str>>, positive: bool, problem: &str, path: &str) -> Part<Vec<T>> {
        let mut values = Vec::new();
        let mut unreadable = false;
        for (index, (written, text)) in list.iter().zip(texts).enumerate() {
            match text {
                Ok(value) => values.push(value),
                Err(accepted) => {
                    unreadable = true;
                    let effect = match (self.denies, positive) {
                        (true, true) => "its part of the rule denies whoever matches the rest",
                        (true, false) => "it excepts nobody from being denied",
                        (false, true) => "it allows nobody",
                        (false, false) => "its part of the rule allows nobody",
                    };
                    self.findings.push(
                        Finding::new(Level::Error, codes::UNREADABLE_VALUE, self.object.reference())
                            .field(format!("{path}[{index}]"))
                            .found(format!("{written:?}"))
                            .problem(problem)
                            .accepted(accepted)
                            .effect(effect),
                    );
                }
            }
        }
        match (unreadable, self.denies, positive) {
            (true, true, true) => Part::Decided(Vec::new()),
            (true, false, false) => Part::Never,
            (true, false, true) if values.is_empty() => Part::Never,
            _ => Part::Decided(values),
        }
    }

    /// Principals of the mesh's own trust domain, by each of its names.
    fn with_aliases(&self, list: Vec<StringMatch>) -> Vec<StringMatch> {
        let own = &*self.settings.trust_domain;
        if own == LOCAL_DOMAIN {
            return list;
        }
        let renamed = |text: &str| {
            let (domain, rest) = text.split_once('/')?;
            let other = if domain == LOCAL_DOMAIN { own } else { LOCAL_DOMAIN };
            (domain == LOCAL_DOMAIN || domain == own).then(|| Arc::from(format!("{other}/{rest}")))
        };
        let mut all = Vec::new();
        for one in list {
            let alias = match &one {
                StringMatch::Exact(text) => renamed(text).map(StringMatch::Exact),
                StringMatch::Prefix(text) => renamed(text).map(StringMatch::Prefix),
                StringMatch::Suffix(_) | StringMatch::Presence => None,
            };
            all.push(one);
            all.extend(alias);
        }
        all
    }

    fn accounts(&self, list: &[String]) -> Vec<ServiceAccountMatch> {
        let parts = list.iter().map(|text| self.account(text));
        parts.map(|(namespace, account)| ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }).collect()
    }

    fn account_texts(&self, list: &[String]) -> Vec<StringMatch> {
        let texts = list.iter().map(|text| self.account(text));
        texts.map(|(namespace, account)| StringMatch::Exact(format!("{namespace}/{account}").into())).collect()
    }

    fn account<'t>(&'t self, text: &'t str) -> (&'t str, &'t str) {
        text.split_once('/').unwrap_or((&self.object.metadata.namespace, text))
    }
}

/// A trust domain as the beginning of principals; an error for one that begins with `*`, of which principals have no such part.
fn domain(text: &str) -> Result<StringMatch, &'static str> {
    match string_match(text) {
        StringMatch::Exact(domain) => Ok(StringMatch::Prefix(format!("{domain}/").into())),
        StringMatch::Suffix(_) => Err("a trust domain, PREFIX* or *"),
        other => Ok(other),
    }
}

fn attribute(key: &str) -> Option<Attribute> {
    let bracketed = |prefix: &str| key.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']');
    Some(match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::SourceNamespace,
        "source.principal" => Attribute::SourcePrincipal,
        "source.serviceAccount" => Attribute::SourceServiceAccount,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::ServerName,
        "request.auth.principal" => Attribute::TokenPrincipal,
        "request.auth.audiences" => Attribute::TokenAudiences,
        "request.auth.presenter" => Attribute::TokenPresenter,
        _ => {
            if let Some(name) = bracketed("request.headers") {
                return Some(Attribute::RequestHeader(name.to_ascii_lowercase().into()));
            }
            let names = bracketed("request.auth.claims")?;
            Attribute::TokenClaim(names.split("][").map(Arc::from).collect())
        }
    })
}

fn strings(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|text| string_match(text)).collect()
}

fn exact(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|text| StringMatch::Exact(text.as_str().into())).collect()
}

fn blocks(list: &[String]) -> Vec<IpNet> {
    list.iter().filter_map(|text| block(text)).collect()
}

fn block_texts(list: &[String]) -> Vec<StringMatch> {
    blocks(list).iter().map(|block| StringMatch::Exact(block.to_string().into())).collect()
}

fn ports(list: &[String]) -> Vec<u16> {
    list.iter().filter_map(|port| port.parse().ok()).collect()
}
