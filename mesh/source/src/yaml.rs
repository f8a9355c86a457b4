//! YAML as `kubectl` reads it: several documents a file, lists of objects, YAML 1.1 booleans, and limits on everything that can grow.
//!
//! A file is cut at its `---` lines before anything is parsed, as `kubectl` does: so a document that is broken is refused alone.

pub mod place;

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Options};

/// A larger file is refused whole. An API server takes 1.5 MiB an object; this is room for lists of them.
pub const FILE_MAX_BYTES: u64 = 64 << 20;
/// A larger document is refused.
pub const DOCUMENT_MAX_BYTES: usize = 16 << 20;
/// A file with more documents (list entries included) is refused from there on.
pub const DOCUMENTS_MAX: usize = 20_000;
/// How deep mappings and lists may nest. Real objects stay under 20, schemas of custom resources under 50.
pub const DEPTH_MAX: usize = 100;
/// How many nodes all aliases of a document may expand to.
const ALIAS_NODES_MAX: usize = 100_000;

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The line on which it begins, from 1.
    pub line: u64,
    /// What it holds, or why it cannot be read.
    pub content: Result<Value, Unreadable>,
}

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The line of the fault, from 1, in the file.
    pub line: u64,
    /// What is wrong, one line.
    pub problem: String,
    /// A limit was exceeded, rather than a rule of YAML broken.
    pub limit: bool,
}

/// Reads all documents of a file; documents without content are left out, entries of lists become documents of their own.
pub fn documents(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    for (line, text) in split(text) {
        if documents.len() >= DOCUMENTS_MAX {
            let problem = format!("the file has more than {DOCUMENTS_MAX} documents; the rest is not read");
            documents.push(Document { line, content: Err(Unreadable { line, problem, limit: true }) });
            break;
        }
        match parse(text) {
            Ok(Value::Null) => {}
            Ok(value) => expand(line, value, &mut documents),
            Err(mut unreadable) => {
                unreadable.line += line - 1;
                documents.push(Document { line, content: Err(unreadable) });
            }
        }
    }
    documents
}

/// Cuts at `---` lines; gives each part with the line of its first content. Parts of comments and blank lines are left out.
pub fn split(text: &str) -> Vec<(u64, &str)> {
    pieces(text)
        .into_iter()
        .filter_map(|(start, piece)| {
            let content = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
            let skipped = piece.lines().position(|line| content(&line))?;
            let offset: usize = piece.split_inclusive('\n').take(skipped).map(str::len).sum();
            Some((start + skipped as u64, &piece[offset..]))
        })
        .collect()
}

/// Cuts at `---` lines; gives each part, the separators left out, with its first line.
fn pieces(text: &str) -> Vec<(u64, &str)> {
    let (mut pieces, mut begin, mut first_line, mut offset) = (Vec::new(), 0, 1, 0);
    for (line, number) in text.split_inclusive('\n').zip(1u64..) {
        if let Some(rest) = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            pieces.push((first_line, &text[begin..offset]));
            // What stands behind the dashes belongs to the document (`--- {a: b}`, `--- # comment`).
            begin = offset + line.len() - rest.len();
            first_line = number;
        }
        offset += line.len();
    }
    pieces.push((first_line, &text[begin..]));
    pieces
}

/// Parses one document. Lines in the error count from its beginning.
pub(crate) fn parse(text: &str) -> Result<Value, Unreadable> {
    if text.len() > DOCUMENT_MAX_BYTES {
        let problem = format!("the document has {} bytes, more than {DOCUMENT_MAX_BYTES}", text.len());
        return Err(Unreadable { line: 1, problem, limit: true });
    }
    serde_saphyr::from_str_with_options::<Value>(text, options()).map_err(|error| {
        let plain = error.without_snippet();
        let line = error.location().map_or(1, |location| location.line().max(1));
        let text = plain.to_string();
        let problem = text.lines().next().unwrap_or_default();
        // The place within the document would mislead beside the line in the file.
        let problem = problem.split(" at line ").next().unwrap_or(problem).trim().to_owned();
        let limit = ["budget", "limit", "alias"].iter().any(|word| problem.to_lowercase().contains(word));
        Unreadable { line, problem, limit }
    })
}

fn options() -> Options {
    let budget = serde_saphyr::budget! { max_depth: DEPTH_MAX, max_documents: 2, max_total_scalar_bytes: DOCUMENT_MAX_BYTES };
    serde_saphyr::options! {
        budget: budget,
        duplicate_keys: DuplicateKeyPolicy::Error,
        // `defaultMode: 0644` means what it means to kubectl.
        legacy_octal_numbers: true,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIAS_NODES_MAX, max_replay_stack_depth: 16 },
        with_snippet: false,
    }
}

