//! The access log's line: Istio's fields as JSON with ours after them, or text with Envoy's operators.

use std::{
    cell::RefCell,
    fmt::Write as _,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

use super::flags::Flags;

/// Istio's default text format.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
     %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \
     %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
     \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
     %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// RFC 3339 in UTC with milliseconds.
const TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// What a line says.
#[derive(Debug)]
pub(super) struct Line<'l> {
    pub(super) started: SystemTime,
    pub(super) method: Option<&'l str>,
    pub(super) path: Option<&'l str>,
    pub(super) protocol: Option<&'static str>,
    /// 0 for none.
    pub(super) status: u16,
    pub(super) grpc_status: Option<u16>,
    pub(super) flags: Flags,
    pub(super) details: Option<&'l str>,
    pub(super) failure: Option<&'l str>,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) duration: Duration,
    pub(super) service_time: Option<Duration>,
    pub(super) forwarded_for: Option<&'l str>,
    pub(super) user_agent: Option<&'l str>,
    pub(super) request_id: Option<&'l str>,
    pub(super) authority: Option<&'l str>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) cluster: Option<String>,
    pub(super) upstream_local: Option<SocketAddr>,
    pub(super) called: Option<SocketAddr>,
    pub(super) caller: SocketAddr,
    pub(super) server_name: Option<&'l str>,
    pub(super) route_name: Option<String>,
    pub(super) attempts: u32,
    /// The request's headers, where the format asks for others.
    pub(super) headers: Option<&'l HeaderMap>,
    pub(super) stage: &'static str,
    pub(super) reason: &'static str,
    pub(super) side: Option<&'static str>,
    pub(super) policy: Option<String>,
    pub(super) config_version: Option<&'l str>,
}

impl Line<'_> {
    /// One object: Istio's 24 fields in Istio's order, then ours.
    pub(super) fn json(&self) -> String {
        let address = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let fields = [
            ("start_time", json!(self.start_time())),
            ("route_name", json!(self.route_name)),
            ("method", json!(self.method)),
            ("path", json!(self.path)),
            ("protocol", json!(self.protocol)),
            ("response_code", json!(self.status)),
            ("response_flags", json!(self.flags.to_string())),
            ("response_code_details", json!(self.details)),
            ("connection_termination_details", Value::Null),
            ("upstream_transport_failure_reason", json!(self.failure)),
            ("bytes_received", json!(self.bytes_received)),
            ("bytes_sent", json!(self.bytes_sent)),
            ("duration", json!(self.duration.as_millis() as u64)),
            ("upstream_service_time", json!(self.service_time.map(|time| time.as_millis().to_string()))),
            ("x_forwarded_for", json!(self.forwarded_for)),
            ("user_agent", json!(self.user_agent)),
            ("request_id", json!(self.request_id)),
            ("authority", json!(self.authority)),
            ("upstream_host", json!(address(self.upstream))),
            ("upstream_cluster", json!(self.cluster)),
            ("upstream_local_address", json!(address(self.upstream_local))),
            ("downstream_local_address", json!(address(self.called))),
            ("downstream_remote_address", json!(self.caller.to_string())),
            ("requested_server_name", json!(self.server_name)),
            ("stage", json!(self.stage)),
            ("reason", json!(self.reason)),
            ("side", json!(self.side)),
            ("policy", json!(self.policy)),
            ("config_version", json!(self.config_version)),
        ];
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>()).to_string()
    }

    fn start_time(&self) -> String {
        OffsetDateTime::from(self.started).format(TIME).unwrap_or_default()
    }

    fn request_header(&self, name: &str) -> Option<&str> {
        match name {
            ":method" => self.method,
            ":path" => self.path,
            ":authority" | "host" => self.authority,
            "x-forwarded-for" => self.forwarded_for,
            "user-agent" => self.user_agent,
            "x-request-id" => self.request_id,
            _ => self.headers?.get(name)?.to_str().ok(),
        }
    }

    /// Writes an operator's value; `false` if there is none.
    fn write(&self, operator: &Operator, text: &mut String) -> bool {
        let before = text.len();
        let mut put = |value: Option<&dyn std::fmt::Display>| {
            // Writing to a String cannot fail.
            let _ = value.map(|value| write!(text, "{value}"));
        };
        match operator {
            Operator::StartTime => put(Some(&self.start_time())),
            Operator::Request { name, otherwise } => {
                let found = self.request_header(name).or_else(|| self.request_header(otherwise.as_deref()?));
                put(found.as_ref().map(|found| found as _));
            }
            Operator::ServiceTime => put(self.service_time.map(|time| time.as_millis()).as_ref().map(|time| time as _)),
            Operator::Protocol => put(self.protocol.as_ref().map(|protocol| protocol as _)),
            Operator::ResponseCode => put(Some(&self.status)),
            Operator::ResponseFlags => put(Some(&self.flags)),
            Operator::Details => put(self.details.as_ref().map(|details| details as _)),
            Operator::TransportFailure => put(self.failure.as_ref().map(|failure| failure as _)),
            Operator::BytesReceived => put(Some(&self.bytes_received)),
            Operator::BytesSent => put(Some(&self.bytes_sent)),
            Operator::Duration => put(Some(&self.duration.as_millis())),
            Operator::UpstreamHost => put(self.upstream.as_ref().map(|address| address as _)),
            Operator::UpstreamCluster => put(self.cluster.as_ref().map(|cluster| cluster as _)),
            Operator::UpstreamLocalAddress => put(self.upstream_local.as_ref().map(|address| address as _)),
            Operator::DownstreamLocalAddress => put(self.called.as_ref().map(|address| address as _)),
            Operator::DownstreamRemoteAddress => put(Some(&self.caller)),
            Operator::DownstreamRemoteAddressWithoutPort => put(Some(&self.caller.ip())),
            Operator::ServerName => put(self.server_name.as_ref().map(|name| name as _)),
            Operator::RouteName => put(self.route_name.as_ref().map(|name| name as _)),
            Operator::GrpcStatus => put(self.grpc_status.as_ref().map(|status| status as _)),
            Operator::Attempts => put(Some(&self.attempts)),
            Operator::Nothing => {}
        }
        text.len() > before
    }
}

