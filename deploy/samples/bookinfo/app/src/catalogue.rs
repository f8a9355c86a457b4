//! What the shop sells and what readers think of it: one book, made up, like its readers. The shapes of the JSON answers are here
//! too, because each is written by one role and read by another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Title on the page and in the product list.
pub(crate) const TITLE: &str = "The Cartographer of Small Hours";
/// The blurb.
pub(crate) const SUMMARY: &str = "On an island that is mapped anew each night, Runa Vest draws the streets as they were yesterday. \
When a harbour turns up that nobody remembers building, her neighbours want it gone from the map by morning. She would rather know who moors there.";

/// A product in the list of `/api/v1/products`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) id: u32,
    pub(crate) title: String,
    #[serde(rename = "descriptionHtml")]
    pub(crate) description_html: String,
}

pub(crate) fn products() -> Vec<Product> {
    vec![Product { id: 0, title: TITLE.to_owned(), description_html: SUMMARY.to_owned() }]
}

/// `/details/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Details {
    pub(crate) id: u32,
    pub(crate) author: String,
    pub(crate) year: u32,
    #[serde(rename = "type")]
    pub(crate) binding: String,
    pub(crate) pages: u32,
    pub(crate) publisher: String,
    pub(crate) language: String,
    #[serde(rename = "ISBN-10")]
    pub(crate) isbn_10: String,
    #[serde(rename = "ISBN-13")]
    pub(crate) isbn_13: String,
}

pub(crate) fn details(id: u32) -> Details {
    Details {
        id,
        author: "Ines Halvorsen".to_owned(),
        year: 2019,
        binding: "paperback".to_owned(),
        pages: 312,
        publisher: "Harbour & Quill".to_owned(),
        language: "English".to_owned(),
        isbn_10: "0123456789".to_owned(),
        isbn_13: "978-0123456786".to_owned(),
    }
}

/// `/reviews/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reviews {
    pub(crate) id: String,
    pub(crate) podname: String,
    pub(crate) clustername: String,
    pub(crate) reviews: Vec<Review>,
}

/// One reader's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Review {
    pub(crate) reviewer: String,
    pub(crate) text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rating: Option<Rating>,
}

/// Stars, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Rating {
    Stars { stars: u8, color: String },
    Unavailable { error: String },
}

/// Who wrote what.
pub(crate) const WORDS: [(&str, &str); 3] = [
    (
        "Mirela",
        "I read it in one sitting and then walked home by a different street. The chapter in the tide office is the best hour I spent this year.",
    ),
    (
        "Tobias",
        "Slow to leave the quay, but once the second map is unrolled it does not let go. I only wish the neighbours had been given more to say.",
    ),
    ("Adaeze", "A gentle mystery that trusts its reader. My daughter has already drawn the harbour on our kitchen wall, in ink."),
];

/// `/ratings/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ratings {
    pub(crate) id: u32,
    pub(crate) ratings: BTreeMap<String, u8>,
}

pub(crate) fn ratings(id: u32) -> Ratings {
    let stars = [("Mirela", 5), ("Tobias", 4), ("Adaeze", 5)];
    Ratings { id, ratings: stars.into_iter().map(|(reader, stars)| (reader.to_owned(), stars)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_has_stars_between_one_and_five() {
        let ratings = ratings(0).ratings;
        assert_eq!(ratings.len(), WORDS.len());
        assert!(WORDS.iter().all(|(reader, _)| ratings.get(*reader).is_some_and(|stars| (1..=5).contains(stars))));
    }

    #[test]
    fn a_rating_is_stars_or_an_error() {
        let stars: Rating = serde_json::from_str(r#"{"stars":4,"color":"red"}"#).expect("stars");
        assert_eq!(stars, Rating::Stars { stars: 4, color: "red".to_owned() });
        let error: Rating = serde_json::from_str(r#"{"error":"gone"}"#).expect("an error");
        assert_eq!(error, Rating::Unavailable { error: "gone".to_owned() });
    }
}
