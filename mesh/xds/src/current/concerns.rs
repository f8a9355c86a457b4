//! Word of a change for those whom it concerns: a waypoint has many thousand connections, and of most changes each is about few of them.

use tokio::sync::Notify;
use tropis_model::{
    view::{Change, View},
    waypoint::Waypoint,
};
use xxhash_rust::xxh3::xxh3_64;

/// Into so many parts is divided who waits: a change of one thing wakes one of them. As many as a mask has bits.
const PARTS: usize = u64::BITS as usize;

/// Who waits for changes of one thing, in parts by its name.
#[derive(Debug)]
pub(super) struct Concerns {
    parts: [Notify; PARTS],
}

/// The parts that changes touch, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched(u64);

impl Default for Concerns {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Notify::new()) }
    }
}

impl Concerns {
    /// Told when what has this name changes, and when others of its part do.
    pub(super) fn of(&self, name: &str) -> &Notify {
        &self.parts[part(name)]
    }

    /// Tells the parts that were touched.
    pub(super) fn tell(&self, touched: Touched) {
        for (_, part) in self.parts.iter().enumerate().filter(|(place, _)| touched.0 >> place & 1 == 1) {
            part.notify_waiters();
        }
    }
}

impl Touched {
    const NOTHING: Self = Self(0);
    const EVERYTHING: Self = Self(u64::MAX);

    fn thing(name: &str) -> Self {
        Self(1 << part(name))
    }

    /// What `changes` touch, where `view` is before them. By policies of L4 nobody is touched who waits for one thing.
    pub(super) fn by(view: &View, changes: &[Change]) -> Self {
        changes.iter().fold(Self::NOTHING, |touched, change| Self(touched.0 | Self::by_one(view, change).0))
    }

    fn by_one(view: &View, change: &Change) -> Self {
        match change {
            Change::Workload(workload) => Self::thing(&workload.uid.0),
            Change::Service(service) => Self::by_address(view, &service.hostname.to_string()),
            Change::RemoveAddress(name) => Self::by_address(view, name),
            Change::Host(host) => Self::thing(&host.name.to_string()),
            Change::RemoveHost(name) => Self::thing(&name.to_string()),
            Change::Waypoint(waypoint) => match view.waypoint(&waypoint.key) {
                Some(before) => Self::by_waypoint(before, waypoint),
                None => Self::EVERYTHING,
            },
            Change::RemoveWaypoint(_) => Self::EVERYTHING,
            Change::Policy(_) | Change::RemovePolicy(_) => Self::NOTHING,
        }
    }

    /// A waypoint's own service touches all that refer to the waypoint by its address.
    fn by_address(view: &View, name: &str) -> Self {
        let is_a_waypoints = view.waypoints().any(|waypoint| waypoint.service.to_string() == name);
        if is_a_waypoints { Self::EVERYTHING } else { Self::thing(name) }
    }

    /// Pods come and go all the time: which of them are elsewhere touches those alone.
    fn by_waypoint(before: &Waypoint, after: &Waypoint) -> Self {
        if (Waypoint { elsewhere: before.elsewhere.clone(), ..after.clone() }) != *before {
            return Self::EVERYTHING;
        }
        let moved = before.elsewhere.symmetric_difference(&after.elsewhere);
        moved.fold(Self::NOTHING, |touched, uid| Self(touched.0 | Self::thing(&uid.0).0))
    }
}

fn part(name: &str) -> usize {
    (xxh3_64(name.as_bytes()) % PARTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use tropis_model::{
        address::NamespacedHostname, identity::Identity, route::Host, service::Service, waypoint::Serves, workload::Workload,
    };

    use super::*;

    fn name(service: &str) -> NamespacedHostname {
        NamespacedHostname { namespace: "shop".into(), hostname: format!("{service}.shop.svc.cluster.local").into() }
    }

    fn waypoint(elsewhere: &[&str]) -> Waypoint {
        Waypoint {
            key: "shop/waypoint".into(),
            service: name("waypoint"),
            serves: Serves::All,
            policies: Vec::new(),
            access_log: None,
            elsewhere: elsewhere.iter().map(|uid| tropis_model::workload::WorkloadUid((*uid).into())).collect(),
        }
    }

    fn service(of: &str) -> Change {
        Change::Service(Arc::new(Service::new(of, name(of))))
    }

    #[test]
    fn a_change_touches_what_has_its_name() {
        let view = View::default().apply([Change::Waypoint(Arc::new(waypoint(&["c//Pod/shop/a"])))]);
        let by = |change: Change| Touched::by(&view, &[change]);
        let pod = Workload::new("c//Pod/shop/b", "b", Identity::new("td", "shop", "b"));
        assert_eq!(by(Change::Workload(Arc::new(pod))), Touched::thing("c//Pod/shop/b"));
        assert_eq!(by(Change::RemoveAddress("c//Pod/shop/b".into())), Touched::thing("c//Pod/shop/b"));
        let reviews = Touched::thing("shop/reviews.shop.svc.cluster.local");
        assert_eq!(by(service("reviews")), reviews);
        let host = Host { name: name("reviews"), ports: BTreeMap::new(), policies: Vec::new(), pools: BTreeMap::new() };
        assert_eq!(by(Change::Host(Arc::new(host))), reviews);
        assert_eq!(by(Change::RemoveHost(name("reviews"))), reviews);
        assert_eq!(by(Change::Waypoint(Arc::new(waypoint(&["c//Pod/shop/b"])))), {
            Touched(Touched::thing("c//Pod/shop/a").0 | Touched::thing("c//Pod/shop/b").0)
        });
        assert_eq!(by(Change::Waypoint(Arc::new(waypoint(&["c//Pod/shop/a"])))), Touched::NOTHING);
    }

    #[test]
    fn what_is_the_waypoints_own_touches_everything() {
        let view = View::default().apply([Change::Waypoint(Arc::new(waypoint(&[])))]);
        let other = Waypoint { serves: Serves::Nothing, ..waypoint(&["c//Pod/shop/a"]) };
        let gone = Change::RemoveAddress(name("waypoint").to_string().into());
        for change in [service("waypoint"), gone, Change::Waypoint(Arc::new(other)), Change::RemoveWaypoint("shop/waypoint".into())] {
            assert_eq!(Touched::by(&view, std::slice::from_ref(&change)), Touched::EVERYTHING, "{change:?}");
        }
        assert_eq!(Touched::by(&View::default(), &[Change::Waypoint(Arc::new(waypoint(&[])))]), Touched::EVERYTHING);
    }
}
