//! Through which waypoint each Service or pod goes, and how one takes another's place.
//!
//! What labels, accounts and namespaces ask for is a wish. Traffic follows it once the waypoint *carries* the thing: it has acknowledged
//! what it needs for that, and the policies of its destinations let it in everywhere. Until then traffic goes as it went: through the
//! waypoint before, if that one is still in use, or through none. A waypoint that was left goes on knowing what it carried until
//! [`Places::release`], for what is under way. This file keeps the books; who carries what is [`super::waypoints`]' to know.

use std::collections::{BTreeSet, HashMap};

use crate::{index::Key, waypoint::Attached};

/// The ways of Services, or of pods.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: HashMap<Key, Place>,
    /// The waypoints that are told of each.
    told: HashMap<Key, BTreeSet<Key>>,
    /// Waypoints that were left, each with what left it.
    left: BTreeSet<(Key, Key)>,
    /// Waypoints that are waited for, each with what goes through none meanwhile.
    held: BTreeSet<(Key, Key)>,
    /// What goes through one waypoint and wants another: the one that it goes through, and it.
    kept: BTreeSet<(Key, Key)>,
}

/// The way of one of them.
#[derive(Debug, Default, Clone, PartialEq)]
struct Place {
    wanted: Option<Key>,
    present: Option<Key>,
    former: BTreeSet<Key>,
}

/// What is asked about one of them.
pub(super) struct Question<'a> {
    /// What is wished.
    pub(super) wanted: Option<&'a Attached>,
    /// Where it went when nothing is known of it here.
    pub(super) found: Option<Key>,
    /// What it had left by then, and not ended.
    pub(super) former: BTreeSet<Key>,
    /// It need not wait: the waypoint carries it, or refusing it is better than letting it by.
    pub(super) at_once: bool,
}

impl Places {
    /// The waypoints that are told of each.
    pub(super) fn told(&self) -> &HashMap<Key, BTreeSet<Key>> {
        &self.told
    }

    /// Waypoints that were left, each with what left it.
    pub(super) fn left(&self) -> &BTreeSet<(Key, Key)> {
        &self.left
    }

    /// Waypoints that are waited for by what goes through none.
    pub(super) fn held(&self) -> impl Iterator<Item = &Key> {
        self.held.iter().map(|(waypoint, _)| waypoint)
    }

    /// Whether something goes through a waypoint until another one is ready for it.
    pub(super) fn is_kept(&self, waypoint: &Key) -> bool {
        from(&self.kept, waypoint).next().is_some()
    }

    /// What goes, went or wants to go through a waypoint.
    pub(super) fn concerned<'a>(&'a self, waypoint: &'a Key) -> impl Iterator<Item = &'a Key> {
        self.told.iter().filter(move |(_, told)| told.contains(waypoint)).map(|(key, _)| key)
    }

    /// Decides about one, and says which waypoint it goes through now and whether waypoints are told anything new of that.
    pub(super) fn decide(&mut self, key: &Key, question: &Question<'_>, in_use: impl Fn(&Key) -> bool) -> (Option<Key>, bool) {
        let found = || Place { wanted: None, present: question.found.clone(), former: question.former.clone() };
        let mut place = self.places.remove(key).unwrap_or_else(found);
        let present = question.wanted.and_then(|wanted| {
            let stays = place.present.as_ref() == Some(&wanted.gateway);
            if wanted.address.is_some() && (stays || question.at_once) {
                return Some(wanted.gateway.clone());
            }
            place.present.clone().filter(|present| *present != wanted.gateway && in_use(present))
        });
        let moves = place.present != present;
        if let Some(left) = place.present.take().filter(|_| moves) {
            place.former.insert(left);
        }
        place.former.retain(|former| present.as_ref() != Some(former));
        place.wanted = question.wanted.map(|wanted| wanted.gateway.clone());
        place.present.clone_from(&present);
        let ready = question.wanted.is_some_and(|wanted| wanted.address.is_some());
        let told = self.put(key, place, ready);
        (present, told || moves)
    }

    /// The waypoints that it left and that still know it.
    pub(super) fn former(&self, key: &Key) -> &BTreeSet<Key> {
        static NONE: BTreeSet<Key> = BTreeSet::new();
        self.places.get(key).map_or(&NONE, |place| &place.former)
    }

    /// It is gone. Says whether a waypoint was told of it.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        self.places.remove(key);
        self.put(key, Place::default(), false)
    }

    /// A waypoint that was left carries nothing of it any more.
    pub(super) fn release(&mut self, key: &Key, waypoint: &Key) -> bool {
        let Some(mut place) = self.places.remove(key) else { return false };
        place.former.remove(waypoint);
        let ready = self.held.iter().any(|(_, held)| held == key);
        self.put(key, place, ready)
    }

    fn put(&mut self, key: &Key, place: Place, ready: bool) -> bool {
        let before = self.told.remove(key).unwrap_or_default();
        for waypoint in &before {
            let entry = (waypoint.clone(), key.clone());
            self.left.remove(&entry);
            self.held.remove(&entry);
            self.kept.remove(&entry);
        }
        let entry = |waypoint: &Key| (waypoint.clone(), key.clone());
        self.left.extend(place.former.iter().map(entry));
        match (&place.wanted, &place.present) {
            (Some(wanted), None) if ready => _ = self.held.insert(entry(wanted)),
            (Some(wanted), Some(present)) if wanted != present => _ = self.kept.insert(entry(present)),
            _ => {}
        }
        let told: BTreeSet<Key> = place.former.iter().chain(&place.wanted).chain(&place.present).cloned().collect();
        let different = told != before;
        if !told.is_empty() {
            self.told.insert(key.clone(), told);
            self.places.insert(key.clone(), place);
        }
        different
    }
}

