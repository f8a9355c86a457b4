//! The journey of a request: accept → identify → resolve → authorize → route → balance → connect → forward → report.

use std::{convert::Infallible, rc::Rc, sync::Arc};

use http::{HeaderName, Request, Response, Version, request::Parts};
use hyper::body::Incoming;
use tropis_model::{
    request::RequestFacts,
    route::{Host, RouteAction},
    view::View,
};

use crate::{
    body::{Payload, ResponseBody, Upload},
    config::MAX_REQUESTS_PER_WORKER,
    entry::Entry,
    filters::{self, Answer},
    reply::Reply,
    stages::{
        Failure, authorize, forward, identify,
        report::Report,
        route::{self, Routed},
    },
    upgrade::UpgradeSlot,
};

/// What the stages of one request have in common.
pub struct Journey<'j> {
    /// The connection that it came on.
    pub entry: &'j Rc<Entry>,
    /// The view that everything about it is decided on.
    pub view: &'j Arc<View>,
    /// The host that is addressed.
    pub host: &'j Arc<Host>,
    /// What routes and policies may ask about it.
    pub facts: RequestFacts<'j>,
    /// The version of HTTP that the caller speaks.
    pub version: Version,
    /// Where an upgrade is left; `None` where there can be none.
    pub upgrades: Option<&'j Rc<UpgradeSlot>>,
}

/// Headers in which only proxies speak: who called (Envoy's default `SANITIZE`), and which path the access log shows.
const NOT_THE_CALLERS: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-client-cert"), HeaderName::from_static("x-envoy-original-path")];

/// Serves a request that came on the connection of `entry`. It never fails: what goes wrong is answered, and reported.
pub async fn serve(
    entry: Rc<Entry>,
    upgrades: Option<Rc<UpgradeSlot>>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    NOT_THE_CALLERS.iter().for_each(|name| drop(parts.headers.remove(name)));
    let seen = entry.worker.shared.view.seen();
    let mut report = Box::new(Report::new(&entry, &seen, &parts));
    let upload = Upload::new(body, entry.worker.shared.config.http.buffered_body_bytes, &entry.worker.kept_bodies);
    report.uploads(&upload);
    let answered = journey(&entry, seen.view, upgrades.as_ref(), &parts, &upload, &mut report).await;
    let response = match answered {
        Ok(Answered::Response(response)) => response,
        Ok(Answered::Upgraded(response, upgrade)) => {
            if let Some(slot) = &upgrades {
                report.answered(&response);
                slot.leave(upgrade.with(report));
            }
            return Ok(response.map(|()| ResponseBody::unreported()));
        }
        Err(failure) => {
            let reply = failure.reply.clone();
            report.failed(failure);
            reply.into_response(report.is_grpc())
        }
    };
    report.answered(&response);
    Ok(response.map(|payload| ResponseBody::new(payload, report)))
}

/// How a journey ended.
pub enum Answered {
    /// With a response.
    Response(Response<Payload>),
    /// With a response after which the connection is something else.
    Upgraded(Response<()>, forward::Upgrading),
}

/// The journey itself, up to the response's head. `report` is written when the response's body has been sent, however that ends.
async fn journey(
    entry: &Rc<Entry>,
    mut view: Arc<View>,
    upgrades: Option<&Rc<UpgradeSlot>>,
    parts: &Parts,
    upload: &Upload,
    report: &mut Report,
) -> Result<Answered, Failure> {
    let worker = &entry.worker;
    report.places(worker.open_requests.take("requests", MAX_REQUESTS_PER_WORKER)?);
    let named = identify::request(parts, worker.shared.config.path_normalization)?;
    report.named();
    let mut host = entry.host(&view)?;
    if let Some(deadline) = entry.waits_for_caller(&host, &view) {
        Box::pin(entry.wait_for_caller(deadline)).await;
        view = report.view(worker.shared.view.seen());
        host = entry.host(&view)?;
    }
    let host = report.host(host, &view);
    let caller = entry.caller(&view);
    let facts = RequestFacts {
        method: parts.method.as_str(),
        scheme: named.scheme,
        authority: &named.authority,
        path: &named.path.path,
        query: named.path.query,
        headers: &parts.headers,
        port: entry.addressed.port(),
        caller: &caller,
        remote_address: None,
        destination: entry.addressed.address(),
        server_name: None,
        token: None,
    };
    let journey = Journey { entry, view: &view, host: &host, facts, version: parts.version, upgrades };
    let permit = authorize::target(&journey, report)?;
    let routed = report.routed(worker.draw(|draw| route::find(&host, &facts, draw))?);
    let mut exchange = filters::Exchange::new(&journey, &routed, parts);
    let answered = match filters::request(&mut exchange, report).await? {
        Some(answer) => Answered::Response(local(answer, report)),
        None => act(&journey, &routed, permit, &mut exchange, upload, report).await?,
    };
    Ok(match answered {
        Answered::Response(mut response) => {
            filters::response(&exchange, response.headers_mut())?;
            Answered::Response(response)
        }
        Answered::Upgraded(mut response, upgrading) => {
            filters::response(&exchange, response.headers_mut())?;
            Answered::Upgraded(response, upgrading)
        }
    })
}

async fn act(
    journey: &Journey<'_>,
    routed: &Routed,
    permit: authorize::TargetPermit,
    exchange: &mut filters::Exchange<'_>,
    upload: &Upload,
    report: &mut Report,
) -> Result<Answered, Failure> {
    match &routed.route.action {
        RouteAction::Forward(forward) => {
            let head = route::head(&journey.facts, exchange.uri(), routed, forward, exchange.take_headers())?;
            forward::run(journey, forward, routed, permit, head, upload, report).await
        }
        RouteAction::Redirect(redirect) => {
            let reply = route::redirect(redirect, routed, &journey.facts)?;
            Ok(Answered::Response(local(Answer { reply, flags: Default::default(), details: "direct_response" }, report)))
        }
        RouteAction::Respond(direct) => {
            let reply = Reply { body: bytes::Bytes::copy_from_slice(&direct.body), ..Reply::text(direct.status, "") };
            Ok(Answered::Response(local(Answer { reply, flags: Default::default(), details: "direct_response" }, report)))
        }
    }
}

/// An answer that the route or a filter gives.
fn local(answer: Answer, report: &mut Report) -> Response<Payload> {
    report.answered_here(answer.flags, answer.details);
    answer.reply.into_response(report.is_grpc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_under_way_is_small() {
        fn bytes<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        // What is rare, as opening a connection, has its own box.
        assert!(bytes(serve) <= 4608, "{}", bytes(serve));
    }
}
