//! One question to one server.
//! Owns: a socket for the time of the question. May not: choose servers, wait for a bounded time (the caller
//! does).
//!
//! A forged answer has to guess the id and the source port, both new for every question, and name the
//! question; the socket is connected, so it takes datagrams from the server alone and learns of its ICMP
//! errors.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::dns::message::HEADER_LEN;
use netstack::dns::{Query, Rcode, Transport};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// Asks over the client's transport; over UDP where the server does not listen on TCP. The answer carries the
/// client's id.
///
/// # Errors
/// The server cannot be reached, or (over TCP) says something else than an answer.
pub(super) async fn ask(
    server: SocketAddr,
    query: &Query<'_>,
    message: &[u8],
    transport: Transport,
) -> io::Result<Vec<u8>> {
    let mut message = message.to_vec();
    let id = random_id();
    let client_id = swap_id(&mut message, id);
    let mut answer = match transport {
        Transport::Udp => ask_udp(server, query, &message, query.reply_limit(Transport::Udp)).await?,
        Transport::Tcp => match ask_tcp(server, query, &message).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                ask_udp(server, query, &message, usize::from(u16::MAX)).await?
            }
            result => result?,
        },
    };
    swap_id(&mut answer, client_id);
    Ok(answer)
}

/// Whether another server may know better.
pub(super) fn is_refusal(answer: &[u8]) -> bool {
    let refusals = [Rcode::ServFail, Rcode::NotImp, Rcode::Refused];
    answer.get(3).is_some_and(|fourth| refusals.iter().any(|rcode| *rcode as u8 == fourth & 0x0f))
}

/// An answer over `limit` bytes comes cut to one byte more.
async fn ask_udp(server: SocketAddr, query: &Query<'_>, message: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut answer = Vec::with_capacity(limit + 1);
    loop {
        answer.clear();
        socket.recv_buf(&mut answer).await?;
        if is_answer(query, message, &answer) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &Query<'_>, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    if !is_answer(query, message, &answer) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(answer)
}

fn is_answer(query: &Query<'_>, message: &[u8], answer: &[u8]) -> bool {
    answer.len() >= HEADER_LEN && answer[..2] == message[..2] && query.is_answered_by(answer)
}

/// Unpredictable: SipHash with keys from the system's random source.
fn random_id() -> [u8; 2] {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    [a, b]
}

/// Puts `id` at the front of `message`, and returns the one that stood there.
fn swap_id(message: &mut [u8], id: [u8; 2]) -> [u8; 2] {
    message.first_chunk_mut().map_or(id, |old| std::mem::replace(old, id))
}
