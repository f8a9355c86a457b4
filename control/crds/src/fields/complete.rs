//! Specs that together set every field of a kind, as the schema has them.

use serde_json::{Value, json};

use crate::kind::Kind;

pub(super) fn specs(kind: Kind) -> Vec<Value> {
    match kind {
        Kind::VirtualService => virtual_services(),
        Kind::DestinationRule => destination_rules(),
        Kind::Gateway => gateways(),
        Kind::AuthorizationPolicy => authorization_policies(),
        Kind::PeerAuthentication => vec![json!({
            "selector": {"matchLabels": {"app": "a"}}, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}},
        })],
        other => panic!("no complete specs of {other}"),
    }
}

fn virtual_services() -> Vec<Value> {
    let text = |kind: &str| json!({kind: "a"});
    let block = |kind: &str| {
        json!({
            "name": "a", "uri": text(kind), "scheme": text(kind), "method": text(kind), "authority": text(kind),
            "headers": {"x": text(kind)}, "withoutHeaders": {"x": text(kind)}, "queryParams": {"x": text(kind)}, "ignoreUriCase": true,
            "port": 80, "sourceLabels": {"app": "a"}, "sourceNamespace": "shop", "gateways": ["mesh"], "statPrefix": "a",
        })
    };
    let destination = json!({"host": "a", "subset": "v1", "port": {"number": 80}});
    let operations = json!({"set": {"x": "a"}, "add": {"x": "a"}, "remove": ["x"]});
    let headers = json!({"request": operations, "response": operations});
    let origins = [text("exact"), text("prefix"), text("regex")];
    let forward = json!({
        "name": "a", "match": [block("exact"), block("prefix"), block("regex")],
        "route": [{"destination": destination, "weight": 1, "headers": headers}],
        "rewrite": {"uri": "/", "authority": "a"}, "timeout": "1s",
        "retries": {
            "attempts": 1, "perTryTimeout": "1s", "retryOn": "5xx", "retryRemoteLocalities": true, "retryIgnorePreviousHosts": true,
            "backoff": "1s",
        },
        "fault": {
            "delay": {"fixedDelay": "1s", "percentage": {"value": 1}, "percent": 1},
            "abort": {"httpStatus": 500, "percentage": {"value": 1}},
        },
        "mirror": destination, "mirrorPercentage": {"value": 1}, "mirrorPercent": 1,
        "corsPolicy": {
            "allowOrigin": ["*"], "allowOrigins": origins, "allowMethods": ["GET"], "allowHeaders": ["x"], "exposeHeaders": ["x"],
            "maxAge": "1s", "allowCredentials": true, "unmatchedPreflights": "IGNORE",
        },
        "headers": headers,
    });
    let other = json!({
        "route": [{"destination": destination}], "rewrite": {"uriRegexRewrite": {"match": "a", "rewrite": "b"}},
        "fault": {"delay": {"exponentialDelay": "1s"}, "abort": {"grpcStatus": "OK", "http2Error": "a"}},
        "mirrors": [{"destination": destination, "percentage": {"value": 1}}],
    });
    let redirect = json!({
        "uri": "/", "prefixRewrite": "/", "authority": "a", "port": 80, "derivePort": "FROM_REQUEST_PORT", "scheme": "https",
        "redirectCode": 302,
    });
    let connection = json!({
        "destinationSubnets": ["10.0.0.0/8"], "port": 80, "sourceLabels": {"app": "a"}, "gateways": ["mesh"], "sourceNamespace": "shop",
    });
    let (mut tls, mut tcp) = (connection.clone(), connection);
    tls["sniHosts"] = json!(["a"]);
    tcp["sourceSubnet"] = json!("10.0.0.0/8");
    let shares = json!([{"destination": destination, "weight": 1}]);
    vec![json!({
        "hosts": ["a"], "gateways": ["mesh"], "exportTo": ["."],
        "http": [
            forward, other, {"redirect": redirect}, {"delegate": {"name": "a", "namespace": "shop"}},
            {"directResponse": {"status": 200, "body": {"string": "a"}}}, {"directResponse": {"status": 200, "body": {"bytes": "aGk="}}},
        ],
        "tls": [{"match": [tls], "route": shares}],
        "tcp": [{"match": [tcp], "route": shares}],
    })]
}

