//! Which changes wake a connection that waits, and which end it.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::task::coop::unconstrained;
use tropis_model::{
    address::NamespacedHostname,
    identity::Identity,
    route::{Host, HostPort},
    service::Service,
    view::Change,
    waypoint::{Serves, Waypoint},
    workload::{GatewayAddress, GatewayDestination, Workload, WorkloadUid},
};
use tropis_telemetry::metrics::Metrics;
use tropis_tls::{store::Certificates, testing::TestAuthority};

use super::*;
use crate::{app::Shared, config::Config, stages::resolve::Addressed, worker::Worker};

const EACH: usize = 500;

fn name(service: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: "shop".into(), hostname: format!("{service}.shop.svc.cluster.local").into() }
}

fn ours() -> Option<GatewayAddress> {
    Some(GatewayAddress { destination: GatewayDestination::Service(name("waypoint")), hbone_port: 15008 })
}

fn uid(number: usize) -> WorkloadUid {
    WorkloadUid(format!("Kubernetes//Pod/shop/pod-{number}").into())
}

fn pod(number: usize) -> Change {
    let mut pod = Workload::new(uid(number).0, "pod", Identity::new("cluster.local", "shop", "pod"));
    pod.waypoint = ours();
    Change::Workload(pod.into())
}

fn waypoint(elsewhere: BTreeSet<WorkloadUid>) -> Change {
    let (key, service) = ("shop/waypoint".into(), name("waypoint"));
    Change::Waypoint(Waypoint { key, service, serves: Serves::All, policies: Vec::new(), access_log: None, elsewhere }.into())
}

fn service(waypoint: Option<GatewayAddress>) -> Change {
    let mut service = Service::new("reviews", name("reviews"));
    service.waypoint = waypoint;
    Change::Service(service.into())
}

fn host() -> Change {
    let ports = BTreeMap::from([(80, HostPort { http: Vec::new(), tls: Vec::new(), tcp: Vec::new(), protocol: Default::default() })]);
    Change::Host(Host { name: name("reviews"), ports, policies: Vec::new(), pools: BTreeMap::new() }.into())
}

fn worker() -> Rc<Worker> {
    let variables = [("TROPIS_GATEWAY", "shop/waypoint"), ("POD_NAMESPACE", "shop"), ("POD_NAME", "waypoint-1")];
    let config = Config::read(&variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()).unwrap();
    let certificates = Certificates::new(Arc::new(TestAuthority::new()));
    let shared = Shared::new(config, certificates, &Metrics::default());
    let pods = (0..EACH).map(pod);
    shared.view.apply([waypoint(BTreeSet::new()), service(ours()), host()].into_iter().chain(pods).collect());
    Rc::new(Worker::new(Arc::new(shared)))
}

fn entry(worker: &Rc<Worker>, addressed: Addressed) -> Entry {
    let identity = Some(Identity::new("cluster.local", "shop", "caller"));
    Entry::new(worker.clone(), identity, ([10, 0, 0, 1], 4711).into(), addressed)
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that waits.
struct Waiting<'e> {
    left: Pin<Box<dyn Future<Output = ()> + 'e>>,
    wakes: Arc<Woken>,
    is_over: bool,
}

/// Connections that wait.
struct Idle<'e>(Vec<Waiting<'e>>);

impl<'e> Idle<'e> {
    fn of(entries: &'e [Entry]) -> Self {
        let each = entries.iter().map(|entry| {
            let wakes = Arc::new(Woken(AtomicUsize::new(1)));
            Waiting { left: Box::pin(left(entry, Duration::ZERO)), wakes, is_over: false }
        });
        Self(each.collect())
    }

    /// Lets those go on that were woken: how many were, and how many have ended by now.
    fn run(&mut self) -> (usize, usize) {
        let mut woken = 0;
        for waiting in self.0.iter_mut().filter(|waiting| !waiting.is_over) {
            if waiting.wakes.0.swap(0, Ordering::Relaxed) > 0 {
                woken += 1;
                let waker = Waker::from(waiting.wakes.clone());
                // With so many in one task, tokio would make some of them wait for its next turn.
                let mut left = unconstrained(waiting.left.as_mut());
                waiting.is_over = Pin::new(&mut left).poll(&mut Context::from_waker(&waker)) == Poll::Ready(());
            }
        }
        (woken, self.0.iter().filter(|waiting| waiting.is_over).count())
    }
}

#[tokio::test]
async fn pods_that_come_and_go_wake_few_of_the_connections_to_others() {
    let worker = worker();
    let to_pod = |number| Addressed::Workload { uid: uid(number), address: ([10, 1, 0, 1], 80).into() };
    let to_service = || Addressed::Service { name: name("reviews"), port: 80, address: None };
    let entries: Vec<_> = (0..EACH).flat_map(|number| [to_service(), to_pod(number)].map(|to| entry(&worker, to))).collect();
    let mut idle = Idle::of(&entries);
    assert_eq!(idle.run(), (2 * EACH, 0));
    let mut woken = 0;
    for number in EACH..EACH + 100 {
        // As a pod comes: first nobody is to reach it through us.
        for change in [waypoint([uid(number)].into()), pod(number), waypoint(BTreeSet::new())] {
            worker.shared.view.apply(vec![change]);
            let (now, over) = idle.run();
            woken += now;
            assert_eq!(over, 0);
        }
    }
    // Told of each change, they would have woken 300 000 times.
    println!("{woken} wakes");
    assert!(woken < 300 * 2 * EACH / 20, "{woken} wakes");
    for (change, expected, who) in [
        (waypoint([uid(7)].into()), 1, "the connection to the pod that left"),
        (service(None), 1 + EACH, "and those to the service that left"),
        (waypoint((0..EACH).map(uid).collect()), 2 * EACH, "all"),
    ] {
        worker.shared.view.apply(vec![change]);
        idle.run();
        // The end comes by the clock.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(idle.run().1, expected, "{who}");
    }
}
