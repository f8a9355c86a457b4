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
        (b"SSH-2.0-x\r\n", Some(Sniffed::other(ServerName::Absent))),
        (b"GET key\r\n", Some(Sniffed::other(ServerName::Absent))),
        (b"\0\0\0\x10hello", Some(Sniffed::other(ServerName::Absent))),
        (b"*1\r\n$4\r\nPING\r\n", Some(Sniffed::other(ServerName::Absent))),
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

fn named(name: &str) -> Option<ServerName<String>> {
    Some(ServerName::Named(name.into()))
}

/// The same message in records of so many bytes.
fn in_records(whole: &[u8], bytes: usize) -> Vec<u8> {
    let records = whole[RECORD_HEADER_BYTES..].chunks(bytes).map(|part| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[HANDSHAKE, 3, 1][..], &length, part].concat()
    });
    records.collect::<Vec<_>>().concat()
}

#[test]
fn the_server_name_is_read_however_it_is_cut() {
    let whole = hello(Some("Reviews.shop"));
    for sent in [whole.clone(), in_records(&whole, 20), in_records(&whole, 7)] {
        for length in 0..sent.len() {
            assert_eq!(server_name(&sent[..length]), None, "{length}");
        }
        assert_eq!(server_name(&sent), named("reviews.shop"));
        let more = [&sent[..], b"early data"].concat();
        assert_eq!(server_name(&more), named("reviews.shop"));
    }
    assert_eq!(server_name(&hello(None)), Some(ServerName::Absent));
    assert_eq!(tls(b"GET / HTTP/1.1\r\n"), Some(Sniffed::other(ServerName::Absent)));
}

#[test]
fn a_hello_that_cannot_be_read_has_a_name_that_nobody_knows() {
    let whole = hello(Some("payments.internal"));
    let mut lies = whole.clone();
    let at = lies.len() - 19;
    lies[at] = 0xff;
    let other_record = [&in_records(&whole, 20)[..25], &[23, 3, 1, 0, 1, 0]].concat();
    let is_long = [&[HANDSHAKE, 3, 1, 0x10, 0, 1, 0, 0x50, 0][..], &[0; 4 * 1024][..4092]].concat().repeat(4);
    for (what, sent) in [
        ("a length that lies", lies),
        ("a record that is too long", vec![HANDSHAKE, 3, 1, 0xff, 0xff]),
        ("too many records", in_records(&whole, 1)),
        ("empty records", [HANDSHAKE, 3, 1, 0, 0].repeat(MAX_CLIENT_HELLO_RECORDS)),
        ("another record in between", other_record),
        ("a message that is too long", is_long),
        ("a name that is not text", hello(Some("p\u{e4}yments.internal"))),
        ("a name with a dot at its end", hello(Some("payments.internal."))),
        ("no name in the extension", hello(Some(""))),
    ] {
        assert_eq!(server_name(&sent), Some(ServerName::Unknown), "{what}");
    }
}

#[test]
fn a_name_that_is_said_twice_is_not_known() {
    let mut twice = hello(Some("a"));
    // Another server name, of the same length as the first extension, in place of that: 0x0017 has no body.
    let extension = twice[twice.len() - 10..].to_vec();
    twice.extend(&extension);
    for (at, bytes) in [(3, 2), (6, 3)] {
        grow(&mut twice[at..at + bytes], 10);
    }
    let extensions_at = twice.len() - 10 - 10 - 4 - 2;
    grow(&mut twice[extensions_at..extensions_at + 2], 10);
    assert_eq!(server_name(&twice), Some(ServerName::Unknown));
}

fn grow(length: &mut [u8], by: u8) {
    let last = length.len() - 1;
    length[last] += by;
}
