//! How requests are logged, as the waypoint's own configuration says: text, a user's own format, or nothing.

use std::{collections::BTreeSet, sync::Arc};

use http::Request;
use tropis_model::{
    view::Change,
    waypoint::{AccessLogFormat, Serves, Waypoint},
};

use crate::{
    log,
    world::{Seen, World, fetch, full, name, run, says},
};

/// Sends a request for `path` where requests are logged so.
async fn logged(access_log: Option<AccessLogFormat>, path: &str) -> String {
    let world = World::new();
    world.reviews();
    let app = world.app(says("hello", &Seen::default())).await;
    world.endpoint("reviews", "v1", &app);
    let waypoint = Waypoint {
        key: "shop/waypoint".into(),
        service: name("waypoint"),
        serves: Serves::All,
        policies: Vec::new(),
        access_log,
        elsewhere: BTreeSet::new(),
    };
    world.apply([Change::Waypoint(Arc::new(waypoint))]);
    let request = Request::get(path).header("host", "reviews:9080").header("user-agent", "curl/8").body(full("")).unwrap();
    let mut sender = world.http1("cart", "10.96.0.1:9080").await;
    assert_eq!(fetch(&mut sender, request).await, (200, "hello".into()));
    app.address.to_string()
}

#[test]
fn a_line_of_text_is_istios_default() {
    run(async {
        let upstream = logged(Some(AccessLogFormat::Text(None)), "/logged-as-text?q=1").await;
        let line = log::wait_for_text("/logged-as-text").await;
        let words: Vec<&str> = line.split(' ').collect();
        let (time, duration, id, local) = (words[0], words[11], words[15], words[19]);
        let quoted = format!("\"{upstream}\"");
        let expected = [
            time,
            "\"GET",
            "/logged-as-text?q=1",
            "HTTP/1.1\"",
            "200",
            "-",
            "via_upstream",
            "-",
            "\"-\"",
            "0",
            "5",
            duration,
            words[12],
            "\"127.0.0.1\"",
            "\"curl/8\"",
            id,
            "\"reviews:9080\"",
            &quoted,
            "inbound-vip|9080|http|reviews.shop.svc.cluster.local",
            local,
            "10.96.0.1:9080",
            "127.0.0.1:4711",
            "-",
            "default",
        ];
        assert_eq!(words, expected);
        assert!(time.starts_with("[20") && time.ends_with("Z]") && time.len() == "[2006-01-02T15:04:05.000Z]".len(), "{time}");
        assert!([duration, words[12]].iter().all(|milliseconds| milliseconds.parse::<u32>().is_ok()), "{line}");
        assert!(id.len() == 38 && local.starts_with("127.0.0.1:"), "{line}");
    });
}

#[test]
fn a_users_own_format_may_ask_for_any_header() {
    run(async {
        let format = "own %REQ(:PATH)% %RESPONSE_CODE% %REQ(USER-AGENT)% %REQ(HOST)% %REQ(X-ABSENT)%";
        logged(Some(AccessLogFormat::Text(Some(format.into()))), "/logged-as-wished").await;
        assert_eq!(log::wait_for_text("/logged-as-wished").await, "own /logged-as-wished 200 curl/8 reviews:9080 -");
    });
}

#[test]
fn nothing_is_logged_where_the_log_is_off() {
    run(async {
        logged(None, "/logged-not-at-all").await;
        // Its report is written before the next one's.
        logged(Some(AccessLogFormat::Json), "/logged-after-that").await;
        log::wait_for(&[("path", "/logged-after-that")]).await;
        assert!(log::all(&[("path", "/logged-not-at-all")]).is_empty());
    });
}
