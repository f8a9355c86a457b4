//! `tropis analyze`: what is wrong in files, or in the mesh, in the words of every other place that tells it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::bail;
use clap::ValueEnum;
use serde_json::{Value, json};
use tropis_compile::Settings;
use tropis_crds::{CODES, Finding, Level, Object, ObjectRef, Origin};
use tropis_source::{
    Snapshot,
    dir::{EFFECT_NEVER, snapshot},
};

use crate::{
    arguments::{Format, Options},
    control,
    mesh::Mesh,
    output,
    place::Placed,
    state::State,
};

/// What stands for the mesh among the paths.
const LIVE: &str = "live";
/// What a file's document says that would be refused, where the mesh has a good version.
const EFFECT_REFUSED: &str = "it would be refused; the version that the mesh has would stay in force";
/// What istioctl exits with when it finds something.
const FOUND: u8 = 79;

const EXAMPLES: &str = "\
Examples:
  tropis analyze shop.yaml          the file alone
  tropis analyze live               what the mesh has
  tropis analyze live new.yaml      what it would have with the file applied";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Files and folders of YAML; `live` is the mesh.
    #[arg(required_unless_present = "list_analyzers", value_name = "PATH|live")]
    paths: Vec<PathBuf>,
    /// All namespaces (the default unless -n is given).
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Leave out CODE=KIND NAME.NAMESPACE; `*` stands for anything.
    #[arg(short = 'S', long, value_name = "CODE=KIND NAME.NAMESPACE")]
    suppress: Vec<String>,
    /// From which level on findings are printed.
    #[arg(long, value_enum, default_value = "info", ignore_case = true)]
    output_threshold: Threshold,
    /// From which level on the exit code is 79.
    #[arg(long, value_enum, default_value = "error", ignore_case = true)]
    failure_threshold: Threshold,
    /// List every code that a finding can have.
    #[arg(short = 'L', long)]
    list_analyzers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Threshold {
    Info,
    Warning,
    Error,
}

impl Threshold {
    fn level(self) -> Level {
        match self {
            Self::Info => Level::Info,
            Self::Warning => Level::Warning,
            Self::Error => Level::Error,
        }
    }
}

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<(String, ExitCode)> {
    if arguments.list_analyzers {
        return Ok((codes(options.output)?, ExitCode::SUCCESS));
    }
    let suppressed: Vec<Suppression> = arguments.suppress.iter().map(|text| Suppression::read(text)).collect::<Result<_, _>>()?;
    let mut findings = findings(options, &arguments.paths).await?;
    let namespace = options.namespace.as_deref().filter(|_| !arguments.all_namespaces);
    findings.retain(|Found { finding, .. }| {
        let here = namespace.is_none_or(|namespace| [namespace, ""].contains(&finding.object.namespace.as_str()));
        here && !suppressed.iter().any(|one| one.covers(finding))
    });
    let failed = findings.iter().any(|found| found.finding.level >= arguments.failure_threshold.level());
    findings.retain(|found| found.finding.level >= arguments.output_threshold.level());
    let findings = placed(findings);
    let text = match options.output {
        Format::Table => text(&findings, namespace),
        format => output::value(format, &findings)?,
    };
    Ok((text, if failed { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }))
}

/// A finding, and the folder that its file is named from.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    finding: Finding,
    root: PathBuf,
}

/// Everything that is found, worst first, then by object.
async fn findings(options: &Options, paths: &[PathBuf]) -> anyhow::Result<Vec<Found>> {
    let (live, files): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| path.as_os_str() == LIVE);
    let mut read: Vec<(PathBuf, Snapshot)> = Vec::new();
    let (mut settings, mut told) = (Settings::default(), Vec::new());
    if !live.is_empty() {
        let state = State::open(&options.state)?;
        read.push((state.objects(), state.snapshot()));
        match control::ask(&state).await {
            Ok(control) => (settings, told) = (control.settings, control.findings),
            Err(error) => {
                eprintln!("Note: what tropisd alone knows is not shown, and its settings are taken to be the usual ones: {error:#}")
            }
        }
    }
    if !files.is_empty() {
        let files = snapshot::of_files(&files)?;
        // What a file would change is not judged by what holds without it.
        told.retain(|finding: &Finding| files.objects.iter().all(|object| object.reference() != finding.object));
        read.push((PathBuf::new(), files));
    }
    let mut objects: BTreeMap<ObjectRef, Arc<Object>> = BTreeMap::new();
    let mut origins: BTreeMap<ObjectRef, (Origin, PathBuf)> = BTreeMap::new();
    let mut findings: Vec<Found> = told.into_iter().map(|finding| Found { finding, root: PathBuf::new() }).collect();
    for (root, snapshot) in read {
        findings.extend(snapshot.findings.into_iter().map(|finding| {
            let refused = finding.effect == EFFECT_NEVER && objects.contains_key(&finding.object);
            Found { finding: if refused { finding.effect(EFFECT_REFUSED) } else { finding }, root: root.clone() }
        }));
        // What comes later takes the place of what is there, as when it were applied.
        objects.extend(snapshot.objects.into_iter().map(|object| (object.reference(), object)));
        origins.extend(snapshot.origins.into_iter().map(|(object, origin)| (object, (origin, root.clone()))));
    }
    let mesh = Mesh::compile(settings, objects.values());
    findings.extend(mesh.findings().cloned().map(|mut finding| {
        let (origin, root) = origins.get(&finding.object).cloned().unzip();
        finding.origin = finding.origin.or(origin);
        Found { finding, root: root.unwrap_or_default() }
    }));
    findings.sort_by(|Found { finding: one, .. }, Found { finding: other, .. }| {
        other.level.cmp(&one.level).then_with(|| one.object.cmp(&other.object)).then_with(|| one.cmp(other))
    });
    findings.dedup();
    Ok(findings)
}

