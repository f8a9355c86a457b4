//! Header changes of the route and of the destination that was drawn: on requests the route's first, on responses the destination's.

use http::HeaderMap;
use tropis_model::{rewrite, route::HeaderChanges};

use super::Exchange;
use crate::stages::route::RouteError;

pub(super) fn request(exchange: &mut Exchange<'_>) -> Result<(), RouteError> {
    let changed = rewrite::request_headers(exchange.route(), exchange.routed.destination(), &exchange.parts.headers);
    (exchange.changed, exchange.authority) = changed.map_err(RouteError::Header)?;
    Ok(())
}

pub(super) fn response(exchange: &Exchange<'_>, response: &mut HeaderMap) -> Result<(), RouteError> {
    let of = |changes: &HeaderChanges, response: &mut HeaderMap| match changes.response.is_empty() {
        true => Ok(()),
        false => rewrite::headers(&changes.response, response, rewrite::literal).map(|_| ()).map_err(RouteError::Header),
    };
    if let Some(destination) = exchange.routed.destination() {
        of(&destination.headers, response)?;
    }
    of(&exchange.route().headers, response)
}
