//! The tables of the shop in `testdata/shop.yaml`.

use tropis_compile::Settings;
use tropis_source::dir::snapshot;

use super::*;
use crate::arguments::Format;

fn shop() -> Mesh {
    Mesh::compile(Settings::default(), &snapshot::of_text("shop.yaml", include_str!("../../../testdata/shop.yaml").to_owned()).objects)
}

fn waypoint(mesh: &Mesh) -> Subject {
    subject(mesh, "waypoint", "shop").unwrap()
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
fn routes_are_shown_in_their_order_with_shares() {
    insta::assert_snapshot!(routes(&waypoint(&shop()), &shop(), None).render(Format::Table, "").unwrap());
}

#[test]
fn a_pod_shows_the_routes_of_the_waypoints_on_its_way() {
    let mesh = shop();
    let of = |subject: &Subject| routes(subject, &mesh, None).render(Format::Json, "").unwrap();
    assert_eq!(of(&subject(&mesh, "sleep", "shop").unwrap()), of(&waypoint(&mesh)));
}

#[test]
fn clusters_name_their_destination_rule() {
    let rows = clusters(&waypoint(&shop()), &shop());
    let parts: Vec<_> = rows.iter().map(|row| (row.subset.as_str(), row.r#type, row.destination_rule.as_str())).collect();
    assert_eq!(parts, [("v1", "LEAST_REQUEST", "reviews.shop"), ("v2", "LEAST_REQUEST", "reviews.shop")]);
}

#[test]
fn listeners_of_a_pod_are_its_node_proxys_and_its_waypoints() {
    let mesh = shop();
    let rows = listeners(&subject(&mesh, "sleep", "shop").unwrap(), &mesh);
    assert!(rows.iter().any(|row| row.proxy.starts_with("ztunnel") && row.port == 15001));
    assert!(rows.iter().any(|row| row.proxy == "waypoint.shop" && row.r#match == "tunnel to reviews.shop.svc.cluster.local:9080"));
}
