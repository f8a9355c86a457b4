//! The graph as a function of facts.

use serde_json::{Value, json};

use super::{
    numbers::{self, tests::line},
    proxies::Ejection,
    *,
};

const TLS: &str = "connection_security_policy=\"mutual_tls\"";
const PLAIN: &str = "connection_security_policy=\"unknown\"";

/// A shop of three workloads and a waypoint.
fn inventory() -> Inventory {
    Inventory::with(&[("shop", "web"), ("shop", "cart"), ("shop", "waypoint"), ("plain", "old")])
}

fn ztunnel() -> Proxy {
    Proxy::Ztunnel("a".to_owned())
}

fn waypoint() -> Proxy {
    Proxy::Waypoint("shop".to_owned(), "waypoint".to_owned())
}

/// Two seconds, before which proxies had counted nothing but `before`.
fn facts(said: &[(Proxy, &[String])], before: &[(Proxy, &[String])]) -> Facts {
    let read = |lines: &[String]| numbers::read(&lines.concat());
    let now: BTreeMap<Proxy, _> = said.iter().map(|(proxy, lines)| (proxy.clone(), read(lines))).collect();
    let old: BTreeMap<Proxy, _> = before.iter().map(|(proxy, lines)| (proxy.clone(), read(lines))).collect();
    let since = |proxy: &Proxy, numbers| numbers::since(numbers, old.get(proxy).unwrap_or(&Default::default()));
    Facts {
        inventory: inventory(),
        moved: now.iter().map(|(proxy, numbers)| (proxy.clone(), since(proxy, numbers))).collect(),
        proxies: Some(now.into_iter().map(|(proxy, numbers)| (proxy, Ok(Said { numbers, ejected: Vec::new() }))).collect()),
        window: Duration::from_secs(2),
        unasked: 0,
    }
}

fn json(facts: &Facts) -> Value {
    serde_json::to_value(draw(facts)).unwrap()
}

fn edge<'a>(graph: &'a Value, from: &str, to: &str) -> &'a Value {
    let edges = graph["edges"].as_array().unwrap();
    edges.iter().find(|edge| edge["from"] == from && edge["to"] == to).unwrap_or_else(|| panic!("{from} -> {to} is not in {graph}"))
}

#[test]
fn requests_are_drawn_to_the_waypoint_and_on_to_who_answered() {
    let requests = |to: &str, code: u16, count| {
        line("istio_requests_total", "waypoint", ["shop/web", to], &format!("response_code=\"{code}\",{TLS}"), count)
    };
    let at_the_waypoint = [requests("shop/cart", 200, 18), requests("shop/cart", 503, 2), requests("nobody", 503, 4)];
    let bytes = |from: &str, to: &str, reporter: &str, count| line("istio_tcp_sent_bytes_total", reporter, [from, to], TLS, count);
    let at_the_node = [bytes("shop/web", "shop/waypoint", "source", 6000), bytes("shop/waypoint", "shop/cart", "destination", 2000)];
    let graph = json(&facts(&[(waypoint(), &at_the_waypoint), (ztunnel(), &at_the_node)], &[]));
    let inward = edge(&graph, "shop/web", "shop/waypoint");
    assert_eq!(
        (&inward["requestsPerSecond"], &inward["failedShare"], &inward["bytesPerSecond"], &inward["security"]),
        (&json!(12.0), &json!(0.25), &json!(3000.0), &json!("mutualTls"))
    );
    let onward = edge(&graph, "shop/waypoint", "shop/cart");
    assert_eq!(
        (&onward["requestsPerSecond"], &onward["failedShare"], &onward["bytesPerSecond"], &onward["security"]),
        (&json!(10.0), &json!(0.1), &json!(1000.0), &json!("mutualTls"))
    );
    assert_eq!(graph["edges"].as_array().unwrap().len(), 2, "{graph}");
    let roles: Vec<_> = graph["nodes"].as_array().unwrap().iter().map(|node| (&node["id"], &node["role"])).collect();
    assert!(roles.contains(&(&json!("shop/waypoint"), &json!("waypoint"))), "{roles:?}");
}

