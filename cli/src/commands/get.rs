//! `tropis get`: objects as the mesh sees them, what programs reported about them included.

use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use tropis_crds::{Kind, Object, names::is_label_key};

use super::delete;
use crate::{
    arguments::{Format, Options},
    names,
    output::{self, Listing},
    state::State,
};

/// What the redirector says of a pod.
const REDIRECTION: &str = "ambient.istio.io/redirection";

const EXAMPLES: &str = "\
Examples:
  tropis get pods -A
  tropis get pods -l app=reviews,version!=v1
  tropis get virtualservice reviews -n shop -o yaml";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The kind: as in YAML, its plural or short.
    kind: String,
    /// The objects; all of them if none is named.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY, with commas between.
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
}

/// One condition on an object's labels.
#[derive(Debug, PartialEq, Eq)]
enum Condition {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl Condition {
    fn read(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let condition = if let Some((key, value)) = text.split_once("!=") {
            Self::IsNot(key.trim().to_owned(), value.trim().to_owned())
        } else if let Some((key, value)) = text.split_once('=') {
            // `==` is the same to kubectl.
            Self::Is(key.trim().to_owned(), value.trim_start_matches('=').trim().to_owned())
        } else if let Some(key) = text.strip_prefix('!') {
            Self::HasNot(key.trim().to_owned())
        } else {
            Self::Has(text.to_owned())
        };
        let (Self::Is(key, _) | Self::IsNot(key, _) | Self::Has(key) | Self::HasNot(key)) = &condition;
        if !is_label_key(key) {
            bail!("{text:?} does not say which label\nWrite KEY=VALUE, KEY!=VALUE, KEY or !KEY, with commas between");
        }
        Ok(condition)
    }

    fn holds(&self, object: &Object) -> bool {
        match self {
            Self::Is(key, value) => object.label(key) == Some(value),
            Self::IsNot(key, value) => object.label(key) != Some(value),
            Self::Has(key) => object.label(key).is_some(),
            Self::HasNot(key) => object.label(key).is_none(),
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Arc<Value>);

pub(crate) fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let kind = names::kind(&arguments.kind)?;
    let wanted = delete::named(&arguments.kind, &arguments.names, options.namespace())?;
    let mut objects = state.snapshot().objects;
    let everywhere = arguments.all_namespaces || !kind.is_namespaced();
    objects.retain(|object| object.kind == kind && (everywhere || object.metadata.namespace == options.namespace()));
    let conditions = arguments.selector.iter().flat_map(|selector| selector.split(',')).map(Condition::read);
    let conditions: Vec<Condition> = conditions.collect::<Result<_, _>>()?;
    if !conditions.is_empty() && !wanted.is_empty() {
        bail!("objects are named, or selected by their labels\nLeave out the names or --selector");
    }
    objects.retain(|object| conditions.iter().all(|condition| condition.holds(object)));
    if !wanted.is_empty() {
        objects.retain(|object| wanted.contains(&object.reference()));
        if let Some(missing) = wanted.iter().find(|wanted| !objects.iter().any(|object| object.reference() == **wanted)) {
            return Err(delete::absent(&state, missing));
        }
    }
    objects.sort_by_key(|object| object.reference());
    let nothing = match everywhere {
        true => format!("No {} found.", arguments.kind),
        false => format!("No {} found in namespace {} (-A looks in all of them).", arguments.kind, options.namespace()),
    };
    match (options.output, objects.as_slice(), wanted.len()) {
        (Format::Json | Format::Yaml, [only], 1) => output::value(options.output, &only.value),
        _ => listing(kind, &objects).render(options.output, &nothing),
    }
}

fn listing(kind: Kind, objects: &[Arc<Object>]) -> Listing<Shown> {
    let headings: &[&str] = match kind {
        Kind::Pod => &["NAMESPACE", "NAME", "ADDRESSES", "NODE", "READY", "MESH"],
        Kind::Service => &["NAMESPACE", "NAME", "ADDRESSES", "PORTS", "CREATED"],
        kind if kind.is_namespaced() => &["NAMESPACE", "NAME", "CREATED"],
        _ => &["NAME", "LABELS", "CREATED"],
    };
    let shown: Vec<Shown> = objects.iter().map(|object| Shown(object.value.clone())).collect();
    Listing::new(headings, shown, |shown| row(kind, &shown.0))
}

fn row(kind: Kind, object: &Value) -> Vec<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |pointer: &str, one: &dyn Fn(&Value) -> Option<String>| {
        let entries = object.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        entries.filter_map(one).collect::<Vec<_>>().join(",")
    };
    let plain = |value: &Value| value.as_str().map(str::to_owned);
    let (namespace, name, created) = (text("/metadata/namespace"), text("/metadata/name"), text("/metadata/creationTimestamp"));
    match kind {
        Kind::Pod => {
            let ready =
                |condition: &Value| (condition["type"] == "Ready").then(|| condition["status"].as_str().unwrap_or_default().to_owned());
            let mesh = object.pointer("/metadata/annotations").and_then(|annotations| annotations[REDIRECTION].as_str());
            vec![
                namespace,
                name,
                list("/status/podIPs", &|address| plain(&address["ip"])),
                text("/spec/nodeName"),
                list("/status/conditions", &ready),
                mesh.unwrap_or_default().to_owned(),
            ]
        }
        Kind::Service => {
            let port = |port: &Value| Some(format!("{}/{}", port["port"], port["name"].as_str().unwrap_or("TCP")));
            vec![namespace, name, list("/spec/clusterIPs", &plain), list("/spec/ports", &port), created]
        }
        kind if kind.is_namespaced() => vec![namespace, name, created],
        _ => {
            let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
            let labels: Vec<String> = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
            vec![name, labels.join(","), created]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_selected_as_with_kubectl() {
        for (text, wanted) in [
            ("app=web", Condition::Is("app".into(), "web".into())),
            ("app==web", Condition::Is("app".into(), "web".into())),
            ("app != web", Condition::IsNot("app".into(), "web".into())),
            ("istio.io/rev", Condition::Has("istio.io/rev".into())),
            ("!app", Condition::HasNot("app".into())),
            ("app=", Condition::Is("app".into(), String::new())),
        ] {
            assert_eq!(Condition::read(text).unwrap(), wanted, "{text}");
        }
        for text in ["", "=web", "a b", "!"] {
            assert!(Condition::read(text).unwrap_err().to_string().contains("KEY=VALUE"), "{text}");
        }
    }
}
