//! Meshes and questions by a seed: a few pods and services, and routes, rules and policies of every kind that decides, at random.

use std::fmt::Write;

use tropis_model::resolve::Draw;

/// A mesh.
pub(super) struct World {
    /// Its objects.
    pub(super) yaml: String,
    /// What is asked about it.
    pub(super) questions: Vec<Question>,
}

/// Who calls what.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// Pod and namespace.
    pub(super) source: (&'static str, &'static str),
    /// As it is typed: `app.shop:80`, `pod/app-v1.shop:8080`, `10.96.0.9:80`.
    pub(super) destination: String,
    pub(super) ipv6: bool,
    pub(super) method: &'static str,
    pub(super) target: &'static str,
    pub(super) headers: Vec<(&'static str, &'static str)>,
    pub(super) authority: Option<&'static str>,
    pub(super) server_name: Option<&'static str>,
}

const QUESTIONS: usize = 20;
/// The pods: name, namespace, account, what it serves, version, node, number in its addresses.
const PODS: [(&str, &str, &str, &str, &str, &str, u8); 7] = [
    ("client", "shop", "client", "client", "v0", "a", 2),
    ("other", "bank", "other", "other", "v0", "b", 3),
    ("app-v1", "shop", "app", "app", "v1", "a", 4),
    ("app-v2", "shop", "app", "app", "v2", "b", 5),
    ("app-v3", "shop", "app", "app", "v3", "b", 6),
    ("plain-1", "shop", "plain", "plain", "v1", "a", 7),
    ("plain-2", "shop", "plain", "plain", "v2", "b", 8),
];

fn of<T: Copy>(draw: &mut Draw, items: &[T]) -> T {
    items[draw.below(items.len() as u64) as usize]
}

/// Whether something happens that does so in `percent` of 100 cases.
fn often(draw: &mut Draw, percent: u64) -> bool {
    draw.below(100) < percent
}

impl World {
    /// The mesh of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let draw = &mut Draw::new(seed);
        let mut yaml = String::new();
        for namespace in ["shop", "bank", "istio-system"] {
            document(&mut yaml, "v1", "Namespace", &format!("{{name: {namespace}}}"), "");
        }
        let addressed = often(draw, 30);
        for pod in PODS {
            write_pod(&mut yaml, draw, pod, addressed);
        }
        services(&mut yaml, draw);
        waypoint(&mut yaml, draw);
        rules(&mut yaml, draw);
        routes(&mut yaml, draw);
        for number in 0..of(draw, &[0, 0, 1, 1, 2, 3]) {
            policy(&mut yaml, draw, number);
        }
        peers(&mut yaml, draw);
        let questions = (0..QUESTIONS).map(|_| question(draw)).collect();
        Self { yaml, questions }
    }
}

fn document(yaml: &mut String, version: &str, kind: &str, metadata: &str, rest: &str) {
    let _ = write!(yaml, "---\napiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\n{rest}\n");
}

fn write_pod(
    yaml: &mut String,
    draw: &mut Draw,
    (name, namespace, account, app, version, node, number): (&str, &str, &str, &str, &str, &str, u8),
    addressed: bool,
) {
    let enrolled = if often(draw, 85) { "annotations: {ambient.istio.io/redirection: enabled}, " } else { "" };
    let waypoint = if addressed && app == "app" { ", istio.io/use-waypoint: waypoint" } else { "" };
    let ready = if often(draw, 85) { "True" } else { "False" };
    let metadata = format!("{{name: {name}, namespace: {namespace}, {enrolled}labels: {{app: {app}, version: {version}{waypoint}}}}}");
    let addresses = format!("podIP: 10.244.0.{number}, podIPs: [{{ip: 10.244.0.{number}}}, {{ip: 'fd00:10:244::{number}'}}]");
    let rest = format!(
        "spec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: main, image: main}}]}}\n\
         status: {{phase: Running, {addresses}, conditions: [{{type: Ready, status: '{ready}'}}]}}"
    );
    document(yaml, "v1", "Pod", &metadata, &rest);
}

