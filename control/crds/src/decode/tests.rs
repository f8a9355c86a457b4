//! What is decoded and what is refused, each with the words that a user reads.

use serde_json::json;

use super::*;
use crate::Level;

pub(super) fn refused(value: Value) -> Vec<String> {
    decode(value).map(|(object, _)| object.reference()).unwrap_err().iter().map(Finding::to_string).collect()
}

pub(super) fn accepted(value: Value) -> (Object, Vec<String>) {
    let (object, findings) = decode(value).unwrap();
    (object, findings.iter().map(Finding::to_string).collect())
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn peers(spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

#[test]
fn core_kinds_are_typed_and_warn_of_unknown_fields() {
    let (object, findings) = accepted(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"app": "web"}, "creationTimestamp": null},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http", "prot": "TCP"}]}
    }));
    assert_eq!(object.reference(), ObjectRef::new(Kind::Service, "default", "web"));
    assert_eq!(object.label("app"), Some("web"));
    assert_eq!(object.service().unwrap().spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port, 80);
    assert!(object.pod().is_none());
    assert_eq!(
        findings,
        ["Warning [IST0133] (Service default/web) spec.ports[0].prot: \"TCP\" is in a field that the schema does not know \
          (did you mean port; check its indentation too); the field is ignored"]
    );
}

#[test]
fn core_kinds_refuse_wrong_types_and_values_out_of_range() {
    let service = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": ports}});
    assert_eq!(
        refused(service(json!([{"port": "80"}]))),
        [
            "Error [IST0106] (Service default/web) spec.ports[0].port: \"80\" has the wrong type (an integer in range); the document is refused"
        ]
    );
    assert_eq!(
        refused(service(json!([{"port": 70000}]))),
        ["Error [IST0106] (Service default/web) spec.ports[0].port: 70000 is not a port (1 to 65535); the document is refused"]
    );
    assert_eq!(refused(service(json!([{"port": 80, "protocol": "HTTP"}]))).len(), 1);
    assert_eq!(refused(service(json!([{"port": 80}, {"port": 81}]))).len(), 2);
    let labels = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"istio-injection": true}}});
    assert_eq!(
        refused(labels),
        ["Error [IST0106] (Namespace shop) metadata.labels.istio-injection: true has the wrong type (a string); the document is refused"]
    );
}

#[test]
fn names_are_checked_as_the_api_server_would() {
    let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "a"}]}});
    assert!(refused(pod("Web"))[0].contains("metadata.name"));
    accepted(pod("web.0"));
    assert!(
        refused(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "9web"}, "spec": {"clusterIP": "None"}}))[0]
            .contains("name")
    );
    assert!(refused(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "a.b"}}))[0].contains("namespace"));
}

#[test]
fn documents_without_a_header_are_refused() {
    for value in [json!(null), json!([]), json!("text"), json!({}), json!({"apiVersion": "v1"}), json!({"apiVersion": "v1", "kind": "Pod"})]
    {
        let findings = decode(value.clone()).map(|_| ()).unwrap_err();
        assert_eq!((findings.len(), findings[0].code), (1, codes::UNREADABLE_DOCUMENT), "{value}");
    }
    let old = refused(json!({"apiVersion": "security.istio.io/v1alpha1", "kind": "PeerAuthentication", "metadata": {"name": "p"}}));
    assert!(old[0].contains("security.istio.io/v1, security.istio.io/v1beta1"), "{old:?}");
}

#[test]
fn istio_kinds_refuse_every_unknown_field() {
    let findings = refused(policy(json!({"rules": [{"from": [{"source": {"principal": ["a"], "namespaces": ["b"]}}]}], "extra": 1})));
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(
        findings[0]
            .starts_with("Error [IST0106] (AuthorizationPolicy shop/p) spec.rules[0].from[0].source.principal: a list is in a field")
    );
    assert!(findings[1].contains("spec.extra: 1"));
    assert!(refused(policy(json!({"rules": {"from": []}})))[0].contains("spec.rules: a mapping has the wrong type (a list)"));
    assert!(refused(peers(json!({"mtls": {"mode": "STRONG"}})))[0].contains("spec.mtls.mode: \"STRONG\" is not one of its values"));
}

#[test]
fn istio_kinds_take_nulls_as_absent() {
    let (object, findings) = accepted(policy(json!({"selector": null, "rules": [{"from": null}], "action": "ALLOW"})));
    assert!(findings.is_empty());
    let spec = &object.authorization_policy().unwrap().spec;
    assert_eq!((spec.selector.is_none(), spec.rules.as_ref().unwrap()[0] == Default::default()), (true, true));
}

