//! What is made for a waypoint, decided without I/O.

use std::sync::Arc;

use tropis_compile::{
    Settings,
    waypoint::{
        automatic::{NAME, name},
        needed::Reason,
    },
};
use tropis_crds::decode;

use super::*;

fn gateway(spec: &Value) -> Arc<Object> {
    let mut all = json!({
        "gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
    });
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    Arc::new(
        decode(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "shop", "uid": "u", "generation": 3}, "spec": all,
        }))
        .unwrap()
        .0,
    )
}

fn index(spec: &Value) -> Index {
    let mut index = Index::new(Settings::default());
    index.apply(&gateway(spec));
    index
}

/// Without automatic waypoints.
fn all(index: &Index, existing: &Existing, live: bool) -> (BTreeMap<ObjectRef, Made>, Vec<Finding>) {
    let (stands, needs) = Default::default();
    desired(index, existing, &Automatic { stands: &stands, needs: &needs }, &[], |_| live)
}

fn of(kind: Kind) -> ObjectRef {
    ObjectRef::new(kind, "shop", "gw")
}

#[test]
fn a_waypoint_gets_an_account_a_service_and_a_deployment_that_decode_and_fit_together() {
    let spec = json!({"infrastructure": {"labels": {"team": "a"}, "annotations": {"note": "b"}}});
    let (made, told) = all(&index(&spec), &Existing::default(), false);
    assert!(told.is_empty() && made.len() == 4);
    for kind in MADE {
        let made = &made[&of(kind)];
        let (object, findings) = decode(made.fields.clone()).unwrap();
        assert!(made.owned && is_ours(&object) && object.label("team") == Some("a"), "{object:?}");
        assert_eq!(object.annotation("note"), Some("b"));
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!(object.reference(), of(kind));
    }
    let deployment = &made[&of(Kind::Deployment)].fields["spec"]["template"];
    let selector = &made[&of(Kind::Service)].fields["spec"]["selector"];
    assert_eq!(deployment["metadata"]["labels"][waypoint::GATEWAY_NAME], selector[waypoint::GATEWAY_NAME]);
    assert_eq!(deployment["metadata"]["labels"]["istio.io/dataplane-mode"], "none", "a waypoint is never captured");
    assert_eq!(deployment["spec"]["serviceAccountName"], "gw");
    assert_eq!(deployment["spec"]["containers"][0]["name"], "istio-proxy");
}

#[test]
fn the_address_comes_with_the_first_pod_that_is_configured() {
    let status = |live: bool| all(&index(&json!({})), &Existing::default(), live).0[&of(Kind::Gateway)].fields["status"].clone();
    assert_eq!(status(false)["addresses"], json!([]));
    assert_eq!(status(false)["conditions"][1]["reason"], "Pending");
    assert_eq!(status(true)["addresses"], json!([{"type": "Hostname", "value": "gw.shop.svc.cluster.local"}]));
    assert_eq!(status(true)["conditions"][1]["status"], "True");
    assert_eq!(status(true)["listeners"][0]["name"], "mesh");
    assert_eq!(status(true)["conditions"][0]["observedGeneration"], 3);
}

