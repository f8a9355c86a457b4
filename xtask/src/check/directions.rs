//! Which crate may depend on which: the table of ARCHITECTURE.md, proved from the manifests.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::front;

const MESH: [&str; 7] = ["model", "proto", "net", "tls", "hbone", "xds", "telemetry"];

/// What each crate may depend on, by the names without `tropis-`; whatever is not listed is not allowed.
fn allowed(package: &str) -> Option<Vec<&'static str>> {
    let mesh_and = |more: &[&'static str]| MESH.iter().copied().chain(more.iter().copied()).collect();
    Some(match package {
        "model" | "proto" | "abi" | "bookinfo" => vec![],
        "net" | "telemetry" | "crds" => vec!["model"],
        "tls" | "xds" => vec!["model", "proto"],
        "hbone" => vec!["model", "net", "tls"],
        "source" => vec!["crds"],
        "maps" => vec!["abi"],
        "redirector" => vec!["abi", "model", "maps", "net", "proto", "source", "telemetry", "crds"],
        "ztunnel" => mesh_and(&["maps"]),
        "waypoint" => mesh_and(&[]),
        "compile" => vec!["crds", "model"],
        "server" => vec!["crds", "model", "proto", "compile", "source", "xds", "tls", "telemetry"],
        "cli" => vec!["crds", "compile", "model", "source", "xds"],
        _ => return None,
    })
}

/// Programs, tests and tools see everything.
const SEE_ALL: [&str; 2] = ["tropis-tests", "xtask"];

/// Every dependency of our own crates on each other that the table does not allow. Dev-dependencies are free: tests play the peers.
pub(super) fn violations() -> anyhow::Result<Vec<String>> {
    let metadata = front::output(front::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    Ok(check(&dependencies(&metadata)))
}

/// Each crate of ours with the crates of ours that it depends on.
fn dependencies(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let ours: Vec<String> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        let normal = list(&package["dependencies"]).into_iter().filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| name(&dependency)).filter(|dependency| ours.contains(dependency)).collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

fn check(dependencies: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let short = |name: &str| name.strip_prefix("tropis-").unwrap_or(name).to_owned();
    let mut violations = Vec::new();
    for (package, uses) in dependencies.iter().filter(|(package, _)| !SEE_ALL.contains(&package.as_str())) {
        let Some(allowed) = allowed(&short(package)) else {
            violations.push(format!("{package} is not in the table of directions (xtask/src/check/directions.rs)"));
            continue;
        };
        let forbidden = uses.iter().filter(|used| !allowed.contains(&short(used).as_str()));
        violations.extend(forbidden.map(|used| format!("{package} must not depend on {used}")));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        edges.iter().map(|(from, to)| ((*from).to_owned(), to.iter().map(|name| (*name).to_owned()).collect())).collect()
    }

    #[test]
    fn what_is_not_drawn_is_not_allowed() {
        assert!(check(&graph(&[("tropis-hbone", &["tropis-tls", "tropis-net"]), ("xtask", &["tropis-tests"])])).is_empty());
        assert_eq!(check(&graph(&[("tropis-model", &["tropis-net"])])), ["tropis-model must not depend on tropis-net"]);
        assert_eq!(check(&graph(&[("tropis-ztunnel", &["tropis-source"])])).len(), 1);
        assert_eq!(check(&graph(&[("tropis-new", &[])])).len(), 1);
    }
}
