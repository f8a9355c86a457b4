//! The reviews role: v1 has words only; v2 and v3 ask ratings for stars, black and red. Without ratings the words still come.

use std::time::Duration;

use crate::Version;
use crate::call::{self, CallError, Called};
use crate::catalogue::{Rating, Ratings, Review, Reviews, WORDS};
use crate::forward::Context;

/// Longest wait for ratings; shorter than productpage waits for us.
const RATINGS_LIMIT: Duration = Duration::from_millis(2500);

/// The reviews of a book, and which pods took part besides our own.
pub(crate) struct Gathered {
    pub(crate) reviews: Reviews,
    pub(crate) served_by: String,
    pub(crate) failure: Option<CallError>,
}

pub(crate) async fn gather(id: u32, version: Version, ratings_at: &str, context: &Context, pod: &str, cluster: &str) -> Gathered {
    let called = match version {
        Version::V1 => None,
        Version::V2 | Version::V3 => Some(call::get::<Ratings>(ratings_at, &format!("/ratings/{id}"), context, RATINGS_LIMIT).await),
    };
    let color = if version == Version::V3 { "red" } else { "black" };
    let rating = |reader: &str| match &called {
        None => None,
        Some(Ok(called)) => called.value.ratings.get(reader).map(|stars| Rating::Stars { stars: (*stars).min(5), color: color.to_owned() }),
        Some(Err(_)) => Some(Rating::Unavailable { error: "Ratings are not available right now".to_owned() }),
    };
    let words =
        WORDS.iter().map(|(reader, text)| Review { reviewer: (*reader).to_owned(), text: (*text).to_owned(), rating: rating(reader) });
    let reviews = Reviews { id: id.to_string(), podname: pod.to_owned(), clustername: cluster.to_owned(), reviews: words.collect() };
    match called {
        None => Gathered { reviews, served_by: String::new(), failure: None },
        Some(Ok(Called { served_by, .. })) => Gathered { reviews, served_by, failure: None },
        Some(Err(failure)) => Gathered { reviews, served_by: String::new(), failure: Some(failure) },
    }
}
