//! `tropis delete`: objects out of the mesh's folder of objects.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tropis_crds::ObjectRef;
use tropis_source::write::{self, Edit};

use super::apply;
use crate::{
    arguments::{Format, Options},
    names,
    output::{self, Done},
    state::State,
};

const EXAMPLES: &str = "\
Examples:
  tropis delete virtualservice reviews -n shop
  tropis delete -f shop.yaml";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The kind.
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    kind: Option<String>,
    /// The objects.
    #[arg(required_unless_present = "filename", value_name = "NAME")]
    names: Vec<String>,
    /// File or folder whose objects go, or - for standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// An object that is not there is no failure.
    #[arg(long)]
    ignore_not_found: bool,
    /// Write into the folder that the mesh was started on with --manifests.
    #[arg(long)]
    into_manifests: bool,
}

pub(crate) fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let objects = match &arguments.kind {
        Some(kind) => named(kind, &arguments.names, options.namespace())?,
        None => apply::read(&arguments.filename, options.namespace.as_deref())?.into_iter().map(|document| document.object).collect(),
    };
    let folder = state.writable(arguments.into_manifests)?;
    apply::refuse_listed(&folder, &objects)?;
    let mut told = Vec::new();
    for object in objects {
        if remove(&folder, &object)? {
            told.push(Done::new(&object, "deleted"));
        } else if !arguments.ignore_not_found {
            return Err(absent(&state, &object)).context(output::done(Format::Table, &told)?);
        }
    }
    output::done(options.output, &told)
}

/// Takes an object away; `false` if it was not there. One that was defined twice would come back by its other definition.
pub(crate) fn remove(folder: &Path, object: &ObjectRef) -> anyhow::Result<bool> {
    let mut found = false;
    while write::edit(folder, object, |_| Edit::Remove).with_context(|| format!("take {object} out of {}", folder.display()))? {
        found = true;
    }
    Ok(found)
}

/// The objects that a kind and names mean.
pub(crate) fn named(kind: &str, names: &[String], namespace: &str) -> anyhow::Result<Vec<ObjectRef>> {
    let kind = names::kind(kind)?;
    let namespace = if kind.is_namespaced() { namespace } else { "" };
    if let Some(odd) = names.iter().find(|name| name.contains('/')) {
        bail!("{odd:?} is not a name; the namespace is given with -n");
    }
    Ok(names.iter().map(|name| ObjectRef::new(kind, namespace, name.as_str())).collect())
}

/// Why an object cannot be changed in the user's folder.
pub(crate) fn absent(state: &State, object: &ObjectRef) -> anyhow::Error {
    let exists = state.snapshot().objects.iter().any(|other| other.reference() == *object);
    match exists {
        true => anyhow::anyhow!("{object} was not made from {}, but by a program: change what it was made from", state.objects().display()),
        false => anyhow::anyhow!("{object} does not exist\n`tropis get {}` lists what does", object.kind.folder()),
    }
}
