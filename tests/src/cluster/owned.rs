//! Objects that a program of the mesh made for itself (a waypoint's Deployment, Service and account): run like any other; and what the
//! Deployment controller does for every Deployment besides its pods: its status, and a rolling restart.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::ids::timestamp;
use super::object::Key;
use super::pods::{Origin, Pods, wanted};

/// What `kubectl rollout restart` writes into the pod template.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

/// Objects of programs, and restarts that were asked for.
#[derive(Debug, Default)]
pub struct Owned {
    objects: BTreeMap<Key, Value>,
    /// When each Deployment was asked to restart last.
    restarts: BTreeMap<Key, String>,
    /// How many replicas each Deployment was told to have, where its maker leaves that open.
    scales: BTreeMap<Key, u64>,
}

impl Owned {
    pub(super) fn add(&mut self, key: Key, object: Value) {
        self.objects.insert(key, object);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.objects.remove(key);
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.objects.contains_key(key)
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = (Key, Value)> {
        self.objects.iter().map(|(key, object)| (key.clone(), object.clone()))
    }

    /// Remembers a restart; two within a second are two.
    pub(super) fn restart(&mut self, key: Key, now: SystemTime) {
        let at = timestamp(now);
        let count = self.restarts.get(&key).and_then(|last| last.rsplit_once('#')?.1.parse::<u64>().ok()).unwrap_or(0);
        self.restarts.insert(key, format!("{at}#{}", count + 1));
    }

    /// Remembers a number of replicas, as `kubectl scale` gives it.
    pub(super) fn scale(&mut self, key: Key, replicas: u64) {
        self.scales.insert(key, replicas);
    }

    /// Writes restarts and numbers of replicas into the Deployments; forgets those of Deployments that are gone.
    pub(super) fn adjust(&mut self, objects: &mut BTreeMap<Key, Value>) {
        self.scales.retain(|key, _| objects.contains_key(key));
        for (key, replicas) in &self.scales {
            if let Some(deployment) = objects.get_mut(key).filter(|deployment| deployment["spec"]["replicas"].is_null()) {
                deployment["spec"]["replicas"] = json!(replicas);
            }
        }
        self.restarts.retain(|key, _| objects.contains_key(key));
        for (key, at) in &self.restarts {
            if let Some(deployment) = objects.get_mut(key) {
                deployment["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT] = json!(at);
            }
        }
    }
}

/// `status` of a Deployment, as far as anybody reads it.
pub(super) fn deployment_status(key: &Key, deployment: &Value, pods: &Pods) -> Value {
    let wanted = wanted(deployment);
    let current = format!("{}-{}", key.name, wanted.hash);
    let (mut all, mut ready, mut updated) = (0, 0, 0);
    for (_, record) in pods.iter().filter(|(pod, record)| pod.namespace == key.namespace && record.deleting.is_none()) {
        let Origin::Deployment { name, replica_set, .. } = &record.origin else { continue };
        if *name == key.name {
            all += 1;
            ready += usize::from(record.status.ready());
            updated += usize::from(*replica_set == current);
        }
    }
    let available = if ready >= wanted.replicas { "True" } else { "False" };
    json!({
        "replicas": all, "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": updated,
        "conditions": [{ "type": "Available", "status": available }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> (Key, Value) {
        let key = Key::new("Deployment", "shop", "waypoint");
        (key, json!({"spec": {"replicas": 2, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}}))
    }

    #[test]
    fn a_restart_changes_the_template_each_time() {
        let (key, object) = deployment();
        let mut owned = Owned::default();
        let mut marked = || {
            owned.restart(key.clone(), SystemTime::UNIX_EPOCH);
            let mut objects = BTreeMap::from([(key.clone(), object.clone())]);
            owned.adjust(&mut objects);
            objects[&key]["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT].to_string()
        };
        let first = marked();
        assert!(first.contains("1970-01-01T00:00:00Z"), "{first}");
        assert_ne!(first, marked());
    }

    #[test]
    fn a_restart_of_what_is_gone_is_forgotten() {
        let (key, object) = deployment();
        let mut owned = Owned::default();
        owned.restart(key.clone(), SystemTime::UNIX_EPOCH);
        owned.adjust(&mut BTreeMap::new());
        let mut objects = BTreeMap::from([(key.clone(), object.clone())]);
        owned.adjust(&mut objects);
        assert_eq!(objects[&key], object);
    }

    #[test]
    fn a_number_of_replicas_holds_where_the_maker_gives_none() {
        let (key, mut object) = deployment();
        let mut owned = Owned::default();
        owned.scale(key.clone(), 3);
        let mut replicas = |object: &Value| {
            let mut objects = BTreeMap::from([(key.clone(), object.clone())]);
            owned.adjust(&mut objects);
            objects[&key]["spec"]["replicas"].clone()
        };
        assert_eq!(replicas(&object), 2);
        object["spec"].as_object_mut().unwrap().shift_remove("replicas");
        assert_eq!(replicas(&object), 3);
    }

    #[test]
    fn without_pods_a_deployment_is_not_available() {
        let (key, object) = deployment();
        let status = deployment_status(&key, &object, &Pods::new());
        assert_eq!((&status["replicas"], &status["conditions"][0]["status"]), (&json!(0), &json!("False")));
    }
}
