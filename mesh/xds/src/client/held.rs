//! What a client holds, and what a response makes of it. No I/O: the streams come and go around it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tropis_model::view::Change;
use tropis_proto::xds::DeltaDiscoveryResponse;

use crate::{
    ResourceType,
    convert::{self, Interner, InvalidResource},
};

/// Responses that are kept at most for one that they belong to. Servers send one of each type, and again what changes meanwhile.
const MAX_CONTINUED: usize = 64;

/// Names that were accepted, each with its version, and what is to be put in force with what follows.
#[derive(Debug, Default)]
pub(super) struct Held {
    accepted: HashMap<ResourceType, HashMap<Arc<str>, String>>,
    waiting: Together,
    /// Responses that it is of.
    responses: usize,
}

/// What is put in force together.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Together {
    /// The types of the responses, each with the version of the last one.
    pub(super) versions: BTreeMap<ResourceType, Arc<str>>,
    pub(super) changes: Vec<Change>,
}

/// What a response says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Absorbed {
    /// To put in force: updates, then removals.
    pub(super) changes: Vec<Change>,
    /// Refused resources by name.
    pub(super) rejections: Vec<(String, InvalidResource)>,
}

impl Held {
    /// `initial_resource_versions` of the next stream. A stand-in for a refused policy has an empty version: the server sends the
    /// policy again, or tells that it is gone.
    pub(super) fn versions(&self, r#type: ResourceType) -> BTreeMap<String, String> {
        let held = self.accepted.get(&r#type).into_iter().flatten();
        held.map(|(name, version)| (name.to_string(), version.clone())).collect()
    }

    /// Keeps the changes of a response of `version` until those that it belongs to are there as well, and gives what is to be put in force
    /// now. What a broken stream leaves is put in force with what the next one brings.
    pub(super) fn gather(&mut self, r#type: ResourceType, version: Arc<str>, changes: Vec<Change>, continued: bool) -> Option<Together> {
        self.waiting.versions.insert(r#type, version);
        self.waiting.changes.extend(changes);
        self.responses += 1;
        if continued && self.responses < MAX_CONTINUED {
            return None;
        }
        self.responses = 0;
        Some(std::mem::take(&mut self.waiting))
    }

    /// Decodes a response and remembers what of it was accepted. A response of an unknown type changes nothing and is acknowledged.
    pub(super) fn absorb(&mut self, response: DeltaDiscoveryResponse) -> Absorbed {
        let mut absorbed = Absorbed::default();
        let mut strings = Interner::default();
        let Some(r#type) = ResourceType::from_url(&response.type_url) else {
            tracing::warn!(type_url = response.type_url, "response of an unknown type ignored");
            return absorbed;
        };
        let held = self.accepted.entry(r#type).or_default();
        for resource in response.resources {
            match convert::decode(r#type, &resource, &mut strings) {
                Ok(change) => {
                    absorbed.changes.push(change);
                    held.insert(resource.name.into(), resource.version);
                }
                Err(reason) => {
                    if r#type == ResourceType::Authorization
                        && !held.contains_key(resource.name.as_str())
                        && let Some(stand_in) = convert::denying_policy(&resource)
                    {
                        absorbed.changes.push(Change::Policy(Arc::new(stand_in)));
                        held.insert(resource.name.as_str().into(), String::new());
                    }
                    absorbed.rejections.push((resource.name, reason));
                }
            }
        }
        for name in response.removed_resources {
            held.remove(name.as_str());
            absorbed.changes.extend(convert::removal(r#type, &name));
        }
        absorbed
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tropis_model::policy::{Action, PolicyKey, PolicyScope};
    use tropis_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, HOST_TYPE, security, waypoint, workload, xds::Resource};

    use super::*;

    fn policy(name: &str, version: &str, scope: i32) -> Resource {
        let message = security::Authorization { namespace: "ns".into(), name: name.into(), scope, ..Default::default() };
        let any = prost_types::Any { type_url: AUTHORIZATION_TYPE.into(), value: message.encode_to_vec() };
        Resource { name: format!("ns/{name}"), version: version.into(), resource: Some(any), ..Default::default() }
    }

    fn pod(uid: &str, version: &str, tunnel_protocol: i32) -> Resource {
        let pod = workload::Workload { uid: uid.into(), tunnel_protocol, ..Default::default() };
        let message = workload::Address { r#type: Some(workload::address::Type::Workload(pod)) };
        let any = prost_types::Any { type_url: ADDRESS_TYPE.into(), value: message.encode_to_vec() };
        Resource { name: uid.into(), version: version.into(), resource: Some(any), ..Default::default() }
    }

    fn response(type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: type_url.into(),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn good_resources_apply_beside_refused_ones_which_keep_their_accepted_version() {
        let mut held = Held::default();
        held.absorb(response(ADDRESS_TYPE, vec![pod("a", "1", 1), pod("b", "1", 0)], &[]));
        let absorbed = held.absorb(response(ADDRESS_TYPE, vec![pod("a", "2", 2), pod("b", "2", 1), pod("c", "2", 9)], &[]));
        assert_eq!(absorbed.changes.len(), 1, "only b");
        let refused: Vec<&str> = absorbed.rejections.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(refused, ["a", "c"]);
        let versions = held.versions(ResourceType::Address);
        assert_eq!(versions, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]), "c was never accepted");
    }

    #[test]
    fn removals_come_after_updates_and_are_forgotten() {
        let mut held = Held::default();
        held.absorb(response(ADDRESS_TYPE, vec![pod("a", "1", 0)], &[]));
        let absorbed = held.absorb(response(ADDRESS_TYPE, vec![pod("b", "1", 0)], &["a", "ns/unheard-of"]));
        assert!(matches!(absorbed.changes[0], Change::Workload(_)));
        assert_eq!(absorbed.changes[1..], [Change::RemoveAddress("a".into()), Change::RemoveAddress("ns/unheard-of".into())]);
        assert_eq!(held.versions(ResourceType::Address).into_keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_policy_that_was_never_accepted_denies_until_it_is_good_or_gone() {
        let mut held = Held::default();
        let absorbed = held.absorb(response(AUTHORIZATION_TYPE, vec![policy("new", "1", 9)], &[]));
        let [Change::Policy(stand_in)] = absorbed.changes.as_slice() else { panic!("{absorbed:?}") };
        assert_eq!((stand_in.action, stand_in.scope), (Action::Deny, PolicyScope::Namespace));
        assert_eq!(held.versions(ResourceType::Authorization), BTreeMap::from([("ns/new".into(), String::new())]));

        let absorbed = held.absorb(response(AUTHORIZATION_TYPE, vec![policy("new", "2", 1)], &[]));
        assert!(absorbed.rejections.is_empty());
        let absorbed = held.absorb(response(AUTHORIZATION_TYPE, vec![policy("new", "3", 9)], &[]));
        assert!(absorbed.changes.is_empty(), "the accepted version stays in force: {absorbed:?}");
        assert_eq!(held.versions(ResourceType::Authorization), BTreeMap::from([("ns/new".into(), "2".into())]));
        let absorbed = held.absorb(response(AUTHORIZATION_TYPE, vec![], &["ns/new"]));
        assert_eq!(absorbed.changes, [Change::RemovePolicy(PolicyKey("ns/new".into()))]);
    }

    #[test]
    fn a_refused_host_leaves_the_others_and_its_own_last_good_one() {
        let host = |name: &str, version: &str, port: u32| {
            let port = waypoint::HostPort { port, ..Default::default() };
            let message = waypoint::Host { namespace: "ns".into(), hostname: name.into(), ports: vec![port], ..Default::default() };
            let any = prost_types::Any { type_url: HOST_TYPE.into(), value: message.encode_to_vec() };
            Resource { name: format!("ns/{name}"), version: version.into(), resource: Some(any), ..Default::default() }
        };
        let mut held = Held::default();
        held.absorb(response(HOST_TYPE, vec![host("a", "1", 80)], &[]));
        let absorbed = held.absorb(response(HOST_TYPE, vec![host("a", "2", 65_536), host("b", "2", 80), host("c", "2", 0)], &[]));
        assert_eq!(absorbed.changes.len(), 1, "only b");
        let refused: Vec<String> = absorbed.rejections.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        assert_eq!(refused, ["ns/a: ports.port: 65536 is not a port", "ns/c: ports.port: 0 is not a port"]);
        let versions = held.versions(ResourceType::Host);
        assert_eq!(versions, BTreeMap::from([("ns/a".into(), "1".into()), ("ns/b".into(), "2".into())]), "c has none: nothing is routed");
        let absorbed = held.absorb(response(HOST_TYPE, vec![], &["ns/a", "no-slash"]));
        let name = tropis_model::address::NamespacedHostname { namespace: "ns".into(), hostname: "a".into() };
        assert_eq!(absorbed.changes, [Change::RemoveHost(name)]);
    }

    #[test]
    fn what_is_continued_waits_for_what_follows_but_not_for_ever() {
        let change = |name: &str| Change::RemoveAddress(name.into());
        let mut held = Held::default();
        assert_eq!(held.gather(ResourceType::Address, "1".into(), vec![change("a")], true), None);
        assert_eq!(held.gather(ResourceType::Address, "2".into(), vec![change("b")], true), None);
        let Together { versions, changes } = held.gather(ResourceType::Host, "2".into(), vec![change("c")], false).unwrap();
        assert_eq!(versions, BTreeMap::from([(ResourceType::Address, "2".into()), (ResourceType::Host, "2".into())]));
        assert_eq!(changes, ["a", "b", "c"].map(change));
        assert_eq!(held.gather(ResourceType::Host, "3".into(), vec![change("d")], false).unwrap().changes, [change("d")]);
        let mut endless = (0..).map(|_| held.gather(ResourceType::Address, "4".into(), vec![change("e")], true));
        let Together { changes, .. } = endless.by_ref().take(MAX_CONTINUED).find_map(|gathered| gathered).unwrap();
        assert_eq!(changes.len(), MAX_CONTINUED);
    }

    #[test]
    fn an_unknown_type_changes_nothing() {
        let mut held = Held::default();
        assert_eq!(held.absorb(response("type.googleapis.com/moon", vec![pod("a", "1", 0)], &["b"])), Absorbed::default());
    }
}