/// The entries of one waypoint.
pub(super) fn from<'a>(set: &'a BTreeSet<(Key, Key)>, waypoint: &'a Key) -> impl Iterator<Item = &'a Key> {
    let first = (waypoint.clone(), Key::default());
    set.range(first..).take_while(move |(own, _)| own == waypoint).map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use tropis_model::{
        address::NamespacedHostname,
        workload::{GatewayAddress, GatewayDestination},
    };

    use super::*;

    fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    fn attached(name: &str, ready: bool) -> Attached {
        let name = NamespacedHostname { namespace: "shop".into(), hostname: name.into() };
        let address = ready.then(|| GatewayAddress { destination: GatewayDestination::Service(name.clone()), hbone_port: 15008 });
        Attached { gateway: key(&name.hostname), address }
    }

    /// Where `web` goes when `wanted` (a waypoint, and whether it has an address) is wished, and who is told of it.
    fn decide(places: &mut Places, wanted: Option<(&str, bool)>, at_once: bool, in_use: bool) -> (Option<String>, Vec<String>) {
        let wanted = wanted.map(|(name, ready)| attached(name, ready));
        let question = Question { wanted: wanted.as_ref(), found: None, former: BTreeSet::new(), at_once };
        let (present, _) = places.decide(&key("web"), &question, |_| in_use);
        let told = places.told().get(&key("web")).into_iter().flatten();
        (present.map(|present| present.1), told.map(|waypoint| waypoint.1.clone()).collect())
    }

    fn to(present: Option<&str>, told: &[&str]) -> (Option<String>, Vec<String>) {
        (present.map(str::to_owned), told.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_waypoint_is_told_first_and_gone_through_when_it_carries() {
        let mut places = Places::default();
        assert_eq!(decide(&mut places, Some(("one", false)), true, true), to(None, &["one"]));
        assert_eq!(places.held().count(), 0, "it has no address, so nobody waits for it");
        assert_eq!(decide(&mut places, Some(("one", true)), false, true), to(None, &["one"]));
        assert_eq!(places.held().collect::<Vec<_>>(), [&key("one")]);
        assert_eq!(decide(&mut places, Some(("one", true)), true, true), to(Some("one"), &["one"]));
        assert_eq!(decide(&mut places, Some(("one", true)), false, true), to(Some("one"), &["one"]), "it stays");
        assert_eq!(places.held().count(), 0);
    }

    #[test]
    fn one_waypoint_is_left_for_another_only_when_that_one_carries() {
        let mut places = Places::default();
        decide(&mut places, Some(("one", true)), true, true);
        for ready in [false, true] {
            assert_eq!(decide(&mut places, Some(("two", ready)), false, true), to(Some("one"), &["one", "two"]));
            assert!(places.is_kept(&key("one")) && !places.is_kept(&key("two")));
        }
        assert_eq!(decide(&mut places, Some(("two", true)), true, true), to(Some("two"), &["one", "two"]));
        assert_eq!(places.left().iter().map(|(left, _)| left).collect::<Vec<_>>(), [&key("one")]);
        assert!(places.release(&key("web"), &key("one")));
        assert_eq!(decide(&mut places, Some(("two", true)), false, true), to(Some("two"), &["two"]));
        // A waypoint that is gone is not waited with.
        assert_eq!(decide(&mut places, Some(("one", true)), false, false), to(None, &["one", "two"]));
    }

    #[test]
    fn what_comes_back_has_not_left() {
        let mut places = Places::default();
        decide(&mut places, Some(("one", true)), true, true);
        decide(&mut places, None, false, true);
        assert_eq!(places.left().len(), 1);
        assert_eq!(decide(&mut places, Some(("one", true)), true, true), to(Some("one"), &["one"]));
        assert!(places.left().is_empty());
        assert_eq!(decide(&mut places, Some(("one", false)), true, true), to(None, &["one"]), "one that leaves takes nothing new");
        assert_eq!(places.left().len(), 1);
        assert!(places.remove(&key("web")) && places.told().is_empty() && places.left().is_empty());
    }

    #[test]
    fn after_a_restart_it_goes_where_it_went() {
        let mut places = Places::default();
        let wanted = attached("two", true);
        let former = BTreeSet::from([key("old")]);
        let question = Question { wanted: Some(&wanted), found: Some(key("one")), former: former.clone(), at_once: false };
        assert_eq!(places.decide(&key("web"), &question, |_| true).0, Some(key("one")));
        assert_eq!(places.former(&key("web")), &former);
        assert_eq!(places.left().iter().map(|(left, _)| left).collect::<Vec<_>>(), [&key("old")]);
        let question = Question { wanted: Some(&wanted), found: None, former: BTreeSet::new(), at_once: true };
        assert_eq!(places.decide(&key("web"), &question, |_| true).0, Some(key("two")));
    }
}
