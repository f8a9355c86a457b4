//! What there is to tell about a VirtualService, whoever uses it.

mod reach;
mod references;

use std::sync::Arc;

use tropis_crds::{Finding, Object, codes};

use super::{delegate_key, in_mesh};
use crate::{
    Index,
    destination_rule::shown,
    index::{Key, key_of, virtual_hosts},
};

/// What is to be told about a VirtualService: what it names and does not exist, rules that are never reached, others for the same host.
pub fn findings(index: &Index, object: &Arc<Object>) -> Vec<Finding> {
    let Some(service) = object.virtual_service() else { return Vec::new() };
    let spec = &service.spec;
    let mut findings = Vec::new();
    if spec.hosts.is_empty() {
        findings.extend(undelegated(index, object));
    } else {
        findings.extend(references::gateways(index, object));
        if in_mesh(&spec.gateways) {
            findings.extend(references::hosts(index, object));
            findings.extend(conflicts(index, object));
        }
    }
    findings.extend(references::destinations(index, object));
    findings.extend(references::delegates(index, object));
    findings.extend(reach::unreachable(index, object));
    findings.extend(reach::unmatchable(object));
    findings
}

/// One without hosts that nobody delegates to.
fn undelegated(index: &Index, object: &Object) -> Option<Finding> {
    let key: Key = key_of(object);
    let delegates = |root: &Arc<Object>| {
        root.virtual_service()
            .is_some_and(|root_service| root_service.spec.http.iter().any(|route| delegate_key(root, route).as_ref() == Some(&key)))
    };
    if index.virtual_services().any(delegates) {
        return None;
    }
    Some(
        Finding::warning(codes::INEFFECTIVE_POLICY, object.reference())
            .field("spec.hosts")
            .problem("is missing, and no other VirtualService delegates to this one")
            .accepted("the services whose traffic is routed, for example \"reviews\"")
            .effect("no request is routed by it"),
    )
}

/// Older ones in the mesh for one of its hosts.
fn conflicts(index: &Index, object: &Object) -> Vec<Finding> {
    let own = object.reference();
    let mut findings = Vec::new();
    for (place, host) in virtual_hosts(index.settings(), object).iter().enumerate() {
        let same = index.virtual_services_for(host).into_iter().filter(|other| {
            let meshed = other.virtual_service().is_some_and(|service| in_mesh(&service.spec.gateways));
            meshed && virtual_hosts(index.settings(), other).contains(host)
        });
        let older: Vec<String> = same.take_while(|other| other.reference() != own).map(|other| shown(other)).collect();
        if older.is_empty() {
            continue;
        }
        findings.push(
            Finding::warning(codes::CONFLICTING_HOSTS, own.clone())
                .field(format!("spec.hosts[{place}]"))
                .found(format!("{host:?}"))
                .problem(format!("is routed by the older VirtualService {} too", older.join(" and ")))
                .accepted("one VirtualService for a host")
                .effect("rules of the older one are tried first; this one's take what those leave over"),
        );
    }
    findings
}
