//! When traffic may go through a waypoint, and when a waypoint that was left may forget what it carried.
//!
//! A Service or a pod goes through a waypoint once every pod of that one has acknowledged what it needs for it, and every node proxy the
//! policies that then let it in; the same for each Service that is new at a waypoint in use. One that cannot acknowledge in time gets the
//! traffic all the same and refuses what it does not know: a waypoint that is asked for is not gone around. What leaves a waypoint stays
//! known there until node proxies have acknowledged that and what was open has had time to end. Who goes where, the compiler remembers;
//! here is what it cannot know: acknowledgements and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tropis_compile::{Compiler, Left, waypoint::scope::Served};
use tropis_model::address::NamespacedHostname;
use tropis_xds::{
    ResourceType,
    server::{Audience, Clients},
};

use crate::{exits::Exits, scope::Key};

/// How long acknowledgements are waited for before traffic goes to a waypoint that is ready.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is waited for until a waypoint may carry what it knows.
#[derive(Debug)]
struct Admission {
    /// Node proxies are to have this generation.
    generation: u64,
    /// They are waited for until then.
    until: Instant,
    /// What it may carry then.
    served: Arc<Served>,
}

/// What is known of each waypoint.
#[derive(Debug)]
pub(crate) struct Attach {
    /// The generation in which its table was changed last.
    told: BTreeMap<Key, u64>,
    /// The one of them that all of its pods acknowledged last.
    acknowledged: BTreeMap<Key, u64>,
    admissions: BTreeMap<Key, Admission>,
    /// Waypoints that are ready and waited for, with the end of the wait.
    held: BTreeMap<Key, Instant>,
    exits: Exits<Left>,
    /// Whether something was released since the compiler was asked last.
    has_released: bool,
}

impl Attach {
    /// What is open through a waypoint that was left has `drain` to end.
    pub(crate) fn new(drain: Duration) -> Self {
        Self {
            told: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            admissions: BTreeMap::new(),
            held: BTreeMap::new(),
            exits: Exits::new(drain),
            has_released: false,
        }
    }

    /// Whether every pod of a waypoint has acknowledged something.
    pub(crate) fn is_live(&self, waypoint: &Key) -> bool {
        self.acknowledged.contains_key(waypoint)
    }

    /// The generation in which a waypoint was told something last, if every pod of it has acknowledged that.
    pub(crate) fn in_force(&self, waypoint: &Key) -> Option<u64> {
        self.told.get(waypoint).copied().filter(|told| self.acknowledged.get(waypoint) == Some(told))
    }

    /// Tells the compiler who acknowledged what, before it compiles. Says whether a waypoint has become live.
    pub(crate) fn acknowledge(&mut self, compiler: &mut Compiler, clients: &Clients, now: Instant) -> bool {
        let mut newly_live = false;
        self.has_released = false;
        for (waypoint, generation) in &self.told {
            if self.acknowledged.get(waypoint) == Some(generation) {
                continue;
            }
            let Some(refused) = clients.answered(&audience(waypoint), *generation) else { continue };
            // A host that is refused is its own affair, not that of the others.
            if let Some(hosts) = refused_hosts(&refused) {
                compiler.acknowledged_without(waypoint, &hosts);
                newly_live |= self.acknowledged.insert(waypoint.clone(), *generation).is_none();
            }
        }
        let ready: Vec<Key> = (self.admissions.iter())
            .filter(|(_, admission)| now >= admission.until || has(clients, admission.generation))
            .map(|(waypoint, _)| waypoint.clone())
            .collect();
        for waypoint in ready {
            if let Some(admission) = self.admissions.remove(&waypoint) {
                compiler.carry(&waypoint, admission.served);
            }
        }
        for waypoint in self.held.extract_if(.., |_, until| now >= *until).map(|(waypoint, _)| waypoint).collect::<Vec<_>>() {
            compiler.carry_all(&waypoint);
        }
        newly_live
    }

    /// Notes which waypoints were told something in a generation, and which are gone.
    pub(crate) fn published(&mut self, waypoint: Key, generation: Option<u64>) {
        match generation {
            Some(generation) => _ = self.told.insert(waypoint, generation),
            None => {
                self.told.remove(&waypoint);
                self.acknowledged.remove(&waypoint);
                self.admissions.remove(&waypoint);
            }
        }
    }

    /// Sees what is to be waited for now that `generation` is published, and lets waypoints forget what is out.
    pub(crate) fn follow(&mut self, compiler: &mut Compiler, clients: &Clients, generation: u64, now: Instant) {
        for waypoint in self.acknowledged.keys().filter(|waypoint| !self.admissions.contains_key(*waypoint)).cloned().collect::<Vec<_>>() {
            if let Some(served) = compiler.acquainted(&waypoint) {
                // Of what node proxies have already, no acknowledgement will tell.
                let until = if has(clients, generation) { now } else { now + LONGEST_WAIT };
                self.admissions.insert(waypoint, Admission { generation, until, served });
            }
        }
        let held = compiler.held();
        self.held.retain(|waypoint, _| held.contains(waypoint));
        for waypoint in held {
            self.held.entry(waypoint).or_insert(now + LONGEST_WAIT);
        }
        let left: BTreeSet<Left> = compiler.left().collect();
        self.exits.retain(|known| left.contains(known));
        // Much leaves at once, in one generation.
        let mut known: BTreeMap<u64, bool> = BTreeMap::new();
        for left in &left {
            let acknowledged = |generation| *known.entry(generation).or_insert_with(|| has(clients, generation));
            if self.exits.is_out(left, generation, acknowledged, now) {
                self.release(compiler, left);
            }
        }
    }

