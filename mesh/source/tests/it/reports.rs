//! Reports of programs and objects of the cluster, by way of the folder.

use std::fs;

use serde_json::json;
use tempfile::TempDir;
use tropis_crds::{Kind, ObjectRef};
use tropis_source::{Report, ReportError, Source, SourceEvent, write};

use crate::folder::{open, until};

fn pod(uid: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": uid},
        "spec": {"containers": [{"name": "web"}]}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn web() -> ObjectRef {
    ObjectRef::new(Kind::Pod, "shop", "web")
}

fn redirection(mode: &str) -> serde_json::Value {
    json!({"metadata": {"annotations": {"ambient.istio.io/redirection": mode}}})
}

/// Waits until the pod's annotation and uid are these.
async fn annotated(watch: &mut tropis_source::Watch, uid: &str, expected: Option<&str>) {
    until(watch, |event| match event {
        SourceEvent::Applied(object) => {
            let same = object.metadata.uid == uid && object.annotation("ambient.istio.io/redirection") == expected;
            same.then_some(())
        }
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn reports_are_seen_by_everybody_and_can_be_taken_back() {
    let state = TempDir::new().unwrap();
    // Two programs with the same folder.
    let (redirector, tropisd) = (open(&state), open(&state));
    let mut watch = tropisd.watch();
    write::put(state.path(), &pod("one")).unwrap();
    annotated(&mut watch, "one", None).await;
    while redirector.get(&web()).is_none() {
        tokio::task::yield_now().await;
    }
    redirector.report(Report::new("redirector.a", web(), redirection("enabled"))).await.unwrap();
    annotated(&mut watch, "one", Some("enabled")).await;
    assert!(state.path().join("reported/redirector.a/pod/shop/web.yaml").exists());

    // Another writer may add, not contradict.
    let conflict = tropisd.report(Report::new("tropisd", web(), redirection("pending"))).await;
    assert!(matches!(conflict, Err(ReportError::Conflict { field, owner, .. })
        if field == "metadata.annotations[ambient.istio.io/redirection]" && owner == "redirector.a"));
    let condition = json!({"status": {"conditions": [{"type": "istio.io/Enrolled", "status": "True"}]}});
    tropisd.report(Report::new("tropisd", web(), condition)).await.unwrap();
    let types = until(&mut watch, |event| match event {
        SourceEvent::Applied(object) => {
            let conditions = object.pod()?.status.as_ref()?.conditions.as_ref()?;
            (conditions.len() == 2).then(|| conditions.iter().map(|condition| condition.type_.clone()).collect::<Vec<_>>())
        }
        _ => None,
    })
    .await;
    assert_eq!(types, ["Ready", "istio.io/Enrolled"]);

    redirector.withdraw("redirector.a", &web()).await.unwrap();
    annotated(&mut watch, "one", None).await;
    redirector.withdraw("redirector.a", &web()).await.unwrap();
}

#[tokio::test]
async fn what_was_said_of_an_object_does_not_stick_to_the_next_of_its_name() {
    let state = TempDir::new().unwrap();
    let source = open(&state);
    let mut watch = source.watch();
    write::put(state.path(), &pod("one")).unwrap();
    annotated(&mut watch, "one", None).await;
    source.report(Report::new("redirector.a", web(), redirection("enabled"))).await.unwrap();
    annotated(&mut watch, "one", Some("enabled")).await;
    write::remove(state.path(), &web()).unwrap();
    until(&mut watch, |event| matches!(event, SourceEvent::Deleted(object) if *object == web()).then_some(())).await;
    write::put(state.path(), &pod("two")).unwrap();
    annotated(&mut watch, "two", None).await;
}

#[tokio::test]
async fn owned_objects_exist_until_they_are_withdrawn() {
    let state = TempDir::new().unwrap();
    let source = open(&state);
    let mut watch = source.watch();
    let account = ObjectRef::new(Kind::ServiceAccount, "shop", "waypoint");
    source.report(Report::owned("tropisd", account.clone(), json!({"metadata": {"labels": {"a": "b"}}}))).await.unwrap();
    until(&mut watch, |event| match event {
        SourceEvent::Applied(object) => (object.reference() == account && object.label("a") == Some("b")).then_some(()),
        _ => None,
    })
    .await;
    // What the cluster assigns to it comes and goes with it.
    let uid = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "waypoint", "namespace": "shop", "uid": "u"}});
    write::assign(state.path(), &uid).unwrap();
    until(&mut watch, |event| matches!(event, SourceEvent::Applied(object) if object.metadata.uid == "u").then_some(())).await;
    source.withdraw("tropisd", &account).await.unwrap();
    until(&mut watch, |event| matches!(event, SourceEvent::Deleted(object) if *object == account).then_some(())).await;
    write::unassign(state.path(), &account).unwrap();
}

#[tokio::test]
async fn writers_names_cannot_leave_the_folder() {
    let state = TempDir::new().unwrap();
    let source = open(&state);
    for writer in ["", "..", "../x", "a/b", ".hidden"] {
        let refused = source.report(Report::new(writer, web(), redirection("enabled"))).await;
        assert!(matches!(refused, Err(ReportError::Writer { .. })), "{writer}");
    }
    assert!(write::put(state.path(), &json!({"kind": "Pod"})).is_err());
    let outside = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "../../x"}});
    assert!(write::put(state.path(), &outside).is_err());
    assert_eq!(fs::read_dir(state.path().join("reported")).unwrap().count(), 0);
}
