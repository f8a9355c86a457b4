//! What is refused for being too many: more than a waypoint takes ([`tropis_model::bounds`]).

use tropis_model::bounds;

use super::{
    authorization_policy::{self, Operation, Rule, Source},
    destination_rule::{self, LoadBalancer},
    virtual_service::{self, Headers, HttpMatch, HttpRoute},
};
use crate::decode::About;

/// Refuses a list with more than `limit` entries.
fn at_most(about: &mut About<'_>, field: &str, found: usize, limit: usize) {
    if found > limit {
        about.refuse(field, format!("{found} entries"), "are too many for one list", &format!("at most {limit}"));
    }
}

pub(crate) fn virtual_service(about: &mut About<'_>, spec: &virtual_service::Spec) {
    for (name, found) in [("http", spec.http.len()), ("tls", spec.tls.len()), ("tcp", spec.tcp.len())] {
        at_most(about, &format!("spec.{name}"), found, bounds::ROUTES);
    }
    for (index, route) in spec.http.iter().enumerate() {
        http(about, route, &format!("spec.http[{index}]"));
    }
    for (index, route) in spec.tls.iter().enumerate() {
        let path = format!("spec.tls[{index}]");
        at_most(about, &format!("{path}.match"), route.matches.len(), bounds::MATCHES);
        at_most(about, &format!("{path}.route"), route.route.len(), bounds::DESTINATIONS);
        for (index, entry) in route.matches.iter().enumerate() {
            let path = format!("{path}.match[{index}]");
            at_most(about, &format!("{path}.sniHosts"), entry.sni_hosts.len(), bounds::VALUES);
            at_most(about, &format!("{path}.destinationSubnets"), entry.destination_subnets.len(), bounds::VALUES);
            at_most(about, &format!("{path}.sourceLabels"), entry.source_labels.len(), bounds::LABELS);
        }
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        let path = format!("spec.tcp[{index}]");
        at_most(about, &format!("{path}.match"), route.matches.len(), bounds::MATCHES);
        at_most(about, &format!("{path}.route"), route.route.len(), bounds::DESTINATIONS);
        for (index, entry) in route.matches.iter().enumerate() {
            let path = format!("{path}.match[{index}]");
            at_most(about, &format!("{path}.destinationSubnets"), entry.destination_subnets.len(), bounds::VALUES);
            at_most(about, &format!("{path}.sourceLabels"), entry.source_labels.len(), bounds::LABELS);
        }
    }
}

