//! What names mean in the shop of `testdata/shop.yaml`, and the tables of a waypoint that has `testdata/config_dump.json` in force, whose
//! shares are not those of the shop's objects.

use tropis_compile::Settings;
use tropis_source::dir::snapshot;

use super::{in_force::Running, *};
use crate::arguments::Format;

fn shop() -> Mesh {
    Mesh::compile(Settings::default(), &snapshot::of_text("shop.yaml", include_str!("../../../testdata/shop.yaml").to_owned()).objects)
}

fn running() -> [Running; 1] {
    let dump = serde_json::from_str(include_str!("../../../testdata/config_dump.json")).unwrap();
    [Running { proxy: "waypoint-1.shop".to_owned(), gateway: ("shop".to_owned(), "waypoint".to_owned()), dump }]
}

#[test]
fn a_name_means_a_waypoint_or_a_pod() {
    let mesh = shop();
    let means = |text: &str| subject(&mesh, text, "shop");
    assert!(matches!(means("waypoint").unwrap(), Subject::Waypoint(key) if key.1 == "waypoint"));
    assert!(matches!(means("pod/waypoint-1.shop").unwrap(), Subject::Waypoint(_)), "a waypoint's pod");
    assert!(matches!(means("service/reviews").unwrap(), Subject::Pod(pod) if pod.name == "reviews-v1"));
    assert!(means("nobody").unwrap_err().to_string().contains("tropis waypoint list"));
}

#[test]
fn routes_in_force_are_shown_in_their_order_with_shares() {
    insta::assert_snapshot!(in_force::routes(&running(), None).render(Format::Table, "").unwrap());
    assert!(!in_force::routes(&running(), Some(9443)).render(Format::Table, "").unwrap().contains("9080"));
}

#[test]
fn clusters_in_force_name_their_destination_rule() {
    let rows = in_force::clusters(&running(), &shop());
    let parts: Vec<_> = rows.iter().map(|row| (row.subset.as_str(), row.r#type.as_str(), row.destination_rule.as_str())).collect();
    assert_eq!(parts, [("v1", "LEAST_REQUEST", "reviews.shop"), ("v2", "RANDOM", "reviews.shop")]);
}

#[test]
fn listeners_of_a_pod_are_its_node_proxys_and_its_waypoints() {
    let mesh = shop();
    let rows = in_force::listeners(&subject(&mesh, "sleep", "shop").unwrap(), &running());
    assert!(rows.iter().any(|row| row.proxy.starts_with("ztunnel") && row.port == 15001));
    let own = rows.iter().find(|row| row.r#match == "tunnel to reviews.shop.svc.cluster.local:9443").unwrap();
    assert_eq!((own.proxy.as_str(), own.destination.as_str()), ("waypoint-1.shop", "Tls, 2 routes"));
}
