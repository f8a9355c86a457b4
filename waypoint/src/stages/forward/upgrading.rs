//! A request that asks to change the protocol: one try, by HTTP/1.1, whose connection becomes the caller's with the endpoint's 101.

use http::{Response, StatusCode};
use std::time::Duration;
use tokio::sync::oneshot;

use super::{
    Tries,
    attempt::{Attempt, Received},
    deadline::Deadline,
};
use crate::{
    request::Answered,
    stages::{Failure, report::Report},
    upgrade::{Asked, Upgrade},
    upstream::{connections::HandedOver, counts::Held, pools::Active},
};

/// An endpoint that agreed to change the protocol.
pub struct Upgrading {
    upstream: oneshot::Receiver<HandedOver>,
    asked: Box<Asked>,
    held: (Held, Active),
}

impl Upgrading {
    /// With the report of its request, this is what the caller's connection goes on with.
    pub fn with(self, report: Box<Report>) -> Upgrade {
        Upgrade { upstream: self.upstream, asked: self.asked, report, held: self.held }
    }
}

/// Sends the request; 101 hands the connection over, anything else is an ordinary answer.
pub(super) async fn run(tries: &Tries<'_>, timeout: Option<Duration>, report: &mut Report) -> Result<Answered, Failure> {
    let mut deadline = timeout.map(|limit| Deadline::new(limit, tries.upload.handle()));
    match (Attempt { tries, number: 1 }).run(deadline.as_mut(), report).await {
        Ok(Received { response, handed_over: Some(upstream), held, chosen, took, .. })
            if response.status() == StatusCode::SWITCHING_PROTOCOLS =>
        {
            report.forwarded(took);
            let asked = Asked::of(tries, &chosen);
            let upgrading = Upgrading { upstream, asked, held: (held, chosen.active) };
            Ok(Answered::Upgraded(Response::from_parts(response.into_parts().0, ()), upgrading))
        }
        ended => tries.end(ended, deadline, report).map(Answered::Response),
    }
}
