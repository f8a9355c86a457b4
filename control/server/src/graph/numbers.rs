//! What a proxy counted, from its metrics in Prometheus' text: who called whom, how much, and whether by mutual TLS.
//!
//! A proxy may be another version's, or somebody's who found a way to its socket: what does not look as expected is passed over, and what
//! is kept is bounded.

use std::collections::BTreeMap;

use super::inventory::Key;

/// Pairs that are kept of one proxy; those that come later in its answer are passed over.
const MAX_SERIES: usize = 5000;
/// The value of a label of which a proxy knows nothing.
const UNKNOWN: &str = "unknown";

/// Who counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reporter {
    /// The caller's node proxy.
    Source,
    /// The node proxy of who was called.
    Destination,
    /// A waypoint between them.
    Waypoint,
}

/// Who called or was called, as far as a proxy knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// This workload.
    Workload(Key),
    /// A workload of this identity: a waypoint knows callers that are not of its own services by what they proved.
    Identity(String),
    /// Somebody.
    Unknown,
}

/// A pair of ends, as one kind of reporter sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    /// Who counted.
    pub(crate) reporter: Reporter,
    /// Who called.
    pub(crate) source: End,
    /// Who was called.
    pub(crate) destination: End,
    /// Both proved who they are.
    pub(crate) mutual_tls: bool,
}

/// What was counted since the proxy started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// HTTP requests that ended.
    pub(crate) requests: u64,
    /// Those of them without an answer, with a 5xx status, or with a gRPC status other than OK.
    pub(crate) failed: u64,
    /// Connections.
    pub(crate) opened: u64,
    /// Those of them that were refused or broke.
    pub(crate) broken: u64,
    /// Bytes, both ways.
    pub(crate) bytes: u64,
}

impl Counts {
    /// Both together.
    pub(crate) fn add(&mut self, other: Self) {
        for (own, more) in self.each().into_iter().zip([other.requests, other.failed, other.opened, other.broken, other.bytes]) {
            *own = own.saturating_add(more);
        }
    }

    /// What came since `before`. Counters that went back are a new proxy's, which has counted all of it since.
    pub(crate) fn since(mut self, before: Self) -> Self {
        for (own, old) in self.each().into_iter().zip([before.requests, before.failed, before.opened, before.broken, before.bytes]) {
            *own = own.checked_sub(old).unwrap_or(*own);
        }
        self
    }

    fn each(&mut self) -> [&mut u64; 5] {
        [&mut self.requests, &mut self.failed, &mut self.opened, &mut self.broken, &mut self.bytes]
    }
}

/// All that one proxy counted.
pub(crate) type Numbers = BTreeMap<Pair, Counts>;

/// What was counted since `before`.
pub(crate) fn since(now: &Numbers, before: &Numbers) -> Numbers {
    now.iter().map(|(pair, counts)| (pair.clone(), counts.since(before.get(pair).copied().unwrap_or_default()))).collect()
}

/// Reads a proxy's metrics.
pub(crate) fn read(text: &str) -> Numbers {
    let mut numbers = Numbers::new();
    for (name, labels, value) in text.lines().filter_map(sample) {
        let Some((pair, counts)) = counted(name, &labels, value) else { continue };
        if numbers.len() < MAX_SERIES || numbers.contains_key(&pair) {
            numbers.entry(pair).or_default().add(counts);
        }
    }
    numbers
}

/// What a sample counts, if it is one of those that matter.
fn counted(name: &str, labels: &BTreeMap<&str, String>, value: u64) -> Option<(Pair, Counts)> {
    let label = |name: &str| labels.get(name).map_or("", String::as_str);
    let reporter = match label("reporter") {
        "source" => Reporter::Source,
        "destination" => Reporter::Destination,
        "waypoint" => Reporter::Waypoint,
        _ => return None,
    };
    let nothing = Counts::default();
    let counts = match (name, reporter) {
        ("istio_requests_total", Reporter::Waypoint) => {
            let failed = failed(label("response_code"), label("grpc_response_status"));
            Counts { requests: value, failed: if failed { value } else { 0 }, ..nothing }
        }
        // A waypoint's connections are counted by the node proxies at both ends, as they go.
        (_, Reporter::Waypoint) => return None,
        ("istio_tcp_connections_opened_total", _) => Counts { opened: value, ..nothing },
        ("istio_tcp_connections_failed_total", _) => Counts { broken: value, ..nothing },
        ("istio_tcp_received_bytes_total" | "istio_tcp_sent_bytes_total", _) => Counts { bytes: value, ..nothing },
        _ => return None,
    };
    let known = |text: &str| !text.is_empty() && text != UNKNOWN;
    let end = |namespace: &str, workload: &str, principal: &str| match (label(namespace), label(workload), label(principal)) {
        (namespace, workload, _) if known(namespace) && known(workload) => End::Workload((namespace.to_owned(), workload.to_owned())),
        (.., principal) if known(principal) => End::Identity(principal.to_owned()),
        _ => End::Unknown,
    };
    let pair = Pair {
        reporter,
        source: end("source_workload_namespace", "source_workload", "source_principal"),
        destination: end("destination_workload_namespace", "destination_workload", "destination_principal"),
        mutual_tls: label("connection_security_policy") == "mutual_tls",
    };
    Some((pair, counts))
}

/// Whether a request of these statuses failed: without any, by the service's fault, or by gRPC's word.
fn failed(status: &str, grpc_status: &str) -> bool {
    status.parse::<u16>().is_ok_and(|status| status == 0 || status >= 500) || grpc_status.parse::<u16>().is_ok_and(|status| status != 0)
}

