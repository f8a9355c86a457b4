//! Golden cases: every host of a folder of objects, as a waypoint has it.

use std::{fs, path::Path};

use serde_json::Value;
use tropis_crds::Kind;

use super::{Mesh, host, shown};

#[test]
fn golden_hosts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/hosts");
    let mut cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        let input = fs::read_to_string(case.join("input.yaml")).unwrap();
        let documents = input.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
        let mut mesh = Mesh::new(documents);
        let namespace = mesh.objects.iter().find(|object| object.kind == Kind::Service).unwrap().metadata.namespace.clone();
        mesh.waypoint = (namespace, "waypoint".to_owned());
        let services = mesh.objects.iter().filter(|object| object.kind == Kind::Service);
        let hosts: Vec<_> = services.map(|service| host::compile(&mesh.index, &mesh.waypoint, service).0).collect();
        let shown = shown::shown(&hosts, &mesh.texts());
        let expected = case.join("expected.yaml");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        assert_eq!(shown, fs::read_to_string(&expected).unwrap_or_default(), "{}", case.display());
    }
}