/// An entry of a list is a document of its own: `kind: List`, and typed lists (`PodList`), whose entries may leave out their kind.
fn expand(line: u64, value: Value, documents: &mut Vec<Document>) {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(singular) = kind.strip_suffix("List") else {
        documents.push(Document { line, content: Ok(value) });
        return;
    };
    let Value::Object(mut map) = value else { return };
    let Some(Value::Array(items)) = map.remove("items") else {
        let unreadable = Unreadable { line, problem: format!("a {kind} without a list of items"), limit: false };
        documents.push(Document { line, content: Err(unreadable) });
        return;
    };
    for mut item in items {
        if let (Value::Object(item), false) = (&mut item, singular.is_empty()) {
            item.entry("apiVersion").or_insert_with(|| api_version.clone().into());
            item.entry("kind").or_insert_with(|| singular.into());
        }
        if item.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) {
            let unreadable = Unreadable { line, problem: "a list within a list".to_owned(), limit: false };
            documents.push(Document { line, content: Err(unreadable) });
        } else {
            documents.push(Document { line, content: Ok(item) });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        documents(text).into_iter().map(|document| document.content.unwrap()).collect()
    }

    #[test]
    fn documents_are_cut_with_their_lines() {
        let text = "# licence\n---\na: 1\n---\n# nothing\n---\n\n# note\nb: 2\n--- # comment\nc: 3\n";
        let documents = documents(text);
        let lines: Vec<u64> = documents.iter().map(|document| document.line).collect();
        assert_eq!(lines, [3, 9, 11]);
        assert_eq!(values(text), [json!({"a": 1}), json!({"b": 2}), json!({"c": 3})]);
        assert_eq!(values(""), Vec::<Value>::new());
        assert_eq!(values("{\"a\": [1, true, null]}"), [json!({"a": [1, true, null]})]);
        assert_eq!(values("a: 1\r\n---\r\nb: 2\r\n"), [json!({"a": 1}), json!({"b": 2})]);
    }

    #[test]
    fn a_broken_document_is_refused_alone_with_its_line() {
        let documents = documents("a: 1\n---\nb: [1,\nc: 2\n---\nd: 3\n");
        assert_eq!(documents.len(), 3, "{documents:?}");
        assert!(documents[0].content.is_ok() && documents[2].content.is_ok());
        let unreadable = documents[1].content.clone().unwrap_err();
        assert!((3..=5).contains(&unreadable.line), "{unreadable:?}");
        assert!(!unreadable.limit && !unreadable.problem.is_empty());
    }

    #[test]
    fn scalars_are_read_as_kubectl_reads_them() {
        assert_eq!(
            values("a: yes\nb: off\nc: \"yes\"\nd: 0644\ne: 1.5\nf: 2024-01-01T00:00:00Z\ng: ~\nh: 0x10\ni: v1\nj:\n"),
            [
                json!({"a": true, "b": false, "c": "yes", "d": 420, "e": 1.5, "f": "2024-01-01T00:00:00Z", "g": null, "h": 16, "i": "v1", "j": null})
            ]
        );
        assert_eq!(values("8080:\n  mode: STRICT\n"), [json!({"8080": {"mode": "STRICT"}})]);
        assert_eq!(values("a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n"), [json!({"a": {"b": 1}, "c": {"b": 1, "d": 2}})]);
        assert_eq!(values("a: |\n  one\n  two\n"), [json!({"a": "one\ntwo\n"})]);
    }

    #[test]
    fn duplicate_keys_depth_and_alias_bombs_are_refused() {
        assert!(parse("a: 1\na: 2\n").is_err());
        let deep = format!("a: {}1{}", "[".repeat(DEPTH_MAX + 10), "]".repeat(DEPTH_MAX + 10));
        assert!(parse(&deep).unwrap_err().limit);
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let reference = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", reference.trim_end_matches(',')));
        }
        assert!(parse(&bomb).unwrap_err().limit);
    }

    #[test]
    fn entries_of_lists_are_documents() {
        assert_eq!(
            values("apiVersion: v1\nkind: List\nitems:\n- {kind: Pod}\n- {kind: Node}\n"),
            [json!({"kind": "Pod"}), json!({"kind": "Node"})]
        );
        assert_eq!(
            values("apiVersion: v1\nkind: PodList\nmetadata: {}\nitems: [{metadata: {name: a}}]\n"),
            [json!({"metadata": {"name": "a"}, "apiVersion": "v1", "kind": "Pod"})]
        );
        assert!(documents("kind: List\nitems: 3\n")[0].content.is_err());
        assert!(documents("kind: List\nitems: [{kind: List, items: []}]\n")[0].content.is_err());
    }
}
