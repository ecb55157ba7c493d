//! Streams to a virtual machine by vsock: of the system (vsock(7)), and as a VMM offers it at a unix socket
//! of the host, which Firecracker began and Cloud Hypervisor and vhost-device-vsock do alike: the client says
//! `CONNECT port`, and what follows `OK port` in a line is the guest's.
//!
//! Owns: that greeting. May not: try again. Read next: `forward/direct.rs`, which does.

use rustix::fd::OwnedFd;
use std::io;

use rustix::net::RecvFlags;
use socket2::{Socket, Type};
use tokio::io::{AsyncWriteExt as _, Interest};

use crate::sys::is_under_way;
use crate::sys::sockets::to_vsock_address;
use crate::sys::stream::{self, Stream};
use crate::text::quote;

/// Bytes of the VMM's answer, with the end of the line.
const MAX_ANSWER: usize = 64;

/// Connects to `port` of the machine with the context `cid`.
///
/// # Errors
/// There is no such machine, or it refuses, or this system has no vsock.
pub async fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let to = to_vsock_address(cid, port)?;
    let socket = Socket::new(to.domain(), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to) {
        Err(error) if !is_under_way(&error) => return Err(error),
        _ => {}
    }
    let stream = stream::watch(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream.into_std()?.into()),
    }
}

/// Asks the VMM at the other end of `stream` for `port` of its machine. It may wait as long as the VMM does.
///
/// # Errors
/// Nobody is at the port: the VMM then closes the connection (`ConnectionRefused`); or the answer is none of
/// a VMM (`InvalidData`).
pub async fn ask_hybrid(mut stream: Stream, port: u32) -> io::Result<OwnedFd> {
    let said = stream.write_all(format!("CONNECT {port}\n").as_bytes()).await;
    let heard = match said {
        Ok(()) => answer(&stream).await,
        Err(error) => Err(error),
    };
    match heard {
        Ok(line) if line.starts_with(b"OK ") => Ok(stream.into_std()?.into()),
        Ok(line) => {
            let text = format!("no VMM's answer: {}", quote(line));
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
            ) =>
        {
            let text = format!("the VMM refuses port {port}: nobody listens there in the guest");
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, text))
        }
        Err(error) => Err(error),
    }
}

/// One line, without its end. What stands behind it stays in the socket.
async fn answer(stream: &Stream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        stream.readable().await?;
        let mut seen = [0; MAX_ANSWER];
        let room = MAX_ANSWER - line.len();
        let peeked = stream.try_io(Interest::READABLE, || {
            Ok(rustix::net::recv(stream, &mut seen[..room], RecvFlags::PEEK)?.1)
        });
        let peeked = match peeked {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(peeked) => seen.get(..peeked).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let end = peeked.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(peeked.len(), |end| end + 1);
        // They are there: they have been seen.
        let taken = rustix::net::recv(stream, &mut [0; MAX_ANSWER][..taken], RecvFlags::empty())?.1;
        line.extend_from_slice(peeked.get(..taken).unwrap_or_default());
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(line);
        }
        if line.len() == MAX_ANSWER {
            return Ok(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

    use super::*;

    /// What becomes of a VMM that answers with `pieces`, then `hello`, then ends.
    async fn connect_to(pieces: &[&str]) -> Result<String, (io::ErrorKind, String)> {
        let (client, vmm) = stream::watched_pair();
        let vmm = async {
            let mut client = BufReader::new(vmm);
            let mut asked = String::new();
            client.read_line(&mut asked).await.unwrap();
            assert_eq!(asked, "CONNECT 1024\n");
            for piece in pieces {
                // The client may have seen enough.
                let _ = client.get_mut().write_all(piece.as_bytes()).await;
                tokio::task::yield_now().await;
            }
        };
        let (connected, ()) = tokio::join!(ask_hybrid(client, 1024), vmm);
        let connected = connected.map_err(|error| (error.kind(), error.to_string()))?;
        let mut rest = String::new();
        stream::watch(connected).unwrap().read_to_string(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn only_what_follows_the_answer_is_the_guests() {
        for pieces in [&["OK 1073741824\n", "hello"][..], &["OK 1\nhello"], &["O", "K", " 9", "\n", "hello"]]
        {
            assert_eq!(connect_to(pieces).await, Ok("hello".into()), "{pieces:?}");
        }
        assert_eq!(connect_to(&["OK 5\n"]).await, Ok(String::new()));
    }

    #[tokio::test]
    async fn what_is_no_way_in() {
        for (pieces, kind, why) in [
            (&[][..], io::ErrorKind::ConnectionRefused, "nobody listens there in the guest"),
            (&["OK 1"], io::ErrorKind::ConnectionRefused, "the VMM refuses port 1024"),
            (
                &["HTTP/1.1 400 Bad Request\r\n\r\n"],
                io::ErrorKind::InvalidData,
                r#""HTTP/1.1 400 Bad Request\r""#,
            ),
            (&["OK\n"], io::ErrorKind::InvalidData, r#"no VMM's answer: "OK""#),
            (&["x".repeat(1000).as_str()], io::ErrorKind::InvalidData, "no VMM's answer"),
        ] {
            let (got, text) = connect_to(pieces).await.unwrap_err();
            assert!(got == kind && text.contains(why), "{pieces:?}: {got:?} {text}");
        }
    }
}
