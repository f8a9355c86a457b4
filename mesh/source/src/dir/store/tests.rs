//! Merging and forgetting: the same objects come out whatever the order in which their files changed.

use proptest::prelude::*;

use super::*;

fn key(name: &str) -> FileKey {
    FileKey { layer: Layer::Objects, name: name.into() }
}

fn cluster(name: &str) -> FileKey {
    FileKey { layer: Layer::Cluster, name: name.into() }
}

fn assigned(name: &str) -> FileKey {
    FileKey { layer: Layer::Assigned, name: name.into() }
}

fn reported(writer: &str, name: &str) -> FileKey {
    FileKey { layer: Layer::Reported(writer.into()), name: name.into() }
}

/// Applies one change and shows what is told: `+object`, `-object`, findings as text.
fn told(store: &mut Store, changes: Vec<FileChange>) -> Vec<String> {
    let mut shown = Vec::new();
    for event in store.apply(changes) {
        match event {
            SourceEvent::Applied(object) => shown.push(format!("+{}", object.reference())),
            SourceEvent::Deleted(object) => shown.push(format!("-{object}")),
            SourceEvent::Findings { findings, .. } => shown.extend(findings.iter().map(Finding::to_string)),
            SourceEvent::Synced => shown.push("synced".to_owned()),
        }
    }
    shown
}

fn text(key: FileKey, text: &str) -> Vec<FileChange> {
    vec![FileChange::Text(key, text.to_owned())]
}

fn config(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: shop}}\ndata: {{value: {data}}}\n")
}

fn value(store: &Store, name: &str) -> Option<String> {
    let object = store.object(&ObjectRef::new(Kind::ConfigMap, "shop", name))?;
    Some(object.config_map()?.data.as_ref()?["value"].clone())
}

#[test]
fn objects_come_change_and_go_with_their_file() {
    let mut store = Store::default();
    let two = format!("{}---\n{}", config("a", "x"), config("b", "x"));
    assert_eq!(told(&mut store, text(key("f"), &two)), ["+ConfigMap shop/a", "+ConfigMap shop/b"]);
    assert_eq!(told(&mut store, text(key("f"), &two)), [""; 0]);
    let one = format!("{}---\n{}", config("a", "new"), config("b", "x"));
    assert_eq!(told(&mut store, text(key("f"), &one)), ["+ConfigMap shop/a"]);
    assert_eq!(told(&mut store, text(key("f"), &config("b", "x"))), ["-ConfigMap shop/a"]);
    assert_eq!(told(&mut store, vec![FileChange::Gone(key("f"))]), ["-ConfigMap shop/b"]);
    assert!(store.definitions.is_empty() && store.files.is_empty() && store.merged.is_empty());
}

#[test]
fn a_rename_is_no_change() {
    let mut store = Store::default();
    told(&mut store, text(key("f"), &config("a", "x")));
    let rename = vec![FileChange::Gone(key("f")), FileChange::Text(key("g"), config("a", "x"))];
    assert_eq!(told(&mut store, rename), [""; 0]);
    assert_eq!(value(&store, "a").as_deref(), Some("x"));
}

