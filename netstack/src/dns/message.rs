//! DNS messages (RFC 1035 section 4, EDNS RFC 6891), as far as a forwarder reads them: the header, the one
//! question, and the OPT record. Everything else passes through unread.
//! Owns: nothing; borrows the message. May not: decide who answers. Read next: `zones.rs`.

use core::net::Ipv4Addr;

/// Bytes of the header, RFC 1035 section 4.1.1.
pub const HEADER_LEN: usize = 12;
/// Bytes that every client takes over UDP, RFC 1035 section 4.2.1.
pub const MIN_UDP_PAYLOAD: usize = 512;
/// Bytes over UDP that answers made here offer to take (DNS flag day 2020: never fragmented).
const OWN_UDP_PAYLOAD: u16 = 1232;

/// A record of type A.
pub const TYPE_A: u16 = 1;
/// A record of type AAAA.
pub const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
const OPCODE_QUERY: u8 = 0;
const OPCODE_NOTIFY: u8 = 4;

/// Bits of the third byte: response, opcode, truncated, recursion desired.
const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
/// Bits of the fourth byte: recursion available, checking disabled.
const RA: u8 = 0x80;
const CD: u8 = 0x10;

/// What a question came by; it bounds the answer's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream; a two-byte length stands before each message there, and is not part of it.
    Tcp,
}

/// Response codes, RFC 1035 section 4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rcode {
    /// No error; without an answer: the name exists, the type does not.
    NoError = 0,
    /// The query cannot be read.
    FormErr = 1,
    /// The answer could not be found out.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// The opcode is not served.
    NotImp = 4,
    /// Refused by policy.
    Refused = 5,
}

/// Why a message is no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAQuery {
    /// To be dropped: shorter than a header, or a response.
    Ignored,
    /// To be answered by [`write_rejection`].
    Rejected(Rcode),
}

/// What the OPT record of a query says.
#[derive(Clone, Copy, Debug)]
struct Opt {
    udp_payload: u16,
    version: u8,
    dnssec_ok: bool,
}

/// A query with one question, borrowed from its message.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    header: [u8; HEADER_LEN],
    /// Name, type and class as they came.
    question: &'a [u8],
    qtype: u16,
    qclass: u16,
    opt: Option<Opt>,
}

impl<'a> Query<'a> {
    /// Reads the header and the question. Sections after the question are only searched for OPT: what does
    /// not parse there is the upstream's to judge.
    ///
    /// # Errors
    /// A message that is no query, or a query that the original refuses (its limits on the section counts are
    /// kept).
    pub fn parse(message: &'a [u8]) -> Result<Self, NotAQuery> {
        let (header, body) = message.split_first_chunk::<HEADER_LEN>().ok_or(NotAQuery::Ignored)?;
        if header[2] & QR != 0 {
            return Err(NotAQuery::Ignored);
        }
        let opcode = (header[2] & OPCODE) >> 3;
        if opcode != OPCODE_QUERY && opcode != OPCODE_NOTIFY {
            return Err(NotAQuery::Rejected(Rcode::NotImp));
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (questions, answers, authorities, additionals) = (count(4), count(6), count(8), count(10));
        if questions != 1 || answers > 1 || authorities > 1 || additionals > 2 {
            return Err(NotAQuery::Rejected(Rcode::FormErr));
        }
        let malformed = NotAQuery::Rejected(Rcode::FormErr);
        let name_len = question_name_len(body).ok_or(malformed)?;
        let (question, rest) = body.split_at_checked(name_len + 4).ok_or(malformed)?;
        let [.., t0, t1, c0, c1] = *question else { return Err(malformed) };
        Ok(Self {
            header: *header,
            question,
            qtype: u16::from_be_bytes([t0, t1]),
            qclass: u16::from_be_bytes([c0, c1]),
            opt: find_opt(rest, answers + authorities + additionals),
        })
    }

    /// The type asked for.
    pub fn qtype(&self) -> u16 {
        self.qtype
    }

    /// Whether an A record of class IN answers the question.
    pub fn wants_a(&self) -> bool {
        matches!(self.qtype, TYPE_A | TYPE_ANY) && matches!(self.qclass, CLASS_IN | CLASS_ANY)
    }

    /// The name asked for, in the case it came in, with the final dot (the root is `.`). A byte of a label
    /// that is a dot, a backslash or not printable is escaped as in a zone file (RFC 1035 section 5.1).
    pub fn name(&self) -> String {
        let mut text = String::with_capacity(self.question.len());
        let mut rest = self.question;
        while let Some((&len, after)) = rest.split_first()
            && len != 0
            && let Some((label, after)) = after.split_at_checked(usize::from(len))
        {
            for &byte in label {
                match byte {
                    b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                    b'!'..=b'~' => text.push(char::from(byte)),
                    _ => text.push_str(&format!("\\{byte:03}")),
                }
            }
            text.push('.');
            rest = after;
        }
        if text.is_empty() {
            text.push('.');
        }
        text
    }

    /// Bytes that the client takes in one answer.
    pub fn reply_limit(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                self.opt.map_or(MIN_UDP_PAYLOAD, |opt| MIN_UDP_PAYLOAD.max(opt.udp_payload.into()))
            }
        }
    }

    /// Replaces `out` by an answer made here: one A record of TTL 0 for each address; all of them left out
    /// and TC set where they exceed [`Query::reply_limit`]. A query with an OPT record gets one back (RFC
    /// 6891 section 6.1.1).
    pub fn write_reply(&self, rcode: Rcode, addresses: &[Ipv4Addr], transport: Transport, out: &mut Vec<u8>) {
        const A_LEN: usize = 16;
        // RFC 6891 section 6.1.3: BADVERS is 16; its low four bits stand in the header, the others in the OPT
        // record.
        let bad_version = self.opt.is_some_and(|opt| opt.version != 0);
        let (rcode, addresses) = if bad_version { (Rcode::NoError, &[][..]) } else { (rcode, addresses) };
        let room = self.reply_limit(transport) - (HEADER_LEN + self.question.len() + OPT_LEN);
        let fits = addresses.len() * A_LEN <= room;
        let (addresses, tc) = if fits { (addresses, 0) } else { (&[][..], TC) };
        // Below 4,096 here, because 65,535 bytes hold no more.
        let answers = addresses.len() as u16;

        self.start_reply([self.header[2] & RD | tc, RA | rcode as u8], answers, out);
        for address in addresses {
            out.extend([0xc0, HEADER_LEN as u8]);
            out.extend(TYPE_A.to_be_bytes());
            out.extend(CLASS_IN.to_be_bytes());
            out.extend([0, 0, 0, 0, 0, 4]);
            out.extend(address.octets());
        }
        self.write_opt(u8::from(bad_version), out);
    }

    /// Replaces `out` by the head of `answer`, which is too long for the client: its header's bits, TC, the
    /// question, and no record but OPT. The client asks again over TCP.
    pub fn write_truncated(&self, answer: &[u8], out: &mut Vec<u8>) {
        let bits = match answer {
            [_, _, third, fourth, ..] => [third & !(QR | OPCODE) | TC, *fourth],
            _ => [TC, RA],
        };
        self.start_reply(bits, 0, out);
        self.write_opt(0, out);
    }

    /// Whether `answer` is a response to this question, whatever its id. An error may come without its
    /// question.
    pub fn is_answered_by(&self, answer: &[u8]) -> bool {
        let Some((header, body)) = answer.split_first_chunk::<HEADER_LEN>() else { return false };
        let same_opcode = header[2] & (QR | OPCODE) == QR | self.header[2] & OPCODE;
        same_opcode
            && match [header[4], header[5]] {
                [0, 0] => header[3] & 0x0f != 0,
                // No byte of a question but those of a label's text is a letter.
                [0, 1] => {
                    body.get(..self.question.len()).is_some_and(|q| q.eq_ignore_ascii_case(self.question))
                }
                _ => false,
            }
    }

    fn start_reply(&self, bits: [u8; 2], answers: u16, out: &mut Vec<u8>) {
        let [id0, id1, asked, checking, ..] = self.header;
        out.clear();
        out.extend([id0, id1, QR | asked & OPCODE | bits[0], checking & CD | bits[1], 0, 1]);
        out.extend(answers.to_be_bytes());
        out.extend([0, 0, 0, u8::from(self.opt.is_some())]);
        out.extend(self.question);
    }

    fn write_opt(&self, extended_rcode: u8, out: &mut Vec<u8>) {
        let Some(opt) = self.opt else { return };
        out.push(0);
        out.extend(TYPE_OPT.to_be_bytes());
        out.extend(OWN_UDP_PAYLOAD.to_be_bytes());
        out.extend([extended_rcode, 0, u8::from(opt.dnssec_ok) << 7, 0, 0, 0]);
    }
}