fn services(yaml: &mut String, draw: &mut Draw) {
    let waypoint = if often(draw, 90) { ", labels: {istio.io/use-waypoint: waypoint}" } else { "" };
    let local = if often(draw, 20) { ", internalTrafficPolicy: Local" } else { "" };
    let app =
        "[{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 90, targetPort: 9090}, {name: tls, port: 443, targetPort: 8443}]";
    for (name, number, ports, labels, more) in
        [("app", 9, app, waypoint, ""), ("plain", 10, "[{name: http, port: 80, targetPort: 8080}]", "", local)]
    {
        let rest = format!(
            "spec: {{selector: {{app: {name}}}, clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}'], ports: {ports}{more}}}"
        );
        document(yaml, "v1", "Service", &format!("{{name: {name}, namespace: shop{labels}}}"), &rest);
    }
}

fn waypoint(yaml: &mut String, draw: &mut Draw) {
    let serves = of(draw, &["all", "service", "all", "service", "workload"]);
    let replicas = 1 + draw.below(2);
    for number in 0..replicas {
        let metadata = format!(
            "{{name: waypoint-{number}, namespace: shop, labels: {{gateway.networking.k8s.io/gateway-name: waypoint, istio.io/dataplane-mode: none}}}}"
        );
        let address = 20 + number;
        let rest = format!(
            "spec: {{nodeName: a, serviceAccountName: waypoint, containers: [{{name: istio-proxy, image: tropis/waypoint}}]}}\n\
             status: {{phase: Running, podIP: 10.244.0.{address}, podIPs: [{{ip: 10.244.0.{address}}}, {{ip: 'fd00:10:244::{address}'}}], conditions: [{{type: Ready, status: 'True'}}]}}"
        );
        document(yaml, "v1", "Pod", &metadata, &rest);
    }
    let selector = "{gateway.networking.k8s.io/gateway-name: waypoint}";
    let rest = format!(
        "spec: {{selector: {selector}, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:10:96::7'], ports: [{{name: mesh, port: 15008}}]}}"
    );
    document(
        yaml,
        "v1",
        "Service",
        "{name: waypoint, namespace: shop, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}",
        &rest,
    );
    document(
        yaml,
        "gateway.networking.k8s.io/v1",
        "Gateway",
        &format!("{{name: waypoint, namespace: shop, labels: {{istio.io/waypoint-for: {serves}}}}}"),
        "spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n\
         status: {addresses: [{type: Hostname, value: waypoint.shop.svc.cluster.local}], conditions: [{type: Programmed, status: 'True', reason: Programmed}]}",
    );
}

fn rules(yaml: &mut String, draw: &mut Draw) {
    if often(draw, 15) {
        return;
    }
    let balancer =
        of(draw, &["simple: ROUND_ROBIN", "simple: RANDOM", "simple: LEAST_REQUEST", "consistentHash: {httpHeaderName: x-user}"]);
    // A subset that routes may name and that is not there: no cluster.
    let third = if often(draw, 70) { ", {name: v3, labels: {version: v3}}" } else { "" };
    let spec = format!(
        "spec: {{host: app, trafficPolicy: {{loadBalancer: {{{balancer}}}}}, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}{third}]}}"
    );
    document(yaml, "networking.istio.io/v1", "DestinationRule", "{name: app, namespace: shop}", &spec);
}