    /// A waypoint that was left forgets something. What is waited for now is not to let it carry that again, before it has acknowledged it
    /// anew.
    fn release(&mut self, compiler: &mut Compiler, left: &Left) {
        if compiler.release(left) {
            self.has_released = true;
            if let Some(admission) = self.admissions.get_mut(left.waypoint()) {
                left.take_from(&mut admission.served);
            }
        }
    }

    /// When to look again, if nothing happens before.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let waits = self.admissions.values().map(|admission| admission.until).chain(self.held.values().copied());
        // What was released is forgotten in the next generation.
        waits.chain(self.exits.due(now)).chain(self.has_released.then_some(now)).min()
    }
}

/// The hosts that are refused; `None` when something else is, or something without a name.
fn refused_hosts(refused: &BTreeMap<ResourceType, BTreeSet<String>>) -> Option<BTreeSet<NamespacedHostname>> {
    let host = |(r#type, name): (&ResourceType, &String)| {
        let (namespace, hostname) = name.split_once('/').filter(|_| *r#type == ResourceType::Host)?;
        Some(NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() })
    };
    refused.iter().flat_map(|(r#type, names)| names.iter().map(move |name| (r#type, name))).map(host).collect()
}

/// Whether the node proxies have a generation, or there are none.
fn has(clients: &Clients, generation: u64) -> bool {
    clients.everywhere(&Audience::NodeProxies, generation) != Some(false)
}

/// Whose table a waypoint is told.
pub(crate) fn audience(waypoint: &Key) -> Audience {
    Audience::Waypoint(format!("{}/{}", waypoint.0, waypoint.1).into())
}

#[cfg(test)]
mod tests {
    use tropis_compile::Settings;
    use tropis_model::view::Change;
    use tropis_source::dir::snapshot;

    use super::*;

    const SHOP: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: waypoint.shop.svc.cluster.local}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80}]}
";

    #[test]
    fn what_node_proxies_have_already_is_not_waited_for() {
        let mut compiler = Compiler::new(Settings::default());
        for object in snapshot::of_text("shop.yaml", SHOP.to_owned()).objects {
            compiler.apply(&object);
        }
        compiler.changes();
        assert_eq!(compiler.waypoints().len(), 1);
        let waypoint = ("shop".to_owned(), "waypoint".to_owned());
        compiler.acknowledged(&waypoint);
        compiler.changes();
        // No node proxy is connected: none has less than any generation.
        let (mut attach, clients, now) = (Attach::new(Duration::ZERO), Clients::default(), Instant::now());
        attach.acknowledged.insert(waypoint.clone(), 1);
        attach.follow(&mut compiler, &clients, 1, now);
        assert_eq!(attach.due(now), Some(now));
        attach.acknowledge(&mut compiler, &clients, now);
        assert!(compiler.acquainted(&waypoint).is_none(), "it carries all that it knows");
    }

    #[test]
    fn what_a_waypoint_may_forget_it_forgets_though_nothing_else_happens() {
        let mut compiler = Compiler::new(Settings::default());
        for object in snapshot::of_text("shop.yaml", SHOP.to_owned()).objects {
            compiler.apply(&object);
        }
        let waypoint = ("shop".to_owned(), "waypoint".to_owned());
        let (mut attach, clients, now) = (Attach::new(Duration::ZERO), Clients::default(), Instant::now());
        compiler.changes();
        compiler.waypoints();
        compiler.acknowledged(&waypoint);
        attach.acknowledged.insert(waypoint.clone(), 1);
        compiler.changes();
        attach.follow(&mut compiler, &clients, 1, now);
        attach.acknowledge(&mut compiler, &clients, now);
        compiler.changes();
        compiler.waypoints();
        let elsewhere = SHOP.replace("istio.io/use-waypoint: waypoint", "istio.io/use-waypoint: none");
        assert_ne!(elsewhere, SHOP);
        for object in snapshot::of_text("shop.yaml", elsewhere).objects {
            compiler.apply(&object);
        }
        compiler.changes();
        compiler.waypoints();
        attach.follow(&mut compiler, &clients, 2, now);
        assert_eq!(attach.due(now), Some(now), "what is out is forgotten");
        attach.acknowledge(&mut compiler, &clients, now);
        compiler.changes();
        let told = compiler.waypoints().into_iter().flat_map(|told| told.changes).flatten();
        assert!(told.into_iter().any(|change| matches!(change, Change::RemoveHost(_))));
        attach.follow(&mut compiler, &clients, 3, now);
        assert_eq!(attach.due(now), None);
    }
}