/// The answer to a query if too many are on their way to ask anybody: SERVFAIL (RFC 1035 4.1.1). `None` for a
/// message that is no query.
pub fn server_failure(message: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let query = Query::parse(message).ok()?;
    let mut answer = Vec::new();
    query.write_reply(Rcode::ServFail, &[], transport, &mut answer);
    Some(answer)
}

/// Bytes of an OPT record without options.
const OPT_LEN: usize = 11;

/// Replaces `out` by the answer to a message that [`Query::parse`] rejected: a header alone, as the original
/// sends it.
pub fn write_rejection(message: &[u8], rcode: Rcode, out: &mut Vec<u8>) {
    out.clear();
    let Some(([id0, id1, third, ..], _)) = message.split_first_chunk::<HEADER_LEN>() else { return };
    out.extend([*id0, *id1, QR | third & (OPCODE | RD), rcode as u8]);
    out.resize(HEADER_LEN, 0);
}

/// Bytes of the name at the front, its root label included; `None` for one that is cut short, longer than 255
/// bytes or compressed (nothing stands before a question that it could point to).
fn question_name_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0 if at < 255 => return Some(at + 1),
            len @ 1..=63 if at < 255 => at += 1 + usize::from(len),
            _ => return None,
        }
    }
}

/// The first OPT among the `count` records at the front of `bytes`.
fn find_opt(mut bytes: &[u8], count: u16) -> Option<Opt> {
    for _ in 0..count {
        let mut at = 0;
        loop {
            match *bytes.get(at)? {
                0 => break at += 1,
                len @ 1..=63 => at += 1 + usize::from(len),
                0xc0.. => break at += 2,
                _ => return None,
            }
        }
        let fixed = bytes.get(at..)?;
        let ([t0, t1, c0, c1, _, version, flags, _, l0, l1], data) = fixed.split_first_chunk()?;
        if u16::from_be_bytes([*t0, *t1]) == TYPE_OPT {
            return Some(Opt {
                udp_payload: u16::from_be_bytes([*c0, *c1]),
                version: *version,
                dnssec_ok: flags & 0x80 != 0,
            });
        }
        bytes = data.get(usize::from(u16::from_be_bytes([*l0, *l1]))..)?;
    }
    None
}

#[cfg(test)]
pub(super) mod tests;