#[test]
fn what_somebody_else_made_is_never_adopted() {
    let mut existing = Existing::default();
    let theirs = decode(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gw", "namespace": "shop"}})).unwrap().0;
    existing.note(&theirs.reference(), Some(&theirs));
    let (made, told) = all(&index(&json!({})), &existing, true);
    assert_eq!(made.keys().collect::<Vec<_>>(), [&of(Kind::Gateway)]);
    assert_eq!(told[0].code, codes::NAME_TAKEN);
    let status = &made[&of(Kind::Gateway)].fields["status"];
    assert_eq!((&status["conditions"][1]["reason"], &status["addresses"]), (&json!("Invalid"), &json!([])));
    existing.note(&theirs.reference(), None);
    assert_eq!(all(&index(&json!({})), &existing, true).0.len(), 4);
}

#[test]
fn a_waypoint_that_somebody_else_deploys_is_not_said_to_work() {
    let spec = json!({"addresses": [{"type": "Hostname", "value": "own.shop.svc.cluster.local"}]});
    let (made, told) = all(&index(&spec), &Existing::default(), true);
    assert_eq!(made.keys().collect::<Vec<_>>(), [&of(Kind::Gateway)]);
    let status = &made[&of(Kind::Gateway)].fields["status"];
    assert_eq!((&status["addresses"], &status["conditions"][1]["reason"]), (&json!([]), &json!("AddressNotUsable")));
    assert_eq!(told.iter().map(|finding| finding.code).collect::<Vec<_>>(), [codes::FIELD_NOT_HONOURED]);
}

#[test]
fn an_address_that_is_asked_for_is_not_taken_for_a_name() {
    let spec = json!({"addresses": [{"type": "IPAddress", "value": "10.0.0.9"}]});
    let (made, told) = all(&index(&spec), &Existing::default(), true);
    let status = &made[&of(Kind::Gateway)].fields["status"];
    assert_eq!(status["addresses"], json!([{"type": "Hostname", "value": "gw.shop.svc.cluster.local"}]));
    assert_eq!((told.len(), told[0].level, told[0].code), (1, Level::Warning, codes::FIELD_NOT_HONOURED));
}

#[test]
fn a_gateway_called_as_an_account_that_pods_run_as_takes_nothing_from_them() {
    let key = ("shop".to_owned(), "gw".to_owned());
    let mut existing = Existing::default();
    existing.look([key.clone()].into_iter(), |_| Some("app-1".to_owned()));
    let (made, told) = all(&index(&json!({})), &existing, true);
    assert_eq!(made.keys().collect::<Vec<_>>(), [&of(Kind::Gateway)]);
    assert!(told[0].code == codes::NAME_TAKEN && told[0].to_string().contains("Pod shop/app-1"), "{}", told[0]);
    // The waypoint's own account is not taken from it by who runs as it later.
    let (account, _) = decode(all(&index(&json!({})), &Existing::default(), true).0[&of(Kind::ServiceAccount)].fields.clone()).unwrap();
    existing.note(&account.reference(), Some(&account));
    existing.look([key].into_iter(), |_| Some("thief".to_owned()));
    assert!(!existing.has_strangers());
    assert_eq!(all(&index(&json!({})), &existing, true).0.len(), 4);
}

#[test]
fn a_label_alone_makes_nothing_ours() {
    let theirs = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "gw", "namespace": "shop", "labels": {waypoint::MANAGED: MANAGED_BY}},
    });
    assert!(!is_ours(&decode(theirs).unwrap().0));
}

#[test]
fn a_gateway_whose_name_no_service_can_have_says_so() {
    for (name, good) in [("gw", true), ("a-1", true), ("my.waypoint", false), ("1w", false), ("w-", false), (&*"w".repeat(64), false)] {
        assert_eq!(is_service_name(name), good, "{name}");
    }
    let mut fields = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "my.waypoint", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    });
    let mut index = Index::new(Settings::default());
    index.apply(&Arc::new(decode(fields.take()).unwrap().0));
    let (made, told) = all(&index, &Existing::default(), true);
    assert_eq!(made.len(), 1);
    assert!(told[0].to_string().contains("cannot be the name of a Service"), "{}", told[0]);
}

#[test]
fn the_status_tells_warnings_and_why_something_is_not_accepted() {
    let told = |finding: Finding| {
        let (stands, needs) = Default::default();
        let automatic = Automatic { stands: &stands, needs: &needs };
        let (made, _) = desired(&index(&json!({})), &Existing::default(), &automatic, &[finding], |_| true);
        let accepted = made[&of(Kind::Gateway)].fields["status"]["conditions"][0].clone();
        (accepted["status"].clone(), accepted["reason"].clone(), accepted["message"].as_str().unwrap().contains("a problem"))
    };
    let error = |code| Finding::error(code, of(Kind::Gateway)).problem("a problem");
    assert_eq!(
        told(Finding::warning(codes::UNREADABLE_VALUE, of(Kind::Gateway)).problem("a problem")),
        (json!("True"), json!("Accepted"), true)
    );
    assert_eq!(told(error(codes::REFUSED_BY_PROXY)), (json!("False"), json!("RefusedByProxy"), true));
    assert_eq!(told(error(codes::UNREADABLE_VALUE).field("spec.listeners[0]")), (json!("False"), json!("ListenersNotValid"), true));
}

fn key_of(account: Option<&str>) -> Key {
    ("shop".to_owned(), name(account))
}

fn need(account: Option<&str>) -> BTreeMap<Key, Need> {
    let account = account.map(str::to_owned);
    let need =
        Need { because: "VirtualService shop/web".into(), service: Some("web".into()), account: account.clone(), reason: Reason::ByScope };
    [(key_of(account.as_deref()), need)].into()
}

