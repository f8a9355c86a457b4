//! The sample bookstore: productpage calls details and reviews, reviews (v2 and v3) calls ratings. One program, a role each, so
//! that a mesh between them has something to carry and a person something to look at. It knows nothing of any mesh.
//!
//! `server.rs` accepts, `routes.rs` says what each role answers, `call.rs` asks the next role.

mod answer;
mod call;
mod catalogue;
mod forward;
mod productpage;
mod reviews;
mod routes;
mod server;

use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// The page a person opens; calls details and reviews
    Productpage,
    /// Facts about a book
    Details,
    /// What readers wrote; v2 and v3 call ratings
    Reviews,
    /// Stars
    Ratings,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Productpage => "productpage",
            Self::Details => "details",
            Self::Reviews => "reviews",
            Self::Ratings => "ratings",
        }
    }
}

/// Which reviews these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    /// Without stars
    V1,
    /// With black stars
    V2,
    /// With red stars
    V3,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }
}

/// The sample bookstore, one role a process.
#[derive(Debug, Clone, Parser)]
#[command(name = "bookinfo", version, max_term_width = 110)]
struct Settings {
    /// What this process is
    #[arg(value_enum, env = "BOOKINFO_ROLE")]
    role: Role,
    /// For reviews: which version
    #[arg(long, value_enum, env = "SERVICE_VERSION", default_value = "v1")]
    service_version: Version,
    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, env = "BOOKINFO_LISTEN_PORT", default_value_t = 9080)]
    port: u16,
    /// Address to listen on; by default all, IPv4 and IPv6
    #[arg(long, env = "BOOKINFO_LISTEN_ADDRESS")]
    listen: Option<IpAddr>,
    /// Where details is
    #[arg(long, env = "DETAILS_ADDRESS", value_name = "HOST:PORT", default_value = "details:9080")]
    details: String,
    /// Where reviews is
    #[arg(long, env = "REVIEWS_ADDRESS", value_name = "HOST:PORT", default_value = "reviews:9080")]
    reviews: String,
    /// Where ratings is
    #[arg(long, env = "RATINGS_ADDRESS", value_name = "HOST:PORT", default_value = "ratings:9080")]
    ratings: String,
    /// Name of the pod, shown on the page; by default HOSTNAME, then the host's name
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Name of the cluster, in the JSON of reviews
    #[arg(long, env = "CLUSTER_NAME", default_value = "null")]
    cluster_name: String,
}

impl Settings {
    fn pod(&self) -> String {
        let given = self.pod_name.clone().or_else(|| std::env::var("HOSTNAME").ok()).filter(|name| !name.is_empty());
        given
            .unwrap_or_else(|| nix::unistd::gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned()))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    match server::run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bookinfo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
