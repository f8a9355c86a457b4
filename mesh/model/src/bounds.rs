//! The most that what a waypoint is told may hold.
//!
//! One list for both ends: objects that go beyond it are refused where they are written (`tropis-crds`), what several objects make
//! together is cut by the compiler in the way that allows less, and a waypoint refuses what goes beyond it all the same
//! (`tropis-xds`). So whatever is accepted from users is accepted by waypoints.

use std::ops::RangeInclusive;

/// Ports of one host.
pub const PORTS: usize = 4096;
/// Routes of one kind of one port.
pub const ROUTES: usize = 4096;
/// Policies of one host, or of a waypoint.
pub const POLICIES: usize = 4096;
/// Pools of one host.
pub const POOLS: usize = 4096;

/// Matches of one route, and origins of its CORS policy.
pub const MATCHES: usize = 1024;
/// Headers or parameters of one match.
pub const NAMED_MATCHES: usize = 256;
/// Destinations of one route.
pub const DESTINATIONS: usize = 1024;
/// Copies of one request.
pub const MIRRORS: usize = 64;
/// Header operations of one kind: set, add, or remove.
pub const HEADERS: usize = 256;
/// Bytes of the body of an answer (Istio's).
pub const BODY_BYTES: usize = 1_000_000;
/// Statuses of an answer that is made up: a fault's, a direct response's. Istio takes 600 for a fault too, which is no status (RFC 9110
/// §15).
pub const ANSWER_STATUSES: RangeInclusive<u16> = 200..=599;
/// Statuses of answers.
pub const STATUSES: RangeInclusive<u16> = 100..=599;

/// Rules of one policy, and sources, operations and conditions of one rule.
pub const RULES: usize = 4096;
/// Segments of a template of paths.
pub const SEGMENTS: usize = 256;
/// Values that a user may write in one list: address blocks, principals, paths. The longest seen are lists of a cloud's blocks, some
/// 10 000.
pub const VALUES: usize = 16_384;
/// Values of one list as a waypoint is told them: principals of the mesh's own trust domain go by two names.
pub const TOLD_VALUES: usize = 2 * VALUES;
/// Labels of one selector; Kubernetes' own objects have some dozens at most.
pub const LABELS: usize = 256;

/// Workloads that a waypoint is told to be reached another way. Whoever is not among them is served all the same.
pub const ELSEWHERE: usize = 16_384;

/// Keys of labels that a waypoint is told beyond those of its present configuration, since it may still select by them.
pub const KEPT_LABELS: usize = 4096;

/// Points of a ring (Envoy's own limit).
pub const RING_POINTS: u32 = 8_388_608;
/// Entries of Maglev's table (Envoy's own limit).
pub const TABLE_ENTRIES: RangeInclusive<u32> = 2..=5_000_011;
/// Rules about localities, and entries of one.
pub const LOCALITIES: usize = 1024;
/// Attributes of a cookie.
pub const ATTRIBUTES: usize = 64;