fn destination_rules() -> Vec<Value> {
    let port = json!({"number": 80});
    let hash = json!({
        "httpHeaderName": "x", "httpCookie": {"name": "a", "path": "/", "ttl": "1s", "attributes": [{"name": "a", "value": "b"}]},
        "useSourceIp": true, "httpQueryParameterName": "a", "ringHash": {"minimumRingSize": 1}, "maglev": {"tableSize": 7},
        "minimumRingSize": 1,
    });
    let locality = json!({
        "distribute": [{"from": "a", "to": {"a": 100}}], "failover": [{"from": "a", "to": "b"}], "failoverPriority": ["a"], "enabled": true,
    });
    let blocks = json!({
        "loadBalancer": {
            "simple": "RANDOM", "consistentHash": hash, "localityLbSetting": locality, "zoneAwareLbSetting": {"enabled": true},
            "warmupDurationSecs": "1s", "warmup": {"duration": "1s", "minimumPercent": 1, "aggression": 1},
        },
        "connectionPool": {
            "tcp": {
                "maxConnections": 1, "connectTimeout": "1s", "tcpKeepalive": {"probes": 1, "time": "1s", "interval": "1s"},
                "maxConnectionDuration": "1s", "idleTimeout": "1s",
            },
            "http": {
                "http1MaxPendingRequests": 1, "http2MaxRequests": 1, "maxRequestsPerConnection": 1, "maxRetries": 1, "idleTimeout": "1s",
                "h2UpgradePolicy": "UPGRADE", "useClientProtocol": true, "maxConcurrentStreams": 1,
                "http2KeepAlive": {
                    "interval": "1s", "timeout": "1s", "intervalJitter": {"value": 1}, "connectionIdleInterval": "1s",
                },
            },
        },
        "outlierDetection": {
            "consecutive5xxErrors": 1, "consecutiveGatewayErrors": 1, "consecutiveErrors": 1, "splitExternalLocalOriginErrors": true,
            "consecutiveLocalOriginFailures": 1, "interval": "1s", "baseEjectionTime": "1s", "maxEjectionPercent": 1,
            "minHealthPercent": 1, "outlierDetectionHttpErrorCodes": [500],
        },
        "tls": {
            "mode": "SIMPLE", "clientCertificate": "a", "privateKey": "a", "caCertificates": "a", "credentialName": "a",
            "subjectAltNames": ["a"], "sni": "a", "insecureSkipVerify": true, "caCrl": "a",
        },
    });
    let mut of_port = blocks.clone();
    of_port["port"] = port;
    let mut policy = blocks;
    policy["portLevelSettings"] = json!([of_port]);
    policy["tunnel"] = json!({"protocol": "CONNECT", "targetHost": "a", "targetPort": 80});
    policy["proxyProtocol"] = json!({"version": "V2"});
    policy["retryBudget"] = json!({"percent": {"value": 1}, "minRetryConcurrency": 1, "budgetInterval": "1s"});
    vec![json!({
        "host": "a", "trafficPolicy": policy, "subsets": [{"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": policy}],
        "exportTo": ["."], "workloadSelector": {"matchLabels": {"app": "a"}},
    })]
}

fn gateways() -> Vec<Value> {
    let requirement = json!({"key": "a", "operator": "In", "values": ["b"]});
    let namespaces = json!({"from": "Selector", "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [requirement]}});
    let secret = json!({"group": "", "kind": "Secret", "name": "a", "namespace": "shop"});
    vec![json!({
        "gatewayClassName": "istio-waypoint",
        "listeners": [{
            "name": "mesh", "hostname": "a.b", "port": 15008, "protocol": "HBONE",
            "tls": {
                "mode": "Terminate", "certificateRefs": [secret], "frontendValidation": {"caCertificateRefs": [secret]},
                "options": {"a": "b"},
            },
            "allowedRoutes": {"namespaces": namespaces, "kinds": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]},
        }],
        "addresses": [{"type": "Hostname", "value": "a.b"}],
        "infrastructure": {
            "labels": {"a": "b"}, "annotations": {"a": "b"}, "parametersRef": {"group": "", "kind": "ConfigMap", "name": "a"},
        },
        "allowedListeners": {"namespaces": namespaces}, "tls": {"backend": {}}, "defaultScope": "None",
    })]
}

fn authorization_policies() -> Vec<Value> {
    let both = |names: &[&str], value: Value| -> Value {
        let negated = |name: &str| format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
        names.iter().flat_map(|name| [(*name).to_owned(), negated(name)]).map(|name| (name, value.clone())).collect()
    };
    let mut source = both(&["principals", "namespaces", "requestPrincipals", "trustDomains"], json!(["a"]));
    let blocks = both(&["ipBlocks", "remoteIpBlocks"], json!(["10.0.0.0/8"]));
    source.as_object_mut().unwrap().extend(blocks.as_object().unwrap().clone());
    let mut operation = both(&["hosts", "methods", "paths"], json!(["a"]));
    operation["ports"] = json!(["80"]);
    operation["notPorts"] = json!(["81"]);
    let when = json!({"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.2"]});
    let target = json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "w", "namespace": "shop"});
    vec![
        json!({
            "selector": {"matchLabels": {"app": "a"}}, "action": "DENY",
            "rules": [{"from": [{"source": source}], "to": [{"operation": operation}], "when": [when]}],
        }),
        json!({"rules": [{"from": [{"source": both(&["serviceAccounts"], json!(["shop/a"]))}]}]}),
        json!({"targetRef": target}),
        json!({"targetRefs": [target]}),
        json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]}),
    ]
}
