//! Commands on the folder of objects.

use crate::mesh::{Mesh, shop};

const NAMESPACE: &str = "# the shop\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

#[test]
fn objects_are_applied_labelled_shown_and_deleted() {
    let mesh = Mesh::new();
    let file = mesh.write("new.yaml", NAMESPACE);
    let file = file.to_str().unwrap();
    assert_eq!(mesh.done(&["apply", "-f", file, "--dry-run"]), "namespace/shop would be applied\n");
    assert!(!mesh.path("objects/namespace.shop.yaml").exists());
    assert_eq!(mesh.done(&["apply", "-f", file]), "namespace/shop created\n");
    assert!(NAMESPACE.ends_with(&mesh.read("objects/namespace.shop.yaml")), "the text is the user's own");
    assert_eq!(mesh.done(&["apply", "-f", file]), "namespace/shop unchanged\n");
    assert_eq!(mesh.done(&["label", "ns", "shop", "istio.io/dataplane-mode=ambient"]), "namespace/shop labeled\n");
    assert!(mesh.done(&["get", "namespaces"]).contains("istio.io/dataplane-mode=ambient"));
    let refused = mesh.tropis(&["label", "ns", "shop", "istio.io/dataplane-mode=none"]);
    assert!(refused.code == 1 && refused.error.contains("--overwrite"), "{refused:?}");
    assert!(mesh.done(&["get", "ns", "shop", "-o", "json"]).contains("\"ambient\""));
    assert_eq!(mesh.done(&["delete", "namespace", "shop"]), "namespace/shop deleted\n");
    let gone = mesh.tropis(&["delete", "namespace", "shop"]);
    assert!(gone.code == 1 && gone.error.contains("does not exist"), "{gone:?}");
    assert_eq!(mesh.done(&["delete", "namespace", "shop", "--ignore-not-found"]), "");
}

#[test]
fn a_document_that_would_be_refused_changes_nothing() {
    let mesh = Mesh::new();
    let bad =
        format!("{NAMESPACE}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: 7}}\n");
    let ran = mesh.tropis_with(&["apply", "-f", "-"], &bad);
    assert_eq!(ran.code, 1);
    assert!(
        ran.error.contains("Error [IST0106] (VirtualService default/a standard input:") && ran.error.contains("nothing was changed"),
        "{ran:?}"
    );
    assert!(ran.error.contains(" | spec: {hosts: 7}\n") && ran.error.contains(" |        ^^^^^^^^"), "{}", ran.error);
    assert_eq!(mesh.path("objects").read_dir().unwrap().count(), 0);
}

#[test]
fn a_namespace_is_put_where_none_is_named() {
    let mesh = Mesh::new();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    let ran = mesh.tropis_with(&["apply", "-n", "shop", "-f", "-"], service);
    assert_eq!(ran.out, "service/a created\n", "{ran:?}");
    assert!(mesh.read("objects/service.shop.a.yaml").contains("namespace: shop"));
}

#[test]
fn a_folder_of_the_users_own_is_left_alone() {
    let mesh = Mesh::new();
    let own = tempfile::tempdir().unwrap();
    std::fs::remove_dir(mesh.path("objects")).unwrap();
    std::os::unix::fs::symlink(own.path(), mesh.path("objects")).unwrap();
    let ran = mesh.tropis_with(&["apply", "-f", "-"], NAMESPACE);
    assert!(ran.code == 1 && ran.error.contains("--into-manifests"), "{ran:?}");
    assert_eq!(mesh.tropis_with(&["apply", "--into-manifests", "-f", "-"], NAMESPACE).out, "namespace/shop created\n");
}

