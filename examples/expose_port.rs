//! Exposes a port of a guest on the host by the HTTP API, shows what is exposed, and unexposes it.
//!
//!     gvproxy -listen unix:///tmp/vm/api.sock -listen-qemu unix:///tmp/vm/qemu.sock &
//!     cargo run --example expose_port -- /tmp/vm/api.sock 127.0.0.1:8080 192.168.127.2:80
//!
//! The API is plain HTTP/1.1 with JSON; `docs/api.md` has all of it.
#![allow(clippy::print_stdout, reason = "it shows the answers")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [api, local, remote] = arguments.as_slice() else {
        bail!("usage: expose_port API-SOCKET LOCAL REMOTE")
    };
    post(api, "/services/forwarder/expose", &json!({"local": local, "remote": remote, "protocol": "tcp"}))?;
    let exposed: Value = serde_json::from_str(&request(api, "GET", "/services/forwarder/all", "")?)?;
    println!("exposed: {exposed}");
    post(api, "/services/forwarder/unexpose", &json!({"local": local, "protocol": "tcp"}))?;
    println!("taken back");
    Ok(())
}

fn post(api: &str, path: &str, body: &Value) -> Result<()> {
    request(api, "POST", path, &body.to_string()).map(drop)
}

/// The body of the answer.
fn request(api: &str, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(api).with_context(|| format!("nobody listens at {api}"))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: gvproxy\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "{method} {path}: {status} {}", body.trim());
    Ok(body.to_owned())
}
