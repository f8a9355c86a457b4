//! The filters that a request passes between routing and balancing, and a response on its way back. [`ORDER`] is their order.

mod cors;
mod fault;
mod headers;

use http::{HeaderMap, Uri, request::Parts};
use tropis_model::route::HttpRoute;

use crate::{
    reply::Reply,
    request::Journey,
    stages::{
        report::{Report, flags::Flags},
        route::{RouteError, Routed},
    },
};

/// The order in which a request passes the filters; a response passes them the other way round.
pub const ORDER: [Filter; 3] = [Filter::Fault, Filter::Cors, Filter::Headers];

/// A filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// `fault.rs`
    Fault,
    /// `cors.rs`
    Cors,
    /// `headers.rs`
    Headers,
}

/// An answer that is given here, in place of the endpoint's.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub reply: Reply,
    /// Envoy's flags.
    pub flags: Flags,
    /// Envoy's `response_code_details`.
    pub details: &'static str,
}

/// A request on its way through the filters.
pub struct Exchange<'e> {
    journey: &'e Journey<'e>,
    routed: &'e Routed,
    parts: &'e Parts,
    /// The request's headers as they will be sent, once they have been changed.
    changed: Option<HeaderMap>,
    /// The authority that header changes name.
    authority: Option<String>,
    /// The caller's origin, if it is let in.
    allowed_origin: Option<http::HeaderValue>,
}

impl<'e> Exchange<'e> {
    /// A request that took a route.
    pub fn new(journey: &'e Journey<'e>, routed: &'e Routed, parts: &'e Parts) -> Self {
        Self { journey, routed, parts, changed: None, authority: None, allowed_origin: None }
    }

    fn route(&self) -> &'e HttpRoute {
        &self.routed.route
    }

    /// The request's headers to send, where they were changed, and the authority that they name.
    pub fn take_headers(&mut self) -> (Option<HeaderMap>, Option<String>) {
        (self.changed.take(), self.authority.take())
    }

    /// The target as it came.
    pub fn uri(&self) -> &'e Uri {
        &self.parts.uri
    }
}

/// Passes a request through the filters, until one answers it, or fails.
pub async fn request(exchange: &mut Exchange<'_>, report: &mut Report) -> Result<Option<Answer>, RouteError> {
    for filter in ORDER {
        let answer = match filter {
            Filter::Fault => fault::request(exchange, report).await,
            Filter::Cors => cors::request(exchange),
            Filter::Headers => {
                headers::request(exchange)?;
                None
            }
        };
        if answer.is_some() {
            return Ok(answer);
        }
    }
    Ok(None)
}

/// Passes a response through the filters.
pub fn response(exchange: &Exchange<'_>, response: &mut HeaderMap) -> Result<(), RouteError> {
    for filter in ORDER.into_iter().rev() {
        match filter {
            Filter::Headers => headers::response(exchange, response)?,
            Filter::Cors => cors::response(exchange, response),
            Filter::Fault => {}
        }
    }
    Ok(())
}
