//! Catches access lines, so that tests can look at them.

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

/// A field that lines do not have: the thread that wrote one.
pub(crate) const THREAD: &str = "thread";

static LINES: Mutex<Vec<Value>> = Mutex::new(Vec::new());
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
            tropis_telemetry::logs::VERBATIM_TARGET => serde_json::from_str(&text(&fields.0["message"])).unwrap(),
            // Of a connection that was refused or ended for what it is.
            "access" => Value::Object(fields.0),
            _ => return,
        };
        line[THREAD] = std::thread::current().name().into();
        LINES.lock().unwrap().push(line);
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
