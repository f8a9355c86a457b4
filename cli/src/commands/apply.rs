//! `tropis apply`: objects into the mesh's folder of objects, all of a call or none, refused as an API server would refuse them.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::Value;
use tropis_crds::{Kind, Level, ObjectRef, decode};
use tropis_source::{
    dir::snapshot,
    write::{self, Applied},
    yaml,
};

use crate::{
    arguments::Options,
    output::{self, Done},
    place::Placed,
    state::State,
};

/// Standard input among the files.
pub(crate) const STANDARD_INPUT: &str = "-";
/// Standard input is read up to this; as a file of the folder may be.
const INPUT_MAX_BYTES: u64 = yaml::FILE_MAX_BYTES;

const EXAMPLES: &str = "\
Examples:
  tropis apply -f shop.yaml -f policies/
  tropis apply -f shop.yaml --dry-run";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// File, folder, or - for standard input.
    #[arg(short, long, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write into the folder that the mesh was started on with --manifests.
    #[arg(long)]
    into_manifests: bool,
}

/// A document of a file, as it was written.
#[derive(Debug)]
pub(crate) struct Document {
    /// The object.
    pub(crate) object: ObjectRef,
    /// Its text, comments included.
    text: String,
}

pub(crate) fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let state = State::open(&options.state)?;
    let documents = read(&arguments.filename, options.namespace.as_deref())?;
    let folder = state.writable(arguments.into_manifests || arguments.dry_run)?;
    refuse_listed(&folder, documents.iter().map(|document| &document.object))?;
    let mut told = Vec::new();
    for Document { object, text } in &documents {
        let done = match arguments.dry_run {
            true => "would be applied",
            false => match write::apply(&folder, object, text).with_context(|| format!("write {object} into {}", folder.display()))? {
                Applied::Created => "created",
                Applied::Configured => "configured",
                Applied::Unchanged => "unchanged",
            },
        };
        told.push(Done::new(object, done));
    }
    output::done(options.output, &told)
}

/// Reads all documents; an error if one of them would be refused. Those that name no namespace are of `namespace`.
pub(crate) fn read(paths: &[PathBuf], namespace: Option<&str>) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (name, text) in texts(paths)? {
        let findings = snapshot::of_text(&name, text.clone()).findings;
        let refused = findings.into_iter().filter(|finding| finding.level == Level::Error);
        let refused: String = refused.map(|finding| Placed::new(finding, Some(&text)).shown()).collect();
        if !refused.is_empty() {
            bail!("{name} is refused, and nothing was changed:\n{}", refused.trim_end());
        }
        for (_, document) in yaml::split(&text) {
            let parsed = yaml::documents(document);
            for one in &parsed {
                let Ok(value) = &one.content else { continue };
                documents.extend(self::document(document, value, parsed.len() == 1, namespace)?);
            }
        }
    }
    if documents.is_empty() {
        bail!(
            "there is no object that the mesh reads in {}",
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(documents)
}

/// One document with its text as written, if it stands alone and needs no change. A kind that the mesh does not know is left out.
fn document(text: &str, value: &Value, alone: bool, namespace: Option<&str>) -> anyhow::Result<Option<Document>> {
    let Some(object) = decode::reference(value).filter(|object| object.kind != Kind::Other) else { return Ok(None) };
    let nowhere = object.kind.is_namespaced() && value.pointer("/metadata/namespace").and_then(Value::as_str).is_none_or(str::is_empty);
    let own = alone && yaml::documents(text).first().is_some_and(|one| one.content.as_ref() == Ok(value)) && !is_list(text);
    Ok(Some(match namespace.filter(|_| nowhere) {
        Some(namespace) => {
            let mut value = value.clone();
            value["metadata"]["namespace"] = namespace.into();
            Document { object: ObjectRef { namespace: namespace.to_owned(), ..object }, text: write::to_yaml(&value)? }
        }
        None if own => Document { object, text: text.to_owned() },
        None => Document { object, text: write::to_yaml(value)? },
    }))
}

/// Whether a document is a list, whose only entry must not bring the list along.
fn is_list(text: &str) -> bool {
    text.lines()
        .any(|line| line.strip_prefix("kind:").is_some_and(|kind| kind.split('#').next().unwrap_or_default().trim().ends_with("List")))
}

/// The texts of files by name.
fn texts(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == STANDARD_INPUT {
            let mut text = String::new();
            std::io::stdin().take(INPUT_MAX_BYTES).read_to_string(&mut text).context("read standard input")?;
            texts.push(("standard input".to_owned(), text));
            continue;
        }
        for file in tropis_source::dir::manifests(path) {
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            texts.push((file.display().to_string(), text));
        }
    }
    Ok(texts)
}

/// An error if one of the objects stands in a list, where it cannot be changed without rewriting all of it.
pub(crate) fn refuse_listed<'a>(folder: &Path, objects: impl IntoIterator<Item = &'a ObjectRef>) -> anyhow::Result<()> {
    for object in objects {
        if let Some((path, line)) = write::listed(folder, object) {
            bail!("{object} stands in a list ({}:{line}), which this command does not edit\nChange it there", path.display());
        }
    }
    Ok(())
}
