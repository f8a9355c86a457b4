//! Changes of a folder: whole, half, renamed, removed, many at once.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tropis_crds::{Finding, Kind, ObjectRef};
use tropis_source::{DirSource, Source, SourceEvent, Watch, write};

/// Ten times what is normal for a change to be told (50 ms).
const SOON: Duration = Duration::from_millis(500);

pub(crate) fn config(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: shop}}\ndata: {{value: \"{data}\"}}\n")
}

pub(crate) fn reference(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::ConfigMap, "shop", name)
}

pub(crate) fn open(state: &TempDir) -> DirSource {
    DirSource::open(state.path(), None).expect("a source")
}

/// Waits for an event that `wanted` knows.
pub(crate) async fn until<T>(watch: &mut Watch, mut wanted: impl FnMut(&SourceEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = watch.recv().await.expect("the source lives");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(10 * SOON, search).await.expect("told in time")
}

async fn synced(watch: &mut Watch) {
    until(watch, |event| matches!(event, SourceEvent::Synced).then_some(())).await;
}

async fn applied(watch: &mut Watch, name: &str, data: &str) {
    until(watch, |event| match event {
        SourceEvent::Applied(object) if object.metadata.name == name => {
            (object.config_map()?.data.as_ref()?.get("value")? == data).then_some(())
        }
        _ => None,
    })
    .await;
}

async fn applied_by_now(source: &DirSource, name: &str) {
    let there = async {
        while source.get(&reference(name)).is_none() {
            tokio::time::sleep(SOON / 100).await;
        }
    };
    tokio::time::timeout(10 * SOON, there).await.expect("there in time");
}

async fn deleted(watch: &mut Watch, name: &str) {
    until(watch, |event| matches!(event, SourceEvent::Deleted(object) if object.name == name).then_some(())).await;
}

async fn findings(watch: &mut Watch, name: &str) -> Vec<Finding> {
    until(watch, |event| match event {
        SourceEvent::Findings { file, findings } if file == name && !findings.is_empty() => Some(findings.clone()),
        _ => None,
    })
    .await
}

async fn until_end(watch: &mut Watch) {
    let rest = async { while watch.recv().await.is_some() {} };
    tokio::time::timeout(10 * SOON, rest).await.expect("the watch ends with its source");
}

/// Nothing may be told for a while that is longer than any change takes.
async fn quiet(watch: &mut Watch) {
    let event = tokio::time::timeout(SOON / 2, watch.recv()).await;
    assert!(event.is_err(), "{event:?}");
}

#[tokio::test]
async fn what_is_there_is_told_first_then_what_changes() {
    let state = TempDir::new().unwrap();
    let folder = state.path().join("objects/shop/deep");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.yaml"), config("a", "1")).unwrap();
    let source = open(&state);
    let mut watch = source.watch();
    assert!(matches!(watch.recv().await, Some(SourceEvent::Applied(object)) if object.reference() == reference("a")));
    assert!(matches!(watch.recv().await, Some(SourceEvent::Synced)));

    let started = Instant::now();
    fs::write(folder.join("b.yml"), config("b", "1")).unwrap();
    applied(&mut watch, "b", "1").await;
    println!("a new file was told after {:?}", started.elapsed());
    fs::write(folder.join("a.yaml"), config("a", "2")).unwrap();
    applied(&mut watch, "a", "2").await;
    fs::remove_file(folder.join("a.yaml")).unwrap();
    deleted(&mut watch, "a").await;
    fs::remove_dir_all(state.path().join("objects/shop")).unwrap();
    deleted(&mut watch, "b").await;
    assert!(source.objects().is_empty());
    drop(source);
    until_end(&mut watch).await;
}

#[tokio::test]
async fn new_folders_and_folders_that_are_moved_are_followed() {
    let state = TempDir::new().unwrap();
    let source = open(&state);
    let mut watch = source.watch();
    synced(&mut watch).await;
    let folder = state.path().join("objects/one/two/three");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.yaml"), config("a", "1")).unwrap();
    applied(&mut watch, "a", "1").await;
    fs::rename(state.path().join("objects/one"), state.path().join("away")).unwrap();
    deleted(&mut watch, "a").await;
    fs::rename(state.path().join("away"), state.path().join("objects/back")).unwrap();
    applied(&mut watch, "a", "1").await;
    fs::write(state.path().join("objects/back/two/three/a.yaml"), config("a", "2")).unwrap();
    applied(&mut watch, "a", "2").await;
    // The folder itself is swapped.
    fs::rename(state.path().join("objects"), state.path().join("old")).unwrap();
    deleted(&mut watch, "a").await;
    fs::create_dir(state.path().join("objects")).unwrap();
    fs::write(state.path().join("objects/new.yaml"), config("new", "1")).unwrap();
    applied(&mut watch, "new", "1").await;
}

#[tokio::test]
async fn renames_are_no_change_and_hidden_or_foreign_files_nobodys_business() {
    let state = TempDir::new().unwrap();
    let objects = state.path().join("objects");
    let source = open(&state);
    let mut watch = source.watch();
    fs::write(objects.join("a.yaml"), config("a", "1")).unwrap();
    applied(&mut watch, "a", "1").await;
    while watch.try_recv().is_some() {}
    fs::write(objects.join("README.md"), config("readme", "1")).unwrap();
    fs::write(objects.join(".hidden.yaml"), config("hidden", "1")).unwrap();
    fs::create_dir(objects.join(".git")).unwrap();
    fs::write(objects.join(".git/a.yaml"), config("git", "1")).unwrap();
    fs::rename(objects.join("a.yaml"), objects.join("b.yaml")).unwrap();
    quiet(&mut watch).await;
    assert_eq!(source.objects().len(), 1);
    // An editor's way: a new file over the old one.
    fs::write(objects.join("b.yaml.tmp"), config("a", "2")).unwrap();
    fs::rename(objects.join("b.yaml.tmp"), objects.join("b.yaml")).unwrap();
    applied(&mut watch, "a", "2").await;
}

#[tokio::test]
async fn a_file_being_written_is_read_when_it_is_whole() {
    let state = TempDir::new().unwrap();
    let path = state.path().join("objects/all.yaml");
    let source = open(&state);
    let mut watch = source.watch();
    let (a, b) = (config("a", "1"), config("b", "1"));
    fs::write(&path, format!("{a}---\n{b}")).unwrap();
    applied(&mut watch, "b", "1").await;
    while watch.try_recv().is_some() {}

    let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    file.write_all(config("a", "2").as_bytes()).unwrap();
    // Half of it is there, and would mean that b is gone.
    quiet(&mut watch).await;
    file.write_all(b"---\n").unwrap();
    file.write_all(&b.as_bytes()[..b.len() / 2]).unwrap();
    quiet(&mut watch).await;
    file.write_all(&b.as_bytes()[b.len() / 2..]).unwrap();
    drop(file);
    applied(&mut watch, "a", "2").await;
    quiet(&mut watch).await;
    assert_eq!(source.objects().len(), 2);
}

#[tokio::test]
async fn what_is_missing_in_a_file_stays_while_its_writer_has_it_open() {
    let state = TempDir::new().unwrap();
    let path = state.path().join("objects/all.yaml");
    let source = open(&state);
    let mut watch = source.watch();
    fs::write(&path, ["a", "b", "c"].map(|name| config(name, "1")).join("---\n")).unwrap();
    applied(&mut watch, "c", "1").await;
    while watch.try_recv().is_some() {}

    // Valid YAML so far, for longer than anybody waits: c is not there yet, and of b perhaps not everything.
    let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    let mut fresh = File::create(state.path().join("objects/new.yaml")).unwrap();
    fresh.write_all(config("new", "1").as_bytes()).unwrap();
    file.write_all(format!("{}---\n{}", config("a", "2"), config("b", "2")).as_bytes()).unwrap();
    let mut told = std::collections::BTreeMap::new();
    until(&mut watch, |event| {
        if let SourceEvent::Findings { file, findings } = event {
            told.insert(file.clone(), findings.clone());
        }
        (told.len() == 2).then_some(())
    })
    .await;
    let told = &told["all.yaml"];
    assert_eq!(told.len(), 1, "{told:?}");
    let text = told[0].to_string();
    assert!(text.starts_with("Warning [TRP0016] (File all.yaml:1) is being written"), "{text}");
    assert!(text.contains("what is missing in it stays in force"), "{text}");
    let data = |name: &str| source.get(&reference(name)).map(|object| object.config_map().unwrap().data.as_ref().unwrap()["value"].clone());
    assert_eq!(["a", "b", "c", "new"].map(data), [Some("2".to_owned()), Some("1".to_owned()), Some("1".to_owned()), None]);

    // Touched, and written on, it is still not whole.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    file.write_all(b"---\n").unwrap();
    quiet(&mut watch).await;
    assert_eq!(source.objects().len(), 3);

    // Closed without c: that is what the user means.
    drop((file, fresh));
    deleted(&mut watch, "c").await;
    until(&mut watch, |event| matches!(event, SourceEvent::Findings { findings, .. } if findings.is_empty()).then_some(())).await;
    assert_eq!([data("b"), data("c")], [Some("2".to_owned()), None]);
    applied_by_now(&source, "new").await;
}

#[tokio::test]
async fn half_a_file_leaves_the_last_good_version_and_is_told() {
    let state = TempDir::new().unwrap();
    let path = state.path().join("objects/all.yaml");
    let source = open(&state);
    let mut watch = source.watch();
    let whole = format!("{}---\n{}", config("a", "1"), config("b", "1"));
    fs::write(&path, &whole).unwrap();
    applied(&mut watch, "b", "1").await;
    // Its writer died: the file is closed and stays half.
    let half = format!("{}---\n{}", config("a", "2"), &config("b", "2")[..40]);
    fs::write(&path, half).unwrap();
    applied(&mut watch, "a", "2").await;
    let told = findings(&mut watch, "all.yaml").await;
    assert_eq!(told.len(), 1);
    assert!(told[0].to_string().ends_with("the last good version of ConfigMap shop/b stays in force"), "{}", told[0]);
    assert_eq!(told[0].origin.as_ref().unwrap().file, "all.yaml");
    assert!(source.get(&reference("b")).is_some());
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let told = findings(&mut watch, "all.yaml").await;
    assert!(told.iter().any(|finding| finding.to_string().contains("UTF-8")), "{told:?}");
    assert_eq!(source.objects().len(), 2);
    fs::write(&path, &whole).unwrap();
    until(&mut watch, |event| matches!(event, SourceEvent::Findings { findings, .. } if findings.is_empty()).then_some(())).await;
    assert_eq!(source.objects().len(), 2);
}

#[tokio::test]
async fn the_last_good_version_outlives_the_program() {
    let state = TempDir::new().unwrap();
    let path = state.path().join("objects/sub/all.yaml");
    let kept = state.path().join("state/kept/sub/all.yaml.kept.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("{}---\n{}", config("a", "1"), config("b", "1"))).unwrap();
    let source = open(&state);
    let mut watch = source.watch();
    fs::write(&path, format!("{}---\n{}", config("a", "1").replace("value: \"1\"", "value: [1]"), config("b", "2"))).unwrap();
    applied(&mut watch, "b", "2").await;
    assert!(findings(&mut watch, "sub/all.yaml").await[0].to_string().ends_with("the last good version stays in force"));
    while !kept.exists() {
        tokio::task::yield_now().await;
    }
    drop((source, watch));
    // A program that comes later never saw it good.
    let source = open(&state);
    assert!(source.get(&reference("a")).is_some() && source.get(&reference("b")).is_some());
    let mut watch = source.watch();
    assert!(findings(&mut watch, "sub/all.yaml").await[0].to_string().ends_with("the last good version stays in force"));
    // Taken away by the user: gone, and not remembered.
    fs::write(&path, config("b", "3")).unwrap();
    deleted(&mut watch, "a").await;
    applied(&mut watch, "b", "3").await;
    while kept.exists() {
        tokio::task::yield_now().await;
    }
    drop((source, watch));
    assert!(open(&state).get(&reference("a")).is_none());
}

#[tokio::test]
async fn many_changes_end_in_the_last_state() {
    let state = TempDir::new().unwrap();
    let objects = state.path().join("objects");
    let source = open(&state);
    let (mut watch, mut slow) = (source.watch(), source.watch());
    for round in 0..200 {
        for name in ["a", "b", "c"] {
            write::replace(&objects.join(format!("{name}.yaml")), config(name, &round.to_string()).as_bytes()).unwrap();
        }
        if round % 3 == 0 {
            fs::remove_file(objects.join("c.yaml")).unwrap();
        }
    }
    fs::remove_file(objects.join("b.yaml")).unwrap();
    applied(&mut watch, "a", "199").await;
    applied(&mut watch, "c", "199").await;
    tokio::time::sleep(SOON).await;
    // A reader that never read hears of each object once, as it is.
    let mut last = std::collections::BTreeMap::new();
    while let Some(event) = slow.try_recv() {
        match event {
            SourceEvent::Applied(object) => assert!(last.insert(object.metadata.name.clone(), true).is_none()),
            SourceEvent::Deleted(object) => assert!(last.insert(object.name, false).is_none()),
            _ => {}
        }
    }
    assert_eq!((last.get("a"), last.get("c")), (Some(&true), Some(&true)));
    assert_ne!(last.get("b"), Some(&true));
    assert_eq!(source.objects().len(), 2);
}

#[tokio::test]
async fn another_folder_can_be_the_users() {
    let (state, manifests) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir_all(state.path().join("objects")).unwrap();
    fs::write(state.path().join("objects/a.yaml"), config("a", "1")).unwrap();
    fs::write(manifests.path().join("b.json"), r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b","namespace":"shop"}}"#)
        .unwrap();
    let text = format!("dir:{},manifests={}", state.path().display(), manifests.path().display());
    let source = tropis_source::open(&text).unwrap();
    let mut watch = source.watch();
    assert!(matches!(watch.recv().await, Some(SourceEvent::Applied(object)) if object.reference() == reference("b")));
    assert!(matches!(watch.recv().await, Some(SourceEvent::Synced)));
    assert!(tropis_source::open("kube").is_err() && tropis_source::open("dir:").is_err());
}

#[test]
fn documents_are_edited_in_place() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("all.yaml");
    let original = format!("# a note\n{}---\n# about b\n{}", config("a", "1"), config("b", "yes"));
    fs::write(&path, &original).unwrap();
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    assert!(write::edit(folder.path(), &reference("b"), |_| write::Edit::Keep).unwrap());
    assert_eq!(text(&path), original);
    let label = |object: &mut serde_json::Value| {
        object["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
        write::Edit::Write
    };
    assert!(write::edit(folder.path(), &reference("a"), label).unwrap());
    let documents = tropis_source::yaml::documents(&text(&path));
    let values: Vec<_> = documents.into_iter().map(|document| document.content.unwrap()).collect();
    assert_eq!(values[0]["metadata"]["labels"]["istio.io/dataplane-mode"], "ambient");
    assert_eq!(values[0]["data"]["value"], "1", "strings stay strings");
    assert_eq!(values[1]["data"]["value"], "yes");
    assert!(text(&path).contains(&config("b", "yes")), "the other document keeps its text");
    assert!(write::edit(folder.path(), &reference("a"), |_| write::Edit::Remove).unwrap());
    assert!(write::edit(folder.path(), &reference("b"), |_| write::Edit::Remove).unwrap());
    assert!(!path.exists());
    assert!(!write::edit(folder.path(), &reference("b"), |_| write::Edit::Remove).unwrap());
}

#[test]
fn a_file_that_is_replaced_is_never_seen_half() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sub/a.yaml");
    write::replace(&path, b"one").unwrap();
    let old = File::open(&path).unwrap();
    write::replace(&path, b"two").unwrap();
    assert_eq!(std::io::read_to_string(old).unwrap(), "one");
    assert_eq!(fs::read_dir(folder.path().join("sub")).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn an_applied_document_keeps_its_text_and_its_place() {
    let folder = TempDir::new().unwrap();
    let noted = |value: &str| format!("# why it is so\n{}", config("a", value));
    // The note above the first line belongs to the document that it stands in.
    let document = format!("kind: ConfigMap # {}\n{}", "odd, yet whole", config("a", "1").replace("kind: ConfigMap\n", ""));
    assert_eq!(write::apply(folder.path(), &reference("a"), &document).unwrap(), write::Applied::Created);
    assert_eq!(write::apply(folder.path(), &reference("a"), &noted("1")).unwrap(), write::Applied::Unchanged);
    let path = folder.path().join("configmap.shop.a.yaml");
    assert_eq!(fs::read_to_string(&path).unwrap(), document);
    let both = format!("{}---\n# about b\n{}", config("a", "1"), config("b", "yes"));
    fs::write(&path, &both).unwrap();
    assert_eq!(write::apply(folder.path(), &reference("a"), &noted("2")).unwrap(), write::Applied::Configured);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&noted("2")) && text.contains(&config("b", "yes")), "{text}");
    assert!(write::apply(folder.path(), &reference("a"), "a: [").is_err());
}

#[test]
fn an_entry_of_a_list_is_found_with_its_line() {
    let folder = TempDir::new().unwrap();
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: shop}}\n";
    fs::write(folder.path().join("list.yaml"), format!("{}---\n{list}", config("b", "1"))).unwrap();
    assert_eq!(write::listed(folder.path(), &reference("a")), Some((folder.path().join("list.yaml"), 6)));
    assert_eq!(write::listed(folder.path(), &reference("b")), None);
}

