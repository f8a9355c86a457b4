//! What is on the box, to be compared before and after: a run must leave nothing behind and change nothing of the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cgroup;
use crate::layout::namespace_prefix;
use crate::network::commands;
use crate::network::namespace::{self, Namespace};
use crate::process::mount_points;

/// Everything that a run could leave behind, each as a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    lines: BTreeSet<String>,
}

/// Host settings that a network lab is most likely to change.
const SETTINGS: &[&str] = &[
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/accept_dad",
    "net/ipv4/ip_unprivileged_port_start",
    "kernel/unprivileged_bpf_disabled",
];

impl Inventory {
    /// Takes stock of everything.
    pub fn take() -> Self {
        Self::taken("", Path::new("/"))
    }

    /// Takes stock of the host and of what carries the names of one run, whatever other runs do meanwhile.
    pub fn of_run(run: &str, state: &Path) -> Self {
        Self::taken(run, state)
    }

    fn taken(run: &str, state: &Path) -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |what: &str, items: Vec<String>| lines.extend(items.into_iter().map(|item| format!("{what} {item}")));
        let prefix = if run.is_empty() { String::new() } else { namespace_prefix(run) };
        add("namespace", texts(namespace::named(&prefix)));
        add("mount", mounts(run, state));
        add("pin", pins(state));
        if let Ok(root) = cgroup::root() {
            let group = if run.is_empty() { root } else { root.join("tropis").join(run) };
            add("process", processes(&group, run.is_empty()));
            add("cgroup", texts(cgroup::tree(&group)));
        }
        add("link", texts(entries(Path::new("/sys/class/net"))));
        add("route", output("ip", &["route", "show", "table", "all"]));
        add("route6", output("ip", &["-6", "route", "show", "table", "all"]));
        add("setting", SETTINGS.iter().map(|name| format!("{name}={}", setting(name))).collect());
        let ruleset = Namespace::host().map(|host| commands::ruleset(&host).unwrap_or_default()).unwrap_or_default();
        add("nftables", ruleset.lines().map(str::to_owned).collect());
        Self { lines }
    }

    /// Whether nothing was counted that carries the run's name (host lines do not count).
    pub fn leftovers(&self) -> Vec<&str> {
        let of_run = ["namespace ", "mount ", "pin ", "process ", "cgroup "];
        self.lines.iter().map(String::as_str).filter(|line| of_run.iter().any(|kind| line.starts_with(kind))).collect()
    }

    /// What is different now: `+` for what came, `-` for what went.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let came = now.lines.difference(&self.lines).map(|line| format!("+ {line}"));
        let went = self.lines.difference(&now.lines).map(|line| format!("- {line}"));
        came.chain(went).collect()
    }
}

fn mounts(run: &str, state: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let all = run.is_empty();
    let ours = |point: &PathBuf| all || point.starts_with(state) || point.to_string_lossy().contains(&namespace_prefix(run));
    texts(mount_points(&table).filter(ours).collect())
}

/// Files in every BPF file system below `state`.
fn pins(state: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let bpf = table.lines().filter(|line| line.contains(" - bpf ")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for point in mount_points(&bpf).filter(|point| point.starts_with(state)) {
        let mut folders = vec![point];
        while let Some(folder) = folders.pop() {
            for entry in entries(&folder) {
                if entry.is_dir() {
                    folders.push(entry.clone());
                }
                found.push(entry);
            }
        }
    }
    texts(found)
}

/// Processes of a group by command; of the whole box only those that run our programs, because others come and go.
fn processes(group: &Path, ours_only: bool) -> Vec<String> {
    let ours = ["ztunnel", "redirector", "tropisd", "tropis-testkit", "bookinfo", "tropis-lab"];
    let named = cgroup::processes(group).into_iter().filter_map(|id| {
        let command = fs::read_to_string(format!("/proc/{id}/comm")).ok()?.trim().to_owned();
        (!ours_only || ours.contains(&command.as_str())).then(|| format!("{id} {command}"))
    });
    named.collect()
}

fn setting(name: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(name)).map_or_else(|_| "absent".to_owned(), |value| value.trim().to_owned())
}

fn output(tool: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(tool).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    // Seconds of routes that expire count down.
    text.lines().map(|line| line.split(" expires ").next().unwrap_or(line).trim().to_owned()).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()).collect()
}

fn texts(paths: Vec<PathBuf>) -> Vec<String> {
    paths.into_iter().map(|path| path.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_by_looking() {
        let nowhere = Path::new("/run/tropis/nothing-here");
        let before = Inventory::of_run("nothinghere", nowhere);
        let after = Inventory::of_run("nothinghere", nowhere);
        assert_eq!(before.differences(&after), Vec::<String>::new());
        assert!(before.leftovers().is_empty(), "{:?}", before.leftovers());
    }

    #[test]
    fn differences_say_what_came_and_went() {
        let inventory = |lines: &[&str]| Inventory { lines: lines.iter().map(|line| (*line).to_owned()).collect() };
        let differences = inventory(&["link eth0", "link old"]).differences(&inventory(&["link eth0", "link new"]));
        assert_eq!(differences, ["+ link new", "- link old"]);
    }
}
