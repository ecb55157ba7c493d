//! Brings a unix socket of the host to another place, without a guest: a request goes through it, and then
//! nothing is left behind.
//!
//!     cargo run --example forward_socket
//!
//! As a program: `gvproxy -forward-sock /tmp/x/here.sock -forward-dest unix:///tmp/x/there.sock`. What else a
//! socket can be, and can lead to (SSH, vsock, TCP, a guest's agent), is in `docs/sockets.md`; all of it
//! works here too.
#![allow(clippy::print_stdout, reason = "it shows what happens")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use anyhow::{Result, anyhow, ensure};
use gvproxy::Daemon;

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (here, there) = (directory.path().join("here.sock"), directory.path().join("there.sock"));
    let server = UnixListener::bind(&there)?;
    let serving = thread::spawn(move || answer(&server));

    let daemon = Daemon::builder()
        .flag("forward-sock", &here)
        .flag("forward-dest", format!("unix://{}", there.display()))
        .start()?;
    // Clients that come from now on are led there. The kernel moves the bytes, and an end of one direction
    // arrives as such.
    let mut client = UnixStream::connect(&here)?;
    client.write_all(b"who is there?")?;
    client.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    println!("answer: {text}");

    drop(daemon);
    ensure!(!here.exists(), "the socket is still there");
    println!("the socket is gone");
    serving.join().map_err(|_| anyhow!("the server panicked"))?
}

/// Answers one client, once it has said all.
fn answer(server: &UnixListener) -> Result<()> {
    let (mut client, _) = server.accept()?;
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    client.write_all(format!("you asked {text:?}").as_bytes())?;
    Ok(())
}
