//! An application that reads HTTP/1.1 as strictly as can be, and keeps what it was sent: what it complains of could have been read
//! otherwise by another.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

/// What it answers every request with.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// When it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// When it has the whole request.
    InTheEnd,
    /// When it has the head.
    AtOnce,
    /// Not at all.
    Never,
}

/// A request that it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    /// Method and target.
    pub(crate) line: String,
    /// Lower-case names, in order.
    pub(crate) headers: Vec<(String, String)>,
    /// As far as it came.
    pub(crate) body: Vec<u8>,
    /// The trailers' lines.
    pub(crate) trailers: Vec<String>,
    /// Its end came, too.
    pub(crate) is_whole: bool,
}

impl Sent {
    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The target.
    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// The application.
pub(crate) struct Witness {
    pub(crate) address: SocketAddr,
    seen: Rc<RefCell<Vec<Sent>>>,
    complaints: Rc<RefCell<Vec<String>>>,
}

impl Witness {
    /// Listens.
    pub(crate) async fn new(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let witness = Self { address: listener.local_addr().unwrap(), seen: Rc::default(), complaints: Rc::default() };
        let (seen, complaints) = (witness.seen.clone(), witness.complaints.clone());
        spawn_local(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let mut reading = Reading { stream, buffer: Vec::new(), seen: seen.clone(), answers };
                let complaints = complaints.clone();
                spawn_local(async move {
                    if let Err(complaint) = reading.all().await {
                        complaints.borrow_mut().push(complaint);
                    }
                });
            }
        });
        witness
    }

    /// What it was sent since it was asked last; a complaint ends the test.
    pub(crate) fn take(&self) -> Vec<Sent> {
        assert_eq!(self.complaints.take(), Vec::<String>::new());
        self.seen.take()
    }

    /// How many requests it has been sent.
    pub(crate) fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

struct Reading {
    stream: TcpStream,
    buffer: Vec<u8>,
    seen: Rc<RefCell<Vec<Sent>>>,
    answers: Answers,
}

/// Nothing more comes.
struct Over;

impl Reading {
    /// Reads requests until the connection ends; an error is a complaint.
    async fn all(&mut self) -> Result<(), String> {
        loop {
            let Ok(head) = self.until(b"\r\n\r\n").await else {
                return match self.buffer.is_empty() {
                    true => Ok(()),
                    false => Err(format!("a head without end: {}", String::from_utf8_lossy(&self.buffer))),
                };
            };
            let sent = head_of(&head)?;
            let (length, encoding) = (sent.all("content-length").join(","), sent.all("transfer-encoding").join(","));
            let at = self.seen.borrow().len();
            self.seen.borrow_mut().push(sent);
            if self.answers == Answers::AtOnce && self.stream.write_all(ANSWER).await.is_err() {
                return Ok(());
            }
            let whole = match (length.as_str(), encoding.as_str()) {
                ("", "") => Ok(Ok(())),
                (length, "") if length.bytes().all(|byte| byte.is_ascii_digit()) => Ok(self.exactly(length.parse().unwrap(), at).await),
                ("", "chunked") => self.chunks(at).await,
                _ => Err(format!("content-length {length:?} and transfer-encoding {encoding:?}")),
            }?;
            // A body that breaks off with its connection is no complaint: nothing can follow it.
            if whole.is_err() {
                return Ok(());
            }
            if let Some(sent) = self.seen.borrow_mut().get_mut(at) {
                sent.is_whole = true;
            }
            if self.answers == Answers::InTheEnd && self.stream.write_all(ANSWER).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn more(&mut self) -> Result<(), Over> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(Over),
            Ok(_) => Ok(()),
        }
    }

    async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, Over> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let found = self.buffer[..at].to_vec();
                self.buffer.drain(..at + end.len());
                return Ok(found);
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, mut length: usize, at: usize) -> Result<(), Over> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.more().await?;
            }
            let here = self.buffer.len().min(length);
            length -= here;
            let bytes: Vec<u8> = self.buffer.drain(..here).collect();
            if let Some(sent) = self.seen.borrow_mut().get_mut(at) {
                sent.body.extend(bytes);
            }
        }
        Ok(())
    }

    async fn chunks(&mut self, at: usize) -> Result<Result<(), Over>, String> {
        loop {
            let Ok(line) = self.until(b"\r\n").await else { return Ok(Err(Over)) };
            let digits = String::from_utf8_lossy(&line).into_owned();
            let size = usize::from_str_radix(&digits, 16).map_err(|_| format!("chunk size {digits:?}"))?;
            if size == 0 {
                break;
            }
            if self.exactly(size, at).await.is_err() {
                return Ok(Err(Over));
            }
            match self.until(b"\r\n").await {
                Err(Over) => return Ok(Err(Over)),
                Ok(between) if between.is_empty() => {}
                Ok(between) => return Err(format!("{between:?} after a chunk")),
            }
        }
        loop {
            let Ok(line) = self.until(b"\r\n").await else { return Ok(Err(Over)) };
            if line.is_empty() {
                return Ok(Ok(()));
            }
            if let Some(sent) = self.seen.borrow_mut().get_mut(at) {
                sent.trailers.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
    }
}

fn head_of(head: &[u8]) -> Result<Sent, String> {
    let text = String::from_utf8_lossy(head).into_owned();
    let complain = |what: &str| Err(format!("{what} in {text:?}"));
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    if first.split(' ').count() != 3 || !first.ends_with(" HTTP/1.1") {
        return complain("a first line");
    }
    let mut sent = Sent { line: first.trim_end_matches(" HTTP/1.1").to_owned(), ..Sent::default() };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return complain("no header") };
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return complain("a header's name");
        }
        if value.bytes().any(|byte| byte < b' ' && byte != b'\t') {
            return complain("a header's value");
        }
        sent.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if text.bytes().filter(|byte| *byte == b'\n').count() != sent.headers.len() {
        return complain("a bare LF");
    }
    if sent.all("host").len() != 1 {
        return complain("not one host");
    }
    Ok(sent)
}
