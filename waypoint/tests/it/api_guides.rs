//! Files of guides (`deploy/samples/guides`), unmodified, and what their users then see of real requests (docs/guide/guides.md).

use std::{cell::Cell, fs, path::Path, rc::Rc};

use http::Response;
use serde_json::Value;

use crate::{
    api_mesh::{Answer, Mesh, is_share, request},
    world::{full, run, says},
};

impl Mesh {
    /// Applies a file of a guide.
    fn guide(&self, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/guides").join(format!("{file}.yaml"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let values: Vec<Value> = text.split("\n---").map(|text| serde_saphyr::from_str::<Value>(text).unwrap()).collect();
        self.apply(values.into_iter().filter(|value| !value.is_null()));
    }

    /// The answer to a request of `account` to a service of a guide.
    async fn ask(&self, account: &str, address: &str, method: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_to(account, address, request(method, "/", headers)).await
    }

    /// How many of so many requests are answered with `text`.
    async fn share(&self, address: &str, text: &str, of: usize) -> usize {
        let mut sender = self.world.http1("cart", address).await;
        let mut count = 0;
        for _ in 0..of {
            count += usize::from(crate::world::fetch(&mut sender, request("GET", "/", &[])).await.1 == text);
        }
        count
    }
}

const REVIEWS: &str = "10.96.1.1:9080";

