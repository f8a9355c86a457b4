//! Services as the cluster completes them: addresses of both families, and which ready pods stand behind each port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::object::{Key, selects, strings};
use super::pods::{PodRecord, Pods};
use crate::network::addresses::{AddressPair, AddressPlan, FIRST_SERVICE_INDEX, Family};

/// A service's place in the address ranges, by key. Kept for as long as the service exists.
#[derive(Debug, Default)]
pub struct ServiceAddresses {
    taken: BTreeMap<Key, u16>,
}

/// The service range ends here (`/112` and `/16` alike).
const LAST_SERVICE_INDEX: u16 = u16::MAX - 1;

impl ServiceAddresses {
    /// The place of `key`, a new one if it has none. `wanted` is an address that the user asked for.
    pub fn place(&mut self, key: &Key, wanted: Option<u16>) -> Option<u16> {
        if let Some(place) = self.taken.get(key) {
            return Some(*place);
        }
        let used: BTreeSet<u16> = self.taken.values().copied().collect();
        let free = |place: &u16| !used.contains(place);
        let place = wanted.filter(free).or_else(|| (FIRST_SERVICE_INDEX..LAST_SERVICE_INDEX).find(free))?;
        self.taken.insert(key.clone(), place);
        Some(place)
    }

    /// The place that `key` has.
    pub fn of(&self, key: &Key) -> Option<u16> {
        self.taken.get(key).copied()
    }

    /// Frees the places of services that are gone.
    pub fn keep(&mut self, exists: impl Fn(&Key) -> bool) {
        self.taken.retain(|key, _| exists(key));
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty when it has none.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The service's port.
    pub port: u16,
    /// The container's port: a number or a name.
    pub target: Target,
    /// `appProtocol`, if said.
    pub app_protocol: Option<String>,
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A number.
    Number(u16),
    /// The name of a container port; each pod may mean another number.
    Name(String),
}

/// A service as kube-proxy, DNS and the endpoint controller see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// Which.
    pub key: Key,
    /// Its cluster addresses; none when headless.
    pub addresses: Vec<IpAddr>,
    /// Its families.
    pub families: Vec<Family>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The pods behind it.
    pub backends: Vec<Backend>,
    /// Its selector.
    pub selector: BTreeMap<String, String>,
    /// Whether it says `clusterIP: None`.
    pub headless: bool,
    /// Whether pods count before they are ready.
    pub publish_not_ready: bool,
}

/// A pod behind a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// The pod.
    pub pod: Key,
    /// The pod's uid.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: AddressPair,
    /// Whether it may be sent traffic.
    pub ready: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// `spec.hostname`, when `spec.subdomain` is this service.
    pub hostname: Option<String>,
    /// The number that each port of the service means here, in the service's order; `None` if the name means nothing here.
    pub targets: Vec<Option<u16>>,
}

/// Reads a service and completes it. `None`: it has no addresses of ours (`ExternalName`).
pub fn view(key: &Key, service: &Value, places: &mut ServiceAddresses, plan: AddressPlan, pods: &Pods) -> Option<ServiceView> {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return None;
    }
    let families = families(spec);
    let headless = spec["clusterIP"] == "None";
    let addresses = if headless {
        Vec::new()
    } else {
        let place = places.place(key, wanted_place(spec, plan))?;
        let pair = plan.service(place);
        families.iter().map(|family| pair.of(*family)).collect()
    };
    let ports: Vec<ServicePort> = spec["ports"].as_array().into_iter().flatten().filter_map(port).collect();
    let selector = strings(spec, "/selector");
    let backends = pods
        .iter()
        .filter(|(pod, record)| pod.namespace == key.namespace && selects(&selector, &strings(&record.template, "/metadata/labels")))
        .filter_map(|(pod, record)| backend(key, pod, record, &ports))
        .collect();
    let publish_not_ready = spec["publishNotReadyAddresses"] == true;
    Some(ServiceView { key: key.clone(), addresses, families, ports, backends, selector, headless, publish_not_ready })
}

impl Backend {
    /// Whether traffic goes there.
    pub fn serves(&self, service: &ServiceView) -> bool {
        self.ready || service.publish_not_ready
    }
}