#[test]
fn authorization_policies_that_istio_refuses_are_refused() {
    let cases = [
        (json!({"action": "DENY"}), "spec.rules"),
        (json!({"action": "CUSTOM", "rules": [{}]}), "spec.provider.name"),
        (json!({"action": "BLOCK"}), "spec.action"),
        (json!({"rules": [{"from": []}]}), "spec.rules[0].from"),
        (json!({"rules": [{"from": [{"source": {}}]}]}), "spec.rules[0].from[0].source"),
        (json!({"rules": [{"to": [{"operation": {}}]}]}), "spec.rules[0].to[0].operation"),
        (json!({"rules": [{"to": [{"operation": {"ports": ["80", "70000"]}}]}]}), "spec.rules[0].to[0].operation.ports[1]"),
        (json!({"rules": [{"to": [{"operation": {"ports": [80]}}]}]}), "spec.rules[0].to[0].operation.ports[0]"),
        (json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/40"]}}]}]}), "ipBlocks[0]"),
        (json!({"rules": [{"from": [{"source": {"serviceAccounts": ["a/*"]}}]}]}), "serviceAccounts[0]"),
        (json!({"rules": [{"from": [{"source": {"serviceAccounts": ["a"], "namespaces": ["b"]}}]}]}), "spec.rules[0].from[0].source"),
        (json!({"rules": [{"when": [{"key": "source.ports", "values": ["1"]}]}]}), "spec.rules[0].when[0].key"),
        (json!({"rules": [{"when": [{"key": "source.ip"}]}]}), "spec.rules[0].when[0]"),
        (json!({"rules": [{"when": [{"key": "destination.port", "notValues": ["0"]}]}]}), "when[0].notValues[0]"),
        (json!({"rules": [{"to": [{"operation": {"paths": ["/a/{**}/b"]}}]}]}), "spec.rules[0].to[0].operation.paths[0]"),
        (json!({"rules": [{"to": [{"operation": {"notPaths": ["/a", "/a{*}"]}}]}]}), "spec.rules[0].to[0].operation.notPaths[1]"),
        (
            json!({"action": "CUSTOM", "provider": {"name": "a"}, "rules": [{"from": [{"source": {"namespaces": ["b"]}}]}]}),
            "spec.rules[0].from[0].source.namespaces",
        ),
        (
            json!({"action": "CUSTOM", "provider": {"name": "a"}, "rules": [{"when": [{"key": "request.auth.claims[b]", "values": ["c"]}]}]}),
            "spec.rules[0].when[0].key",
        ),
        (json!({"selector": {"matchLabels": {"app": "*"}}}), "spec.selector.matchLabels[app]"),
        (json!({"selector": {"matchExpressions": []}}), "spec.selector.matchExpressions"),
        (json!({"selector": {}, "targetRefs": [{"kind": "Service", "name": "a"}]}), "spec.selector"),
        (json!({"targetRefs": [{"kind": "Pod", "name": "a"}]}), "spec.targetRefs[0].kind"),
    ];
    for (spec, field) in cases {
        let findings = decode(policy(spec.clone())).map(|_| ()).unwrap_err();
        assert!(findings.iter().all(|finding| finding.level == Level::Error));
        assert!(
            findings.iter().any(|finding| finding.field.as_deref().is_some_and(|found| found.ends_with(field))),
            "{spec}: {findings:?}"
        );
    }
}

#[test]
fn authorization_policies_that_istio_takes_are_taken() {
    for spec in [
        json!({}),
        json!({"rules": [{}]}),
        json!({"action": "DENY", "rules": [{}]}),
        json!({"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b", "*"]}}], "to": [{"operation": {"methods": ["GET"]}}]}]}),
        json!({"rules": [{"when": [{"key": "request.headers[x-a]", "values": ["1"]}, {"key": "source.ip", "values": ["10.0.0.1", "fd00::/8"]}]}]}),
        json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}], "rules": [{}]}),
    ] {
        let (_, findings) = accepted(policy(spec));
        assert_eq!(findings, Vec::<String>::new());
    }
}

#[test]
fn peer_authentications_are_checked() {
    let (object, _) = accepted(peers(
        json!({"selector": {"matchLabels": {"app": "a"}}, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
    ));
    let spec = &object.peer_authentication().unwrap().spec;
    use crate::istio::peer_authentication::Mode;
    assert_eq!((spec.mode(), spec.ports()), (Mode::Strict, [(8080, Mode::Disable)].into()));
    assert!(refused(peers(json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}})))[0].contains("only allowed with a selector"));
    assert!(
        refused(peers(json!({"selector": {"matchLabels": {"app": "a"}}, "portLevelMtls": {"http": {}}})))[0]
            .contains("\"http\" is not a port")
    );
}

#[test]
fn kinds_that_nothing_obeys_get_one_finding_and_others_a_note() {
    let object =
        |version: &str, kind: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": {"what": "ever"}});
    let (entry, findings) = accepted(object("networking.istio.io/v1", "ServiceEntry"));
    assert_eq!(entry.kind, Kind::ServiceEntry);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].starts_with("Warning [TRP0005] (ServiceEntry default/a) networking.istio.io/v1 ServiceEntry is accepted"));
    let misspelt = refused(object("security.istio.io/v1", "AuthorisationPolicy"));
    assert!(
        misspelt[0].contains("kind: \"AuthorisationPolicy\" is not a kind of security.istio.io (AuthorizationPolicy, "),
        "{misspelt:?}"
    );
    let (_, findings) = accepted(object("example.com/v1", "Thing"));
    assert!(findings[0].starts_with("Info [TRP0006]"));
    let (_, findings) = accepted(object("rbac.authorization.k8s.io/v1", "Role"));
    assert!(findings.is_empty());
}
