//! Image names to built programs: the test image, the sample bookstore under its own and under the guides' names, and the user's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tropis_crds::{Finding, ObjectRef, codes};

use crate::process::find;

/// Which program stands for which image.
#[derive(Debug, Clone)]
pub struct Images {
    folder: PathBuf,
    extra: Vec<(String, PathBuf)>,
    log_level: String,
    waypoint_environment: Vec<(String, String)>,
}

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// Why a container cannot run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnknownImage {
    /// The name means nothing here.
    #[error("\"{image}\" stands for no program here")]
    Name {
        /// The name.
        image: String,
        /// The names that do.
        accepted: String,
    },
    /// The program is not built.
    #[error("\"{image}\" stands for {program}, which does not exist")]
    NotBuilt {
        /// The name.
        image: String,
        /// The file.
        program: String,
    },
    /// `command` names nothing.
    #[error("\"{0}\" is no command here")]
    Command(String),
}

impl UnknownImage {
    /// What the user is told about container `index` of `pod`.
    pub fn finding(&self, pod: ObjectRef, index: usize) -> Finding {
        let (field, found, problem, accepted) = match self {
            Self::Name { image, accepted } => {
                ("image", image, "stands for no program here".to_owned(), format!("{accepted}; add --image {image}=PATH"))
            }
            Self::NotBuilt { image, program } => {
                ("image", image, format!("stands for {program}, which does not exist"), "a built program".to_owned())
            }
            Self::Command(command) => ("command", command, "is no command here".to_owned(), "a command of this box".to_owned()),
        };
        Finding::error(codes::UNKNOWN_IMAGE, pod)
            .field(format!("spec.containers[{index}].{field}"))
            .found(format!("{found:?}"))
            .problem(problem)
            .accepted(accepted)
            .effect("the container does not run; everything else does")
    }
}

/// The test image's name.
pub const TESTKIT: &str = "tropis/testkit";
/// The bookstore's name.
pub const BOOKINFO: &str = "tropis/bookinfo";
/// The waypoint's names: ours, and Istio's, for Deployments made by hand for it.
const WAYPOINTS: [&str; 2] = ["tropis/waypoint", "istio/proxyv2"];
/// How the guides call the bookstore's images: this, and then a role.
const GUIDES: &str = "istio/examples-bookinfo-";

impl Images {
    /// Images of the programs in `folder`, and the user's own.
    pub fn new(folder: &Path, extra: Vec<(String, PathBuf)>) -> Self {
        Self { folder: folder.to_path_buf(), extra, log_level: "info".to_owned(), waypoint_environment: Vec::new() }
    }

    /// The same, with another `RUST_LOG` for programs of the mesh.
    pub fn with_log_level(self, level: &str) -> Self {
        Self { log_level: level.to_owned(), ..self }
    }

    /// The same, with these settings for waypoints; they go before [`Self::with_log_level`].
    pub fn with_waypoint_environment(self, settings: &[(String, String)]) -> Self {
        Self { waypoint_environment: settings.to_vec(), ..self }
    }

    /// Whether an image is that of a waypoint.
    pub fn is_waypoint(image: &str) -> bool {
        WAYPOINTS.contains(&repository(image))
    }

    /// What a container of this image finds in its environment unless its own `env` says otherwise: programs of the mesh log as JSON.
    pub fn environment(&self, image: &str) -> Vec<(String, String)> {
        if !Self::is_waypoint(image) {
            return Vec::new();
        }
        let own = [("RUST_LOG".to_owned(), self.log_level.clone()), ("LOG_FORMAT".to_owned(), "json".to_owned())];
        own.into_iter().chain(self.waypoint_environment.iter().cloned()).collect()
    }