fn routes(yaml: &mut String, draw: &mut Draw) {
    if often(draw, 15) {
        return;
    }
    let http: Vec<String> = (0..1 + draw.below(4)).map(|number| http_rule(draw, number)).collect();
    let mut spec = format!("spec:\n  hosts: [app.shop.svc.cluster.local]\n  http: [{}]\n", http.join(", "));
    if often(draw, 50) {
        let labels = if often(draw, 50) { "sourceLabels: {app: client}, " } else { "" };
        let split =
            of(draw, &["{destination: {host: app, port: {number: 90}, subset: v1}}", "{destination: {host: app, port: {number: 90}}}"]);
        let _ = writeln!(spec, "  tcp: [{{match: [{{{labels}port: 90}}], route: [{split}]}}]");
    }
    if often(draw, 60) {
        let _ = writeln!(
            spec,
            "  tls: [{{match: [{{port: 443, sniHosts: [app.shop.svc.cluster.local]}}], route: [{{destination: {{host: app, port: {{number: 443}}, subset: v2}}}}]}}]"
        );
    }
    document(yaml, "networking.istio.io/v1", "VirtualService", "{name: app, namespace: shop}", &spec);
}

fn http_rule(draw: &mut Draw, number: u64) -> String {
    let conditions = [
        "uri: {prefix: /a}",
        "uri: {exact: /a/b}",
        "uri: {regex: '/api/v[0-9]+/.*'}",
        "uri: {prefix: /A}, ignoreUriCase: true",
        "method: {exact: POST}",
        "headers: {x-user: {exact: jason}}",
        "withoutHeaders: {x-user: {}}",
        "queryParams: {user: {exact: '1'}}",
        "sourceLabels: {app: client}",
        "sourceNamespace: bank",
        "authority: {prefix: app}",
        "port: 80",
    ];
    let block = |draw: &mut Draw| {
        let first = draw.below(conditions.len() as u64) as usize;
        let second = draw.below(conditions.len() as u64) as usize;
        let field = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
        match field(conditions[first]) == field(conditions[second]) || often(draw, 60) {
            true => format!("{{{}}}", conditions[first]),
            false => format!("{{{}, {}}}", conditions[first], conditions[second]),
        }
    };
    let matches: Vec<String> = (0..draw.below(3)).map(|_| block(draw)).collect();
    let matches = if matches.is_empty() { String::new() } else { format!("match: [{}], ", matches.join(", ")) };
    let subset = |draw: &mut Draw| {
        of(draw, &["host: app, subset: v1", "host: app, subset: v2", "host: app, subset: v3", "host: app", "host: plain"]).to_owned()
    };
    let action = match draw.below(10) {
        0 => "redirect: {uri: /elsewhere, authority: other.example.com, redirectCode: 302}".to_owned(),
        1 => format!("directResponse: {{status: {}, body: {{string: here}}}}", of(draw, &[200, 418, 503])),
        kind => {
            let (one, other) = (subset(draw), subset(draw));
            let destination = |text: &str| format!("{{destination: {{{text}, port: {{number: 80}}}}, weight: ");
            let route = match one == other || often(draw, 25) {
                true => format!("route: [{}100}}]", destination(&one)),
                false => format!("route: [{}{}}}, {}{}}}]", destination(&one), of(draw, &[50, 30, 0]), destination(&other), 50),
            };
            let more = match kind {
                2 => ", rewrite: {uri: /new}",
                3 => ", rewrite: {uriRegexRewrite: {match: '^/a(.*)', rewrite: '/z\\1'}}",
                4 => ", fault: {abort: {httpStatus: 418, percentage: {value: 100}}}",
                5 => ", rewrite: {uri: /, authority: inner.example.com}, timeout: 5s",
                _ => "",
            };
            format!("{route}{more}")
        }
    };
    format!("{{name: rule-{number}, {matches}{action}}}")
}

