//! Which names are ours, and what they mean: decided on one view, without I/O.
//!
//! A name is tried as it was asked, then as Kubernetes' search list would complete it, then without a search suffix that the pod's own
//! resolver appended (answered with a CNAME); each exactly and then by wildcard, the longest first.

use std::net::IpAddr;

use tropis_model::{
    service::{HealthPolicy, IpFamilies, Service, Visibility},
    view::View,
    workload::{Health, Workload},
};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// A.
    V4,
    /// AAAA.
    V6,
}

/// A question for addresses.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The pod that asks.
    pub client: &'a Workload,
    /// What Kubernetes names end in: `cluster.local`.
    pub domain: &'a str,
    /// The name, in lower case, without the final dot.
    pub name: &'a str,
    /// Of which family.
    pub family: Family,
}

/// What the mesh knows about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is ours. No addresses means: there is such a name, but none of that family.
    Here {
        /// The name without the search suffix, if one was appended.
        alias: Option<String>,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// It is not ours: the resolver that was asked knows.
    Elsewhere,
}

/// Decides about a name.
pub fn answer(view: &View, question: &Question<'_>) -> Answer {
    let Question { client, domain, name, .. } = *question;
    if name.is_empty() {
        return Answer::Elsewhere;
    }
    let here = |service: &Service, alias: Option<String>| Answer::Here { alias, addresses: addresses(view, service, question) };
    let asked = std::iter::once(name.to_owned()).chain(completions(name, &client.namespace, domain));
    for candidate in asked {
        if let Some((service, _)) = find(view, question, &candidate) {
            return here(service, None);
        }
    }
    let suffixes = [format!(".{}.svc.{domain}", client.namespace), format!(".svc.{domain}"), format!(".{domain}")];
    for suffix in &suffixes {
        let Some(stripped) = name.strip_suffix(suffix.as_str()).filter(|stripped| !stripped.is_empty()) else { continue };
        let asked = std::iter::once(stripped.to_owned()).chain(completions(stripped, &client.namespace, domain));
        for candidate in asked {
            if let Some((service, wildcard)) = find(view, question, &candidate) {
                return here(service, (!wildcard).then(|| stripped.to_owned()));
            }
        }
    }
    Answer::Elsewhere
}

/// The full Kubernetes names that a shorter one may stand for, by its number of labels.
fn completions(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let in_cluster = format!("{name}.svc.{domain}");
    let in_namespace = format!("{name}.{namespace}.svc.{domain}");
    let in_domain = format!("{name}.{domain}");
    let ends_in_svc = name.ends_with(".svc");
    match name.split('.').count() {
        1 => vec![in_namespace],
        2 => vec![in_cluster, in_namespace],
        3 if ends_in_svc => vec![in_domain, in_cluster],
        3 => vec![in_cluster],
        4 if ends_in_svc => vec![in_domain],
        _ => Vec::new(),
    }
}

/// The service of this very name, or of the longest wildcard that covers it; and whether it was a wildcard.
fn find<'a>(view: &'a View, question: &Question<'_>, name: &str) -> Option<(&'a Service, bool)> {
    if let Some(service) = choose(view, question, name) {
        return Some((service, false));
    }
    let mut rest = name;
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some(service) = choose(view, question, &format!("*.{parent}")) {
            return Some((service, true));
        }
        rest = parent;
    }
    None
}

/// Among services of one hostname that a client may see and that have something to answer: its own namespace's, then the canonical
/// one, then the first.
fn choose<'a>(view: &'a View, question: &Question<'_>, hostname: &str) -> Option<&'a Service> {
    let namespace = &question.client.namespace;
    let kubernetes = format!(".svc.{}", question.domain);
    let answerable = |service: &&Service| {
        let own = service.hostname.namespace == *namespace;
        let visible = service.visibility == Visibility::Public || own;
        visible && (!service.addresses.is_empty() || service.hostname.hostname.ends_with(&kubernetes))
    };
    let services = view.services_by_hostname(hostname).map(AsRef::as_ref).filter(answerable);
    services.min_by_key(|service: &&Service| (service.hostname.namespace != *namespace, !service.canonical))
}

fn addresses(view: &View, service: &Service, question: &Question<'_>) -> Vec<IpAddr> {
    let offered = match (service.ip_families, question.family) {
        (IpFamilies::Ipv4Only, Family::V6) | (IpFamilies::Ipv6Only, Family::V4) => false,
        (IpFamilies::Automatic | IpFamilies::Dual | IpFamilies::Ipv4Only | IpFamilies::Ipv6Only, _) => true,
    };
    if !offered {
        return Vec::new();
    }
    let wanted = |address: &IpAddr| address.is_ipv4() == (question.family == Family::V4);
    let network = &question.client.network;
    if !service.addresses.is_empty() {
        let single = service.addresses.iter().filter(|own| own.network == *network && own.block.prefix_len() == own.block.max_prefix_len());
        return single.map(|own| own.block.addr()).filter(wanted).collect();
    }
    let healthy =
        |workload: &Workload| workload.health == Health::Healthy || service.load_balancing.health_policy == HealthPolicy::AllowAll;
    let endpoints =
        view.endpoints(&service.hostname).filter(|endpoint| healthy(endpoint.workload) && endpoint.workload.network == *network);
    endpoints.filter_map(|endpoint| endpoint.workload.addresses.iter().copied().find(|address| wanted(address))).collect()
}

#[cfg(test)]
mod tests;