#[test]
fn a_caller_that_the_waypoint_knows_by_its_identity_alone_is_its_workload() {
    let by = |account: &str| {
        let principal = format!("response_code=\"200\",source_principal=\"spiffe://cluster.local/ns/shop/sa/{account}\",{TLS}");
        line("istio_requests_total", "waypoint", ["nobody", "shop/cart"], &principal, 4)
    };
    let graph = json(&facts(&[(waypoint(), &[by("web"), by("stranger")])], &[]));
    assert_eq!(edge(&graph, "shop/web", "shop/waypoint")["requestsPerSecond"], 2.0);
    assert_eq!(edge(&graph, "/callers", "shop/waypoint")["requestsPerSecond"], 2.0);
}

#[test]
fn of_callers_that_share_an_account_the_node_proxy_knows_which_one_it_is() {
    let principal = format!("response_code=\"200\",source_principal=\"spiffe://cluster.local/ns/shop/sa/shared\",{TLS}");
    let requests = [line("istio_requests_total", "waypoint", ["nobody", "shop/cart"], &principal, 4)];
    let bytes = |from: &str| line("istio_tcp_sent_bytes_total", "source", [from, "shop/waypoint"], TLS, 10);
    let drawn = |bytes: &[String]| {
        let mut facts = facts(&[(waypoint(), &requests), (ztunnel(), bytes)], &[]);
        facts.inventory = Inventory::with(&[("shop", "cart"), ("shop", "waypoint")]).and_sharing_an_account(&["one", "other"]);
        json(&facts)
    };
    let graph = drawn(&[bytes("shop/one")]);
    assert_eq!(edge(&graph, "shop/one", "shop/waypoint")["requestsPerSecond"], 2.0);
    let graph = drawn(&[bytes("shop/one"), bytes("shop/other")]);
    assert_eq!(edge(&graph, "/callers", "shop/waypoint")["requestsPerSecond"], 2.0);
    assert_eq!(edge(&graph, "shop/one", "shop/waypoint")["requestsPerSecond"], 0.0);
}

#[test]
fn one_connection_that_both_ends_count_is_drawn_once() {
    let sent = |reporter: &str| line("istio_tcp_sent_bytes_total", reporter, ["shop/web", "shop/cart"], TLS, 500);
    let graph = json(&facts(&[(ztunnel(), &[sent("source"), sent("destination")])], &[]));
    assert_eq!(edge(&graph, "shop/web", "shop/cart")["bytesPerSecond"], 250.0);
}

#[test]
fn a_lock_is_closed_only_when_nobody_saw_anything_plain() {
    let bytes =
        |reporter: &str, policy: &str, count| line("istio_tcp_sent_bytes_total", reporter, ["shop/web", "shop/cart"], policy, count);
    let security = |now: &[String], before: &[String]| {
        let graph = json(&facts(&[(ztunnel(), now)], &[(ztunnel(), before)]));
        edge(&graph, "shop/web", "shop/cart")["security"].clone()
    };
    assert_eq!(security(&[bytes("source", TLS, 9)], &[]), "mutualTls");
    assert_eq!(security(&[bytes("source", TLS, 9), bytes("destination", PLAIN, 9)], &[]), "mixed");
    assert_eq!(security(&[bytes("destination", PLAIN, 9)], &[]), "plain");
    let both = [bytes("source", TLS, 9), bytes("source", PLAIN, 5)];
    assert_eq!(security(&both, &[bytes("source", TLS, 1), bytes("source", PLAIN, 5)]), "mutualTls", "the plain time is over");
    assert_eq!(security(&both, &both), "mixed", "of an edge that rests, all its time counts");
}

#[test]
fn a_connection_that_was_refused_was_not_plain() {
    let counted = |name: &str| line(name, "destination", ["plain/old", "shop/cart"], PLAIN, 4);
    let refused = [counted("istio_tcp_connections_opened_total"), counted("istio_tcp_connections_failed_total")];
    let graph = json(&facts(&[(ztunnel(), &refused)], &[]));
    let edge = edge(&graph, "plain/old", "shop/cart");
    assert_eq!((&edge["security"], &edge["brokenPerSecond"], &edge["active"]), (&json!("unknown"), &json!(2.0), &json!(true)));
}

