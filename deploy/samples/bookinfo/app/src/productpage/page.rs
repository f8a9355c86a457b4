//! The page: one HTML document with its style and its picture inside, rendered on the server, light or dark as the reader's system
//! is. Whatever came over the network is escaped on its way in.

use std::fmt::Write;

use super::{Gathered, Page};
use crate::call::{CallError, Called};
use crate::catalogue::{Details, Rating, Review, Reviews, SUMMARY, TITLE};

const STYLE: &str = include_str!("page.css");
const COVER: &str = include_str!("cover.svg");
const MARK: &str = r#"<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linejoin="round" aria-hidden="true"><path d="M12 6.5C9.8 4.9 6.6 4.3 3 4.5v13.4c3.6-.2 6.8.4 9 2 2.2-1.6 5.4-2.2 9-2V4.5c-3.6-.2-6.8.4-9 2zm0 0v13.4"/></svg>"#;
/// Most stars a reader can give.
const STARS: u8 = 5;

impl Page<'_> {
    pub(crate) fn render(&self, gathered: &Gathered) -> String {
        let mut page = String::with_capacity(24 * 1024);
        page.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Simple Bookstore App</title>\n");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        page.push_str("<link rel=\"icon\" href=\"data:,\">\n");
        add(&mut page, format_args!("<style>\n{STYLE}</style>\n</head>\n<body>\n"));
        self.bar(&mut page);
        page.push_str("<main>\n");
        book(&mut page, &gathered.details);
        reviews(&mut page, &gathered.reviews);
        page.push_str("</main>\n");
        self.journey(&mut page, gathered);
        page.push_str("</body>\n</html>\n");
        page
    }

    fn bar(&self, page: &mut String) {
        add(page, format_args!("<header class=\"bar\"><div><a class=\"brand\" href=\"/productpage\">{MARK}Simple Bookstore App</a>\n"));
        match self.user {
            Some(user) => {
                add(page, format_args!("<form method=\"post\" action=\"/logout\"><span>Reading as <b>{}</b></span>", Escaped(user)));
                if self.signed_in {
                    page.push_str("<button class=\"quiet\">Sign out</button>");
                }
                page.push_str("</form>");
            }
            None => page.push_str(
                "<form method=\"post\" action=\"/login\"><input name=\"username\" aria-label=\"User name\" placeholder=\"User name\" \
                 maxlength=\"32\" pattern=\"[A-Za-z0-9._\\-]+\" required autocomplete=\"username\"><button>Sign in</button></form>",
            ),
        }
        page.push_str("</div></header>\n");
    }

    /// Who talked to whom: each pod that took part, and whom it saw calling.
    fn journey(&self, page: &mut String, gathered: &Gathered) {
        page.push_str("<footer><div class=\"scroll\"><table><caption>Who made this page</caption>");
        page.push_str("<thead><tr><th>pod</th><th>called by</th><th>at</th><th>took</th></tr></thead>\n<tbody>");
        hop(page, self.pod, &self.caller.ip().to_string(), "", "");
        called(page, &gathered.details);
        called(page, &gathered.reviews);
        page.push_str("</tbody></table></div></footer>\n");
    }
}

fn book(page: &mut String, details: &Result<Called<Details>, CallError>) {
    add(page, format_args!("<article class=\"book\">\n{COVER}<div>\n<h1>{}</h1>\n", Escaped(TITLE)));
    if let Ok(Called { value, .. }) = details {
        add(page, format_args!("<p class=\"by\">by {}</p>\n", Escaped(&value.author)));
    }
    add(page, format_args!("<p class=\"blurb\">{}</p>\n", Escaped(SUMMARY)));
    match details {
        Ok(Called { value, .. }) => {
            let facts = [
                ("Type", value.binding.clone()),
                ("Pages", value.pages.to_string()),
                ("Published", value.year.to_string()),
                ("Publisher", value.publisher.clone()),
                ("Language", value.language.clone()),
                ("ISBN-10", value.isbn_10.clone()),
                ("ISBN-13", value.isbn_13.clone()),
            ];
            page.push_str("<dl>");
            for (name, fact) in facts {
                add(page, format_args!("<div><dt>{name}</dt><dd>{}</dd></div>", Escaped(&fact)));
            }
            page.push_str("</dl>\n");
        }
        Err(failure) => note(page, "The book's details are missing for the moment.", "details", failure),
    }
    page.push_str("</div></article>\n");
}

fn reviews(page: &mut String, called: &Result<Called<Reviews>, CallError>) {
    page.push_str("<section aria-labelledby=\"reviews\"><div class=\"heading\"><h2 id=\"reviews\">What readers say</h2>");
    match called {
        Ok(Called { value, .. }) => {
            add(
                page,
                format_args!("<span class=\"pod\" title=\"The pod that served these reviews\">{}</span></div>\n", Escaped(&value.podname)),
            );
            page.push_str("<ul class=\"reviews\">\n");
            for one in &value.reviews {
                review(page, one);
            }
            page.push_str("</ul>\n");
        }
        Err(failure) => {
            page.push_str("</div>\n");
            note(page, "The readers' words are missing for the moment.", "reviews", failure);
        }
    }
    page.push_str("</section>\n");
}

