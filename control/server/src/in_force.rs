//! Which waypoints have which objects of the user's in force: what the objects' statuses say.
//!
//! A waypoint has in force what its configuration was made of when its pods acknowledged all that it was told. An object that has changed
//! since is in force nowhere until the next acknowledgement.

use std::collections::{BTreeMap, BTreeSet};

use tropis_compile::Compiler;
use tropis_crds::{Kind, ObjectRef};

use crate::scope::Key;

/// What is in force where.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    waypoints: BTreeMap<Key, Of>,
    /// Objects are different since it was looked last.
    touched: bool,
}

/// What a waypoint has in force.
#[derive(Debug, Default, PartialEq)]
struct Of {
    /// The generation that it had acknowledged when that was looked at; `None`: something has changed since.
    generation: Option<u64>,
    objects: BTreeSet<ObjectRef>,
}

/// Where one object is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Places {
    /// Waypoints, as `namespace/name`.
    pub(crate) waypoints: BTreeSet<String>,
    /// Node proxies obey it, too.
    pub(crate) node_proxies: bool,
}

impl InForce {
    /// An object is another one than before, or gone.
    pub(crate) fn touch(&mut self, object: &ObjectRef) {
        if matches!(object.kind, Kind::VirtualService | Kind::DestinationRule | Kind::AuthorizationPolicy) {
            self.waypoints.values_mut().for_each(|of| _ = of.objects.remove(object));
            self.touched = true;
        }
    }

    /// Looks again, where a waypoint has acknowledged something or an object has changed: `acknowledged` tells the generation up to which
    /// a waypoint's pods have acknowledged everything, if they have. Says whether something is different.
    pub(crate) fn look(&mut self, compiler: &Compiler, acknowledged: impl Fn(&Key) -> Option<u64>) -> bool {
        let touched = std::mem::take(&mut self.touched);
        let present: BTreeSet<&Key> = compiler.waypoint_keys().collect();
        let before = self.waypoints.len();
        self.waypoints.retain(|gateway, _| present.contains(gateway));
        let mut is_different = touched || self.waypoints.len() != before;
        for gateway in present {
            let of = self.waypoints.entry(gateway.clone()).or_default();
            if touched {
                of.generation = None;
            }
            let Some(generation) = acknowledged(gateway).filter(|generation| of.generation != Some(*generation)) else { continue };
            let objects = compiler.origins(gateway);
            is_different |= of.objects != objects;
            *of = Of { generation: Some(generation), objects };
        }
        is_different
    }

    /// Each object that some waypoint has in force, with where.
    pub(crate) fn places(&self, compiler: &Compiler) -> BTreeMap<ObjectRef, Places> {
        let mut places: BTreeMap<ObjectRef, Places> = BTreeMap::new();
        for ((namespace, name), of) in &self.waypoints {
            for object in &of.objects {
                let own = places.entry(object.clone()).or_default();
                own.waypoints.insert(format!("{namespace}/{name}"));
                own.node_proxies = compiler.node_proxies_obey(object);
            }
        }
        places
    }
}

impl Places {
    /// In words: `in force at waypoint shop/waypoint`.
    pub(crate) fn words(&self) -> String {
        let too = if self.node_proxies { "node proxies and " } else { "" };
        let plural = if self.waypoints.len() == 1 { "" } else { "s" };
        let waypoints: Vec<&str> = self.waypoints.iter().map(String::as_str).collect();
        format!("in force at {too}waypoint{plural} {}", waypoints.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use tropis_compile::Settings;
    use tropis_source::dir::snapshot;

    use super::*;

    const SHOP: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: gw.shop.svc.cluster.local}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: gw}}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{match: [{uri: {prefix: /team}}], delegate: {name: team}}, {route: [{destination: {host: web}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team, namespace: shop}
spec: {http: [{directResponse: {status: 200}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: shop}
spec: {hosts: [web], gateways: [edge], http: [{route: [{destination: {host: web}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: target, namespace: shop}
spec: {targetRefs: [{kind: Service, group: '', name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/x/sa/y]}}]}]}
";

    fn shop() -> Compiler {
        let mut compiler = Compiler::new(Settings::default());
        for object in snapshot::of_text("shop.yaml", SHOP.to_owned()).objects {
            compiler.apply(&object);
        }
        compiler.changes();
        compiler
    }

    fn told(in_force: &InForce, compiler: &Compiler) -> Vec<String> {
        let places = in_force.places(compiler);
        places.iter().map(|(object, places)| format!("{} {}: {}", object.kind, object.name, places.words())).collect()
    }

    #[test]
    fn what_a_waypoint_acknowledged_is_in_force_there_with_all_that_it_was_made_of() {
        let (compiler, mut in_force) = (shop(), InForce::default());
        assert!(!in_force.look(&compiler, |_| None));
        assert_eq!(told(&in_force, &compiler), [""; 0], "nothing is acknowledged");
        assert!(in_force.look(&compiler, |_| Some(1)));
        let at = "in force at waypoint shop/gw";
        let mut expected = [
            format!("VirtualService team: {at}"),
            format!("VirtualService web: {at}"),
            format!("DestinationRule web: {at}"),
            "AuthorizationPolicy all: in force at node proxies and waypoint shop/gw".to_owned(),
            format!("AuthorizationPolicy target: {at}"),
        ];
        expected.sort();
        let mut found = told(&in_force, &compiler);
        found.sort();
        assert_eq!(found, expected, "a route of a gateway at the edge is not in force here");
        assert!(!in_force.look(&compiler, |_| Some(1)) && !in_force.look(&compiler, |_| None), "nothing is different");
    }

    #[test]
    fn what_has_changed_is_in_force_nowhere_until_it_is_acknowledged() {
        let (mut compiler, mut in_force) = (shop(), InForce::default());
        in_force.look(&compiler, |_| Some(1));
        let rule = ObjectRef::new(Kind::DestinationRule, "shop", "web");
        in_force.touch(&rule);
        assert!(in_force.look(&compiler, |_| None));
        let rules = |in_force: &InForce, compiler: &Compiler| told(in_force, compiler).join("\n").contains("DestinationRule");
        assert!(!rules(&in_force, &compiler) && told(&in_force, &compiler).len() == 4, "the others are still");
        assert!(in_force.look(&compiler, |_| Some(1)), "it made no difference to the waypoint");
        assert!(rules(&in_force, &compiler));
        compiler.remove(&rule);
        in_force.touch(&rule);
        compiler.changes();
        in_force.look(&compiler, |_| Some(2));
        assert!(!rules(&in_force, &compiler));
        compiler.remove(&ObjectRef::new(Kind::Gateway, "shop", "gw"));
        compiler.changes();
        assert!(in_force.look(&compiler, |_| None));
        assert_eq!(told(&in_force, &compiler), [""; 0]);
    }
}
