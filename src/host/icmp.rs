//! Pings of guests, asked again by the host, which needs no privilege where the system gives sockets for it.
//! Owns: a socket for each. May not: know a guest. Read next: `daemon.rs`, which bounds how many there are.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::logging::Limited;

/// How long an answer may take, as the original's may.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an ICMP header, and the type of a reply (RFC 792).
const HEADER: usize = 8;
const ECHO_REPLY: u8 = 0;
/// Bytes of the longest IP packet.
const MAX_PACKET: usize = 65_535;

/// What became of a ping.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// This came back, without the header.
    Reply(Vec<u8>),
    /// There is no way there.
    Unreachable,
}

/// Asks `target` for an echo, with the number and the data of `request`. `None` where nobody answers, or the host may not ask.
pub async fn ask(target: IpAddr, request: &[u8]) -> Option<Answer> {
    static REFUSED: Limited = Limited::new(1, Duration::from_secs(60));
    match timeout(PATIENCE, exchange(target, request)).await.ok()? {
        Ok(data) => Some(Answer::Reply(data)),
        Err(error) => match error.kind() {
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Answer::Unreachable),
            _ => {
                if let Some(suppressed) = REFUSED.admit(Instant::now()) {
                    let hint = "Linux gives sockets for it to the groups in net.ipv4.ping_group_range";
                    tracing::warn!(%target, %error, hint, suppressed, "cannot ping for the guest");
                }
                None
            }
        },
    }
}

async fn exchange(target: IpAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    if !target.is_ipv4() {
        return Err(io::ErrorKind::NetworkUnreachable.into());
    }
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    // To the runtime a socket with messages is like another.
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(request).await?;
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(data) = reply_to(request, buffer.get(..len).unwrap_or_default()) {
            return Ok(data.to_vec());
        }
    }
}

/// The data of `message`, if it answers `request`. The system has put an identifier of its own into both.
fn reply_to<'a>(request: &[u8], message: &'a [u8]) -> Option<&'a [u8]> {
    let first = *message.first()?;
    // Some systems leave the IP header there, which begins with its version and its length in words.
    let header_len = if first >> 4 == 4 { usize::from(first & 15) * 4 } else { 0 };
    let (header, data) = message.get(header_len..)?.split_at_checked(HEADER)?;
    let is_reply = header.first() == Some(&ECHO_REPLY) && header.get(6..) == request.get(6..HEADER);
    is_reply.then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let request = [8, 0, 1, 2, 3, 4, 0, 9, b'x'];
        let reply = [0, 0, 9, 9, 7, 7, 0, 9, b'x', b'y'];
        assert_eq!(reply_to(&request, &reply), Some(&b"xy"[..]));
        let packet = [&[0x46; 24][..], &reply].concat();
        assert_eq!(reply_to(&request, &packet), Some(&b"xy"[..]));
        let mut other = reply;
        other[7] = 8;
        assert_eq!(reply_to(&request, &other), None, "another number");
        for message in [&request[..], &reply[..7], &packet[..26], &[]] {
            assert_eq!(reply_to(&request, message), None, "{message:?}");
        }
    }
}
