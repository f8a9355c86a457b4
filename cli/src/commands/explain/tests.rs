//! Stories about the shop in `testdata/shop.yaml`, and that each ends as the proxies would decide.

use tropis_compile::Settings;
use tropis_source::dir::snapshot;

use super::{
    connection,
    question::{self, Question},
    story::{Story, Verdict},
    *,
};

fn shop() -> Mesh {
    let snapshot = snapshot::of_text("shop.yaml", include_str!("../../../testdata/shop.yaml").to_owned());
    assert!(snapshot.findings.is_empty(), "{:?}", snapshot.findings);
    Mesh::compile(Settings::default(), &snapshot.objects)
}

fn arguments(source: &str, destination: &str) -> Arguments {
    Arguments {
        source: source.to_owned(),
        destination: destination.to_owned(),
        method: "GET".to_owned(),
        headers: Vec::new(),
        authority: None,
        server_name: None,
        ipv6: false,
    }
}

fn ask(mesh: &Mesh, arguments: &Arguments) -> Question {
    question::read(mesh, arguments, "shop").unwrap()
}

fn tell(mesh: &Mesh, arguments: &Arguments) -> Story {
    connection::tell(mesh, &ask(mesh, arguments))
}

#[test]
fn a_request_is_followed_through_the_waypoint_to_every_endpoint() {
    let story = tell(&shop(), &arguments("sleep", "reviews:9080/health"));
    insta::assert_snapshot!(story.text());
    assert_eq!(*story.verdict(), Verdict::Allowed);
}

#[test]
fn a_header_changes_the_route() {
    let mut asked = arguments("sleep", "reviews:9080/health");
    asked.headers = vec!["end-user: jason".to_owned()];
    let text = tell(&shop(), &asked).text();
    assert!(text.contains("VirtualService shop/reviews spec.http[0]: reviews.shop:9080/v2"), "{text}");
    assert!(!text.contains("reviews-v1"), "{text}");
}

#[test]
fn a_method_that_nobody_allows_is_refused_at_the_waypoint() {
    let mut asked = arguments("sleep", "reviews:9080/health");
    asked.method = "POST".to_owned();
    let story = tell(&shop(), &asked);
    insta::assert_snapshot!(story.text());
    assert!(matches!(story.verdict(), Verdict::Refused(reason) if reason.contains("403") && reason.contains("shop/reviews-viewers")));
}

#[test]
fn a_connection_is_reset_where_a_request_would_be_answered() {
    let mut asked = arguments("sleep", "reviews:9080");
    asked.server_name = Some("reviews.shop.svc.cluster.local".to_owned());
    let story = tell(&shop(), &asked);
    assert!(matches!(story.verdict(), Verdict::Refused(reason) if reason.starts_with("reset, ")), "{}", story.text());
}

#[test]
fn a_pod_that_is_called_itself_still_refuses_who_goes_around_its_waypoint() {
    let story = tell(&shop(), &arguments("sleep", "pod/reviews-v1:8080"));
    assert!(matches!(story.verdict(), Verdict::Refused(reason) if reason.contains("shop/reviews-readers")), "{}", story.text());
}

#[test]
fn a_connection_without_a_waypoint_is_decided_at_its_destination() {
    let mesh = shop();
    insta::assert_snapshot!(tell(&mesh, &arguments("sleep", "ratings:9090")).text());
    assert_eq!(*tell(&mesh, &arguments("sleep", "ratings:9080")).verdict(), Verdict::Allowed);
}

#[test]
fn a_pod_outside_of_the_mesh_proves_nobody() {
    let story = tell(&shop(), &arguments("old.legacy", "reviews.shop:9080"));
    insta::assert_snapshot!(story.text());
    assert!(matches!(story.verdict(), Verdict::Refused(_)));
}

#[test]
fn what_is_not_of_the_mesh_is_passed_on() {
    let mesh = shop();
    assert_eq!(*tell(&mesh, &arguments("sleep", "192.0.2.1:443")).verdict(), Verdict::Allowed);
    assert_eq!(*tell(&mesh, &arguments("sleep", "pod/old.legacy:80")).verdict(), Verdict::Allowed);
}

#[test]
fn an_ambiguous_path_is_refused_before_any_route() {
    let story = tell(&shop(), &arguments("sleep", "reviews:9080/a/%zz"));
    assert!(matches!(story.verdict(), Verdict::Refused(reason) if reason.starts_with("400")), "{}", story.text());
}

#[test]
fn a_question_that_cannot_be_asked_says_what_to_write() {
    let mesh = shop();
    let refused = |source: &str, destination: &str| question::read(&mesh, &arguments(source, destination), "shop").unwrap_err().to_string();
    assert!(refused("nobody", "reviews").contains("tropis get pods"));
    assert!(refused("sleep", "ratings").contains("9080, 9090"));
    assert!(refused("sleep", "example.com:80").contains("by its IP"));
    assert!(refused("sleep", "pod/ratings").contains("which port"));
}

#[test]
fn a_story_has_a_shape_for_programs() {
    let story = tell(&shop(), &arguments("sleep", "ratings:9090"));
    let value = serde_json::to_value(&story).unwrap();
    assert_eq!(value["verdict"]["outcome"], "refused");
    assert_eq!(value["steps"][0]["stage"], "identify");
}
