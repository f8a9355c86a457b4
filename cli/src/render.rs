//! Names of clusters, labels and counts as `tropis` prints them; routes and their parts are said by `tropis_model::describe`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tropis_model::pool::PoolKey;

pub(crate) use tropis_model::describe::{action, balancer, destinations, matches, origin, percent, pool};

/// `reviews.shop`, in the column where istioctl names the VirtualService; empty for a route that no user wrote. `origin` is
/// `VirtualService shop/reviews spec.http[0]`.
pub(crate) fn virtual_service(origin: &str) -> String {
    let mut words = origin.split(' ');
    match (words.next(), words.next().and_then(|object| object.split_once('/'))) {
        (Some(kind), Some((namespace, name))) if kind != "Service" => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}

/// The pool in Envoy's words, which istioctl shows: `outbound|9080|v1|reviews.shop.svc.cluster.local`.
pub(crate) fn cluster(key: &PoolKey) -> String {
    format!("outbound|{}|{}|{}", key.port, key.subset.as_deref().unwrap_or_default(), key.host.hostname)
}

/// `1 endpoint`, `2 endpoints`.
pub(crate) fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// `a=b,c=d`.
pub(crate) fn labels(labels: &BTreeMap<Arc<str>, Arc<str>>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_no_user_wrote_has_no_virtual_service() {
        assert_eq!(virtual_service("VirtualService shop/reviews spec.http[0]"), "reviews.shop");
        assert_eq!(virtual_service("Service shop/reviews"), "");
    }
}
