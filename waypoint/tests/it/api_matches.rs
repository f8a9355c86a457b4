//! Whose traffic a VirtualService takes: its hosts, its scope, and each field of `http.match`, asked of real requests.

use http::Request;
use serde_json::{Value, json};

use crate::{
    api_mesh::{Mesh, answer, request, to, virtual_service},
    log,
    world::{Body, run},
};

impl Mesh {
    /// Whether a request to `reviews` is taken by a rule with these matches.
    async fn takes(&self, matches: Value, request: Request<Body>) -> bool {
        self.routes(&json!([{"match": matches, "directResponse": answer("taken")}, {"directResponse": answer("left")}]));
        match self.send(request).await.body.as_str() {
            "taken" => true,
            "left" => false,
            other => panic!("{other:?}"),
        }
    }

    /// The same for one entry and the two requests of which it takes the first.
    async fn tells_apart(&self, entry: Value, taken: Request<Body>, left: Request<Body>) {
        assert!(self.takes(json!([entry]), taken).await, "{entry} takes");
        assert!(!self.takes(json!([entry]), left).await, "{entry} leaves");
    }
}

#[test]
fn hosts_gateways_and_export_to_say_whose_traffic_is_routed() {
    run(async {
        for (more, routed) in [
            (json!({"hosts": ["reviews"]}), true),
            (json!({"hosts": ["REVIEWS.shop.svc.cluster.local"]}), true),
            (json!({"hosts": ["*.shop.svc.cluster.local"]}), true),
            (json!({"hosts": ["ratings"]}), false),
            (json!({"hosts": ["reviews"], "gateways": ["edge"]}), false),
            (json!({"hosts": ["reviews"], "gateways": ["edge", "mesh"]}), true),
            (json!({"hosts": ["reviews"], "exportTo": ["."]}), true),
            (json!({"hosts": ["reviews"], "exportTo": ["bank"]}), false),
        ] {
            let mesh = Mesh::new();
            let _app = mesh.says("reviews", "v1", "near", "the service").await;
            let mut spec = json!({"http": [{"directResponse": answer("routed")}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            mesh.apply([virtual_service("shop", "r", &spec)]);
            assert_eq!(mesh.body("/").await, if routed { "routed" } else { "the service" }, "{more}");
        }
    });
}

#[test]
fn http_name_and_match_name_are_the_routes_name_in_the_log() {
    run(async {
        let mesh = Mesh::new();
        let named =
            json!({"name": "by-path", "match": [{"name": "first", "uri": {"exact": "/named/route"}}], "directResponse": answer("")});
        mesh.routes(&json!([named, {"name": "rest", "directResponse": answer("")}]));
        mesh.body("/named/route").await;
        mesh.body("/named/rest").await;
        assert_eq!(log::wait_for(&[("path", "/named/route")]).await["route_name"], json!("by-path.first"));
        assert_eq!(log::wait_for(&[("path", "/named/rest")]).await["route_name"], json!("rest"));
    });
}

#[test]
fn http_match_uri_and_ignore_uri_case_look_at_the_path() {
    run(async {
        let mesh = Mesh::new();
        let get = |path: &str| request("GET", path, &[]);
        mesh.tells_apart(json!({"uri": {"exact": "/a"}}), get("/a?q"), get("/a/")).await;
        mesh.tells_apart(json!({"uri": {"prefix": "/a"}}), get("/ab"), get("/b/a")).await;
        mesh.tells_apart(json!({"uri": {"regex": "/v[0-9]+/a"}}), get("/v12/a"), get("/v12/ab")).await;
        mesh.tells_apart(json!({"uri": {"exact": "/A"}, "ignoreUriCase": true}), get("/a"), get("/b")).await;
        mesh.tells_apart(json!({"uri": {"prefix": "/A"}, "ignoreUriCase": false}), get("/Ab"), get("/ab")).await;
    });
}

#[test]
fn http_match_scheme_method_and_authority_look_at_what_was_sent() {
    run(async {
        let mesh = Mesh::new();
        let host = |host: &str| request("GET", "/", &[("host", host)]);
        mesh.tells_apart(json!({"method": {"exact": "PUT"}}), request("PUT", "/", &[]), request("GET", "/", &[])).await;
        mesh.tells_apart(json!({"authority": {"exact": "reviews:9080"}}), host("reviews:9080"), host("reviews")).await;
        mesh.tells_apart(json!({"authority": {"prefix": "reviews."}}), host("reviews.shop:9080"), host("reviews:9080")).await;
        assert!(mesh.takes(json!([{"scheme": {"exact": "http"}}]), host("reviews")).await);
        assert!(!mesh.takes(json!([{"scheme": {"exact": "https"}}]), host("reviews")).await);
    });
}

#[test]
fn http_match_headers_without_headers_and_query_params_look_at_values_and_presence() {
    run(async {
        let mesh = Mesh::new();
        let with = |headers: &[(&str, &str)]| request("GET", "/", headers);
        let get = |path: &str| request("GET", path, &[]);
        mesh.tells_apart(
            json!({"headers": {"End-User": {"exact": "jason"}}}),
            with(&[("end-user", "jason")]),
            with(&[("end-user", "jas")]),
        )
        .await;
        mesh.tells_apart(json!({"headers": {"x-a": {"regex": "[0-9]+"}}}), with(&[("x-a", "17")]), with(&[("x-a", "17a")])).await;
        mesh.tells_apart(json!({"headers": {"x-a": {}}}), with(&[("x-a", "")]), with(&[])).await;
        mesh.tells_apart(json!({"withoutHeaders": {"x-a": {}}}), with(&[]), with(&[("x-a", "1")])).await;
        mesh.tells_apart(json!({"withoutHeaders": {"x-a": {"prefix": "t"}}}), with(&[("x-a", "a")]), with(&[("x-a", "test")])).await;
        mesh.tells_apart(json!({"queryParams": {"v": {"exact": "2"}}}), get("/?v=2&v=3"), get("/?v=3&v=2")).await;
        mesh.tells_apart(json!({"queryParams": {"v": {}}}), get("/?v"), get("/?V")).await;
    });
}

#[test]
fn http_match_port_and_gateways_leave_out_what_is_not_for_this_traffic() {
    run(async {
        let mesh = Mesh::new();
        mesh.routes(&json!([
            {"match": [{"gateways": ["edge"]}], "directResponse": answer("edge")},
            {"match": [{"port": 9081, "gateways": ["mesh", "edge"]}], "directResponse": answer("admin")},
            {"directResponse": answer("rest")},
        ]));
        assert_eq!(mesh.body("/").await, "rest");
        assert_eq!(mesh.send_to("cart", "10.96.0.1:9081", request("GET", "/", &[])).await.body, "admin");
    });
}

#[test]
fn http_match_source_labels_and_source_namespace_are_the_original_callers() {
    run(async {
        let mesh = Mesh::new();
        let get = || request("GET", "/", &[]);
        assert!(mesh.takes(json!([{"sourceLabels": {"app": "cart", "team": "sales"}}]), get()).await);
        assert!(!mesh.takes(json!([{"sourceLabels": {"app": "waypoint"}}]), get()).await);
        assert!(mesh.takes(json!([{"sourceNamespace": "shop"}]), get()).await);
        assert!(!mesh.takes(json!([{"sourceNamespace": "bank"}]), get()).await);
        assert!(
            mesh.takes(json!([{"sourceNamespace": "bank"}, {"sourceLabels": {"app": "cart"}}]), get()).await,
            "entries are alternatives"
        );
    });
}

#[test]
fn http_delegate_routes_what_both_take() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("ratings", "v1", "near", "ratings").await;
        let root = json!([
            {"match": [{"uri": {"prefix": "/team"}}], "delegate": {"name": "more"}, "headers": {"request": {"set": {"x-root": "1"}}}},
            {"directResponse": answer("rest")},
        ]);
        let own = json!({"match": [{"uri": {"prefix": "/team/own"}}], "directResponse": answer("own")});
        mesh.apply([virtual_service("shop", "more", &json!({"http": [own, {"route": [to("ratings", None)]}]}))]);
        mesh.routes(&root);
        assert_eq!((mesh.body("/team/own").await.as_str(), mesh.body("/team/other").await.as_str()), ("own", "ratings"));
        assert_eq!(mesh.body("/elsewhere").await, "rest");
        assert_eq!(mesh.seen.borrow()[0].headers["x-root"], "1", "what the delegate leaves unsaid is the root's");
    });
}
