//! First bytes as callers send them, and as attackers do.

use super::*;

fn hello(name: Option<&str>) -> Vec<u8> {
    let mut extensions = vec![0, 23, 0, 0];
    if let Some(name) = name {
        let length = name.len() as u16;
        extensions.extend([0, 0]);
        extensions.extend((length + 5).to_be_bytes());
        extensions.extend((length + 3).to_be_bytes());
        extensions.push(0);
        extensions.extend(length.to_be_bytes());
        extensions.extend(name.as_bytes());
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut record = vec![HANDSHAKE, 3, 1];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.push(1);
    record.extend(&(body.len() as u32).to_be_bytes()[1..]);
    record.extend(body);
    record
}

#[test]
fn http_is_told_from_the_rest_by_the_first_bytes() {
    for (seen, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], Some(Sniffed::Http(Spoken::Http1))),
        (b"PATCH /x HTTP/1.0\n", Some(Sniffed::Http(Spoken::Http1))),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(Sniffed::Http(Spoken::Http2))),
        (b"PRI * HTTP/2.0\r\n", None),
        (b"P", None),
        (b"GET / HT", None),
        (b"", None),
        (b"SSH-2.0-x\r\n", Some(Sniffed::Other { server_name: None })),
        (b"GET key\r\n", Some(Sniffed::Other { server_name: None })),
        (b"\0\0\0\x10hello", Some(Sniffed::Other { server_name: None })),
        (b"*1\r\n$4\r\nPING\r\n", Some(Sniffed::Other { server_name: None })),
    ] {
        assert_eq!(anything(seen), expected, "{:?}", String::from_utf8_lossy(seen));
    }
}

#[test]
fn a_port_of_http_serves_either_version() {
    assert_eq!(http(PREFACE), Some(Sniffed::Http(Spoken::Http2)));
    assert_eq!(http(b"GET /"), Some(Sniffed::Http(Spoken::Http1)));
    assert_eq!(http(b"PRI"), None);
}

#[test]
fn the_server_name_is_read_however_it_is_cut() {
    let whole = hello(Some("Reviews.shop"));
    for length in 0..whole.len() {
        assert_eq!(client_hello(&whole[..length]), ClientHello::Incomplete, "{length}");
    }
    assert_eq!(client_hello(&whole), ClientHello::Read { server_name: Some("reviews.shop".into()) });
    assert_eq!(client_hello(&hello(None)), ClientHello::Read { server_name: None });
    assert_eq!(tls(b"GET / HTTP/1.1\r\n"), Some(Sniffed::Other { server_name: None }));
}

#[test]
fn lengths_that_lie_are_no_hello() {
    let mut lies = hello(Some("a"));
    let at = lies.len() - 3;
    lies[at] = 0xff;
    assert_eq!(client_hello(&lies), ClientHello::None);
    assert_eq!(client_hello(&[HANDSHAKE, 3, 1, 0xff, 0xff]), ClientHello::None);
}