#[test]
fn a_bad_document_leaves_its_last_good_version_and_its_neighbours_alone() {
    let mut store = Store::default();
    told(&mut store, text(key("f"), &format!("{}---\n{}", config("a", "x"), config("b", "x"))));
    // A wrong type: the object is known, its value stays; its neighbour changes.
    let bad = told(&mut store, text(key("f"), &format!("{}---\n{}", config("a", "[1]"), config("b", "new"))));
    assert_eq!(
        bad,
        [
            "+ConfigMap shop/b",
            "Error [IST0106] (ConfigMap shop/a f:1) data.value: a list has the wrong type (a string); the last good version stays in force"
        ]
    );
    assert_eq!(value(&store, "a").as_deref(), Some("x"));
    // Not even YAML: whoever is missed stays.
    let broken = told(&mut store, text(key("f"), &format!("{}---\n{}", "a: [1\nb: {\n", config("b", "z"))));
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[1].starts_with("Error [TRP0001] (File f:") && broken[1].contains(") line "), "{broken:?}");
    assert!(broken[1].contains("makes the document unreadable (YAML with apiVersion, kind and metadata.name)"), "{broken:?}");
    assert!(broken[1].ends_with("the last good version of ConfigMap shop/a stays in force"), "{broken:?}");
    assert_eq!((value(&store, "a").as_deref(), value(&store, "b").as_deref()), (Some("x"), Some("z")));
    // The whole file, while it is written.
    told(&mut store, text(key("f"), "apiVersion: v1\nkind: Confi"));
    assert_eq!((value(&store, "a").as_deref(), value(&store, "b").as_deref()), (Some("x"), Some("z")));
    told(&mut store, vec![FileChange::Unreadable(key("f"), "cannot be read".to_owned())]);
    assert_eq!(value(&store, "a").as_deref(), Some("x"));
    // Renamed while broken, and good again.
    told(&mut store, vec![FileChange::Gone(key("f")), FileChange::Text(key("g"), "a: [".to_owned())]);
    assert_eq!(value(&store, "a").as_deref(), Some("x"));
    assert_eq!(
        told(&mut store, text(key("g"), &config("a", "new"))),
        ["-ConfigMap shop/b", "+ConfigMap shop/a"].map(str::to_owned).iter().rev().cloned().collect::<Vec<_>>()
    );
}

#[test]
fn nothing_is_taken_away_by_a_file_that_is_not_finished() {
    let mut store = Store::default();
    let unfinished = |content: String| vec![FileChange::Unfinished(key("f"), content)];
    let three = ["a", "b", "c"].map(|name| config(name, "x")).join("---\n");
    told(&mut store, text(key("f"), &three));
    let values = |store: &Store| ["a", "b", "c", "d"].map(|name| value(store, name).unwrap_or_default());
    // Emptied first.
    let empty = told(&mut store, unfinished(String::new()));
    assert_eq!(empty.len(), 1, "{empty:?}");
    assert!(empty[0].starts_with("Warning [TRP0016] (File f:1)"), "{empty:?}");
    assert_eq!(values(&store), ["x", "x", "x", ""]);
    // The last document may be half; the ones before it are whole.
    told(&mut store, unfinished(["a", "d", "b"].map(|name| config(name, "new")).join("---\n")));
    assert_eq!(values(&store), ["new", "x", "x", "new"]);
    // A list is cut between its entries.
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}, data: {value: new}}\n\
                - {apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}}\n";
    told(&mut store, unfinished(list.to_owned()));
    assert_eq!(values(&store), ["new", "new", "x", "new"]);
    assert!(matches!(store.kept(&key("f")), Kept::Versions(kept) if kept.len() == 3), "a restart loses nothing either");
    // What it says when it is closed holds.
    told(&mut store, text(key("f"), &config("b", "z")));
    assert_eq!(values(&store), ["", "z", "", ""]);
    assert_eq!(store.kept(&key("f")), Kept::Nothing);
}

#[test]
fn what_was_never_good_does_not_exist() {
    let mut store = Store::default();
    let told = told(&mut store, text(key("f"), &format!("{}---\n{}", config("a", "[1]"), config("b", "x"))));
    assert_eq!(told.len(), 2);
    assert!(told[1].ends_with("it was never good, so it does not exist for the mesh"), "{told:?}");
    assert_eq!(value(&store, "a"), None);
}

