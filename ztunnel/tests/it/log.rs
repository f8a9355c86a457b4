//! Catches access lines, so that tests can look at them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

/// A line: field → value.
pub(crate) type Line = BTreeMap<String, String>;

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());
static STARTED: OnceLock<()> = OnceLock::new();

/// Starts catching, once.
pub(crate) fn start() {
    STARTED.get_or_init(|| {
        let output = tracing_subscriber::fmt::layer().with_test_writer();
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::registry().with(Catch).with(output.with_filter(filter)).init();
    });
}

/// Waits for a line for which all of `wanted` (field, value) hold.
pub(crate) fn wait_for(wanted: &[(&str, &str)]) -> Line {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = LINES.lock().unwrap().iter().find(|line| holds(line, wanted)).cloned();
        if let Some(found) = found {
            return found;
        }
        assert!(Instant::now() < deadline, "no access line with {wanted:?} among {:#?}", LINES.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many lines hold all of `wanted`.
pub(crate) fn count(wanted: &[(&str, &str)]) -> usize {
    LINES.lock().unwrap().iter().filter(|line| holds(line, wanted)).count()
}

fn holds(line: &Line, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(field, value)| line.get(*field).is_some_and(|found| found == value))
}

struct Catch;

impl<S: Subscriber> Layer<S> for Catch {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "access" && *event.metadata().level() <= tracing::Level::INFO {
            let mut line = Collect(Line::new());
            event.record(&mut line);
            LINES.lock().unwrap().push(line.0);
        }
    }
}

struct Collect(Line);

impl Visit for Collect {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}
