//! The harness: Kubernetes' part of the mesh on one Linux box, for scenarios, benches and `cargo xtask demo`.
//!
//! What it stands in for stands at the head of each file; the programs of the mesh are the real ones. Start with
//! [`lab::Lab`], which wires everything in start order; [`network`] has the wires, [`cluster`] the objects, [`kubelet`] the pods.

pub mod bench;
pub mod browser;
pub mod capture;
pub mod certificates;
pub mod cgroup;
pub mod cluster;
pub mod dns;
pub mod down;
pub mod inventory;
pub mod kube_proxy;
pub mod kubelet;
pub mod lab;
pub mod layout;
pub mod lock;
pub mod network;
pub mod observe;
pub mod page;
pub mod port_forward;
pub mod process;
pub mod programs;
pub mod progress;
pub mod secret_file;
pub mod sockets;
pub mod testkit;
pub mod token_files;
pub mod tokens;
pub mod wait;

pub use lab::{Lab, LabOptions, PodHandle, PodProcess};
pub use network::addresses::Family;
pub use programs::Program;
pub use progress::Progress;
