//! Seeing what is on a wire: frames of one interface by AF_PACKET, read by [`frame`], put together by [`flow`].

pub mod flow;
pub mod frame;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::network::namespace::Namespace;
use flow::Flows;
use frame::Segment;

/// Room for a segment that offloading has not cut yet, with its headers.
const FRAME_BYTES: usize = 128 * 1024;
/// The kernel's queue: nothing may be lost while a test writes its canary.
const QUEUE_BYTES: usize = 64 << 20;
/// How long the reader waits before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);
/// linux/if_ether.h, in network byte order where the kernel wants it so.
const ETH_P_ALL: u16 = 0x0003;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    segments: Arc<Mutex<Vec<Segment>>>,
    reader: Option<JoinHandle<io::Result<u32>>>,
}

/// What a capture saw.
#[derive(Debug, Default)]
pub struct Captured {
    /// Every TCP segment, in order of arrival.
    pub segments: Vec<Segment>,
    /// Frames that the kernel dropped because we were slow.
    pub dropped: u32,
}

impl Capture {
    /// Starts seeing what `interface` of `namespace` sends and receives.
    pub fn start(namespace: &Namespace, interface: &str) -> io::Result<Self> {
        let socket = namespace.run(|| open(interface))??;
        let stop = Arc::new(AtomicBool::new(false));
        let segments = Arc::new(Mutex::new(Vec::new()));
        let (stopping, kept) = (stop.clone(), segments.clone());
        let reader = thread::Builder::new().name("capture".to_owned()).spawn(move || read(&socket, &stopping, &kept))?;
        Ok(Self { stop, segments, reader: Some(reader) })
    }

    /// Whether a segment with payload between these two ports' owners was seen by now.
    pub fn seen(&self, matches: impl Fn(&Segment) -> bool) -> bool {
        self.segments.lock().expect("never poisoned: nothing panics under it").iter().any(matches)
    }

    /// Stops after what is in the queue already, and gives everything seen.
    pub fn finish(mut self) -> io::Result<Captured> {
        self.stop.store(true, Ordering::Release);
        let reader = self.reader.take().expect("taken only here");
        let dropped = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
        let segments = std::mem::take(&mut *self.segments.lock().expect("never poisoned: nothing panics under it"));
        Ok(Captured { segments, dropped })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Captured {
    /// The connections whose beginning was seen.
    pub fn flows(&self) -> Flows {
        Flows::assemble(&self.segments)
    }

    /// Whether any payload holds `needle`.
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.segments.iter().any(|segment| segment.payload.windows(needle.len()).any(|window| window == needle))
    }

    /// Why the payload between `concerned` addresses is not all TLS of HBONE, connection by connection; empty when it is.
    pub fn plaintext(&self, concerned: impl Fn(SocketAddr) -> bool) -> Vec<String> {
        let mut found = self.flows().plaintext(&concerned);
        if self.dropped > 0 {
            found.push(format!("{} frames were lost, so nothing is proved", self.dropped));
        }
        found
    }
}

fn read(socket: &Socket, stop: &AtomicBool, segments: &Mutex<Vec<Segment>>) -> io::Result<u32> {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let stopping = stop.load(Ordering::Acquire);
        match io::Read::read(&mut &*socket, &mut buffer) {
            Ok(length) => {
                if let Some(segment) = frame::parse(&buffer[..length]) {
                    segments.lock().expect("never poisoned: nothing panics under it").push(segment);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                // The queue is empty; what came before the stop was read.
                if stopping {
                    return dropped(socket);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The pod of this interface is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A packet socket on `interface` of the namespace that this thread is in.
fn open(interface: &str) -> io::Result<Socket> {
    // Protocol 0: nothing arrives before it is bound to its interface.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_read_timeout(Some(LOOK))?;
    force_receive_buffer(&socket)?;
    let index = nix::net::if_::if_nametoindex(interface)?;
    socket.bind(&link_address(i32::try_from(index).map_err(io::Error::other)?))?;
    Ok(socket)
}

#[expect(unsafe_code, reason = "packet(7) addresses have no safe constructor in socket2 or nix")]
fn link_address(index: i32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the address types that the storage has room and alignment for; all its fields are plain numbers.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ETH_P_ALL.to_be();
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage was filled above as the family in it says, and the length is that of the type.
    unsafe { SockAddr::new(storage, length) }
}

fn force_receive_buffer(socket: &Socket) -> io::Result<()> {
    // The limit of the system does not hold for who has CAP_NET_ADMIN.
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &QUEUE_BYTES).map_err(io::Error::from)
}

/// How many frames the kernel dropped (packet(7), PACKET_STATISTICS).
#[expect(unsafe_code, reason = "PACKET_STATISTICS has no wrapper in socket2 or nix")]
fn dropped(socket: &Socket) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let mut statistics = [0u32; 2];
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the kernel writes two u32 (packets, drops) into a buffer of that size; descriptor and buffer live through the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, statistics.as_mut_ptr().cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics[1]) }
}
