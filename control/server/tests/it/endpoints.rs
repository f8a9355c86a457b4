//! What may be asked without proof: health and metrics, and nothing else.

use std::os::unix::fs::PermissionsExt;

use crate::harness::{Tropisd, get};

#[tokio::test]
async fn the_monitoring_port_has_health_and_metrics_only() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let ask = async |path: &str| get(&format!("http://{}{path}", tropisd.monitoring)).await.unwrap();
    assert_eq!(ask("/healthz").await, (200, "ok\n".into()));
    let (status, metrics) = ask("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("tropis_server_configuration_generation 1"), "{metrics}");
    for path in ["/", "/debug/clients", "/debug/resources", "/debug/findings", "/logging"] {
        assert_eq!(ask(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn the_debug_socket_is_private() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let mode = std::fs::metadata(tropisd.path("debug.sock")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let resources = tropisd.debug("/debug/resources").await;
    assert!(
        resources["audiences"]["node proxies"]["address"].as_object().unwrap().contains_key("Kubernetes//Pod/shop/cart"),
        "{resources}"
    );
    assert_eq!(tropisd.debug("/debug/live").await["live"], true);
    assert_eq!(tropisd.terminate(), Some(0));
}
