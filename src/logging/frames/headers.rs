//! What the headers of a frame say, as fields of a line of the log. Owns: the words.
//! May not: fail. A frame that cannot be read to its end gives what stands before that, and what is wrong.
//! Read next: `../frames.rs`, which writes them.

use std::net::Ipv4Addr;

use dhcproto::v4::OptionCode;
use dhcproto::v4::borrowed::Message;
use etherparse::{
    ArpOperation, ArpPacketSlice, EtherType, IcmpEchoHeader, Icmpv4Slice, Icmpv6Slice, LaxIpPayloadSlice,
    LaxNetSlice, LaxSlicedPacket, LinkSlice, TcpOptionElement, TcpSlice, TransportSlice, UdpSlice, icmpv4,
    icmpv6,
};
use netstack::Mac;
use netstack::dns::Query;
use netstack::dns::message::HEADER_LEN;

const DNS: u16 = 53;
const DHCP: [u16; 2] = [67, 68];
/// Bytes of the longest question in a DNS message: name, type and class (RFC 1035 3.1, 4.1.2).
const LONGEST_QUESTION: usize = 255 + 4;

/// The fields of a frame; those that it has not are `None`. What a guest may choose is a number, or text
/// without control characters.
#[derive(Debug, Default)]
pub(super) struct Headers {
    /// `ARP`, `DNS`, `DHCP`, else IANA's keyword or number of what the IP packet holds, or the EtherType.
    pub(super) protocol: Option<String>,
    /// What the message is, of ARP, ICMP, DNS and DHCP.
    pub(super) kind: Option<String>,
    /// The sender's address, of ARP as well.
    pub(super) src: Option<String>,
    pub(super) sport: Option<u16>,
    pub(super) dst: Option<String>,
    pub(super) dport: Option<u16>,
    /// Of TCP, as `SYN+ACK`.
    pub(super) flags: Option<String>,
    /// Of an echo, a DNS message or a fragment.
    pub(super) id: Option<u16>,
    /// Of a segment or an echo.
    pub(super) seq: Option<u32>,
    pub(super) ack: Option<u32>,
    pub(super) window: Option<u16>,
    pub(super) mss: Option<u16>,
    /// The next hop's, where an ICMP message tells it.
    pub(super) mtu: Option<u16>,
    /// Of a DNS question, in a zone file's notation.
    pub(super) name: Option<String>,
    pub(super) qtype: Option<String>,
    pub(super) rcode: Option<String>,
    pub(super) answers: Option<u16>,
    /// Which a DHCP message is about.
    pub(super) address: Option<String>,
    /// The hardware address that an ARP message gives its sender, or a DHCP message its client.
    pub(super) hardware: Option<String>,
    /// Where the fragment belongs, in bytes, with a `+` if there are more behind it.
    pub(super) fragment: Option<String>,
    /// Bytes behind the last header that was read.
    pub(super) payload: Option<usize>,
    pub(super) vlan: Option<u16>,
    pub(super) src_mac: Option<String>,
    pub(super) dst_mac: Option<String>,
    /// Why nothing more was read.
    pub(super) error: Option<String>,
}

impl Headers {
    /// Those of `frame`.
    pub(super) fn of(frame: &[u8]) -> Self {
        let mut headers = Self::default();
        match LaxSlicedPacket::from_ethernet(frame) {
            Ok(packet) => headers.read(&packet),
            Err(error) => headers.error = Some(error.to_string()),
        }
        headers
    }

    fn read(&mut self, packet: &LaxSlicedPacket<'_>) {
        if let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link {
            [self.src_mac, self.dst_mac] =
                [ethernet.source(), ethernet.destination()].map(|mac| text(Mac(mac)));
        }
        self.vlan = packet.vlan_ids().first().map(|id| id.value());
        self.error = packet.stop_err.as_ref().map(|(error, _)| error.to_string());
        match &packet.net {
            Some(LaxNetSlice::Arp(message)) => self.arp(message),
            Some(LaxNetSlice::Ipv4(ip)) => {
                let header = ip.header();
                [self.src, self.dst] = [header.source_addr(), header.destination_addr()].map(text);
                if ip.is_payload_fragmented() {
                    self.id = Some(header.identification());
                    let (at, more) = (header.fragments_offset().value() * 8, header.more_fragments());
                    self.fragment = Some(format!("{at}{}", if more { "+" } else { "" }));
                }
                self.ip(ip.payload());
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let header = ip.header();
                [self.src, self.dst] = [header.source_addr(), header.destination_addr()].map(text);
                self.ip(ip.payload());
            }
            None => {
                self.protocol = packet.ether_payload().map(|payload| match payload.ether_type {
                    EtherType::IPV4 => "IPv4".into(),
                    EtherType::IPV6 => "IPv6".into(),
                    EtherType::ARP => "ARP".into(),
                    EtherType(other) => format!("{other:#06x}"),
                });
                self.payload = packet.ether_payload().map(|payload| payload.payload.len());
            }
        }
        match &packet.transport {
            Some(TransportSlice::Tcp(segment)) => self.tcp(segment),
            Some(TransportSlice::Udp(datagram)) => self.udp(datagram),
            Some(TransportSlice::Icmpv4(message)) => self.icmp(message),
            Some(TransportSlice::Icmpv6(message)) => self.icmpv6(message),
            Some(TransportSlice::Igmp(_)) | None => {}
        }
    }

