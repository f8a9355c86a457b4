//! Route: which rule a request takes, which of its destinations, and what it changes in the request's head. The decisions are
//! `model::matching`'s, `model::pick`'s and `model::rewrite`'s.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::PathAndQuery};
use thiserror::Error;
use tropis_model::{
    matching,
    outcome::{Reason, Side},
    pick,
    request::{AmbiguousPath, RequestFacts},
    resolve::Draw,
    rewrite::{self, InvalidHeader},
    route::{Destination, Forward, Host, HttpRoute, Redirect, RequestMatch, RouteAction},
};

use crate::reply::Reply;

const LOCATION: HeaderName = http::header::LOCATION;
/// What the path was before it was rewritten.
pub(crate) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// The route of a request.
#[derive(Debug, Clone)]
pub struct Routed {
    /// The rule.
    pub route: Arc<HttpRoute>,
    /// Which of its matches hit; `None` if it has no conditions.
    matched: Option<usize>,
    /// Which of its destinations was drawn; `None` if it has none to draw.
    destination: Option<usize>,
}

impl Routed {
    /// The match that hit.
    pub fn matched(&self) -> Option<&RequestMatch> {
        self.matched.and_then(|at| self.route.matches.get(at))
    }

    /// The destination that was drawn.
    pub fn destination(&self) -> Option<&Destination> {
        match &self.route.action {
            RouteAction::Forward(forward) => forward.destinations.get(self.destination?),
            RouteAction::Redirect(_) | RouteAction::Respond(_) => None,
        }
    }
}

/// There is no route, or it changes the request into what is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RouteError {
    /// No rule matches.
    #[error("no route matches")]
    NotFound,
    /// The new path can be read in two ways.
    #[error("the rewritten path is ambiguous")]
    Rewrite(#[source] AmbiguousPath),
    /// A header that is no header.
    #[error("a header cannot be set")]
    Header(#[source] InvalidHeader),
    /// An authority or a path that HTTP does not allow.
    #[error("{found:?} cannot be sent")]
    Authority {
        /// What was to be sent.
        found: String,
    },
}

impl RouteError {
    /// The stable reason and whose fault it is.
    pub fn reason(&self) -> (Reason, Side) {
        match self {
            Self::NotFound => (Reason::RouteNotFound, Side::Mesh),
            Self::Rewrite(_) => (Reason::BadRequest, Side::Downstream),
            Self::Header(_) | Self::Authority { .. } => (Reason::BadRequest, Side::Mesh),
        }
    }
}

/// Finds the route, and draws its destination.
pub fn find(host: &Host, facts: &RequestFacts<'_>, draw: &mut Draw) -> Result<Routed, RouteError> {
    let found = matching::route(host, facts.port, facts).ok_or(RouteError::NotFound)?;
    let matched = found.matched.and_then(|matched| found.route.matches.iter().position(|one| std::ptr::eq(one, matched)));
    let destination = match &found.route.action {
        RouteAction::Forward(forward) => {
            let drawn = pick::destination(&forward.destinations, draw);
            drawn.and_then(|drawn| forward.destinations.iter().position(|one| std::ptr::eq(one, drawn)))
        }
        RouteAction::Redirect(_) | RouteAction::Respond(_) => None,
    };
    Ok(Routed { route: found.route.clone(), matched, destination })
}

/// The head of a request as it is sent on, but for what differs with each try.
#[derive(Debug, Clone)]
pub struct Head {
    /// Path and query.
    pub target: PathAndQuery,
    /// The authority.
    pub authority: HeaderValue,
    /// The other headers, where they differ from those that came.
    pub changed: Option<HeaderMap>,
    /// The path and query that were rewritten.
    pub original_path: Option<HeaderValue>,
}

/// What the route makes of the request's head: path and authority rewritten. Its headers have been changed by the filter already, which
/// says whether they named another authority.
pub fn head(
    facts: &RequestFacts<'_>,
    came: &Uri,
    routed: &Routed,
    forward: &Forward,
    (changed, authority): (Option<HeaderMap>, Option<String>),
) -> Result<Head, RouteError> {
    let unsendable = |found: &str| RouteError::Authority { found: found.to_owned() };
    let rewritten = match forward.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
        None => None,
        Some(path) => Some(rewrite::path(path, routed.matched(), facts.path, facts.query).map_err(RouteError::Rewrite)?),
    };
    let original = || match facts.query {
        Some(query) => Cow::Owned(format!("{}?{query}", facts.path)),
        None => Cow::Borrowed(facts.path),
    };
    let original_path = rewritten.as_ref().and_then(|_| HeaderValue::from_str(&original()).ok());
    // Mostly it goes out as it came.
    let same = came.path_and_query().filter(|came| rewritten.is_none() && came.path() == facts.path && came.query() == facts.query);
    let target = match same {
        Some(same) => same.clone(),
        None => {
            let text = rewritten.map_or_else(original, Cow::Owned);
            PathAndQuery::try_from(text.as_ref()).map_err(|_| unsendable(&text))?
        }
    };
    let authority = rewrite::authority(forward, authority.as_deref()).unwrap_or(facts.authority);
    let same = facts.headers.get(header::HOST).filter(|host| host.as_bytes() == authority.as_bytes());
    let authority = same.cloned().map_or_else(|| HeaderValue::from_str(authority).map_err(|_| unsendable(authority)), Ok)?;
    Ok(Head { target, authority, changed, original_path })
}

/// The answer that sends the caller elsewhere.
pub fn redirect(redirect: &Redirect, routed: &Routed, facts: &RequestFacts<'_>) -> Result<Reply, RouteError> {
    let location = rewrite::location(redirect, routed.matched(), facts).map_err(RouteError::Rewrite)?;
    let value = HeaderValue::from_str(&location).map_err(|_| RouteError::Authority { found: location })?;
    Ok(Reply::text(redirect.status, "").with(LOCATION, value))
}
