//! The ten common mistakes, each a file in `testdata/wrong`, in the words that a tired person reads: `tropis analyze` says what a good
//! shop would be with the file applied.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::mesh::{Mesh, shop};

/// Each mistake with the exit code of `analyze`: 79 where there is an error, 0 where there are only warnings.
const MISTAKES: [(&str, i32); 10] = [
    ("dangling-subset", 79),
    ("weights-of-nothing", 79),
    ("unparsable-regex", 79),
    ("unknown-host", 79),
    ("gateway-missing", 79),
    ("selector-without-match", 79),
    ("policy-in-the-wrong-namespace", 79),
    ("port-name", 79),
    ("duplicate-route", 0),
    ("unknown-field", 79),
];

/// What the shop is told of, and means: its policies by selector are for those that come by the waypoint.
const KNOWN: &str = "TRP0007=AuthorizationPolicy reviews-readers.shop";

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// What `tropis analyze` says about a mesh that has the shop, with more `arguments`; it runs where the files are, so that it names them
/// as their user would.
fn analyze(arguments: &[&str]) -> Output {
    let mesh = Mesh::new();
    mesh.write("objects/shop.yaml", &shop());
    let mut command = Command::new(env!("CARGO_BIN_EXE_tropis"));
    command.args(["analyze", "live", "-S", KNOWN]).args(arguments).env("TROPIS_STATE", mesh.path("")).current_dir(testdata());
    command.output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_shop_that_mistakes_are_laid_over_has_none() {
    let run = analyze(&["--failure-threshold", "info"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(run.stdout));
}

#[test]
fn every_mistake_is_told_in_words_that_help() {
    for (name, code) in MISTAKES {
        let run = analyze(&[&format!("wrong/{name}.yaml")]);
        assert_eq!(run.status.code(), Some(code), "{name}");
        insta::assert_snapshot!(name, text(run.stdout));
    }
}

#[test]
fn every_mistake_is_told_in_parts_for_programs() {
    for (name, code) in MISTAKES {
        let run = analyze(&[&format!("wrong/{name}.yaml"), "-o", "json"]);
        assert_eq!(run.status.code(), Some(code), "{name}");
        let findings: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
        assert!(!findings.is_empty(), "{name}");
        // That a kind is not obeyed is about the whole object.
        for finding in findings.iter().filter(|finding| finding["code"] != "TRP0005") {
            // Whatever is told says what it is about, where it stands, what is the matter, what would do and what happens now.
            for part in ["code", "level", "origin", "reference", "message", "field", "problem", "accepted", "effect"] {
                assert!(finding[part].as_str().is_some_and(|text| !text.is_empty()), "{name}: {part} in {finding:#}");
            }
            assert!(finding["reference"].as_str().is_some_and(|place| place.starts_with(&format!("wrong/{name}.yaml:"))), "{finding:#}");
        }
    }
}

#[test]
fn one_finding_has_this_shape() {
    let run = analyze(&["wrong/dangling-subset.yaml", "-o", "json"]);
    insta::assert_snapshot!("dangling-subset.json", text(run.stdout));
}

#[test]
fn no_mistake_is_without_its_file() {
    let mut files: Vec<String> = std::fs::read_dir(testdata().join("wrong"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut listed: Vec<String> = MISTAKES.iter().map(|(name, _)| (*name).to_owned()).collect();
    files.sort();
    listed.sort();
    assert_eq!(files, listed);
}
