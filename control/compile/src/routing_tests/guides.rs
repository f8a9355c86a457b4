//! The mesh objects of five guides, unmodified (`deploy/samples/guides`): each file applied to the cluster that its guide describes
//! (`testdata/guides/cluster-GUIDE.yaml`), and what becomes of it (`testdata/guides/GUIDE/FILE.yaml`, rewritten with `UPDATE_EXPECT=1`):
//! findings, what waypoints do that they did not do before, and whom pods let in. `docs/guide/guides.md` tells the same in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tropis_crds::decode;

use super::{outcome::Outcome, shown};

/// Files that a guide applies one after the other, and what they are together.
const TOGETHER: &[(&str, &str, &[&str])] = &[
    ("003", "subsets-renamed", &["003/weighted-canary", "003/subsets"]),
    ("003", "through-the-gateway", &["003/gateway", "003/gateway-route"]),
    ("004", "header-routing-with-subsets", &["004/subsets", "004/header-routing"]),
    ("004", "canary-with-subsets", &["004/subsets", "004/canary"]),
    ("004", "canary-by-header-with-subsets", &["004/subsets", "004/canary-by-header"]),
    ("004", "allow-all-and-deny-all", &["004/allow-all", "004/deny-all"]),
    ("004", "circuit-breaker-with-service", &["httpbin-service", "004/circuit-breaker"]),
    ("004", "allow-service-with-service", &["httpbin-service", "004/allow-service"]),
    ("004", "strict-and-permissive", &["004/strict", "004/permissive"]),
];

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/samples/guides")
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/guides")
}

/// `GUIDE/FILE` of every sample.
fn files() -> Vec<String> {
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.filter(|name| !name.ends_with(".md")).map(|name| name.trim_end_matches(".yaml").to_owned()).collect()
    };
    let guides = names(&samples()).into_iter();
    guides.flat_map(|guide| names(&samples().join(&guide)).into_iter().map(move |file| format!("{guide}/{file}"))).collect()
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parts = text.split("\n---");
    let values = parts.map(|text| serde_saphyr::from_str::<Value>(text).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    values.filter(|value| !value.is_null()).collect()
}

fn read(name: &str) -> Vec<Value> {
    let sample = samples().join(format!("{name}.yaml"));
    documents(&if sample.exists() { sample } else { testdata().join(format!("{name}.yaml")) })
}

/// What objects change for a cluster.
fn shown(guide: &str, names: &[&str]) -> String {
    let cluster = documents(&testdata().join(format!("cluster-{guide}.yaml")));
    let before = Outcome::of(&cluster);
    let after = Outcome::of(&cluster.into_iter().chain(names.iter().flat_map(|name| read(name))).collect::<Vec<_>>());
    let hosts: Vec<_> =
        after.hosts.iter().filter(|(name, host)| before.hosts.get(*name) != Some(host)).map(|(_, host)| host.clone()).collect();
    let known = before.findings();
    let findings: Vec<String> = after.findings().into_iter().filter(|finding| !known.contains(finding)).collect();
    let needs: BTreeMap<_, _> = after.needs.iter().filter(|(namespace, _)| !before.needs.contains_key(*namespace)).collect();
    let was = before.admission(80);
    let admission: BTreeMap<_, _> = after.admission(80).into_iter().filter(|(pod, callers)| was.get(pod) != Some(callers)).collect();
    let facts = json!({"waypoints": needs, "lets in": admission});
    shown::shown(&hosts, &findings) + &serde_saphyr::to_string(&facts).unwrap()
}

#[test]
fn every_object_of_the_guides_has_the_outcome_that_is_written_down() {
    let files = files();
    assert!(files.len() >= 40, "{files:?}");
    let alone = files.iter().map(|name| (name.clone(), name.split('/').next().unwrap(), vec![name.as_str()]));
    let together = TOGETHER.iter().map(|(guide, name, parts)| (format!("{guide}/together-{name}"), *guide, parts.to_vec()));
    for (name, guide, parts) in alone.chain(together) {
        let shown = shown(guide, &parts);
        let expected = testdata().join(format!("{name}.yaml"));
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::create_dir_all(expected.parent().unwrap()).unwrap();
            fs::write(&expected, &shown).unwrap();
        }
        assert_eq!(shown, fs::read_to_string(&expected).unwrap_or_default(), "{name}");
    }
}

/// The findings that objects add, those of the files' own objects only.
fn codes(guide: &str, names: &[&str]) -> Vec<String> {
    let cluster = documents(&testdata().join(format!("cluster-{guide}.yaml")));
    let known = Outcome::of(&cluster).findings();
    let all = Outcome::of(&cluster.into_iter().chain(names.iter().flat_map(|name| read(name))).collect::<Vec<_>>());
    all.findings().into_iter().filter(|finding| !known.contains(finding)).collect()
}

#[test]
fn every_object_of_the_guides_that_is_not_honoured_has_a_finding() {
    for name in files() {
        let guide = name.split('/').next().unwrap();
        let told = codes(guide, &[&name]);
        for value in read(&name) {
            // One without a name is nobody's: its finding names its kind.
            let object = tropis_crds::decode::reference(&value)
                .map_or_else(|| value["kind"].as_str().unwrap().to_owned(), |object| object.to_string());
            let honoured = match decode(value.clone()) {
                Ok((object, _)) => object.kind.support() != tropis_crds::Support::NotHonoured,
                Err(_) => false,
            };
            let is_told = told.iter().any(|finding| finding.contains(&format!(" {object}")));
            assert!(honoured || is_told, "{name}: nothing is said of {object}, {told:?}");
        }
    }
}

#[test]
fn the_table_of_the_guides_names_every_file_and_the_codes_that_it_gives() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/guides.md")).unwrap();
    for name in files() {
        let row = page.lines().find(|line| line.contains(&format!("`{name}.yaml`"))).unwrap_or_else(|| panic!("no row for {name}"));
        let guide = name.split('/').next().unwrap();
        let told: BTreeSet<String> = codes(guide, &[&name]).iter().map(|finding| finding.split(' ').nth(1).unwrap().to_owned()).collect();
        let codes_in = |text: &str| -> BTreeSet<String> {
            let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
            words.filter(|word| word.len() == 7 && (word.starts_with("IST0") || word.starts_with("TRP0"))).map(str::to_owned).collect()
        };
        assert_eq!(codes_in(row), told, "{name}: the codes in {row:?}");
    }
}
