//! What pools keep when their members, their settings or their ejections change.

use std::collections::BTreeMap;

use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    pool::{Balancer, Limits, LocalityPreference, OutlierDetection, UpstreamTls, UpstreamVersion},
    service::{AppProtocol, Service, ServicePort},
    view::Change,
};

use super::*;

fn name() -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: "reviews.shop.svc.cluster.local".into() }
}

fn pool(labels: &[(&str, &str)], outlier: Option<OutlierDetection>) -> Arc<Pool> {
    Arc::new(Pool {
        key: PoolKey { host: name(), port: 9080, subset: None },
        labels: labels.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect(),
        balancer: Balancer::RoundRobin,
        locality: LocalityPreference::None,
        warmup: None,
        limits: Limits::default(),
        outlier,
        panic_threshold_percent: 0,
        upstream_version: UpstreamVersion::FromPort,
        tls: UpstreamTls::None,
    })
}

fn detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 1,
        consecutive_gateway_errors: 0,
        consecutive_local_origin_failures: 0,
        split_local_origin: false,
        error_statuses: Vec::new(),
        interval: Duration::from_millis(20),
        base_ejection_time: Duration::from_millis(30),
        max_ejection_percent: 100,
    }
}

fn workload(number: u8, version: &str) -> Change {
    let mut workload = Workload::new(format!("c//Pod/shop/reviews-{number}"), "reviews", Identity::new("td", "shop", "reviews"));
    workload.addresses = vec![format!("10.0.0.{number}").parse().unwrap()];
    workload.services.insert(name(), BTreeMap::from([(9080, 8080)]));
    workload.labels.insert("version".into(), version.into());
    Change::Workload(Arc::new(workload))
}

fn view() -> View {
    let mut service = Service::new("reviews", name());
    service.ports.insert(9080, ServicePort { target_port: Some(1), app_protocol: AppProtocol::Http11 });
    View::default().apply([Change::Service(Arc::new(service)), workload(1, "v1"), workload(2, "v2"), workload(3, "v1")])
}

fn addresses(current: &Current) -> Vec<String> {
    current.ready.endpoints.candidates().iter().filter(|one| one.healthy).map(|one| one.address.to_string()).collect()
}

#[test]
fn members_carry_the_labels_and_keep_their_counters() {
    let pools = Pools::new("shop/waypoint".into(), "".into());
    let (view, v1) = (view(), pool(&[("version", "v1")], None));
    let before = pools.current(&view, &v1, None);
    assert_eq!(addresses(&before), ["10.0.0.1:8080", "10.0.0.3:8080"]);
    let next = view.apply([workload(4, "v1"), Change::RemoveAddress("c//Pod/shop/reviews-1".into())]);
    let after = pools.current(&next, &v1, None);
    assert_eq!(addresses(&after), ["10.0.0.3:8080", "10.0.0.4:8080"]);
    assert!(Arc::ptr_eq(&before.ready.members[1], &after.ready.members[0]));
    assert_eq!(addresses(&pools.current(&view, &v1, None)), addresses(&after), "a worker with an older view does not bring it back");
}

#[test]
fn an_older_view_brings_no_older_pool_back() {
    let pools = Pools::new("shop/waypoint".into(), "".into());
    let (view, all, v1) = (view(), pool(&[], None), pool(&[("version", "v1")], None));
    pools.current(&view, &all, None);
    let next = view.apply([workload(4, "v1")]);
    let new = pools.current(&next, &v1, None);
    let old = pools.current(&view, &all, None);
    assert!(Arc::ptr_eq(&new.ready, &old.ready), "{old:?}");
    assert_eq!(addresses(&old), ["10.0.0.1:8080", "10.0.0.3:8080", "10.0.0.4:8080"]);
}

#[test]
fn a_shorter_interval_waits_for_no_tick_of_the_longer() {
    let pools = Pools::new("shop/waypoint".into(), "".into());
    let slow = OutlierDetection { interval: Duration::from_secs(600), ..detection() };
    let (view, before, after) = (view(), pool(&[], Some(slow)), pool(&[], Some(detection())));
    let current = pools.current(&view, &before, None);
    current.state.record(&current.ready.members[0], Outcome::Response(503), pools.now(), None);
    let next = view.apply([]);
    assert_eq!(addresses(&pools.current(&next, &after, None)).len(), 2);
    let deadline = Instant::now() + Duration::from_secs(10);
    while addresses(&pools.current(&next, &after, None)).len() < 3 {
        assert!(Instant::now() < deadline, "it never came back");
        std::thread::yield_now();
    }
}

#[test]
fn a_change_of_something_else_prepares_nothing_anew() {
    let pools = Pools::new("shop/waypoint".into(), "".into());
    let (view, pool) = (view(), pool(&[], None));
    let before = pools.current(&view, &pool, None);
    let after = pools.current(&view.apply([Change::RemoveAddress("x/y".into())]), &pool, None);
    assert!(Arc::ptr_eq(&before.ready.endpoints, &after.ready.endpoints));
}

#[test]
fn ports_that_callers_think_of_make_nobody_forget_an_ejection() {
    let pools = Pools::new("shop/waypoint".into(), "".into());
    let (view, service) = (view(), pool(&[], Some(OutlierDetection { base_ejection_time: Duration::from_secs(600), ..detection() })));
    let current = pools.current(&view, &service, None);
    current.state.record(&current.ready.members[0].clone(), Outcome::Response(503), pools.now(), None);
    drop(current);
    let uid = NamespacedHostname { namespace: "shop".into(), hostname: "c//Pod/shop/reviews-1".into() };
    let of_port = |port: u16| Arc::new(Pool { key: PoolKey { host: uid.clone(), port, subset: None }, ..(*pool(&[], None)).clone() });
    let in_use = pools.current(&view, &of_port(1), None);
    for port in 2..u16::MAX {
        pools.current(&view, &of_port(port), None);
    }
    assert!(pools.list().len() <= MAX_POOLS_OF_WORKLOADS + 1, "{}", pools.list().len());
    assert!(Arc::ptr_eq(&in_use.state, &pools.current(&view, &of_port(1), None).state), "what is in use stays");
    assert_eq!(addresses(&pools.current(&view, &service, None)).len(), 2);
}

#[test]
fn an_ejection_holds_at_once_and_ends_by_itself() {
    let pools = Pools::new("shop/waypoint".into(), "".into());
    let (view, pool) = (view(), pool(&[], Some(detection())));
    let current = pools.current(&view, &pool, None);
    let member = current.ready.members[0].clone();
    current.state.record(&member, Outcome::Response(503), pools.now(), None);
    let ejected = pools.current(&view, &pool, None);
    assert_eq!(addresses(&ejected), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    let info = &pools.list()[0];
    assert!(info.ejected[0].is_some_and(|left| left <= Duration::from_millis(30)), "{:?}", info.ejected);
    assert_eq!((info.ejections, &info.ejected[1..]), (1, &[None, None][..]));
    let deadline = Instant::now() + Duration::from_secs(10);
    while addresses(&pools.current(&view, &pool, None)).len() < 3 {
        assert!(Instant::now() < deadline, "it never came back");
        std::thread::yield_now();
    }
    assert!(pools.now() >= Duration::from_millis(30));
}
