//! Where log events go: standard output, JSON or text, filtered by a level that can be changed while the program runs.
//!
//! Lines pass through a bounded queue to one writer thread, so a connection pays for formatting only; a full queue makes the caller
//! wait rather than lose a line. Drop the [`LogGuard`] last: it writes what is queued.

use std::{
    fmt::{self, Write as _},
    io,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use thiserror::Error;
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    layer::{Context, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

/// Lines that may wait for the writer; a caller that meets a full queue waits. As many as Istio's proxy keeps.
const QUEUE_LINES: usize = 10_000;
/// Bytes written at once at most: a batch of queued lines.
const BATCH_BYTES: usize = 64 * 1024;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `TIME\tLEVEL\tSCOPE\tMESSAGE\tKEY=VALUE ...`
    #[default]
    Text,
    /// One flat object a line: `level`, `time`, `scope`, `message`, then the fields.
    Json,
}

/// The format is neither `text` nor `json`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not a log format; text and json are")]
pub struct InvalidLogFormat {
    /// What was found.
    pub found: String,
}

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" | "" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(InvalidLogFormat { found: text.to_owned() }),
        }
    }
}

/// The filter cannot be used; the one before stays in force.
#[derive(Debug, Error)]
pub enum LogError {
    /// Not a filter.
    #[error("{filter:?} is not a log filter (for example info, or info,access=warn)")]
    InvalidFilter {
        /// What was found.
        filter: String,
        /// What is wrong with it.
        #[source]
        cause: tracing_subscriber::filter::ParseError,
    },
    /// Logging is not set up, or was set up twice.
    #[error("the log cannot be set up")]
    NotInstalled,
}

/// Changes the filter of a running program.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, Registry>,
    initial: Arc<str>,
    current: Arc<Mutex<String>>,
}

impl LogControl {
    /// The filter in force.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force: `debug`, or `info,access=warn`.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse_filter(filter)?;
        self.handle.reload(parsed).map_err(|_| LogError::NotInstalled)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
        Ok(())
    }

    /// Goes back to the filter that the program started with.
    pub fn reset(&self) -> Result<(), LogError> {
        let initial = self.initial.clone();
        self.set(&initial)
    }
}

/// Writes what is still queued when it drops.
pub struct LogGuard {
    queue: SyncSender<Message>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // The subscriber keeps a sender for ever, so the writer is told to stop.
        if self.queue.send(Message::Stop).is_ok()
            && let Some(writer) = self.writer.take()
        {
            // A panic of the writer has been printed already; there is nobody to tell.
            drop(writer.join());
        }
    }
}

/// Starts logging to standard output; `filter` is what `RUST_LOG` says. Once a process.
pub fn start(format: LogFormat, filter: &str) -> Result<(LogControl, LogGuard), LogError> {
    let (layer, handle) = reload::Layer::new(parse_filter(filter)?);
    let (queue, lines) = sync_channel(QUEUE_LINES);
    let writer = thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&lines, &mut io::stdout()))
        .map_err(|_| LogError::NotInstalled)?;
    let lines = Lines { format, queue: queue.clone() };
    tracing_subscriber::registry().with(layer).with(lines).try_init().map_err(|_| LogError::NotInstalled)?;
    let control = LogControl { handle, initial: filter.into(), current: Arc::new(Mutex::new(filter.to_owned())) };
    Ok((control, LogGuard { queue, writer: Some(writer) }))
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|cause| LogError::InvalidFilter { filter: filter.to_owned(), cause })
}

enum Message {
    Line(String),
    Stop,
}

fn write_lines(lines: &Receiver<Message>, output: &mut impl io::Write) {
    let mut batch = String::new();
    while let Ok(Message::Line(line)) = lines.recv() {
        batch.push_str(&line);
        let mut stop = false;
        while batch.len() < BATCH_BYTES {
            match lines.try_recv() {
                Ok(Message::Line(line)) => batch.push_str(&line),
                Ok(Message::Stop) => {
                    stop = true;
                    break;
                }
                Err(_) => break,
            }
        }
        // A closed standard output takes the log away, not the program.
        let written = output.write_all(batch.as_bytes()).and_then(|()| output.flush());
        batch.clear();
        if stop || written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            break;
        }
    }
}

struct Lines {
    format: LogFormat,
    queue: SyncSender<Message>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = format_event(self.format, event, OffsetDateTime::now_utc());
        // The writer ends with the process or with standard output.
        drop(self.queue.send(Message::Line(line)));
    }
}

/// RFC 3339 in UTC, always with six digits, so that lines sort as text.
const TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// The log target of lines that are written as they are, without time or level: access lines in a format that the user chose. It
/// obeys the filter of `access`.
pub const VERBATIM_TARGET: &str = "access::request";

