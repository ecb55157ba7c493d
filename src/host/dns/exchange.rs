//! One question to one server.
//! Owns: its sockets for the time of the question. May not: choose servers; wait for a bounded time (the
//! caller does).
//!
//! A forged answer has to guess the id and the source port, both new for every question, and name the
//! question; the socket is connected, so it takes datagrams from the server alone and learns of its ICMP
//! errors.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use netstack::dns::message::HEADER_LEN;
use netstack::dns::{Query, Rcode, Transport};
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::dial::any_like;

/// Bytes of the longest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// What to ask, and how.
#[derive(Debug)]
pub(super) struct Question {
    /// As it came from the client.
    pub(super) message: Bytes,
    /// What it came by.
    pub(super) transport: Transport,
    /// Servers are asked over TCP and nothing else.
    pub(super) use_tcp: bool,
    /// How long a server may take before it is asked again, and how often it is asked in all.
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
    /// How long a server may take before another way is tried as well.
    pub(super) hedge: Duration,
    /// Whether another server is such a way.
    pub(super) others: bool,
}

/// Asks over the client's transport; over UDP as well where TCP fails or takes long, and over TCP after all
/// where UDP's answer is truncated. The answer carries the client's id.
///
/// # Errors
/// The server cannot be reached, or (over TCP alone) says something else than an answer.
pub(super) async fn ask(server: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let query = Query::parse(&question.message).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = question.message.to_vec();
    let client_id = swap_id(&mut message, random_id());
    let asked = Asked { server, question, query, message: &message };
    let mut answer = match (question.use_tcp, question.transport) {
        (true, _) => asked.repeatedly_over_tcp().await?,
        (false, Transport::Udp) => asked.over_udp().await?,
        (false, Transport::Tcp) => asked.over_either().await?,
    };
    swap_id(&mut answer, client_id);
    Ok(answer)
}

/// Whether another server may know better: of one that refuses, does not know EDNS (RFC 6891 7), or neither
/// has the zone nor asks others (a lame delegation, RFC 1912 2.8), as libc's resolver has it.
pub(super) fn is_refusal(answer: &[u8]) -> bool {
    let refusals = [Rcode::FormErr, Rcode::ServFail, Rcode::NotImp, Rcode::Refused];
    let [third, fourth, _, _, answers @ .., _, _, _, _] = answer.get(2..HEADER_LEN).unwrap_or_default()
    else {
        return false;
    };
    let is = |rcode: Rcode| rcode as u8 == fourth & 0x0f;
    let is_lame = is(Rcode::NoError)
        && answers == [0, 0]
        && third & AUTHORITATIVE == 0
        && fourth & RECURSION_AVAILABLE == 0;
    is_lame || refusals.into_iter().any(is)
}

/// Of the third and the fourth byte (RFC 1035 4.1.1).
const AUTHORITATIVE: u8 = 0x04;
const RECURSION_AVAILABLE: u8 = 0x80;

/// Whether records were left out (TC, RFC 1035 section 4.1.1).
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|third| third & 0x02 != 0)
}

struct Asked<'a> {
    server: SocketAddr,
    question: &'a Question,
    query: Query<'a>,
    /// With an id of ours.
    message: &'a [u8],
}

impl Asked<'_> {
    async fn over_udp(&self) -> io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(any_like(self.server)).await?;
        socket.connect(self.server).await?;
        socket.send(self.message).await?;
        // A datagram that was lost is sent again before another server's answer has to do.
        let first = if self.question.others { self.question.hedge } else { self.question.timeout };
        let mut due = Instant::now() + first;
        let mut sent = 1;
        loop {
            tokio::select! {
                answer = self.receive(&socket) => return answer,
                () = sleep_until(due), if sent < self.question.attempts => {
                    socket.send(self.message).await?;
                    due += self.question.timeout;
                    sent += 1;
                }
            }
        }
    }

    async fn receive(&self, socket: &UdpSocket) -> io::Result<Vec<u8>> {
        loop {
            // An ICMP error is not readable, though a read reports it.
            let answer = socket.async_io(Interest::READABLE | Interest::ERROR, || {
                let mut answer = Vec::with_capacity(MAX_DATAGRAM);
                rustix::net::recv(socket, rustix::buffer::spare_capacity(&mut answer), RecvFlags::empty())?;
                Ok(answer)
            });
            let mut answer = answer.await?;
            if self.is_answered_by(&answer) {
                answer.shrink_to_fit();
                return Ok(answer);
            }
        }
    }

    async fn over_tcp(&self) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.server).await?;
        let len = u16::try_from(self.message.len()).map_err(io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes(), self.message].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        if !self.is_answered_by(&answer) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(answer)
    }

    async fn repeatedly_over_tcp(&self) -> io::Result<Vec<u8>> {
        for _ in 0..self.question.attempts {
            if let Ok(result) = timeout(self.question.timeout, self.over_tcp()).await {
                return result;
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// DNS over TCP is blocked in many a network, or ends in a middlebox that does not know it.
    async fn over_either(&self) -> io::Result<Vec<u8>> {
        let mut tcp = pin!(self.over_tcp());
        let mut udp = pin!(self.over_udp());
        let mut hedge = pin!(sleep(self.question.hedge));
        let (mut tcp_failed, mut udp_failed, mut udp_too) = (false, false, false);
        let truncated = loop {
            tokio::select! {
                biased;
                answer = &mut tcp, if !tcp_failed => match answer {
                    Ok(answer) => return Ok(answer),
                    Err(error) if udp_failed => return Err(error),
                    Err(error) => {
                        tracing::debug!(server = %self.server, %error, "no answer over TCP");
                        (tcp_failed, udp_too) = (true, true);
                    }
                },
                answer = &mut udp, if udp_too && !udp_failed => match answer {
                    Ok(answer) if is_truncated(&answer) => break answer,
                    Ok(answer) => return Ok(answer),
                    Err(error) if tcp_failed => return Err(error),
                    Err(_) => udp_failed = true,
                },
                () = &mut hedge, if !udp_too => udp_too = true,
            }
        };
        let whole = async { if tcp_failed { self.over_tcp().await } else { tcp.await } };
        Ok(timeout(self.question.timeout, whole).await.ok().and_then(Result::ok).unwrap_or(truncated))
    }

    fn is_answered_by(&self, answer: &[u8]) -> bool {
        answer.len() >= HEADER_LEN && answer[..2] == self.message[..2] && self.query.is_answered_by(answer)
    }
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