#[test]
fn who_is_ejected_is_told_with_the_time_left() {
    let out = |seconds| Ejection {
        pool: "shop/cart.shop.svc.cluster.local:80".to_owned(),
        workload: "c//Pod/shop/cart".to_owned(),
        address: "10.0.0.1:80".to_owned(),
        remaining: Duration::from_secs(seconds),
    };
    let mut facts = facts(&[], &[]);
    let said = Said { ejected: vec![out(3), out(4), Ejection { workload: "c//Pod/shop/gone".to_owned(), ..out(9) }], ..Said::default() };
    facts.proxies = Some([(waypoint(), Ok(said))].into());
    let graph = json(&facts);
    assert_eq!(
        graph["ejected"],
        json!([{
            "node": "shop/cart", "by": "shop/waypoint", "pool": "shop/cart.shop.svc.cluster.local:80", "address": "10.0.0.1:80",
            "secondsLeft": 4.0,
        }])
    );
}

#[test]
fn strangers_are_outside_and_what_is_gone_goes_when_it_rests() {
    let lines = [
        line("istio_tcp_sent_bytes_total", "source", ["shop/web", "nobody"], PLAIN, 10),
        line("istio_tcp_sent_bytes_total", "destination", ["nobody", "shop/cart"], PLAIN, 10),
        line("istio_tcp_sent_bytes_total", "source", ["shop/web", "shop/gone"], TLS, 10),
    ];
    let graph = json(&facts(&[(ztunnel(), &lines)], &[]));
    edge(&graph, "shop/web", "/called");
    edge(&graph, "/callers", "shop/cart");
    edge(&graph, "shop/web", "shop/gone");
    let resting = json(&facts(&[(ztunnel(), &lines)], &[(ztunnel(), &lines)]));
    assert_eq!(resting["edges"].as_array().unwrap().len(), 2, "{resting}");
    assert!(resting["nodes"].as_array().unwrap().iter().all(|node| node["id"] != "shop/gone"), "{resting}");
}

#[test]
fn the_mesh_itself_is_drawn_only_where_it_has_traffic() {
    let mut facts = facts(&[], &[]);
    facts.inventory = Inventory::with(&[("istio-system", "dns"), ("shop", "web")]);
    let ids = |graph: &Value| -> Vec<String> {
        graph["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&json(&facts)), ["shop/web"]);
    let lines = numbers::read(&line("istio_tcp_sent_bytes_total", "source", ["shop/web", "istio-system/dns"], TLS, 1));
    facts.proxies = Some([(ztunnel(), Ok(Said { numbers: lines, ejected: Vec::new() }))].into());
    assert_eq!(ids(&json(&facts)), ["istio-system/dns", "shop/web"]);
}

#[test]
fn a_silent_proxy_is_told_and_the_others_are_drawn() {
    let mut facts = facts(&[(ztunnel(), &[])], &[]);
    facts.proxies.as_mut().unwrap().insert(waypoint(), Err("does not listen".to_owned()));
    let asked = &json(&facts)["proxies"];
    assert_eq!(*asked, json!({"known": true, "answered": 1, "silent": {"waypoint shop/waypoint": "does not listen"}, "unasked": 0}));
}

#[test]
fn more_than_can_be_drawn_is_counted_and_who_has_traffic_stays() {
    let names: Vec<String> = (0..MAX_NODES + 50).map(|number| format!("w{number:04}")).collect();
    let workloads: Vec<(&str, &str)> = names.iter().map(|name| ("shop", name.as_str())).collect();
    let lines = [line("istio_tcp_sent_bytes_total", "source", ["shop/w0449", "shop/w0448"], TLS, 1)];
    let mut facts = facts(&[(ztunnel(), &lines)], &[]);
    facts.inventory = Inventory::with(&workloads);
    let graph = json(&facts);
    assert_eq!((graph["nodes"].as_array().unwrap().len(), &graph["leftOut"]), (MAX_NODES, &json!(50)));
    edge(&graph, "shop/w0449", "shop/w0448");
}