/// An operator of Envoy's.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    StartTime,
    Request {
        name: String,
        otherwise: Option<String>,
    },
    ServiceTime,
    Protocol,
    ResponseCode,
    ResponseFlags,
    Details,
    TransportFailure,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocalAddress,
    DownstreamLocalAddress,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    ServerName,
    RouteName,
    GrpcStatus,
    Attempts,
    /// One that has nothing to say here.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// With the longest text that it may make.
    Operator(Operator, Option<usize>),
}

/// A text format that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

impl Format {
    /// Reads a format. An operator that we do not know says `-`.
    pub fn read(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal(&mut pieces, &rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal(&mut pieces, "%");
                rest = after;
                continue;
            }
            let Some(end) = rest.find('%') else {
                literal(&mut pieces, "%");
                break;
            };
            let (operator, limit) = split_limit(&rest[..end]);
            pieces.push(Piece::Operator(Operator::read(operator), limit));
            rest = &rest[end + 1..];
        }
        literal(&mut pieces, rest);
        Self(pieces)
    }

    pub(super) fn line(&self, line: &Line<'_>) -> String {
        let mut text = String::with_capacity(512);
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Operator(operator, limit) => {
                    let before = text.len();
                    if !line.write(operator, &mut text) {
                        text.push('-');
                    }
                    if let Some(end) = limit.map(|limit| text.floor_char_boundary(before + limit)).filter(|end| *end < text.len()) {
                        text.truncate(end);
                    }
                }
            }
        }
        // The line's end is written with it.
        text.truncate(text.trim_end_matches('\n').len());
        text
    }
}

fn literal(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Literal(before)) => before.push_str(text),
        _ if text.is_empty() => {}
        _ => pieces.push(Piece::Literal(text.to_owned())),
    }
}

/// `OPERATOR(…):N` is cut after N bytes.
fn split_limit(text: &str) -> (&str, Option<usize>) {
    let from = text.rfind(')').unwrap_or(0);
    match text[from..].rsplit_once(':') {
        Some((_, limit)) if !limit.is_empty() && limit.bytes().all(|byte| byte.is_ascii_digit()) => {
            (&text[..text.len() - limit.len() - 1], limit.parse().ok())
        }
        _ => (text, None),
    }
}

impl Operator {
    fn read(text: &str) -> Self {
        let (name, argument) = text.split_once('(').map_or((text, ""), |(name, rest)| (name, rest.trim_end_matches(')')));
        let argument = argument.to_ascii_lowercase();
        match name {
            "START_TIME" => Self::StartTime,
            "REQ" => match argument.split_once('?') {
                Some((name, otherwise)) => Self::Request { name: name.to_owned(), otherwise: Some(otherwise.to_owned()) },
                None => Self::Request { name: argument, otherwise: None },
            },
            "RESP" if argument == "x-envoy-upstream-service-time" => Self::ServiceTime,
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_FLAGS" => Self::ResponseFlags,
            "RESPONSE_CODE_DETAILS" => Self::Details,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::TransportFailure,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "DURATION" => Self::Duration,
            "UPSTREAM_HOST" => Self::UpstreamHost,
            "UPSTREAM_CLUSTER" => Self::UpstreamCluster,
            "UPSTREAM_LOCAL_ADDRESS" => Self::UpstreamLocalAddress,
            "DOWNSTREAM_LOCAL_ADDRESS" => Self::DownstreamLocalAddress,
            "DOWNSTREAM_REMOTE_ADDRESS" => Self::DownstreamRemoteAddress,
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Self::DownstreamRemoteAddressWithoutPort,
            "REQUESTED_SERVER_NAME" => Self::ServerName,
            "ROUTE_NAME" => Self::RouteName,
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus,
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::Attempts,
            _ => Self::Nothing,
        }
    }
}

/// A text, and what was read of it.
type Read = (Option<Arc<str>>, Rc<Format>);

/// The format that a worker read last: configuration changes it rarely.
#[derive(Debug, Default)]
pub struct Formats {
    last: RefCell<Option<Read>>,
}

impl Formats {
    /// The format of this text; Istio's default without one.
    pub fn of(&self, text: Option<&Arc<str>>) -> Rc<Format> {
        let mut last = self.last.borrow_mut();
        if let Some((_, format)) = last.as_ref().filter(|(known, _)| known.as_ref() == text) {
            return format.clone();
        }
        let format = Rc::new(Format::read(text.map_or(DEFAULT, |text| text)));
        *last = Some((text.cloned(), format.clone()));
        format
    }
}

#[cfg(test)]
mod tests;
