//! `tropis label`: the quick way to enrol a namespace, or to send a service through a waypoint.

use anyhow::bail;
use serde_json::Value;
use tropis_source::write::{self, Edit};

use super::{apply, delete};
use crate::{
    arguments::Options,
    names,
    output::{self, Done},
    state::State,
};

const EXAMPLES: &str = "\
Examples:
  tropis label namespace shop istio.io/dataplane-mode=ambient
  tropis label service reviews -n shop istio.io/use-waypoint-";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The kind.
    kind: String,
    /// The object.
    name: String,
    /// KEY=VALUE sets a label, KEY- removes it.
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
    /// A label that has another value may be changed.
    #[arg(long)]
    overwrite: bool,
    /// Write into the folder that the mesh was started on with --manifests.
    #[arg(long)]
    into_manifests: bool,
}

/// One change of a label.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(String, String),
    Remove(String),
}

pub(crate) fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let changes: Vec<Change> = arguments.labels.iter().map(|text| change(text)).collect::<Result<_, _>>()?;
    let kind = names::kind(&arguments.kind)?;
    let namespace = if kind.is_namespaced() { options.namespace() } else { "" };
    let object = tropis_crds::ObjectRef::new(kind, namespace, arguments.name.as_str());
    let folder = state.writable(arguments.into_manifests)?;
    apply::refuse_listed(&folder, [&object])?;
    let mut outcome = Ok(false);
    let found = write::edit(&folder, &object, |value| {
        outcome = put(value, &changes, arguments.overwrite);
        match &outcome {
            Ok(true) => Edit::Write,
            Ok(false) | Err(_) => Edit::Keep,
        }
    })?;
    if !found {
        return Err(delete::absent(&state, &object));
    }
    let word = if outcome? { "labeled" } else { "not labeled (the labels are as wanted)" };
    output::done(options.output, &[Done::new(&object, word)])
}

fn change(text: &str) -> anyhow::Result<Change> {
    let change = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Change::Set(key.to_owned(), value.to_owned()),
        (None, Some(key)) => Change::Remove(key.to_owned()),
        (None, None) => bail!("{text:?} is neither KEY=VALUE nor KEY-"),
    };
    match &change {
        Change::Set(key, _) | Change::Remove(key) if !tropis_crds::names::is_label_key(key) => bail!("{key:?} is not a label key"),
        Change::Set(_, value) if !tropis_crds::names::is_label_value(value) => {
            bail!("{value:?} is not a label value (at most 63 letters, digits, -, _ and .)")
        }
        _ => Ok(change),
    }
}

/// Changes the labels of an object, all or none; `false` if they were so already.
pub(crate) fn put(object: &mut Value, changes: &[Change], overwrite: bool) -> anyhow::Result<bool> {
    let before = object.pointer("/metadata/labels").cloned().unwrap_or(Value::Null);
    let mut labels = before.as_object().cloned().unwrap_or_default();
    for change in changes {
        match change {
            Change::Set(key, value) => match labels.get(key).and_then(Value::as_str) {
                Some(present) if present != value && !overwrite => {
                    bail!("label {key} is {present:?} already\nChange it with --overwrite")
                }
                _ => {
                    labels.insert(key.clone(), value.as_str().into());
                }
            },
            Change::Remove(key) => {
                labels.shift_remove(key);
            }
        }
    }
    let changed = labels != before.as_object().cloned().unwrap_or_default();
    if changed {
        object["metadata"]["labels"] = Value::Object(labels);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_set_and_removed_together_or_not_at_all() {
        let mut object = json!({"metadata": {"name": "shop", "labels": {"a": "1", "b": "2"}}});
        let changes = [change("c=3").unwrap(), change("a-").unwrap()];
        assert!(put(&mut object, &changes, false).unwrap());
        assert_eq!(object["metadata"]["labels"], json!({"b": "2", "c": "3"}));
        assert!(!put(&mut object, &changes, false).unwrap(), "nothing is left to do");
        let refused = put(&mut object, &[change("c-").unwrap(), change("b=9").unwrap()], false).unwrap_err();
        assert!(refused.to_string().contains("--overwrite"));
        assert_eq!(object["metadata"]["labels"], json!({"b": "2", "c": "3"}));
        assert!(put(&mut object, &[change("b=9").unwrap()], true).unwrap());
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for text in ["a", "=b", "a=b c", "a b-"] {
            assert!(change(text).is_err(), "{text}");
        }
        assert_eq!(change("istio.io/use-waypoint-").unwrap(), Change::Remove("istio.io/use-waypoint".to_owned()));
    }
}