#[test]
fn an_entry_of_a_list_is_not_torn_out_of_it() {
    let mesh = Mesh::new();
    mesh.write("objects/all.yaml", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n");
    let ran = mesh.tropis(&["delete", "ns", "shop"]);
    assert!(ran.code == 1 && ran.error.contains("stands in a list"), "{ran:?}");
}

#[test]
fn analyzing_tells_by_its_exit_code_what_it_found() {
    let mesh = Mesh::new();
    mesh.write("objects/shop.yaml", &shop());
    let live = mesh.tropis(&["analyze", "live", "--output-threshold", "error"]);
    assert_eq!((live.code, live.out.as_str()), (0, "✔ No validation issues found when analyzing all namespaces.\n"), "{live:?}");
    let broken = shop().replace("subset: v1}", "subset: v9}");
    let file = mesh.write("broken.yaml", &broken);
    let ran = mesh.tropis(&["analyze", file.to_str().unwrap()]);
    assert_eq!(ran.code, 79, "{ran:?}");
    let expected = "(VirtualService shop/reviews";
    assert!(
        ran.out.lines().any(|line| line.starts_with("Error [IST0101]") && line.contains(expected) && line.contains("broken.yaml:")),
        "{}",
        ran.out
    );
    let both = mesh.tropis(&["analyze", "live", file.to_str().unwrap(), "-o", "json"]);
    assert!(both.code == 79 && both.out.trim_start().starts_with('['), "{both:?}");
    let suppressed = mesh.tropis(&["analyze", file.to_str().unwrap(), "-S", "IST0101=VirtualService reviews.*"]);
    assert_eq!(suppressed.code, 0, "{suppressed:?}");
    mesh.write("objects/shop.yaml", &broken);
    let line = 1 + broken.lines().position(|line| line.contains("subset: v9")).unwrap();
    let live = mesh.tropis(&["analyze", "live"]).out;
    assert!(live.contains(&format!("(VirtualService shop/reviews shop.yaml:{line}) ")), "the field's line in the mesh's own file: {live}");
    assert!(live.lines().any(|shown| shown.trim_start().starts_with(&format!("{line} | ")) && shown.contains("subset: v9")), "{live}");
    assert!(mesh.done(&["analyze", "-L"]).contains("IST0101"));
    assert_eq!(mesh.tropis(&["analyze", "/nonexistent.yaml"]).code, 1);
}

#[test]
fn waypoints_are_made_listed_and_removed() {
    let mesh = Mesh::new();
    let told = mesh.done(&["waypoint", "apply", "-n", "shop", "--enroll-namespace", "--for", "all"]);
    assert_eq!(told, "✅ waypoint shop/waypoint applied\n✅ namespace shop labeled with \"istio.io/use-waypoint: waypoint\"\n");
    let listed = mesh.done(&["waypoint", "list", "-A"]);
    assert!(
        listed.lines().nth(1).is_some_and(|line| line.split_whitespace().eq(["shop", "waypoint", "default", "all", "Unknown", "user"])),
        "{listed}"
    );
    let late = mesh.tropis(&["waypoint", "apply", "-n", "shop", "--for", "all", "--wait", "0"]);
    assert!(late.code == 1 && late.error.contains("tropis analyze live"), "{late:?}");
    let status = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: shop}\nstatus: {conditions: [{type: Programmed, status: \"True\", reason: Programmed, message: one pod is ready}]}\n";
    mesh.write("reported/tropisd/gateway/shop/waypoint.yaml", status);
    assert!(mesh.done(&["waypoint", "status", "-n", "shop"]).contains("one pod is ready"));
    assert!(mesh.done(&["waypoint", "apply", "-n", "shop", "--for", "all", "--wait"]).contains("is ready"));
    assert_eq!(mesh.done(&["waypoint", "delete", "-n", "shop", "--all"]), "waypoint shop/waypoint deleted\n");
    assert!(mesh.done(&["waypoint", "list", "-A"]).starts_with("No waypoints found"));
    assert!(mesh.done(&["waypoint", "generate"]).contains("istio-waypoint"));
}

#[test]
fn a_request_is_explained_from_the_objects_that_there_are() {
    let mesh = Mesh::new();
    mesh.write("objects/shop.yaml", &shop());
    let told = mesh.done(&["explain", "sleep.shop", "reviews:9080/x", "-H", "end-user: jason"]);
    assert!(told.ends_with("\nAllowed.\n") && told.contains("spec.http[0]"), "{told}");
    let refused = mesh.done(&["explain", "sleep.shop", "reviews:9080/x", "--method", "POST", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(value["verdict"]["outcome"], "refused");
    assert_eq!(value["proxies"][0]["status"], "UNKNOWN", "nobody says what is in force");
    let routes = mesh.tropis(&["pc", "routes", "waypoint.shop"]);
    assert!(routes.code == 1 && routes.error.contains("no pod of waypoint shop/waypoint runs"), "{routes:?}");
}

#[test]
fn objects_are_selected_by_their_labels() {
    let mesh = Mesh::new();
    mesh.write("objects/shop.yaml", &shop());
    let names = |selector: &str| {
        let told = mesh.done(&["get", "pods", "-n", "shop", "-l", selector]);
        told.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(names("app=reviews"), ["reviews-v1", "reviews-v2"]);
    assert_eq!(names("app=reviews,version!=v1"), ["reviews-v2"]);
    assert_eq!(names("!app"), ["waypoint-1"]);
    let both = mesh.tropis(&["get", "pods", "sleep", "-n", "shop", "-l", "app=sleep"]);
    assert!(both.code == 1 && both.error.contains("--selector"), "{both:?}");
}

#[test]
fn every_command_shows_by_example_how_it_is_used() {
    let mesh = Mesh::new();
    let help = mesh.done(&["--help"]);
    let (_, rest) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<&str> = rest
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 13, "{commands:?}");
    for command in commands {
        let help = mesh.done(&[command, "--help"]);
        assert!(help.contains("Examples:\n  tropis "), "{command}: {help}");
    }
}
