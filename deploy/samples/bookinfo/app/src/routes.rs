//! What each role answers to which path. Start reading at [`Shop::answer`].

use std::net::SocketAddr;

use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::json;

use crate::answer::{self, Answer, SERVED_BY};
use crate::forward::Context;
use crate::productpage::{self, session};
use crate::{Role, Settings, catalogue, reviews};

/// Largest form of a sign-in.
const FORM_BYTES: usize = 4096;

/// Who sent a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) address: SocketAddr,
}

/// One role of the bookstore.
#[derive(Debug)]
pub(crate) struct Shop {
    settings: Settings,
    pod: String,
}

impl Shop {
    pub(crate) fn new(settings: Settings) -> Self {
        let pod = settings.pod();
        Self { settings, pod }
    }

    pub(crate) fn role(&self) -> &'static str {
        self.settings.role.name()
    }

    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }

    /// Answers a request; every answer names our pod and the caller's address as we saw it.
    pub(crate) async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        let mut answer = match request.uri().path() {
            "/health" => answer::json(StatusCode::OK, &json!({ "status": format!("{} is healthy", self.role()) })),
            _ => match self.settings.role {
                Role::Productpage => self.productpage(request, caller).await,
                _ if request.method() != Method::GET => answer::error(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood here"),
                Role::Details => self.details(request.uri().path()),
                Role::Reviews => self.reviews(&request).await,
                Role::Ratings => self.ratings(request.uri().path()),
            },
        };
        let behind = answer.headers().get(SERVED_BY).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let separator = if behind.is_empty() { "" } else { ", " };
        let served_by = format!("{};saw={}{separator}{behind}", self.pod, caller.address.ip());
        if let Ok(value) = HeaderValue::from_str(&served_by) {
            answer.headers_mut().insert(SERVED_BY, value);
        }
        answer
    }

    fn details(&self, path: &str) -> Answer {
        with_id(path, "/details/", |id| answer::json(StatusCode::OK, &catalogue::details(id)))
    }

    fn ratings(&self, path: &str) -> Answer {
        with_id(path, "/ratings/", |id| answer::json(StatusCode::OK, &catalogue::ratings(id)))
    }

    async fn reviews(&self, request: &Request<Incoming>) -> Answer {
        let id = match product_id(request.uri().path(), "/reviews/") {
            Ok(id) => id,
            Err(problem) => return problem.answer(),
        };
        let Settings { service_version, ratings, cluster_name, .. } = &self.settings;
        let context = Context::of(request.headers());
        let gathered = reviews::gather(id, *service_version, ratings, &context, &self.pod, cluster_name).await;
        if let Some(failure) = &gathered.failure {
            eprintln!("bookinfo: {}", failure.chain());
        }
        let mut answer = answer::json(StatusCode::OK, &gathered.reviews);
        answer.headers_mut().insert(answer::VERSION, HeaderValue::from_static(service_version.name()));
        if let Ok(value) = HeaderValue::from_str(&gathered.served_by) {
            answer.headers_mut().insert(SERVED_BY, value);
        }
        answer
    }

    async fn productpage(&self, request: Request<Incoming>, caller: Caller) -> Answer {
        let mut context = Context::of(request.headers());
        let signed_in = session::user(request.headers());
        if let Some(user) = &signed_in {
            context = context.with_user(user);
        }
        let upstreams = productpage::Upstreams { details: &self.settings.details, reviews: &self.settings.reviews };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/" | "/index.html") => answer::redirect("/productpage"),
            (&Method::GET, "/productpage") => {
                let page =
                    productpage::Page { pod: &self.pod, caller: caller.address, user: context.user(), signed_in: signed_in.is_some() };
                answer::html(page.render(&upstreams.gather(0, &context).await))
            }
            (&Method::GET, "/api/v1/products") => answer::json(StatusCode::OK, &catalogue::products()),
            (&Method::GET, path) if path.starts_with("/api/v1/products/") => upstreams.api(path, &context).await,
            (&Method::POST, "/login") => sign_in(request).await,
            (&Method::GET | &Method::POST, "/logout") => {
                let mut answer = answer::redirect("/productpage");
                answer.headers_mut().insert(header::SET_COOKIE, session::forget());
                answer
            }
            (&Method::GET, "/login") => answer::redirect("/productpage"),
            (&Method::GET, _) => answer::error(StatusCode::NOT_FOUND, "no such page; /productpage is one"),
            _ => answer::error(StatusCode::METHOD_NOT_ALLOWED, "not understood here"),
        }
    }
}

async fn sign_in(request: Request<Incoming>) -> Answer {
    let Ok(form) = Limited::new(request.into_body(), FORM_BYTES).collect().await else {
        return answer::error(StatusCode::PAYLOAD_TOO_LARGE, "that is no sign-in form");
    };
    match session::remember(&form.to_bytes()) {
        Some(cookie) => {
            let mut answer = answer::redirect("/productpage");
            answer.headers_mut().insert(header::SET_COOKIE, cookie);
            answer
        }
        None => answer::error(StatusCode::BAD_REQUEST, "a user name has 1 to 32 letters, digits, dots, dashes or underscores"),
    }
}

fn with_id(path: &str, prefix: &str, answer: impl FnOnce(u32) -> Answer) -> Answer {
    match product_id(path, prefix) {
        Ok(id) => answer(id),
        Err(problem) => problem.answer(),
    }
}

/// Why a path names no product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoProduct {
    /// It does not have the prefix.
    OtherPath,
    /// What follows the prefix is no number.
    NoNumber,
}

impl NoProduct {
    pub(crate) fn answer(self) -> Answer {
        match self {
            Self::OtherPath => answer::error(StatusCode::NOT_FOUND, "no such path"),
            Self::NoNumber => answer::error(StatusCode::BAD_REQUEST, "a product is known by its number, for example 0"),
        }
    }
}

/// The number behind the prefix.
pub(crate) fn product_id(path: &str, prefix: &str) -> Result<u32, NoProduct> {
    path.strip_prefix(prefix).ok_or(NoProduct::OtherPath)?.parse().map_err(|_| NoProduct::NoNumber)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_ids() {
        assert_eq!(product_id("/reviews/12", "/reviews/"), Ok(12));
        for bad in ["/reviews/", "/reviews/x", "/reviews/-1", "/reviews/0/0", "/reviews/99999999999"] {
            assert_eq!(product_id(bad, "/reviews/"), Err(NoProduct::NoNumber), "{bad}");
        }
        assert_eq!(product_id("/ratings/0", "/reviews/"), Err(NoProduct::OtherPath));
    }
}