#[test]
fn the_last_definition_of_an_object_counts_and_the_others_are_told() {
    let mut store = Store::default();
    told(&mut store, text(key("b"), &config("a", "second")));
    let first = told(&mut store, text(key("a"), &format!("# first\n{}", config("a", "first"))));
    assert_eq!(
        first,
        ["Warning [TRP0002] (ConfigMap shop/a a:2) metadata.name: \"a\" is defined again in b:1 (one definition an object; the last one \
          counts, as when kubectl applies them in order); this definition is ignored"]
    );
    assert_eq!(value(&store, "a").as_deref(), Some("second"));
    // A bad second one leaves the last good second one, not the first.
    told(&mut store, text(key("b"), &config("a", "[1]")));
    assert_eq!(value(&store, "a").as_deref(), Some("second"));
    assert_eq!(told(&mut store, vec![FileChange::Gone(key("b"))]), ["+ConfigMap shop/a"]);
    assert_eq!(value(&store, "a").as_deref(), Some("first"));
    let both = told(&mut store, text(key("a"), &format!("{}---\n{}", config("a", "first"), config("a", "third"))));
    assert_eq!(both.len(), 2, "{both:?}");
    assert_eq!(value(&store, "a").as_deref(), Some("third"));
}

#[test]
fn a_duplicate_that_appears_later_is_told_at_the_earlier_file() {
    let mut store = Store::default();
    told(&mut store, text(key("a"), &config("a", "first")));
    let second = told(&mut store, text(key("b"), &config("a", "second")));
    assert!(second.iter().any(|line| line.starts_with("Warning [TRP0002] (ConfigMap shop/a a:1)")), "{second:?}");
    // And is taken back when it goes.
    let events = store.apply(vec![FileChange::Gone(key("b"))]);
    let cleared =
        events.iter().any(|event| matches!(event, SourceEvent::Findings { file, findings } if file == "a" && findings.is_empty()));
    assert!(cleared, "{events:?}");
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: one}\nspec: {containers: [{name: a}]}\n";

fn annotation(store: &Store) -> Option<String> {
    let pod = store.object(&ObjectRef::new(Kind::Pod, "shop", "a"))?;
    pod.annotation("ambient.istio.io/redirection").map(str::to_owned)
}

fn report(uid: &str, annotation: &str) -> String {
    let uid = if uid.is_empty() { String::new() } else { format!(", uid: {uid}") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop{uid}, annotations: {{ambient.istio.io/redirection: {annotation}}}}}\n"
    )
}

#[test]
fn reports_lie_over_objects_and_wait_for_them() {
    let mut store = Store::default();
    assert_eq!(told(&mut store, text(reported("redirector.a", "r"), &report("one", "enabled"))), [""; 0]);
    assert_eq!(told(&mut store, text(cluster("c"), POD)), ["+Pod shop/a"]);
    assert_eq!(annotation(&store).as_deref(), Some("enabled"));
    // Another pod of the same name is not what was spoken of.
    told(&mut store, text(cluster("c"), &POD.replace("uid: one", "uid: two")));
    assert_eq!(annotation(&store), None);
    told(&mut store, text(reported("redirector.a", "r"), &report("two", "enabled")));
    assert_eq!(annotation(&store).as_deref(), Some("enabled"));
    assert_eq!(told(&mut store, vec![FileChange::Gone(reported("redirector.a", "r"))]), ["+Pod shop/a"]);
    assert_eq!(annotation(&store), None);
    assert_eq!(told(&mut store, vec![FileChange::Gone(cluster("c"))]), ["-Pod shop/a"]);
}

#[test]
fn two_writers_of_one_field_are_told() {
    let mut store = Store::default();
    told(&mut store, text(cluster("c"), POD));
    told(&mut store, text(reported("a", "ra"), &report("", "enabled")));
    let conflict: Value = serde_saphyr::from_str(&report("", "pending")).unwrap();
    let pod = ObjectRef::new(Kind::Pod, "shop", "a");
    assert_eq!(store.conflict("b", &pod, &conflict).unwrap().1, "a");
    assert_eq!(store.conflict("a", &pod, &conflict), None);
    let second = told(&mut store, text(reported("b", "rb"), &report("", "pending")));
    assert!(second.iter().any(|line| line.starts_with("Warning [TRP0010] (Pod shop/a rb:1)")), "{second:?}");
    assert_eq!(annotation(&store).as_deref(), Some("pending"));
}