    /// Where the programs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the container `spec` with this image runs. As in Kubernetes, `command` replaces the program and `args` its arguments.
    pub fn resolve(&self, image: &str, spec: &Value) -> Result<Entry, UnknownImage> {
        let mut entry = self.entry(image)?;
        let strings = |field: &str| -> Option<Vec<String>> {
            spec[field].as_array().map(|items| items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
        };
        let command = strings("command").filter(|command| !command.is_empty());
        if let Some(arguments) = strings("args") {
            entry.arguments = arguments;
        } else if command.is_some() {
            entry.arguments = Vec::new();
        }
        if let Some(command) = command {
            let folders = [self.folder.clone(), "/usr/local/bin".into(), "/usr/bin".into(), "/bin".into()];
            entry.program = find(OsStr::new(&command[0]), &folders).ok_or_else(|| UnknownImage::Command(command[0].clone()))?;
            entry.arguments.splice(..0, command[1..].iter().cloned());
        }
        match entry.program.is_file() {
            true => Ok(entry),
            false => Err(UnknownImage::NotBuilt { image: image.to_owned(), program: entry.program.display().to_string() }),
        }
    }

    fn entry(&self, image: &str) -> Result<Entry, UnknownImage> {
        let program = |name: &str, arguments: &[&str]| Entry {
            program: self.folder.join(name),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        };
        let name = repository(image);
        if let Some((_, path)) = self.extra.iter().find(|(extra, _)| extra == image || repository(extra) == name) {
            return Ok(Entry { program: path.clone(), arguments: Vec::new() });
        }
        if name == TESTKIT {
            return Ok(program("tropis-testkit", &[]));
        }
        if name == BOOKINFO {
            return Ok(program("bookinfo", &[]));
        }
        if WAYPOINTS.contains(&name) {
            return Ok(program("waypoint", &[]));
        }
        match name.strip_prefix(GUIDES) {
            Some("productpage-v1") => Ok(program("bookinfo", &["productpage"])),
            Some("details-v1" | "details-v2") => Ok(program("bookinfo", &["details"])),
            Some("ratings-v1" | "ratings-v2") => Ok(program("bookinfo", &["ratings"])),
            Some("reviews-v1") => Ok(program("bookinfo", &["reviews", "--service-version", "v1"])),
            Some("reviews-v2") => Ok(program("bookinfo", &["reviews", "--service-version", "v2"])),
            Some("reviews-v3") => Ok(program("bookinfo", &["reviews", "--service-version", "v3"])),
            _ => {
                let extra = self.extra.iter().map(|(name, _)| name.as_str());
                let names: Vec<&str> = [TESTKIT, BOOKINFO, WAYPOINTS[0], "istio/examples-bookinfo-*"].into_iter().chain(extra).collect();
                Err(UnknownImage::Name { image: image.to_owned(), accepted: names.join(", ") })
            }
        }
    }
}

/// An image name without the hub's host, the tag and the digest.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    // A colon before the last slash belongs to the host's port.
    let slash = name.rfind('/').unwrap_or(0);
    let name = name[slash..].find(':').map_or(name, |colon| &name[..slash + colon]);
    let host = |first: &str| first.contains('.') || first.contains(':') || first == "localhost";
    name.split_once('/').filter(|(first, _)| host(first)).map_or(name, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tags_and_hosts_do_not_matter() {
        for image in ["tropis/testkit", "tropis/testkit:1", "docker.io/tropis/testkit:1", "localhost:5000/tropis/testkit@sha256:00"] {
            assert_eq!(repository(image), "tropis/testkit", "{image}");
        }
        assert_eq!(repository("nginx:1.27"), "nginx");
    }

    #[test]
    fn the_guides_images_are_the_bookstore() {
        let images = Images::new(Path::new("/bin"), Vec::new());
        let entry = images.entry("docker.io/istio/examples-bookinfo-reviews-v3:1.20.3").expect("known");
        assert_eq!(
            entry,
            Entry { program: "/bin/bookinfo".into(), arguments: vec!["reviews".into(), "--service-version".into(), "v3".into()] }
        );
    }

    #[test]
    fn a_waypoint_runs_as_the_control_plane_asks() {
        let images = Images::new(Path::new("/bin"), Vec::new()).with_log_level("debug");
        for image in ["tropis/waypoint:1", "docker.io/istio/proxyv2:1.27.0"] {
            let entry = images.entry(image).expect("known");
            assert_eq!(entry.program, Path::new("/bin/waypoint"), "{image}");
            assert!(images.environment(image).contains(&("RUST_LOG".into(), "debug".into())), "{image}");
        }
        assert!(images.environment("tropis/testkit").is_empty());
        let settings = [("RUST_LOG".to_owned(), "warn".to_owned())];
        let environment = images.with_waypoint_environment(&settings).environment("tropis/waypoint");
        assert_eq!(environment.last(), Some(&settings[0]), "the last one of a name counts");
    }

    #[test]
    fn command_and_args_replace_as_in_kubernetes() {
        let images = Images::new(Path::new("/nowhere"), vec![("mine:1".into(), "/bin/true".into())]);
        let run = |spec| images.resolve("mine", &spec).expect("runs");
        assert_eq!(run(json!({"args": ["a"]})), Entry { program: "/bin/true".into(), arguments: vec!["a".into()] });
        assert_eq!(run(json!({"command": ["sh", "-c"], "args": ["b"]})).arguments, ["-c", "b"]);
    }

    #[test]
    fn what_is_unknown_says_what_is_known() {
        let images = Images::new(Path::new("/nowhere"), Vec::new());
        let error = images.resolve("nginx:1.27", &json!({})).expect_err("unknown");
        let finding = error.finding(ObjectRef::new(tropis_crds::Kind::Pod, "shop", "web"), 0).to_string();
        let start = "Error [TRP0014] (Pod shop/web) spec.containers[0].image: \"nginx:1.27\" stands for no program here (tropis/testkit, ";
        assert!(finding.starts_with(start) && finding.contains("--image nginx:1.27=PATH"), "{finding}");
        assert!(matches!(images.resolve("tropis/testkit", &json!({})), Err(UnknownImage::NotBuilt { .. })));
    }
}