fn policy(yaml: &mut String, draw: &mut Draw, number: u64) {
    let sources = [
        "principals: [cluster.local/ns/shop/sa/client]",
        "namespaces: [bank]",
        "notPrincipals: [cluster.local/ns/shop/sa/client]",
        "ipBlocks: [10.244.0.2]",
        "principals: ['*']",
        "principals: [cluster.local/ns/shop/sa/waypoint]",
    ];
    let operations =
        ["methods: [GET]", "paths: [/a*]", "ports: ['80']", "ports: ['8080']", "hosts: ['app*']", "notMethods: [POST]", "notPaths: [/a/b]"];
    let conditions = [
        "key: 'request.headers[x-user]', values: [jason]",
        "key: source.namespace, notValues: [bank]",
        "key: destination.port, values: ['8080']",
    ];
    let mut parts = Vec::new();
    if often(draw, 70) {
        parts.push(format!("from: [{{source: {{{}}}}}]", of(draw, &sources)));
    }
    if often(draw, 60) {
        parts.push(format!("to: [{{operation: {{{}}}}}]", of(draw, &operations)));
    }
    if often(draw, 20) {
        parts.push(format!("when: [{{{}}}]", of(draw, &conditions)));
    }
    let rules = format!("rules: [{{{}}}]", parts.join(", "));
    let attached = of(
        draw,
        &[
            "selector: {matchLabels: {app: app}}, ",
            "selector: {matchLabels: {version: v1}}, ",
            "targetRefs: [{group: '', kind: Service, name: app}], ",
            "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], ",
            "",
        ],
    );
    let namespace = if attached.is_empty() { of(draw, &["shop", "istio-system"]) } else { "shop" };
    let action = of(draw, &["ALLOW", "DENY", "ALLOW"]);
    let dry = if often(draw, 10) { ", annotations: {istio.io/dry-run: 'true'}" } else { "" };
    let metadata = format!("{{name: policy-{number}, namespace: {namespace}{dry}}}");
    document(yaml, "security.istio.io/v1", "AuthorizationPolicy", &metadata, &format!("spec: {{action: {action}, {attached}{rules}}}"));
}

fn peers(yaml: &mut String, draw: &mut Draw) {
    let (metadata, spec) = match draw.below(6) {
        0 => ("{name: default, namespace: shop}", "{mtls: {mode: STRICT}}"),
        1 => (
            "{name: app, namespace: shop}",
            "{selector: {matchLabels: {app: app}}, mtls: {mode: STRICT}, portLevelMtls: {'8080': {mode: PERMISSIVE}}}",
        ),
        2 => ("{name: default, namespace: istio-system}", "{mtls: {mode: STRICT}}"),
        _ => return,
    };
    document(yaml, "security.istio.io/v1", "PeerAuthentication", metadata, &format!("spec: {spec}"));
}

fn question(draw: &mut Draw) -> Question {
    let source = of(draw, &[("client", "shop"), ("client", "shop"), ("other", "bank"), ("plain-1", "shop"), ("app-v1", "shop")]);
    let destinations = [
        "app.shop:80",
        "app.shop:80",
        "app.shop:80",
        "app.shop:80",
        "app.shop:90",
        "app.shop:443",
        "app.shop:443",
        "app.shop:81",
        "plain.shop:80",
        "plain.shop:80",
        "pod/app-v1.shop:8080",
        "pod/app-v2.shop:9090",
        "pod/plain-1.shop:8080",
        "10.96.0.9:80",
        "192.0.2.1:80",
    ];
    let destination = of(draw, &destinations);
    let targets = ["/", "/a", "/a/b", "/A/x", "/api/v1/x", "/b?user=1", "/a//c", "/a/%2e%2e/b", "/a/%zz", "/aa?user=2&x"];
    let headers: [&[(&str, &str)]; 5] =
        [&[], &[], &[("x-user", "jason")], &[("x-user", "root")], &[("x-user", "jason"), ("x-user", "root")]];
    Question {
        source,
        destination: destination.to_owned(),
        ipv6: often(draw, 25),
        method: of(draw, &["GET", "GET", "POST", "DELETE"]),
        target: of(draw, &targets),
        headers: of(draw, &headers).to_vec(),
        authority: often(draw, 15).then_some("inner.example.com"),
        server_name: destination
            .ends_with(":443")
            .then(|| of(draw, &["app.shop.svc.cluster.local", "else.example.com"]))
            .filter(|_| often(draw, 80)),
    }
}