#[test]
fn assigned_fields_belong_to_the_users_object_and_go_with_it() {
    let mut store = Store::default();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let fields = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, uid: u}\nspec: {clusterIPs: [10.96.0.1]}\n";
    told(&mut store, text(assigned("cluster/assigned/web"), fields));
    assert_eq!(store.objects().count(), 0);
    told(&mut store, text(key("web"), service));
    let object = store.objects().next().unwrap().clone();
    assert_eq!(object.metadata.uid, "u");
    assert_eq!(object.service().unwrap().spec.as_ref().unwrap().cluster_ips.as_ref().unwrap()[0], "10.96.0.1");
    assert_eq!(told(&mut store, vec![FileChange::Gone(key("web"))]), ["-Service shop/web"]);
}

#[test]
fn a_merge_that_is_refused_keeps_the_object() {
    let mut store = Store::default();
    told(&mut store, text(cluster("c"), POD));
    let bad = POD.replace("spec:", "status: {podIPs: [{ip: nonsense}]}\nspec:");
    let refused = told(&mut store, text(cluster("c"), &bad));
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].contains("status.podIPs[0].ip: \"nonsense\" is not an IP address"), "{refused:?}");
    assert!(refused[0].ends_with("the last good version stays in force"), "{refused:?}");
    assert_eq!(store.objects().count(), 1);
}

#[test]
fn kinds_that_mean_nothing_are_told_once_and_skipped() {
    let mut store = Store::default();
    let told = told(&mut store, text(key("f"), "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n"));
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("Info [TRP0006] (Other default/a f:1) kind:"), "{told:?}");
    assert_eq!(store.objects().count(), 0);
}

/// Documents by the numbers of their object and what is in them.
type Documents = Vec<(u8, u8)>;

/// A history of a few files of a few objects, some of them broken.
fn history() -> impl Strategy<Value = Vec<(u8, Option<Documents>)>> {
    let document = (0..4u8, 0..4u8);
    prop::collection::vec((0..3u8, prop::option::of(prop::collection::vec(document, 0..4))), 1..20)
}

fn content(documents: &[(u8, u8)]) -> String {
    let document = |(name, data): &(u8, u8)| match data {
        0 => "a: [broken\n".to_owned(),
        1 => config(&format!("n{name}"), "[1]"),
        data => config(&format!("n{name}"), &format!("v{data}")),
    };
    documents.iter().map(document).collect::<Vec<_>>().join("---\n")
}

proptest! {
    /// Whatever happened before: what watches were told adds up to what exists; and once every file is good, only that counts.
    #[test]
    fn history_does_not_matter_once_files_are_good(history in history(), last in prop::collection::vec(prop::collection::vec((0..4u8, 2..4u8), 0..4), 3)) {
        let mut store = Store::default();
        let mut known: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
        let mut take = |store: &mut Store, change: FileChange| {
            for event in store.apply(vec![change]) {
                match event {
                    SourceEvent::Applied(object) => drop(known.insert(object.reference(), object)),
                    SourceEvent::Deleted(object) => assert!(known.remove(&object).is_some(), "{object} was never told"),
                    _ => {}
                }
            }
            let exists: BTreeMap<ObjectRef, Arc<Object>> = store.objects().map(|object| (object.reference(), object.clone())).collect();
            assert_eq!(known, exists);
        };
        for (file, documents) in &history {
            let key = key(&file.to_string());
            let change = documents.as_ref().map_or(FileChange::Gone(key.clone()), |documents| FileChange::Text(key, content(documents)));
            take(&mut store, change);
        }
        let mut fresh = Store::default();
        for (file, documents) in last.iter().enumerate() {
            take(&mut store, FileChange::Text(key(&file.to_string()), content(documents)));
            fresh.apply(text(key(&file.to_string()), &content(documents)));
        }
        let all = |store: &Store| -> BTreeMap<ObjectRef, Arc<Object>> { store.objects().map(|object| (object.reference(), object.clone())).collect() };
        prop_assert_eq!(all(&store), all(&fresh));
    }
}
