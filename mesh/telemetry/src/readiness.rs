//! Readiness says what it waits for: named tasks, each pending or done, each able to become pending again.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// What a program waits for before it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// One thing that a program waits for.
#[derive(Debug, Clone)]
pub struct ReadinessTask {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds something to wait for; it starts pending.
    pub fn task(&self, name: &'static str) -> ReadinessTask {
        let task = ReadinessTask { name, readiness: self.clone() };
        task.pending();
        task
    }

    /// What is still waited for, by name; ready if empty.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadinessTask {
    /// It is done.
    pub fn ready(&self) {
        self.readiness.lock().remove(self.name);
    }

    /// It is pending, or pending again.
    pub fn pending(&self) {
        self.readiness.lock().insert(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_can_become_pending_again() {
        let readiness = Readiness::default();
        let (proxy, state) = (readiness.task("proxy"), readiness.task("state manager"));
        assert_eq!(readiness.pending(), ["proxy", "state manager"]);
        proxy.ready();
        state.ready();
        assert!(readiness.pending().is_empty());
        state.pending();
        assert_eq!(readiness.pending(), ["state manager"]);
    }
}