fn format_event(format: LogFormat, event: &Event<'_>, now: OffsetDateTime) -> String {
    let mut fields = Fields { format, message: String::new(), rest: String::with_capacity(256) };
    event.record(&mut fields);
    let time = now.format(TIME).unwrap_or_default();
    let (level, scope) = (level(event.metadata()), event.metadata().target());
    let Fields { mut message, rest, .. } = fields;
    if scope == VERBATIM_TARGET {
        message.push('\n');
        return message;
    }
    match format {
        LogFormat::Text if rest.is_empty() => format!("{time}\t{level}\t{scope}\t{message}\n"),
        LogFormat::Text => format!("{time}\t{level}\t{scope}\t{message}\t{}\n", rest.trim_start()),
        LogFormat::Json => {
            let (scope, message) = (quoted(scope), quoted(&message));
            format!("{{\"level\":\"{level}\",\"time\":\"{time}\",\"scope\":{scope},\"message\":{message}{rest}}}\n")
        }
    }
}

fn level(metadata: &Metadata<'_>) -> &'static str {
    match *metadata.level() {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Collects the fields of one event in the order in which they were written.
struct Fields {
    format: LogFormat,
    message: String,
    rest: String,
}

impl Fields {
    fn put(&mut self, name: &str, value: fmt::Arguments<'_>, is_text: bool) {
        if name == "message" {
            // Writing to a String cannot fail.
            let _ = self.message.write_fmt(value);
            return;
        }
        let _ = match (self.format, is_text) {
            (LogFormat::Json, true) => write!(self.rest, ",{}:{}", quoted(name), quoted(&value.to_string())),
            (LogFormat::Json, false) => write!(self.rest, ",{}:{value}", quoted(name)),
            (LogFormat::Text, true) => {
                let text = value.to_string();
                match text.contains([' ', '"', '\n', '\t', '=']) || text.is_empty() {
                    true => write!(self.rest, " {name}={}", quoted(&text)),
                    false => write!(self.rest, " {name}={text}"),
                }
            }
            (LogFormat::Text, false) => write!(self.rest, " {name}={value}"),
        };
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format_args!("{value:?}"), true);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), format_args!("{value}"), true);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), format_args!("{value}"), false);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), format_args!("{value}"), false);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), format_args!("{value}"), false);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is not a number.
        match value.is_finite() {
            true => self.put(field.name(), format_args!("{value}"), false),
            false => self.put(field.name(), format_args!("{value}"), true),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field.name(), format_args!("{}", crate::chain(value)), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `emit` logs, as lines in `format`.
    fn logged(format: LogFormat, emit: impl FnOnce()) -> String {
        let (queue, lines) = sync_channel(16);
        let subscriber = tracing_subscriber::registry().with(Lines { format, queue });
        tracing::subscriber::with_default(subscriber, emit);
        let mut output = Vec::new();
        write_lines(&lines, &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn json_keeps_order_types_and_absence() {
        let line = logged(LogFormat::Json, || {
            let absent: Option<&str> = None;
            let address = "10.0.0.1:80";
            tracing::event!(
                target: "access",
                Level::INFO,
                src.addr = %address,
                bytes_sent = 7u64,
                absent,
                ok = true,
                text = "a \"b\"",
                "connection complete"
            );
        });
        let (head, tail) = line.split_once("\"time\":\"").unwrap();
        assert_eq!(head, "{\"level\":\"info\",");
        let tail = tail.split_once('"').unwrap().1;
        assert_eq!(
            tail,
            concat!(
                r#","scope":"access","message":"connection complete","src.addr":"10.0.0.1:80","#,
                r#""bytes_sent":7,"ok":true,"text":"a \"b\""}"#,
                "\n"
            )
        );
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }

    #[test]
    fn text_separates_with_tabs_and_quotes_what_needs_it() {
        let line = logged(LogFormat::Text, || tracing::warn!(target: "zds", pod = "a/b", error = "no such pod", "pod refused"));
        let (_, rest) = line.split_once('\t').unwrap();
        assert_eq!(rest, "warn\tzds\tpod refused\tpod=a/b error=\"no such pod\"\n");
    }

    #[test]
    fn a_line_in_the_users_format_is_written_as_it_is() {
        for format in [LogFormat::Json, LogFormat::Text] {
            let line = logged(format, || tracing::info!(target: VERBATIM_TARGET, "[{}] \"GET / HTTP/1.1\"", 1));
            assert_eq!(line, "[1] \"GET / HTTP/1.1\"\n");
        }
    }

    #[test]
    fn a_bad_filter_is_refused_with_its_text() {
        let error = parse_filter("a=b=c").unwrap_err();
        assert!(error.to_string().contains("a=b=c"), "{error}");
    }
}
