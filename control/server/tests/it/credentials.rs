//! Who gets in: nobody without proof, and nobody further than its proof.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tonic::Code;
use tropis_proto::xds::{DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient};

use crate::harness::{Ask, Tropisd, bearer, claims, pod, sign};

/// What a stream of configuration is answered with.
async fn stream(tropisd: &Tropisd, token: Option<&str>, holder: Option<tonic::transport::Identity>) -> Result<(), tonic::Status> {
    let channel = tropisd.channel(tropisd.addresses[0], holder).await.unwrap();
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    let request = DeltaDiscoveryRequest { type_url: tropis_proto::ADDRESS_TYPE.into(), ..Default::default() };
    requests.send(request).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_aggregated_resources(bearer(outgoing, token)).await?.into_inner();
    responses.message().await.map(|_| ())
}

#[tokio::test]
async fn bad_tokens_are_refused_with_a_reason_everywhere() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let good = claims("istio-system", "ztunnel-a", "ztunnel", "a");
    let with = |path: &str, value: Value| {
        let mut claims = good.clone();
        *claims.pointer_mut(path).unwrap() = value;
        tropisd.sign(&claims)
    };
    let stranger = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let table = [
        (None, "no credentials"),
        (Some("nonsense".to_owned()), "not a signed JWT"),
        (Some(with("/aud", json!("elsewhere"))), "audience"),
        (Some(with("/exp", json!(1))), "expired"),
        (Some(with("/iss", json!("https://elsewhere"))), "issuer"),
        (Some(with("/kubernetes.io", json!({}))), "claims"),
        (Some(sign(&stranger, &good)), "signature"),
        (Some(with("/kubernetes.io/pod/uid", json!("of an earlier pod"))), "pod uid"),
        (Some(with("/kubernetes.io/pod/name", json!("ztunnel-z"))), "not known"),
        (Some(with("/kubernetes.io/node/name", json!("b"))), "node"),
    ];
    for (token, reason) in table {
        let answers = [tropisd.certify(token.as_deref(), Ask::default()).await.map(|_| ()), stream(&tropisd, token.as_deref(), None).await];
        for answer in answers {
            let status = answer.expect_err(reason);
            assert_eq!(status.code(), Code::Unauthenticated, "{reason}: {status}");
            assert!(status.message().contains(reason), "{reason}: {status}");
        }
    }
    assert!(stream(&tropisd, Some(&tropisd.sign(&good)), None).await.is_ok());
}

#[tokio::test]
async fn configuration_is_for_the_node_proxy_and_its_token() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let cart = tropisd.token("shop", "cart", "cart", "a");
    let status = stream(&tropisd, Some(&cart), None).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("shop/cart may not have the mesh's configuration"), "{status}");

    let ztunnel = tropisd.token("istio-system", "ztunnel-a", "ztunnel", "a");
    let issued = tropisd.certify(Some(&ztunnel), Ask::default()).await.unwrap();
    let status = stream(&tropisd, None, Some(issued.identity())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "not even by a certificate of the same account");
}

#[tokio::test]
async fn identities_go_to_the_node_where_their_pods_run() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let (on_a, on_b) =
        (tropisd.token("istio-system", "ztunnel-a", "ztunnel", "a"), tropisd.token("istio-system", "ztunnel-b", "ztunnel", "b"));
    let cart = tropisd.token("shop", "cart", "cart", "a");
    let spiffe = |namespace: &str, account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let table = [
        (&on_a, spiffe("shop", "cart"), None),
        (&on_b, spiffe("shop", "web"), None),
        (&on_b, spiffe("shop", "cart"), Some("no pod runs as account shop/cart on node b")),
        (&on_a, spiffe("plain", "old"), Some("not enrolled")),
        (&on_a, "spiffe://elsewhere/ns/shop/sa/cart".into(), Some("trust domain")),
        (&cart, spiffe("shop", "cart"), None),
        (&cart, spiffe("shop", "web"), Some("its own identity only")),
    ];
    for (token, identity, refusal) in table {
        let answer = tropisd.certify(Some(token), Ask { identity: Some(&identity), ..Ask::default() }).await;
        match (answer, refusal) {
            (Ok(issued), None) => assert_eq!(issued.name(), identity),
            (Err(status), Some(reason)) => assert!(status.message().contains(reason), "{status}"),
            (answer, _) => panic!("{identity}: {answer:?}"),
        }
    }

    // The pod leaves the node: its identity goes with it, within the time that a change takes.
    tropisd.delete("cluster/shop-cart.yaml");
    let identity = spiffe("shop", "cart");
    tropisd
        .until("the refusal", async || tropisd.certify(Some(&on_a), Ask { identity: Some(&identity), ..Ask::default() }).await.err())
        .await;
    let status = tropisd.certify(Some(&cart), Ask::default()).await.unwrap_err();
    assert!(status.message().contains("not known"), "a token dies with its pod: {status}");
}

#[tokio::test]
async fn the_alias_of_the_account_names_the_identity_of_a_pod_as_well() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let mut old = pod("shop", "old-style", "a", "ledger", "10.244.1.9");
    let account = old["spec"].as_object_mut().unwrap().remove("serviceAccountName").unwrap();
    old["spec"]["serviceAccount"] = account;
    tropisd.apply("cluster/shop-old-style.yaml", &old.to_string());
    let own = tropisd.token("shop", "old-style", "ledger", "a");
    let issued = tropisd.until("the pod", async || tropisd.certify(Some(&own), Ask::default()).await.ok()).await;
    assert_eq!(issued.name(), "spiffe://cluster.local/ns/shop/sa/ledger");

    // Its node proxy gets the same identity for it, and not that of the account which it does not run as.
    let ztunnel = tropisd.token("istio-system", "ztunnel-a", "ztunnel", "a");
    let ask = async |identity| tropisd.certify(Some(&ztunnel), Ask { identity: Some(identity), ..Ask::default() }).await;
    assert!(ask("spiffe://cluster.local/ns/shop/sa/ledger").await.is_ok());
    let status = ask("spiffe://cluster.local/ns/shop/sa/default").await.unwrap_err();
    assert!(status.message().contains("no pod runs as account shop/default on node a"), "{status}");
}
