//! Datagrams, one in each call. Owns: nothing.

use std::io;

use mio::net::UdpSocket;

use crate::sys::udp::{Client, Inbox, Received, SLOT};

pub(crate) fn receive_uncut(_socket: &UdpSocket) {}

/// A socket that is not connected is told of none.
pub(crate) fn ignore_refusals(_socket: &UdpSocket) {}

pub(crate) fn tell_asked(_socket: &UdpSocket) {}

pub(crate) fn send_segments(
    _socket: &UdpSocket,
    _bytes: &[u8],
    _segment: u16,
    _to: Option<Client>,
) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn send_one(socket: &UdpSocket, datagram: &[u8], to: Client) -> io::Result<()> {
    socket.send_to(datagram, to.address).map(drop)
}

pub(crate) fn receive(inbox: &mut Inbox, socket: &UdpSocket, _most: usize, names: bool) -> io::Result<()> {
    let slot = inbox.buffer.get_mut(..SLOT).unwrap_or_default();
    let (len, from) = match names {
        true => socket.recv_from(slot).map(|(len, address)| (len, Some(Client { address, asked: None })))?,
        false => (socket.recv(slot)?, None),
    };
    inbox.received.push(Received { len, segment: len, from });
    Ok(())
}
