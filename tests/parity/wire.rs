//! A machine that is nothing but frames, on a link of any kind. Read next: `links.rs`, `dhcp.rs`.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use socket2::SockRef;

use testkit::cable::{Cable, Framing};
use testkit::frames::{GATEWAY_MAC, IP, MAC, arp};
use testkit::net::GATEWAY;
use testkit::uninterrupted;

/// Longest that the gateway may take to answer, on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is listened before "nobody answers" is believed.
pub(crate) const SILENCE: Duration = Duration::from_millis(1500);

/// One end of a link, on a socket.
#[derive(Debug)]
pub(crate) struct Plug {
    cable: Cable,
    input: File,
    buffer: Vec<u8>,
}

impl Plug {
    pub(crate) fn new(cable: impl Into<Cable>) -> Self {
        let cable = cable.into();
        let input = cable.input.try_clone().unwrap();
        Self { cable, input, buffer: Vec::new() }
    }

    /// The link, with nothing read from it that has not been taken.
    pub(crate) fn into_cable(self) -> Cable {
        SockRef::from(&self.input).set_read_timeout(None).unwrap();
        assert!(self.buffer.is_empty(), "{}", self.buffer.escape_ascii());
        self.cable
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        // The daemon may have hung up, which the answer tells.
        let _ = self.cable.output.write_all(&framed(self.cable.framing, frame));
    }

    /// The next frame for which `wanted` is true; others are passed over.
    pub(crate) fn receive(&mut self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            while let Some(frame) = self.take() {
                if wanted(&frame) {
                    return Some(frame);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            SockRef::from(&self.input).set_read_timeout(Some(left)).unwrap();
            let mut bytes = vec![0; 1 << 17];
            let length = match uninterrupted(|| self.input.read(&mut bytes)) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(_) => return None,
            };
            if length == 0 {
                // The other end has hung up.
                return None;
            }
            if self.cable.framing == Framing::Message {
                let frame = bytes[..length].to_vec();
                if wanted(&frame) {
                    return Some(frame);
                }
            } else {
                self.buffer.extend_from_slice(&bytes[..length]);
            }
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let (length, prefix) = match self.cable.framing {
            Framing::Big32 => (u32::from_be_bytes(*self.buffer.first_chunk()?) as usize, 4),
            Framing::Little16 => (usize::from(u16::from_le_bytes(*self.buffer.first_chunk()?)), 2),
            Framing::Message => return None,
        };
        let frame = self.buffer.get(prefix..prefix + length)?.to_vec();
        self.buffer.drain(..prefix + length);
        Some(frame)
    }

    /// Whether the gateway answers an ARP request of a machine with this address.
    pub(crate) fn answered_as(&mut self, mac: [u8; 6], patience: Duration) -> bool {
        // Each has an address of its own.
        let ip = if mac == MAC { IP } else { Ipv4Addr::new(192, 168, 127, 100 + mac[5] % 100) };
        self.send(&arp(1, mac, ip, [0; 6], GATEWAY));
        let is_answer = |frame: &[u8]| frame.starts_with(&[&mac[..], &GATEWAY_MAC].concat());
        self.receive(patience, is_answer).is_some()
    }

    pub(crate) fn answered(&mut self) -> bool {
        self.answered_as(MAC, PATIENCE)
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let _ = self.cable.output.write_all(bytes);
    }

    /// Sends `bytes` up to `times` times, until the other end takes no more.
    pub(crate) fn flood(&mut self, bytes: &[u8], times: usize) {
        SockRef::from(&self.cable.output).set_write_timeout(Some(SILENCE)).unwrap();
        for _ in 0..times {
            if self.cable.output.write_all(bytes).is_err() {
                return;
            }
        }
    }

    pub(crate) fn hang_up(&self) {
        self.cable.shutdown();
    }
}

pub(crate) fn framed(framing: Framing, frame: &[u8]) -> Vec<u8> {
    match framing {
        Framing::Big32 => [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat(),
        Framing::Little16 => [&u16::try_from(frame.len()).unwrap().to_le_bytes()[..], frame].concat(),
        Framing::Message => frame.to_vec(),
    }
}
