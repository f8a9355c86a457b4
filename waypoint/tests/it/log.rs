//! Catches access lines, so that tests can look at them. Each line's flags are held to what the reference says of its reason.

use std::{
    fmt,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};
use tropis_model::outcome::Reason;

/// A field that lines do not have: the thread that wrote one.
pub(crate) const THREAD: &str = "thread";

static LINES: Mutex<Vec<Value>> = Mutex::new(Vec::new());
/// Those that are no JSON.
static TEXTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static STARTED: OnceLock<()> = OnceLock::new();

/// Starts catching, once.
pub(crate) fn start() {
    STARTED.get_or_init(|| {
        let output = tracing_subscriber::fmt::layer().with_test_writer();
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::registry().with(Catch).with(output.with_filter(filter)).init();
    });
}

/// Waits for the line of a request or connection for which all of `wanted` (field, value) hold.
pub(crate) async fn wait_for(wanted: &[(&str, &str)]) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = all(wanted).into_iter().next() {
            return found;
        }
        assert!(Instant::now() < deadline, "no access line with {wanted:?} among {:#?}", LINES.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// All lines for which all of `wanted` hold.
pub(crate) fn all(wanted: &[(&str, &str)]) -> Vec<Value> {
    let holds = |line: &&Value| wanted.iter().all(|(field, value)| text(&line[*field]) == *value);
    LINES.lock().unwrap().iter().filter(holds).cloned().collect()
}

/// A field as text.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

struct Catch;

impl<S: Subscriber> Layer<S> for Catch {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = match event.metadata().target() {
            tropis_telemetry::logs::VERBATIM_TARGET => {
                let message = text(&fields.0["message"]);
                let Ok(line) = serde_json::from_str(&message) else { return TEXTS.lock().unwrap().push(message) };
                check_flags(&line);
                line
            }
            // Of a connection that was refused or ended for what it is.
            "access" => Value::Object(fields.0),
            _ => return,
        };
        line[THREAD] = std::thread::current().name().into();
        LINES.lock().unwrap().push(line);
    }
}

/// The flags of a line are among those that go with its reason (`docs/reference/outcomes.md`).
fn check_flags(line: &Value) {
    let reason = Reason::ALL.iter().find(|reason| line["reason"] == reason.word()).unwrap_or_else(|| panic!("{line}"));
    let flags: Vec<&str> = line["response_flags"].as_str().unwrap().split(',').filter(|flag| !matches!(*flag, "DI" | "URX")).collect();
    let known = flags.iter().all(|flag| reason.waypoint_flags().contains(flag));
    assert!(known, "{:?} of {reason}, which has {:?}: {line}", flags, reason.waypoint_flags());
}

/// Waits for a line of text with `part` in it.
pub(crate) async fn wait_for_text(part: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = TEXTS.lock().unwrap().iter().find(|line| line.contains(part)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "no line with {part:?} among {:#?}", TEXTS.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}
