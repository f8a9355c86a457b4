//! What is said of a request that was served: its bytes and its time, in the log and in the metrics; and the order in which it is looked at.

use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::json;

use crate::{
    api_mesh::{Mesh, policy, request},
    log,
    world::{full, run},
};

/// The value of the one series of a metric whose labels contain all of `labels`.
fn value(scrape: &str, metric: &str, labels: &[&str]) -> f64 {
    let lines: Vec<&str> = scrape
        .lines()
        .filter(|line| {
            line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{')) && labels.iter().all(|label| line.contains(label))
        })
        .collect();
    assert_eq!(lines.len(), 1, "{metric} {labels:?}: {lines:?}");
    lines[0].rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn bytes_and_time_of_a_request_are_measured() {
    const SENT: usize = 12_345;
    const ANSWERED: usize = 54_321;
    const SERVICE_TIME: Duration = Duration::from_millis(60);
    run(async {
        let mesh = Mesh::new();
        let _app = mesh
            .runs("reviews", "v1", "near", |request| async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body.len(), SENT);
                tokio::time::sleep(SERVICE_TIME).await;
                Response::new(full(vec![b'y'; ANSWERED]))
            })
            .await;
        let post = Request::post("/measured").header("host", "reviews:9080").body(full(vec![b'x'; SENT])).unwrap();
        let found = mesh.send(post).await;
        assert_eq!((found.status, found.body.len()), (200, ANSWERED));

        let line = log::wait_for(&[("path", "/measured")]).await;
        assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&json!(SENT), &json!(ANSWERED)));
        let milliseconds = |field: &str| log::text(&line[field]).parse::<f64>().unwrap();
        let (duration, service_time) = (milliseconds("duration"), milliseconds("upstream_service_time"));
        assert!(60.0 <= service_time && service_time <= duration && duration < 10_000.0, "{service_time} of {duration}");

        let scrape = mesh.world.scrape();
        let of_it = ["response_code=\"200\"", "destination_service_name=\"reviews\""];
        let measured = |metric: &str| value(&scrape, metric, &of_it);
        assert_eq!(measured("istio_requests_total") as u64, 1);
        for metric in ["istio_request_bytes", "istio_response_bytes", "istio_request_duration_milliseconds"] {
            assert_eq!(measured(&format!("{metric}_count")) as u64, 1, "{metric}");
        }
        // Bodies and heads: this request's has a target, a host and a length, its response's some names more.
        let head = |sum: &str, body: usize| measured(sum) as usize - body;
        assert!((40..200).contains(&head("istio_request_bytes_sum", SENT)), "{}", head("istio_request_bytes_sum", SENT));
        assert!((40..300).contains(&head("istio_response_bytes_sum", ANSWERED)), "{}", head("istio_response_bytes_sum", ANSWERED));
        let counted = measured("istio_request_duration_milliseconds_sum");
        assert!((60.0..=duration + 10.0).contains(&counted), "{counted} of {duration}");
        for (metric, below, above) in [("istio_request_bytes", 10_000, 30_000), ("istio_response_bytes", 30_000, 60_000)] {
            let bucket =
                |bound: u32| value(&scrape, &format!("{metric}_bucket"), &[of_it[0], of_it[1], &format!("le=\"{bound}.0\"")]) as u64;
            assert_eq!((bucket(below), bucket(above)), (0, 1), "{metric}");
        }
    });
}

#[test]
fn policy_is_asked_before_routes_and_faults_come_before_cors() {
    run(async {
        let mesh = Mesh::new();
        let _app = mesh.says("reviews", "v1", "near", "v1").await;
        mesh.routes(&json!([{"match": [{"uri": {"prefix": "/routed"}}], "route": [{"destination": {"host": "reviews"}}]}]));
        let target = json!([{"group": "", "kind": "Service", "name": "reviews"}]);
        let closed =
            json!({"targetRefs": target, "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/closed*", "/routed/closed"]}}]}]});
        mesh.apply([policy("closed", &closed)]);
        for (path, status, stage) in [
            ("/routed", 200, "forward"),
            ("/routed/closed", 403, "authorize"),
            ("/unrouted", 404, "route"),
            ("/closed/unrouted", 403, "authorize"),
        ] {
            assert_eq!(mesh.send(request("GET", path, &[])).await.status, status, "{path}");
            assert_eq!(log::text(&log::wait_for(&[("path", path)]).await["stage"]), stage, "{path}");
        }

        let abort = json!({"abort": {"httpStatus": 599, "percentage": {"value": 100}}});
        let cors = json!({"allowOrigins": [{"exact": "https://a.example"}], "allowMethods": ["PUT"]});
        let origin = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
        let preflight = async || mesh.send(request("OPTIONS", "/", &origin)).await;
        mesh.route(&json!({"corsPolicy": cors, "fault": abort}));
        let found = preflight().await;
        assert_eq!((found.status, found.body.as_str()), (599, "fault filter abort"));
        mesh.route(&json!({"corsPolicy": cors}));
        let found = preflight().await;
        assert_eq!((found.status, found.header("access-control-allow-methods")), (200, Some("PUT")));
    });
}
