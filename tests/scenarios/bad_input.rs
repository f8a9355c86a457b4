//! Bad input is a finding each, with all of its parts, and changes nothing else: traffic goes on, and a policy whose new version cannot be
//! read goes on denying as it did.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tropis_tests::testkit::{Exchange, FailureKind};
use tropis_tests::{Family, Lab, wait};

use crate::support::{Case, Cast, Company, play, port};

/// Ten times what the mesh needs to hear of a change.
const CHANGE: Duration = Duration::from_secs(10);
/// How often a connection is tried while a bad version stands.
const TRIES: usize = 5;

#[test]
fn bad_input_is_a_finding_each_and_changes_nothing_else() {
    play(Company::Welcome, |lab| Box::pin(bad_input(lab)));
}

#[test]
fn a_policy_whose_new_version_cannot_be_read_goes_on_denying() {
    play(Company::Welcome, |lab| Box::pin(last_good_version_stays(lab)));
}

/// A bad document, and what its finding must say; parts are compared whole unless said otherwise.
struct Bad {
    file: &'static str,
    text: &'static str,
    level: &'static str,
    code: &'static str,
    object: &'static str,
    field: &'static str,
    found: &'static str,
    /// A part of it.
    accepted: &'static str,
    /// A part of it.
    effect: &'static str,
}

