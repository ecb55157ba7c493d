//! A guest that is nothing but frames: what a test sends, byte for byte, and what comes back.
//! Owns: one end of a link and the builders of well-formed packets, for a test to spoil.
//! May not: keep state of any protocol. Read next: `../bad_frames.rs`.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::cable::{Cable, Framing};
use crate::daemon::Daemon;
use crate::net::{self, GATEWAY};

pub const BROADCAST: [u8; 6] = [0xff; 6];
pub const GATEWAY_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
pub const MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
pub const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

/// A plug in the daemon's QEMU socket, or in another link.
#[derive(Debug)]
pub struct Wire {
    cable: Cable,
    frames: Receiver<Vec<u8>>,
    asked: u16,
}

impl Wire {
    #[track_caller]
    pub fn plug(daemon: &Daemon) -> Self {
        Self::over(net::plug(daemon))
    }

    /// A plug in another QEMU socket than the one that [`Daemon`] made.
    #[track_caller]
    pub fn plug_into(socket: &Path) -> Self {
        Self::over(crate::eventually("a connection to the QEMU socket", Duration::from_secs(5), || {
            UnixStream::connect(socket).ok()
        }))
    }

    /// Frames over whatever link.
    pub fn over(cable: impl Into<Cable>) -> Self {
        let cable = cable.into();
        let (mut reader, framing) = (cable.input.try_clone().unwrap(), cable.framing);
        let (sender, frames) = channel();
        // A guest that always empties its card, so that the daemon never waits for the test.
        std::thread::spawn(move || {
            while let Ok(frame) = read_frame(&mut reader, framing) {
                if sender.send(frame).is_err() {
                    break;
                }
            }
        });
        Self { cable, frames, asked: 0 }
    }

    /// Bytes as they are, without a length before them.
    pub fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.cable.output.write_all(bytes)
    }

    /// One frame.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        self.send_all([frame]);
    }

    /// Many frames in one write.
    #[track_caller]
    pub fn send_all<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        self.try_send_all(frames).unwrap_or_else(|error| panic!("the daemon hung up: {error}"));
    }

    fn try_send_all<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            match self.cable.framing {
                Framing::Big32 => bytes.extend(u32::try_from(frame.len()).unwrap().to_be_bytes()),
                Framing::Little16 => bytes.extend(u16::try_from(frame.len()).unwrap().to_le_bytes()),
                Framing::Message => {
                    self.raw(frame)?;
                    continue;
                }
            }
            bytes.extend(frame);
        }
        self.raw(&bytes)
    }

    /// The next frame for which `wanted` is true; others are passed over.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let frame = self.frames.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Whether the gateway still answers: to an ARP request and to an echo request that nobody sent before.
    pub fn is_alive(&mut self) -> bool {
        // After a flood an answer may be lost in a full batch, so that it is asked for again.
        (0..10).any(|_| self.answers(Duration::from_millis(500)))
    }

    fn answers(&mut self, patience: Duration) -> bool {
        self.asked += 1;
        let [high, low] = self.asked.to_be_bytes();
        // A hardware address of its own makes the answer one to this very question.
        let mac = [0x02, 0xaa, 0xaa, 0xaa, high, low];
        let echo = echo_request(high, low);
        let echo = ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, GATEWAY, &echo));
        let request = arp(1, mac, IP, [0; 6], GATEWAY);
        // The last request restores whom the gateway takes this guest for.
        let restore = arp(1, MAC, IP, [0; 6], GATEWAY);
        let resolved = |frame: &[u8]| frame.starts_with(&mac) && frame[12..14] == ARP.to_be_bytes();
        let echoed =
            |frame: &[u8]| frame.len() >= 42 && frame[23] == ICMP && frame[38..42] == [9, 9, high, low];
        self.try_send_all([&request[..], &restore, &echo]).is_ok()
            && self.receive(patience, resolved).is_some()
            && self.receive(patience, echoed).is_some()
    }

    /// Hangs up.
    pub fn unplug(&self) {
        self.cable.shutdown();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.unplug();
    }
}

/// The next frame; an error at the link's end.
fn read_frame(reader: &mut std::fs::File, framing: Framing) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    let len = match framing {
        Framing::Big32 => {
            reader.read_exact(&mut length)?;
            u32::from_be_bytes(length) as usize
        }
        Framing::Little16 => {
            reader.read_exact(&mut length[..2])?;
            usize::from(u16::from_le_bytes([length[0], length[1]]))
        }
        Framing::Message => {
            let mut message = vec![0; 1 << 17];
            let len = reader.read(&mut message)?;
            message.truncate(len);
            return if len == 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(message) };
        }
    };
    let mut frame = vec![0; len];
    reader.read_exact(&mut frame)?;
    Ok(frame)
}

pub fn ether(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// A whole ARP frame, broadcast.
pub fn arp(operation: u8, mac: [u8; 6], ip: Ipv4Addr, target: [u8; 6], asked: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    ether(BROADCAST, mac, ARP, &[&head[..], &mac, &ip.octets(), &target, &asked.octets()].concat())
}

/// An IPv4 packet.
pub fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    fragment(protocol, from, to, 0, 0, false, payload)
}

/// One fragment of an IPv4 packet. `offset` counts 8-byte units.
pub fn fragment(
    protocol: u8,
    from: Ipv4Addr,
    to: Ipv4Addr,
    id: u16,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend((offset | if more { 0x2000 } else { 0 }).to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], payload].concat()
}

/// A UDP datagram without a checksum, which IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

/// A TCP segment. Its checksum is left out: frames of a local hypervisor come without.
pub fn tcp(from: u16, to: u16, sequence: u32, acknowledged: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    segment
}

/// An echo request with identifier 0x0909.
pub fn echo_request(high: u8, low: u8) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 9, 9, high, low, b'p', b'i', b'n', b'g'];
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The Internet checksum, RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