/// Both families unless the service names its own.
fn families(spec: &Value) -> Vec<Family> {
    let named: Vec<Family> = spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|family| match family.as_str()? {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    match (named.is_empty(), spec["ipFamilyPolicy"].as_str()) {
        (false, Some("PreferDualStack" | "RequireDualStack")) | (true, _) if spec["ipFamilyPolicy"] != "SingleStack" => {
            let first = named.first().copied().unwrap_or(Family::V4);
            let second = if first == Family::V4 { Family::V6 } else { Family::V4 };
            vec![first, second]
        }
        (true, _) => vec![Family::V4],
        (false, _) => named,
    }
}

/// The place of an address that the user wrote, if it lies in our ranges.
fn wanted_place(spec: &Value, plan: AddressPlan) -> Option<u16> {
    let address: IpAddr = spec["clusterIP"].as_str()?.parse().ok()?;
    (1..LAST_SERVICE_INDEX).find(|place| plan.service(*place).both().contains(&address))
}

fn port(value: &Value) -> Option<ServicePort> {
    let port = u16::try_from(value["port"].as_u64()?).ok()?;
    let target = match &value["targetPort"] {
        Value::String(name) => name.parse().map_or_else(|_| Target::Name(name.clone()), Target::Number),
        Value::Number(number) => Target::Number(number.as_u64().and_then(|number| u16::try_from(number).ok())?),
        _ => Target::Number(port),
    };
    Some(ServicePort {
        name: value["name"].as_str().unwrap_or_default().to_owned(),
        protocol: value["protocol"].as_str().unwrap_or("TCP").to_owned(),
        port,
        target,
        app_protocol: value["appProtocol"].as_str().map(str::to_owned),
    })
}

fn backend(service: &Key, key: &Key, record: &PodRecord, ports: &[ServicePort]) -> Option<Backend> {
    let spec = &record.template["spec"];
    let hostname = spec["hostname"].as_str().filter(|_| spec["subdomain"] == service.name.as_str());
    Some(Backend {
        pod: key.clone(),
        uid: record.uid.clone(),
        node: record.node.clone()?,
        addresses: record.status.addresses?,
        ready: record.status.ready() && record.deleting.is_none(),
        terminating: record.deleting.is_some(),
        hostname: hostname.map(str::to_owned),
        targets: ports.iter().map(|port| resolve(&port.target, spec)).collect(),
    })
}

fn resolve(target: &Target, spec: &Value) -> Option<u16> {
    let name = match target {
        Target::Number(number) => return Some(*number),
        Target::Name(name) => name,
    };
    let containers = spec["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let port = ports.find(|port| port["name"] == name.as_str())?;
    u16::try_from(port["containerPort"].as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(spec: Value) -> Option<ServiceView> {
        let key = Key::new("Service", "shop", "web");
        view(&key, &json!({ "spec": spec }), &mut ServiceAddresses::default(), AddressPlan::new(0), &Pods::new())
    }

    #[test]
    fn services_have_both_families_unless_they_say_otherwise() {
        let ports = json!([{"port": 80}]);
        let of = |spec: Value| read(spec).expect("a service").addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(json!({"ports": ports})), ["10.96.0.20", "fd00:10:96::14"]);
        assert_eq!(of(json!({"ports": ports, "ipFamilyPolicy": "SingleStack"})), ["10.96.0.20"]);
        assert_eq!(of(json!({"ports": ports, "ipFamilies": ["IPv6"]})), ["fd00:10:96::14"]);
        assert_eq!(
            of(json!({"ports": ports, "ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"})),
            ["fd00:10:96::14", "10.96.0.20"]
        );
        assert_eq!(of(json!({"ports": ports, "clusterIP": "10.96.0.99", "ipFamilies": ["IPv4"]})), ["10.96.0.99"]);
        assert!(of(json!({"ports": ports, "clusterIP": "None"})).is_empty());
        assert_eq!(read(json!({"type": "ExternalName", "externalName": "example.org"})), None);
    }

    #[test]
    fn ports_default_to_tcp_and_their_own_number() {
        let service = read(json!({"ports": [{"port": 80}, {"port": 81, "targetPort": "http"}, {"port": 82, "targetPort": "8082"}]}))
            .expect("a service");
        assert_eq!((service.ports[0].protocol.as_str(), &service.ports[0].target), ("TCP", &Target::Number(80)));
        assert_eq!(service.ports[1].target, Target::Name("http".into()));
        assert_eq!(service.ports[2].target, Target::Number(8082));
    }

    #[test]
    fn a_named_port_is_what_the_pod_says() {
        let spec = json!({"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]});
        assert_eq!(resolve(&Target::Name("http".into()), &spec), Some(8080));
        assert_eq!(resolve(&Target::Name("grpc".into()), &spec), None);
    }

    #[test]
    fn places_are_kept_and_given_back() {
        let mut places = ServiceAddresses::default();
        let key = |name: &str| Key::new("Service", "shop", name);
        assert_eq!(places.place(&key("one"), None), Some(20));
        assert_eq!(places.place(&key("two"), None), Some(21));
        assert_eq!(places.place(&key("one"), None), Some(20));
        places.keep(|key| key.name == "two");
        assert_eq!(places.place(&key("three"), None), Some(20));
    }
}
