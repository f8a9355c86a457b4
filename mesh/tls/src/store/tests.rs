//! One request for many, renewal in time, failure that is waited out: with a clock that the test moves.

use super::{lease::LINGER, *};
use crate::testing::{Behaviour, TestAuthority};

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// A store whose wall clock follows the paused clock of the test.
fn store(authority: &Arc<TestAuthority>) -> Certificates {
    let (start, wall) = (Instant::now(), SystemTime::now());
    Certificates::with_clock(Arc::clone(authority) as Arc<dyn CertificateAuthority>, Arc::new(move || wall + start.elapsed()))
}

fn slow() -> Behaviour {
    Behaviour { takes: Duration::from_millis(500), ..Behaviour::default() }
}

fn refusing() -> Behaviour {
    Behaviour { refuses: true, ..Behaviour::default() }
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_cost_one_request() {
    let authority = Arc::new(TestAuthority::new());
    authority.behave(slow());
    let store = store(&authority);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let store = store.clone();
        asking.spawn(async move { store.get(&identity("cart")).await.unwrap().serial().to_owned() });
    }
    let serials: std::collections::HashSet<_> = asking.join_all().await.into_iter().collect();
    assert_eq!((serials.len(), authority.signed()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_authority_is_not_stormed() {
    let authority = Arc::new(TestAuthority::new());
    authority.behave(slow());
    let store = store(&authority);
    let mut leases = Vec::new();
    for number in 0..100 {
        leases.push(store.lease(&identity(&format!("account-{number}"))));
    }
    let asked = Instant::now();
    store.get(&identity("in-a-hurry")).await.unwrap();
    assert!(asked.elapsed() <= Duration::from_secs(1), "a waiting connection passes the queue: {:?}", asked.elapsed());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((authority.signed(), authority.most_under_way()), (101, SIGNING_AT_ONCE));
}

#[tokio::test(start_paused = true)]
async fn rotates_at_half_life_and_the_old_one_lives_on() {
    let authority = Arc::new(TestAuthority::new());
    authority.behave(Behaviour { lifetime: Duration::from_secs(3600), starts_ago: Duration::ZERO, ..Behaviour::default() });
    let store = store(&authority);
    let _lease = store.lease(&identity("cart"));
    let first = store.get(&identity("cart")).await.unwrap();
    let mut rotation = store.subscribe(&identity("cart"));
    let installed = Instant::now();
    let second = rotation.next().await.unwrap();
    let after = installed.elapsed();
    assert!((1600..=2000).contains(&after.as_secs()), "{after:?}");
    assert_ne!(first.serial(), second.serial());
    assert_eq!(store.current(&identity("cart")).unwrap().serial(), second.serial());
    assert!(first.client_config(&[]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_follows_misses_nothing_that_happens_before_it_looks() {
    let authority = Arc::new(TestAuthority::new());
    let store = store(&authority);
    let _lease = store.lease(&identity("cart"));
    let mut rotation = store.subscribe(&identity("cart"));
    let first = store.get(&identity("cart")).await.unwrap();
    assert!(Arc::ptr_eq(&rotation.next().await.unwrap(), &first));
    tokio::time::sleep(Duration::from_secs(20 * 3600)).await;
    let second = store.get(&identity("cart")).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(Arc::ptr_eq(&rotation.next().await.unwrap(), &second));
}

#[tokio::test(start_paused = true)]
async fn a_failing_renewal_leaves_the_old_one_until_its_last_second() {
    let authority = Arc::new(TestAuthority::new());
    authority.behave(Behaviour { lifetime: Duration::from_secs(3600), starts_ago: Duration::ZERO, ..Behaviour::default() });
    let store = store(&authority);
    let _lease = store.lease(&identity("cart"));
    let first = store.get(&identity("cart")).await.unwrap();
    authority.behave(refusing());
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert!(authority.signed() > 5, "it kept asking");
    assert_eq!(store.get(&identity("cart")).await.unwrap().serial(), first.serial());
    assert_eq!(store.snapshot()[0].state(), "Available");
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(store.current(&identity("cart")).is_none());
    assert!(matches!(store.get(&identity("cart")).await, Err(CertificateUnavailable::Failed { .. })));
    authority.behave(Behaviour::default());
    tokio::time::sleep(Duration::from_secs(181)).await;
    assert!(store.current(&identity("cart")).is_some(), "and it recovers");
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_is_waited_for_and_a_dead_authority_is_not() {
    let authority = Arc::new(TestAuthority::new());
    authority.behave(refusing());
    let store = store(&authority);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.get(&identity("new")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    authority.behave(Behaviour::default());
    assert!(waiting.await.unwrap().is_ok(), "the second attempt, a second later, is within the wait");

    authority.behave(refusing());
    let asked = Instant::now();
    assert!(matches!(store.get(&identity("other")).await, Err(CertificateUnavailable::Failed { .. })));
    assert!(asked.elapsed() <= WAIT_LIMIT);
    let asked = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(store.get(&identity("other")).await.is_err());
    assert!(asked.elapsed() < Duration::from_secs(66), "answered at once or within the wait");
    assert!(store.snapshot().iter().any(|status| status.state().starts_with("Unavailable: ")));
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_hangs_does_not_hang_the_connection() {
    let authority = Arc::new(TestAuthority::new());
    authority.behave(Behaviour { takes: Duration::from_secs(3600), ..Behaviour::default() });
    let store = store(&authority);
    let asked = Instant::now();
    assert!(matches!(store.get(&identity("cart")).await, Err(CertificateUnavailable::Timeout { .. })));
    assert_eq!(asked.elapsed(), WAIT_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_leases_is_dropped_and_not_renewed() {
    let authority = Arc::new(TestAuthority::new());
    let store = store(&authority);
    let (one, other) = (store.lease(&identity("cart")), store.lease(&identity("cart")));
    store.get(&identity("cart")).await.unwrap();
    let mut rotation = store.subscribe(&identity("cart"));
    drop(one);
    tokio::time::sleep(LINGER * 2).await;
    assert!(store.current(&identity("cart")).is_some(), "one lease is enough");
    drop(other);
    store.get(&identity("cart")).await.expect("what was accepted before is still served");
    assert!(rotation.next().await.is_none());
    tokio::time::sleep(Duration::from_secs(48 * 3600)).await;
    assert_eq!(authority.signed(), 1);
    assert!(store.snapshot().is_empty() && store.current(&identity("cart")).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_asks_late_does_not_make_it_ask_for_ever() {
    let authority = Arc::new(TestAuthority::new());
    let store = store(&authority);
    for behaviour in [Behaviour::default(), refusing()] {
        authority.behave(behaviour);
        drop(store.lease(&identity("gone")));
        tokio::time::sleep(LINGER * 2).await;
        // A journey that was under way when its pod left.
        drop(store.get(&identity("gone")).await);
        tokio::time::sleep(LINGER * 2).await;
        let asked = authority.signed();
        tokio::time::sleep(Duration::from_secs(48 * 3600)).await;
        assert_eq!(authority.signed(), asked);
        assert!(store.snapshot().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_keeps_what_was_about_to_go() {
    let authority = Arc::new(TestAuthority::new());
    let store = store(&authority);
    drop(store.lease(&identity("cart")));
    let first = store.get(&identity("cart")).await.unwrap();
    tokio::time::sleep(LINGER / 2).await;
    let _lease = store.lease(&identity("cart"));
    tokio::time::sleep(LINGER * 2).await;
    assert!(Arc::ptr_eq(&store.current(&identity("cart")).unwrap(), &first));
}
