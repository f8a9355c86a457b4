//! Lines as users and programs read them.

use super::*;

fn line() -> Line<'static> {
    Line {
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        method: Some("GET"),
        path: Some("/reviews/0"),
        protocol: Some("HTTP/1.1"),
        status: 503,
        grpc_status: None,
        flags: Flags::NO_HEALTHY_UPSTREAM,
        details: Some("no_healthy_upstream"),
        failure: None,
        bytes_received: 0,
        bytes_sent: 19,
        duration: Duration::from_millis(7),
        service_time: None,
        forwarded_for: None,
        user_agent: Some("curl/8"),
        request_id: Some("id"),
        authority: Some("reviews:9080"),
        upstream: None,
        cluster: Some("inbound-vip|9080|http|reviews.shop.svc.cluster.local".into()),
        upstream_local: None,
        called: Some("10.1.0.1:9080".parse().unwrap()),
        caller: "10.0.0.1:4000".parse().unwrap(),
        server_name: None,
        route_name: Some("default".to_owned()),
        attempts: 1,
        headers: None,
        stage: "balance",
        reason: "no_endpoint",
        side: Some("upstream"),
        policy: None,
        config_version: Some("7"),
    }
}

#[test]
fn text_is_istios_default_to_the_letter() {
    assert_eq!(
        Formats::default().of(None).line(&line()),
        "[2023-11-14T22:13:20.123Z] \"GET /reviews/0 HTTP/1.1\" 503 UH no_healthy_upstream - \"-\" 0 19 7 - \"-\" \"curl/8\" \"id\" \
         \"reviews:9080\" \"-\" inbound-vip|9080|http|reviews.shop.svc.cluster.local - 10.1.0.1:9080 10.0.0.1:4000 - default"
    );
}

#[test]
fn json_has_istios_fields_in_order_then_ours() {
    let text = line().json();
    let value: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((keys[0], keys[23], keys.len()), ("start_time", "requested_server_name", 29));
    assert_eq!(&keys[24..], ["stage", "reason", "side", "policy", "config_version"]);
    assert_eq!((&value["response_code"], &value["upstream_host"], &value["response_flags"]), (&json!(503), &Value::Null, &json!("UH")));
}

#[test]
fn a_users_format_is_read_with_limits_and_percent_signs() {
    for (format, expected) in [
        ("%REQ(USER-AGENT):4% 100%%\n", "curl 100%"),
        ("%REQ(X-ABSENT?:METHOD)% %REQ(X-ABSENT)%", "GET -"),
        ("%UNKNOWN(x:y)% %RESPONSE_CODE% 50%", "- 503 50%"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
    ] {
        assert_eq!(Format::read(format).line(&line()), expected, "{format}");
    }
}