#[test]
fn an_automatic_waypoint_is_a_gateway_of_ours_with_everything_that_a_users_gets() {
    let (needs, mut index) = (need(None), Index::new(Settings::default()));
    let own = ObjectRef::new(Kind::Gateway, "shop", NAME);
    let stands = |stand| [(key_of(None), stand)].into();
    let of = |index: &Index, stands: &_| desired(index, &Existing::default(), &Automatic { stands, needs: &needs }, &[], |_| true);
    let (made, told) = of(&index, &stands(Stand::InUse));
    assert_eq!(made.keys().collect::<Vec<_>>(), [&own], "the rest comes when the Gateway is there");
    assert!(made[&own].owned);
    assert_eq!((told.len(), told[0].code), (1, codes::AUTOMATIC_WAYPOINT));
    assert!(told[0].to_string().contains("VirtualService shop/web"), "{}", told[0]);
    let (object, findings) = decode(made[&own].fields.clone()).unwrap();
    assert!(is_ours(&object) && waypoint::is_waypoint(&object) && findings.is_empty(), "{findings:?}");

    index.apply(&Arc::new(object));
    let (made, _) = of(&index, &stands(Stand::InUse));
    assert_eq!(made.len(), 4);
    assert_eq!(made[&own].fields["status"]["conditions"][1]["status"], "True");
    assert!(made[&own].owned, "its status stands with it");
    let (made, _) = of(&index, &stands(Stand::Leaving));
    assert_eq!((made.len(), &made[&own].fields["metadata"]["labels"][waypoint::AUTOMATIC]), (4, &json!("leaving")));
    let (made, _) = of(&index, &stands(Stand::Stopping));
    assert!(made.len() == 3 && !made.contains_key(&ObjectRef::new(Kind::Deployment, "shop", NAME)), "its pods end: {made:?}");
    assert_eq!(made[&own].fields["status"]["addresses"], json!([]));
    let (made, _) = of(&index, &BTreeMap::new());
    assert!(made.is_empty(), "with it goes what was made for it: {made:?}");
}

#[test]
fn an_automatic_waypoint_of_an_account_says_for_whom_it_is_until_it_is_gone() {
    let account = "reviews.of-a-name-that-is-longer-than-the-value-of-a-label-may-be-which-is-63";
    let (key, mut index) = (key_of(Some(account)), Index::new(Settings::default()));
    let own = ObjectRef::new(Kind::Gateway, "shop", key.1.as_str());
    let nothing = BTreeMap::new();
    let of = |index: &Index, needs: &_, stand| {
        let stands = [(key.clone(), stand)].into();
        desired(index, &Existing::default(), &Automatic { stands: &stands, needs }, &[], |_| true)
    };
    let (made, told) = of(&index, &need(Some(account)), Stand::InUse);
    assert!(told.len() == 1 && told[0].to_string().contains(&format!("run as account {account}")), "{told:?}");
    let (object, findings) = decode(made[&own].fields.clone()).unwrap();
    assert!(is_ours(&object) && findings.is_empty() && is_service_name(&object.metadata.name), "{object:?} {findings:?}");
    assert_eq!((waypoint::account(&object), waypoint::serves(&object)), (Some(account), tropis_model::waypoint::Serves::Services));

    index.apply(&Arc::new(object));
    let (made, _) = of(&index, &need(Some(account)), Stand::InUse);
    let names: BTreeSet<&str> = made.keys().map(|object| object.name.as_str()).collect();
    assert_eq!((made.len(), names), (4, [key.1.as_str()].into()));
    for stand in [Stand::Leaving, Stand::Stopping] {
        let (made, told) = of(&index, &nothing, stand);
        let (object, _) = decode(made[&own].fields.clone()).unwrap();
        assert!(is_ours(&object) && waypoint::account(&object) == Some(account) && told.is_empty(), "{object:?}");
    }
}

#[test]
fn an_automatic_waypoint_takes_no_name_that_somebody_has() {
    for account in [None, Some("web")] {
        takes_no_name(account);
    }
}

fn takes_no_name(account: Option<&str>) {
    let (needs, stands) = (need(account), [(key_of(account), Stand::InUse)].into());
    let theirs = |kind: &str, api: &str| {
        let mut value = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name(account), "namespace": "shop"}});
        if kind == "Gateway" {
            value["spec"] = json!({"gatewayClassName": "istio", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]});
        }
        Arc::new(decode(value).unwrap().0)
    };
    for object in [theirs("ServiceAccount", "v1"), theirs("Gateway", "gateway.networking.k8s.io/v1")] {
        let (mut index, mut existing) = (Index::new(Settings::default()), Existing::default());
        index.apply(&object);
        existing.note(&object.reference(), Some(&object));
        let (made, told) = desired(&index, &existing, &Automatic { stands: &stands, needs: &needs }, &[], |_| true);
        assert!(made.is_empty(), "{made:?}");
        assert_eq!((told.len(), told[0].code), (1, codes::NAME_TAKEN));
        assert!(told[0].to_string().contains(&object.reference().to_string()), "{}", told[0]);
    }
}