/// Looks up the line of each field, each file read once.
fn placed(findings: Vec<Found>) -> Vec<Placed> {
    let mut texts: BTreeMap<PathBuf, Option<String>> = BTreeMap::new();
    let place = |Found { finding, root }: Found| {
        let path = finding.origin.as_ref().map(|origin| root.join(Path::new(&origin.file)));
        let text = path.and_then(|path| texts.entry(path).or_insert_with_key(|path| fs::read_to_string(path).ok()).as_deref());
        Placed::new(finding, text)
    };
    findings.into_iter().map(place).collect()
}

fn text(findings: &[Placed], namespace: Option<&str>) -> String {
    if findings.is_empty() {
        return match namespace {
            Some(namespace) => format!("✔ No validation issues found when analyzing namespace: {namespace}.\n"),
            None => "✔ No validation issues found when analyzing all namespaces.\n".to_owned(),
        };
    }
    findings.iter().map(Placed::shown).collect()
}

fn codes(format: Format) -> anyhow::Result<String> {
    let parts = |code: &tropis_crds::Code| [code.code.to_owned(), code.name.to_owned(), code.level.to_string(), code.meaning.to_owned()];
    match format {
        Format::Table => {
            let rows: Vec<Vec<String>> = CODES.iter().map(|code| parts(code).to_vec()).collect();
            Ok(output::table(&["CODE", "NAME", "LEVEL", "MEANING"], &rows))
        }
        format => {
            let facts = CODES.iter().map(|code| {
                let [code, name, level, meaning] = parts(code);
                json!({"code": code, "name": name, "level": level, "meaning": meaning})
            });
            output::value(format, &facts.collect::<Vec<Value>>())
        }
    }
}

/// `CODE=KIND NAME.NAMESPACE`, with `*` for any text in each part.
#[derive(Debug)]
struct Suppression {
    code: String,
    kind: String,
    object: String,
}

impl Suppression {
    fn read(text: &str) -> anyhow::Result<Self> {
        let parts = text.split_once('=').and_then(|(code, object)| Some((code, object.split_once(' ')?)));
        let Some((code, (kind, object))) = parts else {
            bail!("{text:?} does not say what to suppress\nWrite CODE=KIND NAME.NAMESPACE, for example \"IST0118=Service *.shop\"");
        };
        Ok(Self { code: code.to_owned(), kind: kind.to_owned(), object: object.trim().to_owned() })
    }

    fn covers(&self, finding: &Finding) -> bool {
        let ObjectRef { kind, namespace, name } = &finding.object;
        let object = if namespace.is_empty() { name.clone() } else { format!("{name}.{namespace}") };
        matches(&self.code, finding.code) && matches(&self.kind, kind.as_str()) && matches(&self.object, &object)
    }
}

/// Whether a text matches a pattern with `*`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use tropis_crds::{Kind, codes};

    use super::*;

    #[test]
    fn stars_match_any_text() {
        for (pattern, text, wanted) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*", "abcd", true),
            ("a*d", "abc", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn a_suppression_names_code_kind_and_object() {
        let finding = Finding::info(codes::PORT_NAME, ObjectRef::new(Kind::Service, "shop", "reviews"));
        let covers = |text: &str| Suppression::read(text).unwrap().covers(&finding);
        assert!(covers("IST0118=Service reviews.shop") && covers("*=* *.shop"));
        assert!(!covers("IST0101=Service reviews.shop") && !covers("IST0118=Service *.other"));
        assert!(Suppression::read("IST0118").unwrap_err().to_string().contains("for example"));
    }
}
