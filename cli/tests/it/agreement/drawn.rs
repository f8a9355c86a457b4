//! What is drawn about a mesh by a seed: rules, routes and policies of every kind that decides, and questions. `tropis explain` is held to
//! it twice: to the proxies' decisions by the tests beside this file, and to what their programs do with real traffic by
//! `tests/scenarios/explain.rs`, which includes it. Who makes the mesh itself, of [`PODS`] and two services, says where it is.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use tropis_model::resolve::Draw;

/// What is drawn.
pub(crate) struct Drawn {
    /// Rules, routes and policies.
    pub(crate) yaml: String,
    pub(crate) questions: Vec<Question>,
}

/// Where things are that configuration and questions name by address.
pub(crate) struct Places {
    /// The pod `client`.
    pub(crate) client: IpAddr,
    /// The service `app`.
    pub(crate) app: IpAddr,
}

/// A pod of the mesh.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) account: &'static str,
    /// The service that it is behind, if there is one of this name.
    pub(crate) app: &'static str,
    pub(crate) version: &'static str,
    pub(crate) node: &'static str,
}

/// Who calls what.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Pod and namespace.
    pub(crate) source: (&'static str, &'static str),
    /// As it is typed: `app.shop:80`, `pod/app-v1.shop:8080`, `10.96.0.9:80`.
    pub(crate) destination: String,
    pub(crate) ipv6: bool,
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) authority: Option<&'static str>,
    pub(crate) server_name: Option<&'static str>,
}

const QUESTIONS: usize = 20;

const fn pod(
    (name, namespace): (&'static str, &'static str),
    (account, app, version): (&'static str, &'static str, &'static str),
    node: &'static str,
) -> Pod {
    Pod { name, namespace, account, app, version, node }
}

/// The pods. Services `app` and `plain` of namespace `shop` select them by their label `app`.
pub(crate) const PODS: [Pod; 7] = [
    pod(("client", "shop"), ("client", "client", "v0"), "a"),
    pod(("other", "bank"), ("other", "other", "v0"), "b"),
    pod(("app-v1", "shop"), ("app", "app", "v1"), "a"),
    pod(("app-v2", "shop"), ("app", "app", "v2"), "b"),
    pod(("app-v3", "shop"), ("app", "app", "v3"), "b"),
    pod(("plain-1", "shop"), ("plain", "plain", "v1"), "a"),
    pod(("plain-2", "shop"), ("plain", "plain", "v2"), "b"),
];

/// The ports of service `app`; `plain` has the first of them.
pub(crate) const PORTS: [&str; 3] =
    ["{name: http, port: 80, targetPort: 8080}", "{name: tcp-db, port: 90, targetPort: 9090}", "{name: tls, port: 443, targetPort: 8443}"];

impl Drawn {
    /// What a draw makes of such a mesh.
    pub(crate) fn new(draw: &mut Draw, places: &Places) -> Self {
        let mut yaml = String::new();
        rules(&mut yaml, draw);
        routes(&mut yaml, draw);
        for number in 0..of(draw, &[0, 0, 1, 1, 2, 3]) {
            policy(&mut yaml, draw, number, places);
        }
        peers(&mut yaml, draw);
        let questions = (0..QUESTIONS).map(|_| question(draw, places)).collect();
        Self { yaml, questions }
    }
}

impl Question {
    /// The question, as `tropis` is asked.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let source = format!("{}.{}", self.source.0, self.source.1);
        let destination = format!("{}{}", self.destination, self.target);
        let mut arguments = ["explain", &source, &destination, "--method", self.method, "-o", "json"].map(ToOwned::to_owned).to_vec();
        let mut more = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        self.headers.iter().for_each(|(name, value)| more("-H", format!("{name}: {value}")));
        self.authority.iter().for_each(|authority| more("--authority", (*authority).to_owned()));
        self.server_name.iter().for_each(|name| more("--server-name", (*name).to_owned()));
        arguments.extend(self.ipv6.then(|| "-6".to_owned()));
        arguments
    }

    /// The host that the request names.
    pub(crate) fn authority(&self) -> String {
        self.authority.map_or_else(|| self.destination.replace("pod/", ""), ToOwned::to_owned)
    }
}

/// One of several, as likely as each other.
pub(crate) fn of<T: Copy>(draw: &mut Draw, items: &[T]) -> T {
    items[draw.below(items.len() as u64) as usize]
}

/// Whether something happens that does so in `percent` of 100 cases.
pub(crate) fn often(draw: &mut Draw, percent: u64) -> bool {
    draw.below(100) < percent
}

/// Writes an object.
pub(crate) fn document(yaml: &mut String, version: &str, kind: &str, metadata: &str, rest: &str) {
    let _ = write!(yaml, "---\napiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\n{rest}\n");
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
        let destinations =
            ["host: app, port: {number: 90}, subset: v1", "host: app, port: {number: 90}", "host: plain, port: {number: 80}"];
        let split = format!("{{destination: {{{}}}}}", of(draw, &destinations));
        let _ = writeln!(spec, "  tcp: [{{match: [{{{labels}port: 90}}], route: [{split}]}}]");
    }
    if often(draw, 60) {
        let labels = if often(draw, 40) { "sourceLabels: {app: client}, " } else { "" };
        let _ = writeln!(
            spec,
            "  tls: [{{match: [{{{labels}port: 443, sniHosts: [app.shop.svc.cluster.local]}}], route: [{{destination: {{host: app, port: {{number: 443}}, subset: v2}}}}]}}]"
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
                6 => ", headers: {request: {set: {x-user: jason}}}",
                _ => "",
            };
            format!("{route}{more}")
        }
    };
    format!("{{name: rule-{number}, {matches}{action}}}")
}

fn policy(yaml: &mut String, draw: &mut Draw, number: u64, places: &Places) {
    let client = format!("ipBlocks: ['{}']", places.client);
    let sources = [
        "principals: [cluster.local/ns/shop/sa/client]",
        "namespaces: [bank]",
        "notPrincipals: [cluster.local/ns/shop/sa/client]",
        &client,
        "principals: ['*']",
        "principals: [cluster.local/ns/shop/sa/waypoint]",
    ];
    let operations = [
        "methods: [GET]",
        "paths: [/a*]",
        "paths: [/new*]",
        "ports: ['80']",
        "ports: ['8080']",
        "hosts: ['app*']",
        "hosts: ['inner*']",
        "notMethods: [POST]",
        "notPaths: [/a/b]",
    ];
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
            "targetRefs: [{group: '', kind: Service, name: plain}], ",
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

fn question(draw: &mut Draw, places: &Places) -> Question {
    let app = SocketAddr::new(places.app, 80).to_string();
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
        &app,
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
