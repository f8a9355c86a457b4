//! The bookstore from outside: real processes, real sockets, both families.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// A role on a free port; it ends with the test.
struct Role {
    child: Child,
    port: u16,
}

impl Role {
    fn start(role: &str, pod: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bookinfo"))
            .args([role, "--port", "0", "--pod-name", pod])
            .args(arguments)
            .env_remove("HOSTNAME")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the bookstore starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("it says where it listens");
        let listening: Value = serde_json::from_str(&line).expect("a JSON line");
        assert_eq!((&listening["event"], &listening["role"], &listening["pod"]), (&json!("listening"), &json!(role), &json!(pod)));
        let port = listening["address"].as_str().and_then(|address| address.rsplit_once(':')).and_then(|(_, port)| port.parse().ok());
        // Keeps reading, so that its log never blocks it.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, port: port.expect("an address with a port") }
    }

    fn ipv4(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn ipv6(&self) -> String {
        format!("[::1]:{}", self.port)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn field(&self, name: &str) -> &str {
        let fields = || self.head.lines().filter_map(|line| line.split_once(": "));
        fields().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).unwrap_or_default()
    }
}

fn request(at: &str, method: &str, path: &str, fields: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(at).expect("it listens");
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-length: {length}\r\n{fields}\r\n{body}")
        .expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

fn get(at: &str, path: &str) -> Answer {
    request(at, "GET", path, "", "")
}

/// An address where nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").to_string()
}

/// A role that records the head of the request it gets, and answers with `body`.
fn recorder(body: &'static str) -> (SocketAddr, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a call");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("a whole head");
            head.push(byte[0]);
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).expect("it is sent");
        String::from_utf8(head).expect("a head is text")
    });
    (address, heard)
}

#[test]
fn every_role_answers_on_both_families() {
    let details = Role::start("details", "details-v1-a", &[]);
    let ratings = Role::start("ratings", "ratings-v1-b", &[]);
    for at in [details.ipv4(), details.ipv6()] {
        let facts = get(&at, "/details/0").json();
        assert_eq!((&facts["id"], &facts["language"]), (&json!(0), &json!("English")));
        assert!(facts["ISBN-10"].is_string() && facts["author"].is_string());
        assert_eq!(get(&at, "/details/x").status, 400);
        assert_eq!(get(&at, "/nothing").status, 404);
        assert_eq!(request(&at, "POST", "/details/0", "", "").status, 405);
    }
    for at in [ratings.ipv4(), ratings.ipv6()] {
        assert_eq!(get(&at, "/ratings/7").json()["ratings"]["Mirela"], 5);
        assert_eq!(get(&at, "/health").json()["status"], "ratings is healthy");
    }
    assert_eq!(get(&ratings.ipv6(), "/ratings/0").field("x-bookinfo-served-by"), "ratings-v1-b;saw=::1");
    assert_eq!(get(&ratings.ipv4(), "/ratings/0").field("x-bookinfo-served-by"), "ratings-v1-b;saw=127.0.0.1", "not v4-mapped");
}

#[test]
fn reviews_differ_by_version() {
    let ratings = Role::start("ratings", "ratings-v1-b", &[]);
    for (version, rating) in
        [("v1", Value::Null), ("v2", json!({"stars": 5, "color": "black"})), ("v3", json!({"stars": 5, "color": "red"}))]
    {
        let pod = format!("reviews-{version}-c");
        let reviews = Role::start("reviews", &pod, &["--service-version", version, "--ratings", &ratings.ipv6()]);
        let answer = get(&reviews.ipv4(), "/reviews/0");
        let told = answer.json();
        assert_eq!((&told["id"], &told["podname"], &told["clustername"]), (&json!("0"), &json!(pod), &json!("null")));
        assert_eq!(answer.field("x-version"), version);
        assert_eq!(told["reviews"][0]["reviewer"], "Mirela");
        assert_eq!(told["reviews"][0].get("rating").cloned().unwrap_or_default(), rating, "{version}");
        assert_eq!(answer.field("x-bookinfo-served-by").contains("ratings-v1-b;saw=::1"), version != "v1");
    }
    let alone = Role::start("reviews", "reviews-v2-d", &["--service-version", "v2", "--ratings", &nobody()]);
    let told = get(&alone.ipv4(), "/reviews/0");
    assert_eq!(told.status, 200);
    assert!(told.json()["reviews"][0]["rating"]["error"].is_string());
}

