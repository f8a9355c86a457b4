//! Peers with good certificates that flood their connection.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tropis_hbone::{
    client::PoolOptions,
    frames::{ALLOWED_AT_ONCE, Excess},
    server::{ServerOptions, SessionEnd},
};

use crate::fixture::{Callee, FAMILIES, Mesh, echo, identity, open, run, until};

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 0][..], payload].concat()
}

/// The error of the first GOAWAY among frames.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while let [first, second, third, kind, ..] = *bytes {
        let length = u32::from_be_bytes([0, first, second, third]) as usize;
        let payload = bytes.get(9..9 + length)?;
        if kind == GOAWAY {
            return Some(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]));
        }
        bytes = &bytes[9 + length..];
    }
    None
}

#[test]
fn a_flood_of_control_frames_ends_its_connection_alone() {
    run(async {
        for ip in FAMILIES {
            let mesh = Mesh::new();
            let callee = Callee::relaying(&mesh, ip, ServerOptions::default()).await;
            let mut other = open(&mesh.pool(PoolOptions::default()), callee.address, echo(ip).await).await.unwrap().stream;
            for (number, flood) in [frame(PING, &[7; 8]), frame(SETTINGS, &[])].into_iter().enumerate() {
                let certificate = mesh.authority.issue(&identity("productpage"));
                let tcp = TcpStream::connect(callee.address).await.unwrap();
                let connector = TlsConnector::from(certificate.client_config(&[identity("reviews")]).unwrap());
                let mut tls = connector.connect(callee.address.ip().into(), tcp).await.unwrap();
                tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
                tls.write_all(&[frame(SETTINGS, &[]), flood.repeat(2 * ALLOWED_AT_ONCE as usize)].concat()).await.unwrap();
                let mut said = Vec::new();
                // It may be reset, since what came last was not read.
                let _ = tls.read_to_end(&mut said).await;
                assert_eq!(goaway(&said), Some(ENHANCE_YOUR_CALM));
                until(|| callee.ends.borrow().len() > number).await;
                assert!(matches!(callee.ends.borrow()[number], Ok(SessionEnd::Flooded(Excess::Frames))), "{:?}", callee.ends.borrow());
                other.write_all(b"served").await.unwrap();
                let mut served = [0; 6];
                other.read_exact(&mut served).await.unwrap();
                assert_eq!(&served, b"served");
            }
        }
    });
}