#[test]
fn a_snapshot_reads_the_state_as_a_source_does_and_writes_nothing() {
    let state = TempDir::new().unwrap();
    let objects = state.path().join("objects");
    fs::create_dir_all(&objects).unwrap();
    fs::write(objects.join("a.yaml"), format!("{}---\nkind: [\n", config("a", "1"))).unwrap();
    write::assign(
        state.path(),
        &serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop", "uid": "u1"},
        }),
    )
    .unwrap();
    let snapshot = tropis_source::dir::snapshot::of_state(state.path());
    assert_eq!(snapshot.objects.len(), 1);
    assert_eq!(snapshot.objects[0].metadata.uid, "u1");
    assert_eq!(snapshot.origins[&reference("a")].to_string(), "a.yaml:1");
    assert_eq!(snapshot.findings.len(), 1, "{:?}", snapshot.findings);
    assert!(!state.path().join("reported").exists() && !state.path().join("state").exists());
}

#[test]
fn files_are_read_by_the_names_that_they_were_given() {
    let folder = TempDir::new().unwrap();
    assert!(tropis_source::dir::snapshot::of_files(&[folder.path().to_path_buf()]).is_err(), "a folder without YAML");
    let path = folder.path().join("a.yaml");
    fs::write(&path, config("a", "1")).unwrap();
    let snapshot = tropis_source::dir::snapshot::of_files(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(snapshot.origins[&reference("a")].file, path.display().to_string());
    assert!(tropis_source::dir::snapshot::of_files(&[folder.path().join("missing.yaml")]).is_err());
}