#[test]
fn the_page_shows_what_is_there_and_says_what_is_not() {
    let details = Role::start("details", "details-v1-a", &[]);
    let ratings = Role::start("ratings", "ratings-v1-b", &[]);
    let reviews = Role::start("reviews", "reviews-v3-c", &["--service-version", "v3", "--ratings", &ratings.ipv4()]);
    let shop = Role::start("productpage", "productpage-v1-e", &["--details", &details.ipv6(), "--reviews", &reviews.ipv4()]);
    let page = get(&shop.ipv6(), "/productpage");
    assert_eq!((page.status, page.field("content-type")), (200, "text/html; charset=utf-8"));
    for part in [
        "<title>Simple Bookstore App</title>",
        "Ines Halvorsen",
        "reviews-v3-c",
        "stars red",
        "details-v1-a",
        "└ ratings-v1-b",
        "productpage-v1-e",
    ] {
        assert!(page.body.contains(part), "{part}");
    }
    assert_eq!(get(&shop.ipv4(), "/").status, 303);
    assert_eq!(get(&shop.ipv4(), "/api/v1/products").json()[0]["id"], 0);
    assert_eq!(get(&shop.ipv4(), "/api/v1/products/0").json()["year"], 2019);
    assert_eq!(get(&shop.ipv4(), "/api/v1/products/0/reviews").json()["podname"], "reviews-v3-c");
    assert_eq!(get(&shop.ipv4(), "/api/v1/products/0/ratings").json()["ratings"]["Tobias"], 4);

    drop(details);
    let page = get(&shop.ipv4(), "/productpage");
    assert!(page.status == 200 && page.body.contains("the connection was refused") && page.body.contains("stars red"));
    drop(reviews);
    let page = get(&shop.ipv4(), "/productpage");
    assert!(page.status == 200 && page.body.contains("We asked <code>reviews</code>"));
    assert_eq!(get(&shop.ipv4(), "/api/v1/products/0/reviews").status, 503);
}

#[test]
fn traces_and_users_are_passed_on() {
    const NO_REVIEWS: &str = r#"{"id":"0","podname":"p","clustername":"c","reviews":[]}"#;
    let (reviews, heard) = recorder(NO_REVIEWS);
    let shop = Role::start("productpage", "productpage-v1-e", &["--details", &nobody(), "--reviews", &reviews.to_string()]);
    let fields = "traceparent: 00-aa-bb-01\r\nx-b3-traceid: cc\r\nend-user: maya\r\ncookie: secret=1\r\n";
    assert_eq!(request(&shop.ipv4(), "GET", "/productpage", fields, "").status, 200);
    let head = heard.join().expect("it was called");
    assert!(head.starts_with("GET /reviews/0 HTTP/1.1\r\n") && head.contains(&format!("host: {reviews}\r\n")), "{head}");
    for field in ["traceparent: 00-aa-bb-01", "x-b3-traceid: cc", "end-user: maya"] {
        assert!(head.contains(field), "{field} in {head}");
    }
    assert!(!head.contains("secret"), "{head}");

    let (ratings, heard) = recorder(r#"{"id":0,"ratings":{"Mirela":3}}"#);
    let second = Role::start("reviews", "reviews-v2-c", &["--service-version", "v2", "--ratings", &ratings.to_string()]);
    request(&second.ipv6(), "GET", "/reviews/0", fields, "");
    let head = heard.join().expect("it was called");
    assert!(head.contains("traceparent: 00-aa-bb-01") && head.contains("end-user: maya"), "{head}");
}

#[test]
fn signing_in_makes_the_user_known_to_the_other_roles() {
    let (reviews, heard) = recorder("{}");
    let shop = Role::start("productpage", "productpage-v1-e", &["--details", &nobody(), "--reviews", &reviews.to_string()]);
    let signed_in =
        request(&shop.ipv4(), "POST", "/login", "content-type: application/x-www-form-urlencoded\r\n", "username=jason&passwd=");
    assert_eq!((signed_in.status, signed_in.field("location")), (303, "/productpage"));
    let cookie = signed_in.field("set-cookie").split(';').next().expect("a cookie").to_owned();
    let page = request(&shop.ipv4(), "GET", "/productpage", &format!("cookie: {cookie}\r\n"), "");
    assert!(page.body.contains("Reading as <b>jason</b>") && page.body.contains("its answer could not be read"));
    assert!(heard.join().expect("it was called").contains("end-user: jason"));
    assert_eq!(request(&shop.ipv4(), "POST", "/login", "", "username=%0d").status, 400);
    assert!(get(&shop.ipv4(), "/logout").field("set-cookie").contains("Max-Age=0"));
}

#[test]
fn a_silent_role_does_not_hold_up_the_page_for_long() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = silent.local_addr().expect("it is bound").to_string();
    let reviews = Role::start("reviews", "reviews-v2-c", &["--service-version", "v2", "--ratings", &at]);
    let started = std::time::Instant::now();
    let answer = get(&reviews.ipv4(), "/reviews/0");
    assert!(answer.json()["reviews"][0]["rating"]["error"].is_string());
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&started.elapsed()), "{:?}", started.elapsed());
}

#[test]
fn sigterm_finishes_what_is_open() {
    let mut details = Role::start("details", "details-v1-a", &[]);
    let mut idle = TcpStream::connect(details.ipv4()).expect("it listens");
    write!(idle, "GET /health HTTP/1.1\r\nhost: a\r\n\r\n").expect("it reads");
    let mut start = [0; 15];
    idle.read_exact(&mut start).expect("it answers");
    let process = nix::unistd::Pid::from_raw(i32::try_from(details.child.id()).expect("a process id"));
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    assert!(details.child.wait().expect("it ends").success());
    let mut rest = String::new();
    idle.read_to_string(&mut rest).expect("the rest of the answer, then an end instead of a reset");
    assert!(rest.contains("is healthy"));
}
