//! Header fields that a role passes on to the roles it calls: without them no trace joins its spans, and no route can choose by
//! user. A mesh cannot do this for an application.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Trace contexts of the formats in use, and who the user is.
const FORWARDED: [&str; 20] = [
    // W3C
    "traceparent",
    "tracestate",
    "baggage",
    // Zipkin
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    // proxies and vendors
    "x-request-id",
    "x-client-trace-id",
    "x-envoy-force-trace",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "sw8",
    // the user, as far as it is proved by a token
    "authorization",
];

/// The user as the sample's guides know it: set by signing in, matched by routes.
pub(crate) const END_USER: HeaderName = HeaderName::from_static("end-user");

/// What one request hands on to the requests that it causes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context(HeaderMap);

impl Context {
    /// Takes the fields of an incoming request that are to be passed on.
    pub(crate) fn of(fields: &HeaderMap) -> Self {
        let mut context = HeaderMap::new();
        for name in FORWARDED.into_iter().map(HeaderName::from_static).chain([END_USER, http::header::USER_AGENT]) {
            for value in fields.get_all(&name) {
                context.append(name.clone(), value.clone());
            }
        }
        Self(context)
    }

    /// The user, when the caller named one.
    pub(crate) fn user(&self) -> Option<&str> {
        self.0.get(END_USER).and_then(|value| value.to_str().ok())
    }

    /// The same context for a user who signed in here.
    pub(crate) fn with_user(mut self, user: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(user) {
            self.0.insert(END_USER, value);
        }
        self
    }

    /// The fields to send.
    pub(crate) fn fields(&self) -> &HeaderMap {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_on_traces_and_user_and_nothing_else() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("traceparent", "00-ab"),
            ("x-b3-traceid", "80f1"),
            ("end-user", "jason"),
            ("user-agent", "curl"),
            ("cookie", "secret"),
            ("host", "x"),
        ] {
            fields.insert(name, value.parse().unwrap());
        }
        fields.append("tracestate", "a=1".parse().unwrap());
        fields.append("tracestate", "b=2".parse().unwrap());
        let context = Context::of(&fields);
        assert_eq!(context.user(), Some("jason"));
        assert_eq!(context.fields().get_all("tracestate").iter().count(), 2);
        assert_eq!(context.fields().len(), 6);
        assert!(!context.fields().contains_key("cookie") && !context.fields().contains_key("host"));
        assert_eq!(context.with_user("maya").user(), Some("maya"));
    }
}
