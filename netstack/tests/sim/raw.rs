//! A guest's TCP made by hand, for what no honest stack sends. Sits on a port without a guest.

use std::net::SocketAddrV4;

use smoltcp::wire::{EthernetProtocol, IpProtocol, TcpPacket, TcpSeqNumber};

use crate::frames::{ethernet, ipv4, packet};
use crate::network::{GATEWAY_MAC, Sim, guest_mac};

pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN: u8 = 1;

/// A received segment.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) flags: u8,
    pub(crate) seq: TcpSeqNumber,
    pub(crate) ack: TcpSeqNumber,
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    /// Selectively acknowledged, from and up to.
    pub(crate) sacked: Vec<(TcpSeqNumber, TcpSeqNumber)>,
    pub(crate) payload: Vec<u8>,
}

/// One connection; the test keeps the numbers right.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) port: usize,
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    /// Of the next segment.
    pub(crate) seq: TcpSeqNumber,
    pub(crate) ack: TcpSeqNumber,
    pub(crate) window: u16,
    /// Options of a SYN.
    pub(crate) options: Vec<u8>,
    /// What every other segment acknowledges selectively.
    pub(crate) sacks: Option<(TcpSeqNumber, TcpSeqNumber)>,
}

impl Raw {
    pub(crate) fn new(port: usize, from: SocketAddrV4, to: SocketAddrV4) -> Self {
        let options = vec![2, 4, 0x05, 0xb4, 1, 3, 3, 7];
        Self {
            port,
            from,
            to,
            seq: TcpSeqNumber(1000),
            ack: TcpSeqNumber(0),
            window: 65_535,
            options,
            sacks: None,
        }
    }

    /// Sends one segment, and counts it.
    pub(crate) fn send(&mut self, sim: &mut Sim, flags: u8, payload: &[u8]) {
        let frame = self.frame(flags, payload);
        sim.inject(self.port, &frame);
        self.seq += payload.len() + usize::from(flags & (SYN | FIN) != 0);
    }

    pub(crate) fn frame(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let sacks = self
            .sacks
            .map(|(from, to)| [&[1, 1, 5, 10][..], &from.0.to_be_bytes(), &to.0.to_be_bytes()].concat());
        let options: &[u8] = if flags & SYN != 0 { &self.options } else { sacks.as_deref().unwrap_or(&[]) };
        let mut bytes = vec![0; 20 + options.len() + payload.len()];
        bytes[20..20 + options.len()].copy_from_slice(options);
        bytes[20 + options.len()..].copy_from_slice(payload);
        let mut segment = TcpPacket::new_unchecked(&mut bytes);
        segment.set_src_port(self.from.port());
        segment.set_dst_port(self.to.port());
        segment.set_seq_number(self.seq);
        segment.set_ack_number(self.ack);
        segment.clear_flags();
        segment.set_header_len(20 + options.len() as u8);
        segment.set_syn(flags & SYN != 0);
        segment.set_rst(flags & RST != 0);
        segment.set_ack(flags & ACK != 0);
        segment.set_fin(flags & FIN != 0);
        segment.set_window_len(self.window);
        segment.fill_checksum(&(*self.from.ip()).into(), &(*self.to.ip()).into());
        let packet = ipv4(*self.from.ip(), *self.to.ip(), IpProtocol::Tcp, &bytes);
        let [.., number] = self.from.ip().octets();
        ethernet(guest_mac(number), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet)
    }

    /// What arrived for this connection, and everything in sequence is taken as acknowledged by the next
    /// segment.
    pub(crate) fn receive(&mut self, sim: &mut Sim) -> Vec<Received> {
        sim.settle();
        self.take(sim)
    }

    /// The same, without letting time pass.
    pub(crate) fn take(&mut self, sim: &mut Sim) -> Vec<Received> {
        let mut received = Vec::new();
        sim.ports[self.port].inbox.retain(|frame| {
            let Some(packet) = packet(frame).filter(|packet| packet.next_header() == IpProtocol::Tcp) else {
                return true;
            };
            let segment = TcpPacket::new_checked(packet.payload()).unwrap();
            if segment.dst_port() != self.from.port() || segment.src_port() != self.to.port() {
                return true;
            }
            let flag = |set, flag| if set { flag } else { 0 };
            let flags = flag(segment.fin(), FIN)
                | flag(segment.syn(), SYN)
                | flag(segment.rst(), RST)
                | flag(segment.ack(), ACK);
            let options = segment.options_summary().unwrap();
            received.push(Received {
                flags,
                seq: segment.seq_number(),
                ack: segment.ack_number(),
                window: segment.window_len(),
                scale: options.window_scale,
                sacked: (options.sack_ranges.into_iter().flatten())
                    .map(|(from, to)| (TcpSeqNumber(from as i32), TcpSeqNumber(to as i32)))
                    .collect(),
                payload: segment.payload().to_vec(),
            });
            false
        });
        for segment in &received {
            if segment.flags & SYN != 0 || segment.seq == self.ack {
                let ends = usize::from(segment.flags & (SYN | FIN) != 0);
                self.ack = segment.seq + segment.payload.len() + ends;
            }
        }
        received
    }

    /// The three-way handshake, from this side.
    pub(crate) fn open(&mut self, sim: &mut Sim) -> Received {
        self.send(sim, SYN, &[]);
        let received = self.receive(sim);
        let [answer] = &received[..] else { panic!("one SYN-ACK, not {received:?}") };
        assert_eq!(answer.flags, SYN | ACK, "{answer:?}");
        self.send(sim, ACK, &[]);
        answer.clone()
    }
}