fn review(page: &mut String, review: &Review) {
    page.push_str("<li class=\"review\">");
    match &review.rating {
        None => {}
        Some(Rating::Stars { stars, color }) => stars_of(page, (*stars).min(STARS), color),
        Some(Rating::Unavailable { error }) => add(page, format_args!("<span class=\"missing\">{}</span>", Escaped(error))),
    }
    add(page, format_args!("<p>{}</p><cite>{}</cite></li>\n", Escaped(&review.text), Escaped(&review.reviewer)));
}

fn stars_of(page: &mut String, stars: u8, color: &str) {
    // The colour chooses one of our classes; it is never copied into the page.
    let class = if color == "red" { "stars red" } else { "stars" };
    add(page, format_args!("<span class=\"{class}\" role=\"img\" aria-label=\"{stars} of {STARS} stars\"><span class=\"on\">"));
    (0..stars).for_each(|_| page.push('★'));
    page.push_str("</span>");
    (stars..STARS).for_each(|_| page.push('★'));
    page.push_str("</span>");
}

fn note(page: &mut String, headline: &str, role: &str, failure: &CallError) {
    let reason = failure.kindly();
    add(page, format_args!("<p class=\"note\"><strong>{headline}</strong>We asked <code>{role}</code>, but {}.", Escaped(&reason)));
    page.push_str(" Please try again in a little while.</p>\n");
}

/// Rows for one call: the pod that answered, then those that it asked.
fn called<T>(page: &mut String, called: &Result<Called<T>, CallError>) {
    let Ok(call) = called else { return };
    let (at, took) = (call.peer.to_string(), format!("{:.1} ms", call.took.as_secs_f64() * 1000.0));
    for (index, entry) in call.served_by.split(", ").filter(|entry| !entry.is_empty()).take(8).enumerate() {
        let (pod, saw) = entry.split_once(";saw=").unwrap_or((entry, ""));
        if index == 0 { hop(page, pod, saw, &at, &took) } else { hop(page, &format!("└ {pod}"), saw, "", "") }
    }
}

fn hop(page: &mut String, pod: &str, saw: &str, at: &str, took: &str) {
    let [pod, saw, at, took] = [pod, saw, at, took].map(Escaped);
    add(page, format_args!("<tr><td>{pod}</td><td>{saw}</td><td>{at}</td><td>{took}</td></tr>\n"));
}

fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing to a String does not fail");
}

/// Text as HTML shows it, also within a quoted attribute.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalogue;

    fn page(reviews: Result<Called<Reviews>, CallError>) -> String {
        let details = Err(CallError::TooSlow { address: "details:9080".to_owned(), limit: Duration::from_secs(3) });
        let page = Page { pod: "productpage-v1-x", caller: "10.244.1.9:4000".parse().unwrap(), user: Some("<jason>"), signed_in: false };
        page.render(&Gathered { details, reviews })
    }

    fn with_rating(rating: Option<Rating>) -> Result<Called<Reviews>, CallError> {
        let review = Review { reviewer: "R&D".to_owned(), text: "<script>alert('x')</script>".to_owned(), rating };
        let value =
            Reviews { id: "0".to_owned(), podname: "reviews-v3-y".to_owned(), clustername: "null".to_owned(), reviews: vec![review] };
        let served_by = "reviews-v3-y;saw=10.244.1.4, ratings-v1-z;saw=10.244.2.7".to_owned();
        Ok(Called { value, peer: "10.96.0.9:9080".parse().unwrap(), served_by, took: Duration::from_millis(3) })
    }

    #[test]
    fn shows_stars_in_the_colour_of_the_version() {
        let red = page(with_rating(Some(Rating::Stars { stars: 4, color: "red".to_owned() })));
        assert!(red.contains(r#"<span class="stars red" role="img" aria-label="4 of 5 stars"><span class="on">★★★★</span>★</span>"#));
        let black = page(with_rating(Some(Rating::Stars { stars: 200, color: "\" onload=".to_owned() })));
        assert!(black.contains(r#"class="stars" role="img" aria-label="5 of 5 stars""#) && !black.contains("onload"));
        assert!(!page(with_rating(None)).contains("role=\"img\" aria-label=\"5 of"));
    }

    #[test]
    fn escapes_what_came_over_the_network() {
        let page = page(with_rating(Some(Rating::Unavailable { error: "<b>".to_owned() })));
        assert!(
            page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") && page.contains("R&amp;D") && page.contains("&lt;jason&gt;")
        );
        assert!(!page.contains("<script") && !page.contains("<b>&lt;b&gt;</b>x") && page.contains("&lt;b&gt;"));
    }

    #[test]
    fn tells_kindly_what_is_missing_and_shows_the_rest() {
        let page = page(with_rating(None));
        assert!(page.contains("We asked <code>details</code>, but it took too long to answer."));
        assert!(page.contains("reviews-v3-y") && page.contains("<title>Simple Bookstore App</title>"));
    }

    #[test]
    fn names_every_pod_that_took_part() {
        let page = page(with_rating(None));
        for row in [
            "<td>productpage-v1-x</td><td>10.244.1.9</td>",
            "<td>reviews-v3-y</td><td>10.244.1.4</td><td>10.96.0.9:9080</td><td>3.0 ms</td>",
            "<td>└ ratings-v1-z</td><td>10.244.2.7</td>",
        ] {
            assert!(page.contains(row), "{row}");
        }
    }

    #[test]
    fn needs_nothing_from_elsewhere() {
        // A reference into the picture itself is fine.
        let page = page(with_rating(None)).replace("url(#", "(#");
        for foreign in ["http://", "https://", "@import", "url(", "<script"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(catalogue::products()[0].title, TITLE);
    }
}
