//! What the running control plane goes by, and what it alone knows: asked over its debug socket.

use serde_json::Value;
use tropis_compile::Settings;
use tropis_crds::{Finding, Kind, Level, ObjectRef, codes};

use crate::{admin, state::State};

/// The program.
const PROGRAM: &str = "tropisd";
/// Codes of what cannot be seen in the objects: what tropisd made, could not make, and what proxies refused.
const ITS_OWN: [&str; 3] = [codes::AUTOMATIC_WAYPOINT, codes::NAME_TAKEN, codes::REFUSED_BY_PROXY];

/// What it says.
#[derive(Debug)]
pub(crate) struct Control {
    /// What it compiles by.
    pub(crate) settings: Settings,
    /// What only it can find.
    pub(crate) findings: Vec<Finding>,
}

/// Asks the control plane of a mesh.
pub(crate) async fn ask(state: &State) -> anyhow::Result<Control> {
    let socket = state.sockets_of(PROGRAM)?.remove(0);
    let settings = serde_json::from_value(admin::json(&socket.path, "/debug/settings").await?)?;
    let findings = admin::json(&socket.path, "/debug/findings").await?;
    Ok(Control { settings, findings: findings.as_array().into_iter().flatten().filter_map(|item| finding(&item["finding"])).collect() })
}

/// What the control plane compiles by; the usual settings, with a note, if it cannot be asked.
pub(crate) async fn settings(state: &State) -> Settings {
    match ask(state).await {
        Ok(control) => control.settings,
        Err(error) => {
            eprintln!("Note: the control plane's settings are taken to be the usual ones: {error:#}");
            Settings::default()
        }
    }
}

/// One of its own findings; `None` for those that follow from the objects.
fn finding(item: &Value) -> Option<Finding> {
    let text = |part: &str| item[part].as_str().map(ToOwned::to_owned);
    let code = ITS_OWN.into_iter().find(|code| item["code"] == *code)?;
    let level = [Level::Info, Level::Warning, Level::Error].into_iter().find(|level| item["level"] == level.to_string())?;
    let kind = *Kind::ALL.iter().find(|kind| item["kind"] == kind.as_str())?;
    let object = ObjectRef::new(kind, text("namespace").unwrap_or_default(), text("name")?);
    Some(Finding {
        field: text("field"),
        found: text("found"),
        problem: text("problem")?,
        accepted: text("accepted"),
        effect: text("effect")?,
        ..Finding::new(level, code, object)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_findings_are_read_as_they_were_told() {
        let told = Finding::error(codes::REFUSED_BY_PROXY, ObjectRef::new(Kind::VirtualService, "shop", "reviews"))
            .field("spec.http[0]")
            .found("\"x\"")
            .problem("was refused by shop/waypoint")
            .accepted("less")
            .effect("the version before is in force");
        assert_eq!(finding(&serde_json::to_value(&told).unwrap()), Some(told));
        let seen = Finding::warning(codes::PORT_NAME, ObjectRef::new(Kind::Service, "shop", "reviews"));
        assert_eq!(finding(&serde_json::to_value(&seen).unwrap()), None, "every reader of the objects finds it");
    }
}
