//! Header changes of the route and of the destination that was drawn: on requests the route's first, on responses the destination's.

use http::HeaderMap;
use tropis_model::{
    rewrite,
    route::{HeaderChanges, HeaderOperations},
};

use super::Exchange;
use crate::stages::route::RouteError;

pub(super) fn request(exchange: &mut Exchange<'_>) -> Result<(), RouteError> {
    let changes = [Some(&exchange.route().headers), exchange.routed.destination().map(|destination| &destination.headers)];
    let changes: [Option<&HeaderOperations>; 2] =
        changes.map(|changes| changes.map(|changes| &changes.request).filter(|one| !is_empty(one)));
    if changes.iter().all(Option::is_none) {
        return Ok(());
    }
    let mut headers = exchange.parts.headers.clone();
    for operations in changes.into_iter().flatten() {
        let authority = rewrite::headers(operations, &mut headers, rewrite::literal).map_err(RouteError::Header)?;
        exchange.authority = authority.or(exchange.authority.take());
    }
    exchange.changed = Some(headers);
    Ok(())
}

pub(super) fn response(exchange: &Exchange<'_>, response: &mut HeaderMap) -> Result<(), RouteError> {
    let of = |changes: &HeaderChanges, response: &mut HeaderMap| match is_empty(&changes.response) {
        true => Ok(()),
        false => rewrite::headers(&changes.response, response, rewrite::literal).map(|_| ()).map_err(RouteError::Header),
    };
    if let Some(destination) = exchange.routed.destination() {
        of(&destination.headers, response)?;
    }
    of(&exchange.route().headers, response)
}

fn is_empty(operations: &HeaderOperations) -> bool {
    operations.remove.is_empty() && operations.set.is_empty() && operations.add.is_empty()
}
