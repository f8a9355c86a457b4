//! The productpage role: asks details and reviews at the same time, and shows what came, or kindly that it did not.
//! `productpage/page.rs` is the page, `productpage/session.rs` who is looking at it.

mod page;
pub(crate) mod session;

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;

use crate::answer::{self, Answer};
use crate::call::{self, CallError, Called};
use crate::catalogue::{Details, Ratings, Reviews};
use crate::forward::Context;
use crate::routes::product_id;

/// Longest wait for details.
const DETAILS_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait for reviews, which wait for ratings themselves.
const REVIEWS_LIMIT: Duration = Duration::from_secs(6);

/// Where the other roles are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upstreams<'a> {
    pub(crate) details: &'a str,
    pub(crate) reviews: &'a str,
}

/// What the other roles answered.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) details: Result<Called<Details>, CallError>,
    pub(crate) reviews: Result<Called<Reviews>, CallError>,
}

/// Who shows the page to whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    pub(crate) pod: &'a str,
    pub(crate) caller: SocketAddr,
    pub(crate) user: Option<&'a str>,
    pub(crate) signed_in: bool,
}

impl Upstreams<'_> {
    pub(crate) async fn gather(&self, id: u32, context: &Context) -> Gathered {
        let (details, reviews) = tokio::join!(self.details(id, context), self.reviews(id, context));
        Gathered { details: logged(details), reviews: logged(reviews) }
    }

    /// `/api/v1/products/ID` and `/api/v1/products/ID/reviews`, for scripts; `…/ratings` are the stars among the reviews.
    pub(crate) async fn api(&self, path: &str, context: &Context) -> Answer {
        let (path, part) = match path.strip_prefix("/api/v1/products/").and_then(|rest| rest.split_once('/')) {
            Some((id, part)) => (format!("/api/v1/products/{id}"), part),
            None => (path.to_owned(), ""),
        };
        let id = match product_id(&path, "/api/v1/products/") {
            Ok(id) => id,
            Err(problem) => return problem.answer(),
        };
        match part {
            "" => passed_on(logged(self.details(id, context).await)),
            "reviews" => passed_on(logged(self.reviews(id, context).await)),
            "ratings" => passed_on(logged(self.reviews(id, context).await).map(|called| called.map(|reviews| stars(id, reviews)))),
            _ => answer::error(StatusCode::NOT_FOUND, "no such path"),
        }
    }

    async fn details(&self, id: u32, context: &Context) -> Result<Called<Details>, CallError> {
        call::get(self.details, &format!("/details/{id}"), context, DETAILS_LIMIT).await
    }

    async fn reviews(&self, id: u32, context: &Context) -> Result<Called<Reviews>, CallError> {
        call::get(self.reviews, &format!("/reviews/{id}"), context, REVIEWS_LIMIT).await
    }
}

fn stars(id: u32, reviews: Reviews) -> Ratings {
    use crate::catalogue::Rating;
    let stars = reviews.reviews.into_iter().filter_map(|review| match review.rating {
        Some(Rating::Stars { stars, .. }) => Some((review.reviewer, stars)),
        _ => None,
    });
    Ratings { id, ratings: stars.collect() }
}

fn passed_on<T: serde::Serialize>(called: Result<Called<T>, CallError>) -> Answer {
    match called {
        Ok(called) => answer::json(StatusCode::OK, &called.value),
        Err(failure) => answer::error(StatusCode::SERVICE_UNAVAILABLE, &format!("not available right now: {}", failure.kindly())),
    }
}

/// The page shows kind words; the log gets the whole truth.
fn logged<T>(called: Result<Called<T>, CallError>) -> Result<Called<T>, CallError> {
    called.inspect_err(|failure| eprintln!("bookinfo: {}", failure.chain()))
}
