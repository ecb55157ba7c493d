//! HTTP as bytes: what is sent is what the test wrote, and what comes back is kept as it came. Owns: nothing.
//! Read next: `tests/api.rs`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};

use crate::uninterrupted;

/// An answer, or what came instead of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status line's number; 0 if there is no status line.
    pub status: u16,
    /// By lower-case name, without `date`.
    pub headers: BTreeMap<String, String>,
    /// Without the chunks' lengths.
    pub body: String,
}

impl Answer {
    /// Reads what is left of `bytes` as one answer.
    pub fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n").filter(|_| text.starts_with("HTTP/1.")) else {
            return Self { status: 0, headers: BTreeMap::new(), body: text };
        };
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let headers: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .filter(|(name, _)| name != "date")
            .collect();
        let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
        let body = if chunked { dechunk(body) } else { body.to_owned() };
        Self { status, headers, body }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends `bytes` and gives all that comes back until the other end closes; panics where it does not.
#[track_caller]
pub fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Vec<u8> {
    // The other end may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    read_to_end(stream)
}

/// All that comes until the other end closes.
#[track_caller]
pub fn read_to_end(mut stream: impl Read) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&received)),
    }
    received
}

/// A whole request that asks for the connection's end.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: \r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into()
}

/// Asks, and gives the answer.
#[track_caller]
pub fn ask(stream: impl Read + Write, method: &str, path: &str, body: &str) -> Answer {
    Answer::of(&exchange(stream, &request(method, path, body)))
}

/// Asks on a connection that stays open, and gives the answer, or what came before its end.
#[track_caller]
pub fn ask_and_keep(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Answer {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(request.as_bytes());
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let answer = Answer::of(&received);
        if answer.status != 0 && answer.header("content-length").parse() == Ok(answer.body.len()) {
            return answer;
        }
        match uninterrupted(|| stream.read(&mut part)) {
            Ok(len @ 1..) => received.extend_from_slice(&part[..len]),
            Ok(_) => return answer,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("{error} after {answer:?}"),
        }
    }
}

fn dechunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap_or(0);
        let Some((chunk, after)) = after.split_at_checked(length).filter(|_| length > 0) else { break };
        body.push_str(chunk);
        rest = after.strip_prefix("\r\n").unwrap_or(after);
    }
    body
}