    /// Notes what is wrong, unless something was before.
    fn wrong(&mut self, what: String) {
        self.error.get_or_insert(what);
    }

    fn ip(&mut self, payload: &LaxIpPayloadSlice<'_>) {
        let number = payload.ip_number;
        self.protocol = Some(number.keyword_str().map_or_else(|| number.0.to_string(), str::to_owned));
        self.payload = Some(payload.payload.len());
        if payload.incomplete {
            self.wrong(format!("IP: the packet is cut short, {} bytes are there", payload.payload.len()));
        }
    }

    /// RFC 826.
    fn arp(&mut self, message: &ArpPacketSlice<'_>) {
        self.protocol = Some("ARP".into());
        self.kind = Some(match message.operation() {
            ArpOperation::REQUEST => "who-has".into(),
            ArpOperation::REPLY => "is-at".into(),
            ArpOperation(other) => format!("operation-{other}"),
        });
        match message.to_packet().try_eth_ipv4() {
            Ok(message) => {
                [self.src, self.dst] = [message.sender_ipv4_addr(), message.target_ipv4_addr()].map(text);
                self.hardware = text(Mac(message.sender_mac));
            }
            Err(error) => self.wrong(format!("ARP: {error}")),
        }
    }

    /// RFC 9293.
    fn tcp(&mut self, segment: &TcpSlice<'_>) {
        (self.sport, self.dport) = (Some(segment.source_port()), Some(segment.destination_port()));
        let flags = [
            (segment.syn(), "SYN"),
            (segment.fin(), "FIN"),
            (segment.rst(), "RST"),
            (segment.psh(), "PSH"),
            (segment.ack(), "ACK"),
            (segment.urg(), "URG"),
            (segment.ece(), "ECE"),
            (segment.cwr(), "CWR"),
        ];
        let flags: Vec<_> = flags.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
        self.flags = Some(if flags.is_empty() { "none".into() } else { flags.join("+") });
        self.seq = Some(segment.sequence_number());
        self.ack = segment.ack().then(|| segment.acknowledgment_number());
        self.window = Some(segment.window_size());
        self.mss = segment.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        });
        self.payload = Some(segment.payload().len());
    }

    fn udp(&mut self, datagram: &UdpSlice<'_>) {
        let ports = [datagram.source_port(), datagram.destination_port()];
        [self.sport, self.dport] = ports.map(Some);
        let payload = datagram.payload();
        self.payload = Some(payload.len());
        if usize::from(datagram.length()) != datagram.slice().len() {
            let (said, there) = (datagram.length(), datagram.slice().len());
            self.wrong(format!("UDP: a length of {said} bytes, {there} are there"));
        }
        if ports.contains(&DNS) {
            self.dns(payload);
        } else if ports.iter().all(|port| DHCP.contains(port)) {
            self.dhcp(payload);
        }
    }

    /// RFC 792, RFC 1191.
    fn icmp(&mut self, message: &Icmpv4Slice<'_>) {
        use icmpv4::*;
        let word = match (message.type_u8(), message.code_u8()) {
            (TYPE_ECHO_REPLY, _) => "echo-reply",
            (TYPE_ECHO_REQUEST, _) => "echo-request",
            (TYPE_DEST_UNREACH, CODE_DST_UNREACH_NET) => "network-unreachable",
            (TYPE_DEST_UNREACH, CODE_DST_UNREACH_HOST) => "host-unreachable",
            (TYPE_DEST_UNREACH, CODE_DST_UNREACH_PROTOCOL) => "protocol-unreachable",
            (TYPE_DEST_UNREACH, CODE_DST_UNREACH_PORT) => "port-unreachable",
            (TYPE_DEST_UNREACH, CODE_DST_UNREACH_NEED_FRAG) => "fragmentation-needed",
            (TYPE_TIME_EXCEEDED, _) => "time-exceeded",
            (TYPE_REDIRECT, _) => "redirect",
            (TYPE_PARAMETER_PROBLEM, _) => "parameter-problem",
            (kind, code) => &format!("type-{kind}-code-{code}"),
        };
        self.kind = Some(word.into());
        let rest = message.bytes5to8();
        if let TYPE_ECHO_REPLY | TYPE_ECHO_REQUEST = message.type_u8() {
            self.echo(IcmpEchoHeader::from_bytes(rest));
        }
        if word == "fragmentation-needed" {
            self.mtu = Some(u16::from_be_bytes([rest[2], rest[3]]));
        }
        self.payload = Some(message.payload().len());
    }

    /// RFC 4443, RFC 4861.
    fn icmpv6(&mut self, message: &Icmpv6Slice<'_>) {
        use icmpv6::*;
        let word = match message.type_u8() {
            TYPE_ECHO_REPLY => "echo-reply",
            TYPE_ECHO_REQUEST => "echo-request",
            TYPE_ROUTER_SOLICITATION => "router-solicitation",
            TYPE_ROUTER_ADVERTISEMENT => "router-advertisement",
            TYPE_NEIGHBOR_SOLICITATION => "neighbor-solicitation",
            TYPE_NEIGHBOR_ADVERTISEMENT => "neighbor-advertisement",
            kind => &format!("type-{kind}-code-{}", message.code_u8()),
        };
        self.kind = Some(word.into());
        if let TYPE_ECHO_REPLY | TYPE_ECHO_REQUEST = message.type_u8() {
            self.echo(IcmpEchoHeader::from_bytes(message.bytes5to8()));
        }
        self.payload = Some(message.payload().len());
    }

    fn echo(&mut self, echo: IcmpEchoHeader) {
        (self.id, self.seq) = (Some(echo.id), Some(echo.seq.into()));
    }

    /// RFC 1035, section 4.1.
    fn dns(&mut self, message: &[u8]) {
        self.protocol = Some("DNS".into());
        let Some(&header) = message.first_chunk::<HEADER_LEN>() else {
            return self.wrong("DNS: shorter than a header".into());
        };
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        self.id = Some(count(0));
        let is_response = header[2] & 0x80 != 0;
        self.kind = Some(if is_response { "response" } else { "query" }.into());
        if is_response {
            self.rcode = Some(rcode(header[3] & 0x0f));
            self.answers = Some(count(6));
        }
        // netstack reads queries alone. A response has the question of its query, unless it is an error: it
        // is read as that query, without the records.
        let mut question =
            message.get(..message.len().min(HEADER_LEN + LONGEST_QUESTION)).unwrap_or_default().to_vec();
        question[2] &= 0x01;
        question[6..HEADER_LEN].fill(0);
        match Query::parse(&question) {
            Ok(query) => (self.name, self.qtype) = (Some(query.name()), Some(record_type(query.qtype()))),
            Err(_) if is_response && count(4) == 0 => {}
            Err(_) => self.wrong("DNS: not one question that can be read".into()),
        }
    }

    /// RFC 2131, section 2; types of RFC 2132, section 9.6.
    fn dhcp(&mut self, message: &[u8]) {
        self.protocol = Some("DHCP".into());
        let Ok(message) = Message::new(message) else {
            return self.wrong("DHCP: shorter than a header".into());
        };
        let option = |wanted| {
            let found = message.opts().find(|option| option.code() == wanted)?;
            Some(found.data().to_vec())
        };
        match option(OptionCode::MessageType).as_deref() {
            Some(&[kind]) => self.kind = Some(message_type(kind)),
            _ => self.wrong("DHCP: no message type".into()),
        }
        let requested = option(OptionCode::RequestedIpAddress);
        let requested = requested.and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(Ipv4Addr::from);
        let addresses = [Some(message.yiaddr()), requested, Some(message.ciaddr())];
        self.address =
            addresses.into_iter().flatten().find(|address| !address.is_unspecified()).and_then(text);
        if usize::from(message.hlen()) == size_of::<Mac>() {
            self.hardware = message.chaddr().first_chunk().copied().map(Mac).and_then(text);
        }
    }
}

fn text(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// RFC 1035, section 4.1.1.
fn rcode(code: u8) -> String {
    match code {
        0 => "NOERROR".into(),
        1 => "FORMERR".into(),
        2 => "SERVFAIL".into(),
        3 => "NXDOMAIN".into(),
        4 => "NOTIMP".into(),
        5 => "REFUSED".into(),
        other => format!("RCODE{other}"),
    }
}

/// The types that guests ask for; others as RFC 3597 writes them.
fn record_type(number: u16) -> String {
    match number {
        1 => "A".into(),
        2 => "NS".into(),
        5 => "CNAME".into(),
        6 => "SOA".into(),
        12 => "PTR".into(),
        15 => "MX".into(),
        16 => "TXT".into(),
        28 => "AAAA".into(),
        33 => "SRV".into(),
        65 => "HTTPS".into(),
        255 => "ANY".into(),
        other => format!("TYPE{other}"),
    }
}

fn message_type(number: u8) -> String {
    match number {
        1 => "discover".into(),
        2 => "offer".into(),
        3 => "request".into(),
        4 => "decline".into(),
        5 => "ack".into(),
        6 => "nak".into(),
        7 => "release".into(),
        8 => "inform".into(),
        other => format!("type-{other}"),
    }
}
