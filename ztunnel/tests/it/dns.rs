//! The DNS proxy: names of the mesh from the view, all others from the resolver.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tropis_model::view::Change;

use crate::{
    mesh::{Mesh, service},
    network::{self, PodNetwork},
};

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask_udp(pod: &PodNetwork, at: &str, question: &Message) -> Message {
    let bind = if at.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
    let socket = pod.namespace.run(|| UdpSocket::bind(bind).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(&question.to_vec().unwrap(), at).unwrap();
    let mut buffer = [0; 4096];
    let (length, _) = socket.recv_from(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn ask_tcp(pod: &PodNetwork, at: &str, questions: &[Message]) -> Vec<Message> {
    let mut stream = pod.namespace.run(|| TcpStream::connect(at).unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let answer = |question: &Message| {
        let bytes = question.to_vec().unwrap();
        stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
        // In two pieces, as it may arrive.
        stream.write_all(&bytes[..5]).unwrap();
        stream.write_all(&bytes[5..]).unwrap();
        read_framed(&mut stream)
    };
    questions.iter().map(answer).collect()
}

fn read_framed(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// A resolver that knows `known.example` (198.51.100.7), and answers NXDOMAIN to the rest; UDP and TCP.
fn resolver(pod: &PodNetwork) {
    fn reply(question: &Message) -> Message {
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.add_queries(question.queries.iter().cloned());
        let name = question.queries[0].name().clone();
        match name.to_ascii().as_str() {
            "known.example." => drop(reply.add_answer(Record::from_rdata(name, 5, RData::A(A("198.51.100.7".parse().unwrap()))))),
            _ => reply.metadata.response_code = ResponseCode::NXDomain,
        }
        reply
    }
    let (udp, tcp) = pod.namespace.run(|| (UdpSocket::bind("0.0.0.0:53").unwrap(), TcpListener::bind("0.0.0.0:53").unwrap())).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let reply = reply(&Message::from_vec(&buffer[..length]).unwrap()).to_vec().unwrap();
            // A forged one first: right port, wrong id.
            let mut forged = reply.clone();
            forged[0] ^= 0xff;
            udp.send_to(&forged, from).unwrap();
            udp.send_to(&reply, from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let reply = reply(&read_framed(&mut stream)).to_vec().unwrap();
            stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        }
    });
}

fn addresses(message: &Message) -> Vec<String> {
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0.to_string()),
        RData::AAAA(address) => Some(address.0.to_string()),
        _ => None,
    });
    found.collect()
}

#[test]
fn names_of_the_mesh_and_all_others() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("dns");
    let client = mesh.pod(0, "client", 1);
    resolver(&mesh.stranger(53));
    let mut echo = service("echo", "10.96.0.7");
    echo.addresses.extend(service("echo", "fd00:96::7").addresses);
    mesh.apply([Change::Service(Arc::new(echo))]);
    let pod = &client.network;
    for at in ["127.0.0.1:15053", "[::1]:15053"] {
        let asked = question("echo.shop.svc.cluster.local.", RecordType::A);
        let reply = ask_udp(pod, at, &asked);
        assert_eq!(reply.metadata.id, asked.metadata.id);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available && reply.metadata.recursion_desired);
        assert_eq!(addresses(&reply), ["10.96.0.7"]);
        assert_eq!(reply.answers[0].ttl, 30);
        assert_eq!(addresses(&ask_udp(pod, at, &question("ECHO.shop.", RecordType::AAAA))), ["fd00:96::7"]);
        let known = question("known.example.", RecordType::A);
        let reply = ask_udp(pod, at, &known);
        assert_eq!((reply.metadata.id, addresses(&reply)), (known.metadata.id, vec!["198.51.100.7".to_owned()]));
        assert_eq!(ask_udp(pod, at, &question("unknown.example.", RecordType::TXT)).metadata.response_code, ResponseCode::NXDomain);
        let replies = ask_tcp(pod, at, &[question("echo.shop.", RecordType::A), known.clone(), question("nope.example.", RecordType::A)]);
        assert_eq!(addresses(&replies[0]), ["10.96.0.7"]);
        assert_eq!(addresses(&replies[1]), ["198.51.100.7"]);
        assert_eq!(replies[2].metadata.response_code, ResponseCode::NXDomain);
    }
    let (_, text) = mesh.nodes[0].metrics.render("");
    let requests = "istio_dns_requests_total{request_query_type=\"A\",request_protocol=\"udp\"";
    assert!(text.lines().any(|line| line.starts_with(requests)), "{text}");
}

#[test]
fn what_is_no_question_is_answered_as_such() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("dns-odd");
    let client = mesh.pod(0, "client", 1);
    let socket = client.network.namespace.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // A response, three bytes, then a header that promises a question which is not there: only the last is answered.
    socket.send_to(&[1, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], "127.0.0.1:15053").unwrap();
    socket.send_to(&[1, 2, 3], "127.0.0.1:15053").unwrap();
    socket.send_to(&[9, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63], "127.0.0.1:15053").unwrap();
    let mut buffer = [0; 512];
    let (length, _) = socket.recv_from(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0x0909, ResponseCode::FormErr));
}
