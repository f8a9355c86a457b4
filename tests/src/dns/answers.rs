//! What the cluster DNS answers: services, headless services with their pods, and SRV records, by the Kubernetes DNS
//! specification (1.1.0). Pure.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::cluster::services::{Backend, ServiceView};

/// How long an answer may be kept; CoreDNS' default for the cluster's names.
const TTL: u32 = 5;
/// Every name of the cluster ends so.
const SUFFIX: [&str; 3] = ["svc", "cluster", "local"];

/// The names of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// Every service.
    pub services: &'a [ServiceView],
}

impl Names<'_> {
    /// The answer to a message; `None` when it is no question.
    pub fn answer(&self, message: &Message) -> Option<Message> {
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let query = message.queries.first()?;
        let mut answer = Message::response(message.metadata.id, message.metadata.op_code);
        answer.metadata.recursion_desired = message.metadata.recursion_desired;
        answer.metadata.authoritative = true;
        answer.add_query(query.clone());
        match self.records(query.name(), query.query_type()) {
            Some(records) => drop(answer.add_answers(records)),
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        Some(answer)
    }

    /// The records of a name; `None`: there is no such name. Empty: there is, but nothing of this type.
    fn records(&self, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
        let labels: Vec<String> = name.iter().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let own = labels.strip_suffix(&SUFFIX)?;
        let addresses = |addresses: Vec<IpAddr>| addresses.into_iter().filter_map(|address| record(name, address, kind)).collect();
        match own {
            // Names of namespaces exist where one of their services does.
            [] => Some(Vec::new()),
            [namespace] => self.services.iter().any(|service| service.key.namespace == *namespace).then(Vec::new),
            [service, namespace] => Some(addresses(self.addresses(self.service(namespace, service)?))),
            [port, protocol, service, namespace] if port.starts_with('_') && protocol.starts_with('_') => {
                let service = self.service(namespace, service)?;
                service_records(name, service, &port[1..], &protocol[1..], kind)
            }
            [pod, service, namespace] => {
                let service = self.service(namespace, service)?;
                let mut named = service.backends.iter().filter(|backend| backend.serves(service) && hostname(backend) == *pod).peekable();
                named.peek()?;
                Some(addresses(named.flat_map(|backend| backend.addresses.both()).collect()))
            }
            _ => None,
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&ServiceView> {
        self.services.iter().find(|service| service.key.namespace == namespace && service.key.name == name)
    }

    fn addresses(&self, service: &ServiceView) -> Vec<IpAddr> {
        if !service.headless {
            return service.addresses.clone();
        }
        let serving = service.backends.iter().filter(|backend| backend.serves(service));
        serving.flat_map(|backend| service.families.iter().map(|family| backend.addresses.of(*family))).collect()
    }
}

/// The name of a pod within a headless service: its host name, else its address with dashes.
fn hostname(backend: &Backend) -> String {
    backend.hostname.clone().unwrap_or_else(|| backend.addresses.v4.to_string().replace('.', "-"))
}

fn service_records(name: &Name, service: &ServiceView, port: &str, protocol: &str, kind: RecordType) -> Option<Vec<Record>> {
    let index = service.ports.iter().position(|one| one.name == port && one.protocol.eq_ignore_ascii_case(protocol))?;
    if kind != RecordType::SRV {
        return Some(Vec::new());
    }
    let domain = format!("{}.{}.svc.cluster.local.", service.key.name, service.key.namespace);
    let record = |target: &str, port| {
        let target = Name::from_ascii(target).ok()?;
        Some(Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, 100, port, target))))
    };
    if !service.headless {
        return Some(record(&domain, service.ports[index].port).into_iter().collect());
    }
    let serving = service.backends.iter().filter(|backend| backend.serves(service));
    Some(
        serving
            .filter_map(|backend| record(&format!("{}.{domain}", hostname(backend)), backend.targets.get(index).copied().flatten()?))
            .collect(),
    )
}

fn record(name: &Name, address: IpAddr, kind: RecordType) -> Option<Record> {
    let data = match (address, kind) {
        (IpAddr::V4(address), RecordType::A) => RData::A(A(address)),
        (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(AAAA(address)),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), TTL, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::object::Key;
    use crate::cluster::services::{ServicePort, Target};
    use crate::network::addresses::{AddressPlan, Family};
    use hickory_proto::op::Query;

    fn services() -> Vec<ServiceView> {
        let plan = AddressPlan::new(0);
        let backend = |number: u8, hostname: Option<&str>, ready| Backend {
            pod: Key::pod("shop", &format!("web-{number}")),
            uid: "u".into(),
            node: "a".into(),
            addresses: plan.pod(1, number),
            ready,
            terminating: false,
            hostname: hostname.map(str::to_owned),
            targets: vec![Some(8080)],
        };
        let service = |name: &str, headless| ServiceView {
            key: Key::new("Service", "shop", name),
            addresses: if headless { Vec::new() } else { plan.service(20).both().to_vec() },
            families: Family::BOTH.to_vec(),
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: "TCP".into(),
                port: 80,
                target: Target::Number(8080),
                app_protocol: None,
            }],
            backends: vec![backend(2, Some("first"), true), backend(3, None, true), backend(4, None, false)],
            selector: Default::default(),
            headless,
            publish_not_ready: false,
        };
        vec![service("web", false), service("direct", true)]
    }

    fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let services = services();
        let answer = Names { services: &services }.answer(&question).expect("an answer");
        assert!(answer.metadata.authoritative);
        (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
    }

    #[test]
    fn a_service_has_its_address_in_each_family() {
        assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::A), (ResponseCode::NoError, vec!["10.96.0.20".into()]));
        assert_eq!(ask("WEB.shop.svc.cluster.local.", RecordType::AAAA), (ResponseCode::NoError, vec!["fd00:10:96::14".into()]));
        assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::TXT), (ResponseCode::NoError, vec![]));
    }

    #[test]
    fn a_headless_service_has_its_ready_pods() {
        assert_eq!(ask("direct.shop.svc.cluster.local.", RecordType::A).1, ["10.244.1.2", "10.244.1.3"]);
        assert_eq!(ask("first.direct.shop.svc.cluster.local.", RecordType::AAAA).1, ["fd00:10:244:1::2"]);
        assert_eq!(ask("10-244-1-3.direct.shop.svc.cluster.local.", RecordType::A).1, ["10.244.1.3"]);
    }

    #[test]
    fn ports_have_service_records() {
        assert_eq!(ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV).1, ["0 100 80 web.shop.svc.cluster.local."]);
        let direct = ask("_http._tcp.direct.shop.svc.cluster.local.", RecordType::SRV).1;
        assert_eq!(direct[0], "0 100 8080 first.direct.shop.svc.cluster.local.");
    }

    #[test]
    fn everything_else_does_not_exist() {
        for name in ["nothing.shop.svc.cluster.local.", "web.other.svc.cluster.local.", "example.org.", "web.shop.", "local."] {
            assert_eq!(ask(name, RecordType::A).0, ResponseCode::NXDomain, "{name}");
        }
        assert_eq!(ask("shop.svc.cluster.local.", RecordType::A).0, ResponseCode::NoError);
    }
}