fn http(about: &mut About<'_>, route: &HttpRoute, path: &str) {
    at_most(about, &format!("{path}.match"), route.matches.len(), bounds::MATCHES);
    for (index, entry) in route.matches.iter().enumerate() {
        http_match(about, entry, &format!("{path}.match[{index}]"));
    }
    at_most(about, &format!("{path}.route"), route.route.len(), bounds::DESTINATIONS);
    for (index, entry) in route.route.iter().enumerate() {
        headers(about, entry.headers.as_ref(), &format!("{path}.route[{index}].headers"));
    }
    headers(about, route.headers.as_ref(), &format!("{path}.headers"));
    at_most(about, &format!("{path}.mirrors"), route.mirrors.len(), bounds::MIRRORS);
    if let Some(retries) = &route.retries {
        at_most(about, &format!("{path}.retries.retryOn"), retries.retry_on.split(',').count(), bounds::VALUES);
    }
    if let Some(cors) = &route.cors_policy {
        let path = format!("{path}.corsPolicy");
        at_most(about, &format!("{path}.allowOrigins"), cors.allow_origins.len(), bounds::MATCHES);
        at_most(about, &format!("{path}.allowOrigin"), cors.allow_origin.len(), bounds::MATCHES);
        let lists = [("allowMethods", &cors.allow_methods), ("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)];
        for (name, list) in lists {
            at_most(about, &format!("{path}.{name}"), list.len(), bounds::VALUES);
        }
    }
}

fn http_match(about: &mut About<'_>, entry: &HttpMatch, path: &str) {
    let maps = [("headers", &entry.headers), ("withoutHeaders", &entry.without_headers), ("queryParams", &entry.query_params)];
    for (name, matches) in maps {
        at_most(about, &format!("{path}.{name}"), matches.0.len(), bounds::NAMED_MATCHES);
    }
    at_most(about, &format!("{path}.sourceLabels"), entry.source_labels.len(), bounds::LABELS);
}

fn headers(about: &mut About<'_>, headers: Option<&Headers>, path: &str) {
    let sides = headers.into_iter().flat_map(|headers| [("request", &headers.request), ("response", &headers.response)]);
    for (side, operations) in sides {
        for (name, found) in [("set", operations.set.len()), ("add", operations.add.len()), ("remove", operations.remove.len())] {
            at_most(about, &format!("{path}.{side}.{name}"), found, bounds::HEADERS);
        }
    }
}

pub(crate) fn destination_rule(about: &mut About<'_>, spec: &destination_rule::Spec) {
    let own = spec.traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    for (index, subset) in spec.subsets.iter().enumerate() {
        at_most(about, &format!("spec.subsets[{index}].labels"), subset.labels.len(), bounds::LABELS);
    }
    let of_subsets = spec.subsets.iter().enumerate();
    let of_subsets =
        of_subsets.filter_map(|(index, subset)| Some((format!("spec.subsets[{index}].trafficPolicy"), subset.traffic_policy.as_ref()?)));
    for (path, policy) in own.chain(of_subsets) {
        let whole = (path.clone(), &policy.load_balancer, &policy.outlier_detection, &policy.tls);
        let ports = policy.port_level_settings.iter().enumerate();
        let ports = ports
            .map(|(index, port)| (format!("{path}.portLevelSettings[{index}]"), &port.load_balancer, &port.outlier_detection, &port.tls));
        for (path, balancer, outlier, tls) in [whole].into_iter().chain(ports) {
            if let Some(balancer) = balancer {
                load_balancer(about, balancer, &format!("{path}.loadBalancer"));
            }
            let codes = outlier.as_ref().map_or(0, |outlier| outlier.outlier_detection_http_error_codes.len());
            at_most(about, &format!("{path}.outlierDetection.outlierDetectionHttpErrorCodes"), codes, bounds::VALUES);
            let names = tls.as_ref().map_or(0, |tls| tls.subject_alt_names.len());
            at_most(about, &format!("{path}.tls.subjectAltNames"), names, bounds::VALUES);
        }
    }
}

fn load_balancer(about: &mut About<'_>, balancer: &LoadBalancer, path: &str) {
    let cookie = balancer.consistent_hash.as_ref().and_then(|hash| hash.http_cookie.as_ref());
    let attributes = cookie.map_or(0, |cookie| cookie.attributes.len());
    at_most(about, &format!("{path}.consistentHash.httpCookie.attributes"), attributes, bounds::ATTRIBUTES);
    if let Some(setting) = &balancer.locality_lb_setting {
        let path = format!("{path}.localityLbSetting");
        let distribute = setting.distribute.iter().map(|rule| rule.to.len()).chain([setting.distribute.len()]).max().unwrap_or_default();
        let lists =
            [("distribute", distribute), ("failover", setting.failover.len()), ("failoverPriority", setting.failover_priority.len())];
        for (name, found) in lists {
            at_most(about, &format!("{path}.{name}"), found, bounds::LOCALITIES);
        }
    }
}

pub(crate) fn authorization_policy(about: &mut About<'_>, spec: &authorization_policy::Spec) {
    let labels = spec.selector.as_ref().map_or(0, |selector| selector.match_labels.len());
    at_most(about, "spec.selector.matchLabels", labels, bounds::LABELS);
    let rules = spec.rules.as_deref().unwrap_or_default();
    // A source that asks for a trust domain is told as a rule of its own.
    let apart = |rule: &Rule| {
        let asks = |source: &Source| !source.trust_domains.is_empty() || !source.not_trust_domains.is_empty();
        rule.from.iter().flatten().filter(|from| asks(&from.source)).count()
    };
    at_most(about, "spec.rules", rules.len() + rules.iter().map(apart).sum::<usize>(), bounds::RULES);
    for (index, rule) in rules.iter().enumerate() {
        policy_rule(about, rule, &format!("spec.rules[{index}]"));
    }
}

fn policy_rule(about: &mut About<'_>, rule: &Rule, path: &str) {
    at_most(about, &format!("{path}.from"), rule.from.as_ref().map_or(0, Vec::len), bounds::RULES);
    at_most(about, &format!("{path}.to"), rule.to.as_ref().map_or(0, Vec::len), bounds::RULES);
    // One more says which trust domain.
    at_most(about, &format!("{path}.when"), rule.when.as_ref().map_or(0, Vec::len), bounds::RULES - 1);
    for (index, from) in rule.from.iter().flatten().enumerate() {
        source(about, &from.source, &format!("{path}.from[{index}].source"));
    }
    for (index, to) in rule.to.iter().flatten().enumerate() {
        operation(about, &to.operation, &format!("{path}.to[{index}].operation"));
    }
    for (index, condition) in rule.when.iter().flatten().enumerate() {
        for (name, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
            at_most(about, &format!("{path}.when[{index}].{name}"), list.len(), bounds::VALUES);
        }
        at_most(about, &format!("{path}.when[{index}].key"), condition.key.split("][").count(), bounds::VALUES);
    }
}

fn source(about: &mut About<'_>, source: &Source, path: &str) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    for (name, list) in lists {
        at_most(about, &format!("{path}.{name}"), list.len(), bounds::VALUES);
    }
}

fn operation(about: &mut About<'_>, operation: &Operation, path: &str) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    for (name, list) in lists {
        at_most(about, &format!("{path}.{name}"), list.len(), bounds::VALUES);
    }
    let templates = operation.paths.iter().chain(&operation.not_paths).filter(|text| text.contains("{*") || text.contains("*}"));
    let longest = templates.map(|text| text.split('/').count()).max().unwrap_or_default();
    at_most(about, &format!("{path}.paths"), longest, bounds::SEGMENTS);
}
