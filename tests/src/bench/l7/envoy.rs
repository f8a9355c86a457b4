//! Envoy as a peer: a pod that runs it, with the routes of `pods.yaml` in its own words. What Istio would configure is configured
//! (retries, path normalization, no limits); what Istio adds beyond routing (filters for statistics, access log, peer metadata) is not.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::{HEADER, NAMESPACE, PORTS};

/// The image's name, and the pod's.
pub const IMAGE: &str = "envoyproxy/envoy";
/// The pod's name.
pub const POD: &str = "envoy";
/// Where it tells its statistics, within the pod.
pub const ADMIN: &str = "127.0.0.1:15000";

/// The servers' addresses, by version.
#[derive(Debug, Clone, Copy)]
pub struct Servers {
    /// Version 1.
    pub v1: IpAddr,
    /// Version 2.
    pub v2: IpAddr,
}

/// The pod's manifest.
pub fn pod(node: &str, workers: usize, servers: Servers) -> Value {
    let configuration = bootstrap(servers).to_string();
    let workers = workers.to_string();
    let arguments = ["--config-yaml", &configuration, "--concurrency", &workers, "--disable-hot-restart", "--log-level", "warning"];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": POD, "namespace": NAMESPACE, "labels": { "istio.io/dataplane-mode": "none" } },
        "spec": { "nodeName": node, "containers": [{
            "name": POD, "image": IMAGE, "args": arguments,
            "ports": PORTS.map(|port| json!({ "containerPort": port })),
        }] },
    })
}

/// All of Envoy's configuration. A listener a version of HTTP, which is spoken to the servers as well.
fn bootstrap(servers: Servers) -> Value {
    let [http1, http2] = [false, true].map(|http2| side(http2, servers));
    let clusters: Vec<&Value> = [&http1.1, &http2.1].into_iter().flatten().collect();
    let (address, port) = ADMIN.split_once(':').unwrap_or_default();
    json!({
        "admin": { "address": { "socket_address": { "address": address, "port_value": port.parse::<u16>().ok() } } },
        "static_resources": { "listeners": [http1.0, http2.0], "clusters": clusters },
    })
}

fn side(http2: bool, servers: Servers) -> (Value, Vec<Value>) {
    let name = |subset: &str| format!("{}{subset}", if http2 { "http2" } else { "http1" });
    let clusters = [("-v1", vec![servers.v1]), ("-v2", vec![servers.v2]), ("", vec![servers.v1, servers.v2])]
        .map(|(subset, addresses)| cluster(&name(subset), http2, &addresses));
    let (header, value, _) = HEADER;
    let routes = json!([
        {
            "name": "user",
            "match": { "prefix": "/", "headers": [{ "name": header, "string_match": { "exact": value } }] },
            "route": to(&name("-v2")),
        },
        { "name": "reviews", "match": { "prefix": "/reviews/" }, "route": to(&name("-v1")) },
        { "name": "default", "match": { "prefix": "/" }, "route": to(&name("")) },
    ]);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name(""),
        "codec_type": "AUTO",
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": "0s",
        "route_config": {
            "name": name(""), "validate_clusters": false,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let listener = json!({
        "name": name(""),
        "address": { "socket_address": { "address": "::", "port_value": PORTS[usize::from(http2)], "ipv4_compat": true } },
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] }],
    });
    (listener, clusters.into())
}

/// A route's action with the retries that Istio gives every route, and no timeout, which is Istio's default.
fn to(cluster: &str) -> Value {
    json!({
        "cluster": cluster,
        "timeout": "0s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "num_retries": 2,
            "retriable_status_codes": [503],
            "retry_host_predicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                },
            }],
            "host_selection_retry_max_attempts": 5,
        },
    })
}

/// A cluster without limits, balanced as Istio's are.
fn cluster(name: &str, http2: bool, addresses: &[IpAddr]) -> Value {
    let endpoint = |address: &IpAddr| {
        let server = SocketAddr::new(*address, PORTS[0]);
        let socket = json!({ "address": server.ip().to_string(), "port_value": server.port() });
        json!({ "endpoint": { "address": { "socket_address": socket } } })
    };
    let unlimited = u32::MAX;
    let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": { "thresholds": [{
            "max_connections": unlimited, "max_pending_requests": unlimited, "max_requests": unlimited, "max_retries": unlimited,
            "track_remaining": true,
        }] },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { protocol: {} },
        } },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>() }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_lead_to_clusters_that_exist() {
        let servers = Servers { v1: "10.0.0.1".parse().unwrap(), v2: "fd00::2".parse().unwrap() };
        let all = bootstrap(servers);
        let clusters = all["static_resources"]["clusters"].as_array().unwrap();
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["http1-v1", "http1-v2", "http1", "http2-v1", "http2-v2", "http2"]);
        let listeners = all["static_resources"]["listeners"].as_array().unwrap();
        for listener in listeners {
            let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
            assert!(manager.get("access_log").is_none(), "the access log is off");
            for route in manager["route_config"]["virtual_hosts"][0]["routes"].as_array().unwrap() {
                assert!(names.contains(&route["route"]["cluster"].as_str().unwrap()), "{route}");
            }
        }
        assert_eq!((listeners.len(), &all["admin"]["address"]["socket_address"]["port_value"]), (2, &json!(15000)));
        assert_eq!(pod("a", 2, servers)["spec"]["containers"][0]["args"][3], "2");
    }
}