const BAD: &[Bad] = &[
    Bad {
        file: "bad-unknown-field.yaml",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: unknown-field, namespace: badinput}\nspec: {actoin: DENY}\n",
        level: "Error",
        code: "IST0106",
        object: "AuthorizationPolicy badinput/unknown-field",
        field: "spec.actoin",
        found: "\"DENY\"",
        accepted: "did you mean action",
        effect: "does not exist for the mesh",
    },
    Bad {
        file: "bad-type.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: wrong-type, namespace: badinput}\nspec: {ports: [{port: eighty}]}\n",
        level: "Error",
        code: "IST0106",
        object: "Service badinput/wrong-type",
        field: "spec.ports[0].port",
        found: "\"eighty\"",
        accepted: "an integer",
        effect: "does not exist for the mesh",
    },
    Bad {
        file: "bad-half.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: half, namespace: [bad",
        level: "Error",
        code: "TRP0001",
        object: "File",
        field: "line 3",
        found: "unclosed bracket '['",
        accepted: "YAML with apiVersion, kind and metadata.name",
        effect: "does not exist for the mesh",
    },
    Bad {
        file: "bad-duplicate.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: server-a, namespace: badinput}\nspec: {selector: {app: server-a}, ports: [{name: tcp-echo, port: 7000}]}\n",
        level: "Warning",
        code: "TRP0002",
        object: "Service badinput/server-a",
        field: "metadata.name",
        found: "\"server-a\"",
        accepted: "one definition an object",
        effect: "this definition is ignored",
    },
    Bad {
        file: "bad-selector.yaml",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: selects-nothing, namespace: badinput}\nspec: {selector: {matchLabels: {app: nobody}}, action: DENY, rules: [{}]}\n",
        level: "Warning",
        code: "IST0127",
        object: "AuthorizationPolicy badinput/selects-nothing",
        field: "spec.selector.matchLabels",
        found: "app=nobody",
        accepted: "app: there is ",
        effect: "applies to nothing",
    },
    Bad {
        file: "bad-port.yaml",
        text: "apiVersion: v1\nkind: Service\nmetadata: {name: port-range, namespace: badinput}\nspec: {ports: [{port: 70000}]}\n",
        level: "Error",
        code: "IST0106",
        object: "Service badinput/port-range",
        field: "spec.ports[0].port",
        found: "70000",
        accepted: "1 to 65535",
        effect: "does not exist for the mesh",
    },
    Bad {
        file: "bad-principal.yaml",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: odd-principal, namespace: badinput}\nspec: {selector: {matchLabels: {app: nobody}}, rules: [{from: [{source: {principals: [\"spiffe://cluster.local/ns/x/sa/y\"]}}]}]}\n",
        level: "Error",
        code: "TRP0004",
        object: "AuthorizationPolicy badinput/odd-principal",
        field: "spec.rules[0].from[0].source.principals[0]",
        found: "\"spiffe://cluster.local/ns/x/sa/y\"",
        accepted: "TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
        effect: "allows nobody",
    },
];

impl Bad {
    /// Whether `finding` is the one about this document.
    fn is_told_by(&self, finding: &Value) -> bool {
        let of_file = finding["reference"].as_str().is_some_and(|reference| reference.starts_with(self.file));
        finding["origin"] == self.object && finding["code"] == self.code && (of_file || finding["reference"].is_null())
    }

    /// The parts of `finding` that are not as they must be.
    fn wrong_in<'a>(&'a self, finding: &'a Value) -> Vec<&'a str> {
        let whole = [("level", self.level), ("code", self.code), ("origin", self.object), ("field", self.field), ("found", self.found)];
        let parts = [("accepted", self.accepted), ("effect", self.effect)];
        let differs = whole.into_iter().filter(|(part, expected)| finding[*part] != *expected);
        let lacks = parts.into_iter().filter(|(part, expected)| !finding[*part].as_str().is_some_and(|text| text.contains(expected)));
        differs.chain(lacks).map(|(part, _)| part).collect()
    }
}

async fn bad_input(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "badinput", true).await?;
    let case = Case { family: Family::V4, across_nodes: true };
    cast.wait_tunnelled(case).await?;
    for bad in BAD {
        lab.write(bad.file, bad.text)?;
        let finding = told(lab, bad.file, |finding| bad.is_told_by(finding)).await?;
        let wrong = bad.wrong_in(&finding);
        ensure!(wrong.is_empty(), "{}: {wrong:?} of its finding: {finding}", bad.file);
        println!("{}: {} {}", bad.file, finding["origin"], finding["message"]);
        let said = cast.echo(&cast.client, &cast.server(case).socket(case.family, port::ECHO), "unharmed").await?;
        ensure!(said.ok, "{} harmed traffic: {said:?}", bad.file);
    }
    for bad in BAD {
        lab.remove(bad.file)?;
    }
    cast.leave()
}

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: lastgood}\nspec: {action: DENY, rules: [{}]}\n";

/// Versions of [`POLICY`] that an API server would not take.
fn unreadable_versions() -> [(&'static str, String); 4] {
    [
        ("no such action", POLICY.replace("DENY", "DENNY")),
        ("unknown field", POLICY.replace("action: DENY", "actoin: ALLOW")),
        ("wrong type", POLICY.replace("rules: [{}]", "rules: none")),
        ("half a file", POLICY[..POLICY.len() - 8].to_owned()),
    ]
}

async fn last_good_version_stays(lab: &Lab) -> anyhow::Result<()> {
    const FILE: &str = "policy-then-nonsense.yaml";
    let cast = Cast::gather(lab, "lastgood", true).await?;
    for case in Case::all() {
        cast.wait_tunnelled(case).await?;
    }
    let case = Case { family: Family::V6, across_nodes: true };
    let target = cast.server(case).socket(case.family, port::ECHO);
    let denied = async |target: &str| -> anyhow::Result<bool> {
        let said: Exchange = cast.client.run(&["echo", target, "may I"]).await?;
        Ok(said.error == Some(FailureKind::Reset))
    };
    lab.write(FILE, POLICY)?;
    let in_force = async || denied(&target).await.unwrap_or(false).then_some(());
    wait::until(CHANGE, "the policy to be in force", in_force).await?;
    for (what, text) in unreadable_versions() {
        lab.write(FILE, &text)?;
        let of_file = |finding: &Value| {
            let reference = finding["reference"].as_str().is_some_and(|reference| reference.starts_with(FILE));
            reference && finding["level"] == "Error" && finding["effect"].as_str().is_some_and(|effect| effect.contains("in force"))
        };
        let finding = told(lab, what, of_file).await?;
        println!("{what}: {}", finding["message"]);
        for case in std::iter::repeat_n(case, TRIES).chain(Case::all()) {
            let target = cast.server(case).socket(case.family, port::ECHO);
            ensure!(denied(&target).await?, "{what}, {case}: the last good version is no longer in force");
        }
        // The good version again, so that the next bad one is told anew.
        lab.write(FILE, POLICY)?;
        let quiet = async || lab.findings().await.ok().filter(|all| !all.iter().any(of_file)).map(drop);
        wait::until(CHANGE, "the finding to go with its cause", quiet).await.with_context(|| what.to_owned())?;
        ensure!(denied(&target).await?, "{what}: the good version is not in force again");
    }
    lab.remove(FILE)?;
    let admitted = async || cast.echo(&cast.client, &target, "may I").await.is_ok_and(|said| said.ok).then_some(());
    wait::until(CHANGE, "the policy to be gone", admitted).await?;
    cast.leave()
}

/// Waits for the finding that `matches`; the error lists those that there are.
async fn told(lab: &Lab, what: &str, matches: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let what = format!("a finding about {what}");
    let found = wait::until(CHANGE, &what, async || lab.findings().await.ok()?.into_iter().find(&matches));
    match found.await {
        Ok(finding) => Ok(finding),
        Err(error) => anyhow::bail!("{error}; there are {:?}", lab.findings().await?),
    }
}