/// `reviews` in versions of a namespace.
async fn reviews(namespace: &str, versions: &[&'static str]) -> Mesh {
    let mesh = Mesh::new().with(namespace, "reviews", "10.96.1.1", 9080);
    for version in versions {
        mesh.runs_in(namespace, "reviews", version, says(version, &mesh.seen)).await;
    }
    mesh
}

#[test]
fn canaries_by_weight_and_by_header_hold_once_there_are_subsets() {
    run(async {
        let mesh = reviews("default", &["v1", "v2"]).await;
        mesh.guide("004/header-routing");
        assert_eq!(mesh.ask("cart", REVIEWS, "GET", &[]).await.status, 503, "the subsets come with the next file");
        mesh.guide("004/subsets");
        assert_eq!(mesh.ask("cart", REVIEWS, "GET", &[("end-user", "jason")]).await.body, "v2");
        assert_eq!(mesh.ask("cart", REVIEWS, "GET", &[("end-user", "nosaj")]).await.body, "v1");
        mesh.guide("004/canary");
        let second = mesh.share(REVIEWS, "v2", 1000).await;
        assert!(is_share(second, 1000, 10.0), "{second}");
        mesh.guide("004/canary-by-header");
        assert_eq!(mesh.ask("cart", REVIEWS, "GET", &[("canary", "true")]).await.body, "v2");
        assert_eq!(mesh.share(REVIEWS, "v1", 20).await, 20);
    });
}

#[test]
fn a_canary_as_kiali_writes_it_leaves_weight_0_out_until_its_subsets_are_renamed() {
    run(async {
        let mesh = reviews("book-demo", &["v1", "v2", "v3"]).await;
        mesh.guide("003/weighted-canary");
        let counts = [mesh.share(REVIEWS, "v1", 100).await, mesh.share(REVIEWS, "v2", 400).await];
        assert!(counts[0] == 0 && is_share(counts[1], 400, 50.0), "{counts:?}");
        mesh.guide("003/subsets");
        assert_eq!(mesh.ask("cart", REVIEWS, "GET", &[]).await.status, 503, "the rule of the same name has no such subsets any more");
    });
}

#[test]
fn a_circuit_breaker_of_one_error_leaves_the_healthy_version_and_then_nobody() {
    run(async {
        const CALC: &str = "10.96.1.2:8080";
        let mesh = Mesh::new().with("spring", "calc-service", "10.96.1.2", 8080);
        let poisoned = Rc::new(Cell::new(true));
        for version in ["normal", "poison"] {
            let poisoned = poisoned.clone();
            let answer = move |_| {
                let status = if version == "poison" || !poisoned.get() { 500 } else { 200 };
                std::future::ready(Response::builder().status(status).body(full(version)).unwrap())
            };
            mesh.runs_in("spring", "calc-service", version, answer).await;
        }
        mesh.guide("003/circuit-breaker");
        let mut failed = 0;
        while failed == 0 {
            failed += usize::from(mesh.ask("cart", CALC, "GET", &[]).await.status == 500);
        }
        assert_eq!(mesh.share(CALC, "normal", 30).await, 30, "after one error, only the healthy version");
        poisoned.set(false);
        assert_eq!(mesh.ask("cart", CALC, "GET", &[]).await.status, 500);
        let found = mesh.ask("cart", CALC, "GET", &[]).await;
        assert_eq!((found.status, found.body.as_str()), (503, "no healthy upstream"));
    });
}

#[test]
fn retries_of_the_guide_are_three_more_after_any_5xx() {
    run(async {
        const RATINGS: &str = "10.96.1.3:9080";
        let mesh = Mesh::new().with("default", "ratings", "10.96.1.3", 9080);
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        let answer = move |_| {
            count.set(count.get() + 1);
            std::future::ready(Response::builder().status(if count.get() < 4 { 500 } else { 200 }).body(full("")).unwrap())
        };
        mesh.runs_in("default", "ratings", "v1", answer).await;
        mesh.guide("004/retry");
        assert_eq!((mesh.ask("cart", RATINGS, "GET", &[]).await.status, asked.get()), (200, 4));
    });
}

#[test]
fn the_guides_connection_pool_reuses_connections_twice_and_ejects_at_five() {
    run(async {
        const HTTPBIN: &str = "10.96.1.4:80";
        let mesh = Mesh::new().with("demo", "httpbin", "10.96.1.4", 80);
        let status = Rc::new(Cell::new(200));
        let shown = status.clone();
        let answer = move |_| std::future::ready(Response::builder().status(shown.get()).body(full("")).unwrap());
        let app = mesh.runs_in("demo", "httpbin", "v1", answer).await;
        mesh.guide("004/circuit-breaker");
        mesh.share(HTTPBIN, "", 6).await;
        assert_eq!(app.connections.get(), 3, "maxRequestsPerConnection: 2");
        status.set(500);
        mesh.share(HTTPBIN, "", 5).await;
        // Ejected, and as less than half are healthy then, used all the same.
        assert_eq!(mesh.world.shared.pools.list().iter().map(|pool| pool.ejections).sum::<u64>(), 1);
        assert_eq!(mesh.ask("cart", HTTPBIN, "GET", &[]).await.status, 500);
    });
}

#[test]
fn policies_of_the_guide_deny_all_allow_all_and_allow_one() {
    run(async {
        const HTTPBIN: &str = "10.96.1.4:80";
        let mesh = Mesh::new().with("demo", "httpbin", "10.96.1.4", 80);
        mesh.runs_in("demo", "httpbin", "v1", says("httpbin", &mesh.seen)).await;
        mesh.guide("004/deny-all");
        let found = mesh.ask("cart", HTTPBIN, "GET", &[]).await;
        assert_eq!((found.status, found.body.as_str()), (403, "RBAC: access denied"));
        mesh.guide("004/allow-all");
        assert_eq!(mesh.ask("cart", HTTPBIN, "POST", &[]).await.status, 200, "what one allows is allowed");
        let mesh = Mesh::new().with("demo", "httpbin", "10.96.1.4", 80);
        mesh.runs_in("demo", "httpbin", "v1", says("httpbin", &mesh.seen)).await;
        mesh.guide("004/allow-service");
        for (account, method, status) in [("demo/sleep", "GET", 200), ("demo/sleep", "POST", 403), ("shop/sleep", "GET", 403)] {
            assert_eq!(mesh.ask(account, HTTPBIN, method, &[]).await.status, status, "{method} {account}");
        }
    });
}

#[test]
fn routes_without_hosts_change_nothing() {
    run(async {
        let mesh = Mesh::new().with("default", "shopping-service", "10.96.1.5", 80);
        mesh.runs_in("default", "shopping-service", "v1", says("v1", &mesh.seen)).await;
        mesh.guide("002/canary");
        assert_eq!(mesh.share("10.96.1.5:80", "v1", 10).await, 10);
    });
}
