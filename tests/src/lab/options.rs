//! What a lab shall be, and why one could not be had.

use std::io;
use std::path::PathBuf;

use crate::cluster::object::Key;
use crate::network::commands;
use crate::programs::ProgramError;
use crate::progress::Progress;
use crate::{down, lock, network, tokens, wait};

/// What a lab shall be.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The run's name, part of every name that the run leaves on the box.
    pub run: String,
    /// The state directory; by default `/run/tropis/RUN`.
    pub state: Option<PathBuf>,
    /// A folder of the user's objects, read instead of `STATE/objects`.
    pub manifests: Option<PathBuf>,
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// Whether the programs of the mesh are started.
    pub mesh: bool,
    /// Whether the node proxy is another mesh's: started without what only ours knows, captured for by the redirector's foreign mode.
    pub foreign_proxy: bool,
    /// Where the programs are; by default `TROPIS_BIN`, or where this program itself is.
    pub programs: Option<PathBuf>,
    /// Images of the user: name and program.
    pub images: Vec<(String, PathBuf)>,
    /// `RUST_LOG` of the programs.
    pub log_level: String,
    /// Settings that waypoints find in their environment beside those of their Deployment.
    pub waypoint_environment: Vec<(String, String)>,
    /// Who hears of each step.
    pub progress: Progress,
}

impl LabOptions {
    /// A lab of that name with two nodes, `a` and `b`, and the mesh on them.
    pub fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            state: None,
            manifests: None,
            nodes: vec!["a".to_owned(), "b".to_owned()],
            mesh: true,
            foreign_proxy: false,
            programs: None,
            images: Vec::new(),
            log_level: "info".to_owned(),
            waypoint_environment: Vec::new(),
            progress: Progress::silent(),
        }
    }
}

/// A lab could not be started, or something in it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The name cannot be used.
    #[error("{0:?} cannot name a run: 1 to 24 lower-case letters and digits")]
    Name(String),
    /// This box or this user cannot run a lab.
    #[error("this cannot run here: {0}")]
    Impossible(String),
    /// Another process uses it.
    #[error(transparent)]
    Taken(#[from] lock::Taken),
    /// What an earlier run left could not be taken away, or this run's end failed.
    #[error("cleaning up")]
    Down(#[from] down::DownError),
    /// A file or folder.
    #[error("{0}")]
    File(String, #[source] io::Error),
    /// The wires.
    #[error("wiring the network")]
    Network(#[from] network::NetworkError),
    /// A tool.
    #[error(transparent)]
    Command(#[from] commands::CommandError),
    /// The token key.
    #[error("token issuer")]
    Tokens(#[from] tokens::TokenError),
    /// A program of the mesh.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A condition did not come true.
    #[error("{what}")]
    TimedOut {
        /// What was seen last.
        what: String,
        /// The wait.
        #[source]
        cause: wait::TimedOut,
    },
    /// There is no such object.
    #[error("there is no {0} in the objects folder")]
    NoObject(Key),
}
