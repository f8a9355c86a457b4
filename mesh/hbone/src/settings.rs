//! The limits and windows of tunnels, with the reason for each.

use std::time::Duration;

/// What a peer may send before the application here has taken any of it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Credit of a stream.
    pub stream: u32,
    /// Credit of a connection, for the streams that move.
    pub connection: u32,
    /// Credit of a connection at most, when streams that stall hold part of it (`connection::load`): a bound on memory for one pair of
    /// pods.
    pub connection_limit: u32,
    /// The largest frame.
    pub frame: u32,
}

impl Windows {
    /// Of a node's proxy, which moves bytes between any two nodes: 4 MiB keeps a gigabit busy over 30 ms; the limit is reached when 28
    /// streams between two pods stall at once.
    pub const NODE: Self = Self { stream: 4 << 20, connection: 16 << 20, connection_limit: 128 << 20, frame: 1 << 20 };
    /// Of a waypoint, which stands near to its endpoints and holds a request in two tunnels, with HTTP between them: 1 MiB keeps 4
    /// gigabits busy over 2 ms. A reader that stalls costs some megabytes; with a node's windows it was 35 (scenario `large_bodies`).
    pub const WAYPOINT: Self = Self { stream: 1 << 20, connection: 16 << 20, connection_limit: 64 << 20, frame: 64 << 10 };
}

/// Bytes of a stream that may wait in the process for the tunnel to take them.
pub const SEND_BUFFER_BYTES: usize = 400 * 1024;
/// The largest header block that a client (the side of the response) reads.
pub const RESPONSE_HEADERS_BYTES: u32 = 16 * 1024;
/// The largest header block that a server reads.
pub const REQUEST_HEADERS_BYTES: u32 = 64 * 1024;
/// Streams that a server takes on one connection (SETTINGS_MAX_CONCURRENT_STREAMS); more are refused with REFUSED_STREAM.
pub const SERVER_STREAMS: u32 = 200;
/// Streams that were reset and are remembered for a while, so that frames still under way are dropped quietly.
pub const REMEMBERED_RESETS: usize = 1024;
/// Streams that a peer may reset before we have looked at them: as many as it may open, since applications that give up together
/// are no attack.
pub const PENDING_RESETS: usize = SERVER_STREAMS as usize;
/// Frames for streams that we had to answer with a reset, in all the life of a connection.
pub const ERROR_RESETS: usize = 16 * 1024;
/// What small DATA frames that wait here may cost in book-keeping, at 256 bytes less their length each. The default of the h2 crate
/// (half the window) would close the connection when one stalled reader's peer sends 32 768 single bytes; `stream` gathers such
/// frames into one buffer while a reader stalls, so this bounds only what comes in one go.
pub const SMALL_FRAMES_BUDGET_BYTES: usize = 64 * 1024 * 1024;

/// PING is sent after this much time, whether or not there are streams: idle connections are reused.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a PING may stay without an answer before the connection counts as dead.
pub const PING_LIMIT: Duration = Duration::from_secs(20);
/// How long the TLS handshake may take, and the HTTP/2 preface after it.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long an accepted connection may stay without its first CONNECT.
pub const FIRST_TUNNEL_LIMIT: Duration = Duration::from_secs(30);
/// How long the peer may take to answer a CONNECT. It dials the application first, with a limit of 10 s.
pub const RESPONSE_LIMIT: Duration = Duration::from_secs(20);