/// A line `NAME{LABEL="VALUE",…} VALUE` with its labels.
fn sample(line: &str) -> Option<(&str, BTreeMap<&str, String>, u64)> {
    let (name, mut rest) = line.split_once('{').filter(|(name, _)| name.starts_with("istio_"))?;
    let mut labels = BTreeMap::new();
    while !rest.starts_with('}') {
        let (label, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquoted(quoted)?;
        labels.insert(label, value);
        rest = after.trim_start_matches(',');
    }
    let value: f64 = rest[1..].split_whitespace().next()?.parse().ok()?;
    // Counters are whole numbers; one that is not is none of ours.
    (value >= 0.0 && value.is_finite()).then_some((name, labels, value as u64))
}

/// A label's value up to its closing quote, and what follows that.
fn unquoted(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A line as proxies write it.
    pub(crate) fn line(name: &str, reporter: &str, ends: [&str; 2], more: &str, value: u64) -> String {
        let of = |end: &str, labels: &str| {
            let (namespace, workload) = end.split_once('/').unwrap_or((UNKNOWN, UNKNOWN));
            format!("{labels}_workload=\"{workload}\",{labels}_workload_namespace=\"{namespace}\"")
        };
        format!("{name}{{reporter=\"{reporter}\",{},{},{more}}} {value}\n", of(ends[0], "source"), of(ends[1], "destination"))
    }

    fn end(namespace: &str, name: &str) -> End {
        End::Workload((namespace.to_owned(), name.to_owned()))
    }

    #[test]
    fn who_is_no_workload_that_the_proxy_knows_may_still_have_an_identity() {
        let of = |more: &str| {
            let numbers = read(&line("istio_requests_total", "waypoint", ["nobody", "shop/cart"], more, 1));
            numbers.keys().map(|pair| pair.source.clone()).next().unwrap()
        };
        assert_eq!(of("source_principal=\"spiffe://c/ns/shop/sa/web\""), End::Identity("spiffe://c/ns/shop/sa/web".to_owned()));
        assert_eq!(of("source_principal=\"unknown\""), End::Unknown);
        assert_eq!(of(""), End::Unknown);
    }

    #[test]
    fn samples_of_one_pair_are_one() {
        let tls = "connection_security_policy=\"mutual_tls\"";
        let text = [
            "# TYPE istio_requests_total counter\n".to_owned(),
            line("istio_requests_total", "waypoint", ["shop/web", "shop/cart"], &format!("response_code=\"200\",{tls}"), 7),
            line("istio_requests_total", "waypoint", ["shop/web", "shop/cart"], &format!("response_code=\"503\",{tls}"), 2),
            line("istio_requests_total", "waypoint", ["shop/web", "shop/cart"], &format!("response_code=\"0\",{tls}"), 1),
            line("istio_requests_total", "waypoint", ["shop/web", "shop/cart"], &format!("response_code=\"404\",{tls}"), 4),
            line(
                "istio_requests_total",
                "waypoint",
                ["shop/web", "shop/cart"],
                &format!("response_code=\"200\",grpc_response_status=\"14\",{tls}"),
                1,
            ),
            line("istio_tcp_sent_bytes_total", "source", ["shop/web", "nobody"], "connection_security_policy=\"unknown\"", 30),
            line("istio_tcp_received_bytes_total", "source", ["shop/web", "nobody"], "connection_security_policy=\"unknown\"", 12),
            line("istio_tcp_sent_bytes_total", "waypoint", ["shop/web", "shop/cart"], tls, 99),
            line("istio_response_bytes_sum", "waypoint", ["shop/web", "shop/cart"], tls, 99),
        ];
        let numbers = read(&text.concat());
        let web = end("shop", "web");
        let requests = Pair { reporter: Reporter::Waypoint, source: web.clone(), destination: end("shop", "cart"), mutual_tls: true };
        let bytes = Pair { reporter: Reporter::Source, source: web, destination: End::Unknown, mutual_tls: false };
        assert_eq!(numbers.keys().collect::<Vec<_>>(), [&bytes, &requests]);
        assert_eq!(numbers[&requests], Counts { requests: 15, failed: 4, ..Counts::default() });
        assert_eq!(numbers[&bytes], Counts { bytes: 42, ..Counts::default() });
    }

    #[test]
    fn what_is_not_as_expected_is_passed_over() {
        let good = line("istio_tcp_connections_opened_total", "source", ["a/b", "c/d"], "x=\"say \\\"}\\\" \\\\ and\\n go\"", 3);
        assert_eq!(read(&good).len(), 1, "{good}");
        for bad in [
            "istio_tcp_connections_opened_total{reporter=\"source\"",
            "istio_tcp_connections_opened_total{reporter=\"source",
            "istio_tcp_connections_opened_total{reporter=\"source\\",
            "istio_tcp_connections_opened_total{reporter=\"source\"}",
            "istio_tcp_connections_opened_total{reporter=\"source\"} NaN",
            "istio_tcp_connections_opened_total{reporter=\"source\"} -1",
            "istio_tcp_connections_opened_total{reporter=\"me\"} 1",
            "istio_tcp_connections_opened_total 1",
            "{} 1",
            "",
        ] {
            assert!(read(bad).is_empty(), "{bad}");
        }
        let many: String = (0..2 * MAX_SERIES)
            .map(|number| line("istio_tcp_connections_opened_total", "source", [&format!("a/w{number}"), "c/d"], "", 1))
            .collect();
        assert_eq!(read(&many).len(), MAX_SERIES);
    }

    #[test]
    fn a_proxy_that_started_again_counts_from_nothing() {
        let counts = |opened, bytes| Counts { opened, bytes, ..Counts::default() };
        assert_eq!(counts(7, 100).since(counts(5, 40)), counts(2, 60));
        assert_eq!(counts(2, 30).since(counts(5, 40)), counts(2, 30));
    }
}
