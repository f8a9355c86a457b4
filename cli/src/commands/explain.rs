//! `tropis explain`: why a connection or a request may pass, or not. It runs the decisions that the proxies run, on what the control
//! plane makes of the objects that there are now, and tells what each of them said, and which proxy goes by something older
//! (docs/adr/0010-explain-by-the-objects-and-say-who-lags.md).

mod connection;
mod in_force;
mod question;
mod request;
mod story;

use crate::{
    arguments::{Format, Options},
    control,
    mesh::Mesh,
    output,
    state::State,
};

const EXAMPLES: &str = "\
Examples:
  tropis explain sleep.shop reviews.shop:9080
  tropis explain sleep.shop reviews.shop:9080/admin --method POST --header \"end-user: jason\"
  tropis explain deployment/sleep.shop 10.96.0.17:80
  tropis explain sleep.shop vault.shop:443 --server-name vault.example.com";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The pod that calls: NAME[.NAMESPACE], or deployment/NAME for one of its pods.
    source: String,
    /// What it calls: a service, a pod (pod/NAME) or an address, with a port and the path of a request.
    #[arg(value_name = "DESTINATION[:PORT][/PATH]")]
    destination: String,
    /// The request's method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// A header of the request; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The request's host, if it is not what is called.
    #[arg(long)]
    authority: Option<String>,
    /// TLS is spoken that the mesh does not end, for this server name.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Call by IPv6, where there is a choice.
    #[arg(short = '6', long)]
    ipv6: bool,
}

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let mesh = Mesh::compile(control::settings(&state).await, &state.snapshot().objects);
    let question = question::read(&mesh, arguments, options.namespace())?;
    let mut story = connection::tell(&mesh, &question);
    story.proxies = in_force::ask(&state, &mesh, &question, &story.decided).await;
    match options.output {
        Format::Table => Ok(story.text()),
        format => output::value(format, &story),
    }
}

#[cfg(test)]
mod tests;
