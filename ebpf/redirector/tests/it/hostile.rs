//! Processes that would have another pod's namespace, or their own pod's, taken for what it is not.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::program::{Node, UID};

/// A process in a new network namespace that has the pod's address, moved into a cgroup; it may have to make a user namespace for that.
struct Impostor(Child);

impl Impostor {
    fn start(group: &Path, privileged: bool) -> Self {
        fs::create_dir_all(group).unwrap();
        let mut command = Command::new("unshare");
        command.args(if privileged { ["-n"].as_slice() } else { ["-Urn"].as_slice() });
        command.args(["sh", "-c", "ip link set lo up; ip addr add 10.251.1.2/32 dev lo; ip -br addr; echo ready; exec sleep 600"]);
        if !privileged {
            command.uid(65534).gid(65534);
        }
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let said: Vec<String> = lines.take_while(|line| line != "ready").collect();
        assert!(said.iter().any(|line| line.contains("10.251.1.2")), "it has the address: {said:?}");
        fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self(child)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn namespaces_of_strangers_and_those_that_anybody_can_make_are_not_the_pods() {
    let Some((mut node, proxy)) = Node::start_enrolled("hostile") else { return };

    // A stranger's pod names a folder of its own after ours.
    let pods = node.lab.cgroup.join("pods");
    let stranger = Impostor::start(&pods.join(format!("pod5de91a37-11aa-4c1e-8a43-5f5a0c1e7d11/x/pod{UID}")), true);
    // A process of our pod makes what needs no privilege.
    let own = Impostor::start(&pods.join(format!("pod{UID}/x")), false);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(node.captured_namespaces(), [node.lab.pod.cookie()]);

    // Nor for a redirector that has nothing but its eyes.
    node.kill();
    assert!(proxy.receive().is_none());
    node.run();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(node.captured_namespaces(), [node.lab.pod.cookie()]);
    let proxy = node.proxy();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    proxy.expect_snapshot_sent();
    drop((stranger, own));
}
