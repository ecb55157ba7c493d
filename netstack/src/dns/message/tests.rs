use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

/// A query as another implementation writes it.
pub(in super::super) fn query(name: &str, qtype: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), qtype));
    message
}

pub(in super::super) fn with_edns(mut message: Message, payload: u16, version: u8) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(version).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn reply(
    message: &Message,
    rcode: Rcode,
    addresses: &[Ipv4Addr],
    transport: Transport,
) -> (Message, Vec<u8>) {
    let bytes = message.to_vec().unwrap();
    let mut out = vec![0xaa; 3];
    Query::parse(&bytes).unwrap().write_reply(rcode, addresses, transport, &mut out);
    (Message::from_vec(&out).unwrap(), out)
}

#[test]
fn a_reply_repeats_the_question_and_says_what_it_is() {
    let mut asked = query("HoSt.Containers.INTERNAL.", RecordType::A);
    asked.metadata.checking_disabled = true;
    let ip = Ipv4Addr::new(192, 168, 127, 254);
    let (message, bytes) = reply(&asked, Rcode::NoError, &[ip], Transport::Udp);
    assert_eq!((message.metadata.id, message.metadata.message_type), (0x1234, MessageType::Response));
    let flags = message.metadata;
    assert!(flags.recursion_desired && flags.recursion_available && flags.checking_disabled);
    assert!(!flags.authoritative && !flags.truncation && !flags.authentic_data);
    assert!(message.queries[0].name().eq_case(asked.queries[0].name()), "0x20: {message}");
    let expected = Record::from_rdata(asked.queries[0].name().clone(), 0, RData::A(A(ip)));
    assert_eq!(message.answers, [expected]);
    assert!(message.edns.is_none());
    assert_eq!(bytes.len(), 12 + 26 + 4 + 16);

    let (message, _) = reply(&asked, Rcode::NxDomain, &[], Transport::Udp);
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn edns_is_answered_with_edns() {
    let asked = with_edns(query("a.example.", RecordType::A), 4096, 0);
    let (message, _) = reply(&asked, Rcode::NoError, &[], Transport::Udp);
    let edns = message.edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, true));

    let asked = with_edns(query("a.example.", RecordType::A), 4096, 1);
    let (message, _) = reply(&asked, Rcode::NxDomain, &[Ipv4Addr::LOCALHOST], Transport::Udp);
    assert_eq!(u16::from(message.metadata.response_code), 16, "BADVERS");
    assert_eq!(message.answers, []);
}

#[test]
fn a_reply_is_no_longer_than_the_client_takes() {
    let addresses: Vec<_> = (0..100).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
    // (EDNS payload, transport, addresses, truncated); the head takes 32 bytes with OPT, an address 16.
    for (payload, transport, count, truncated) in [
        (None, Transport::Udp, 30, false),
        (None, Transport::Udp, 31, true),
        (None, Transport::Tcp, 100, false),
        (Some(1232), Transport::Udp, 75, false),
        (Some(1232), Transport::Udp, 76, true),
        (Some(100), Transport::Udp, 30, false),
        (Some(100), Transport::Udp, 31, true),
        (Some(512), Transport::Tcp, 100, false),
    ] {
        let mut asked = query("a.b.", RecordType::A);
        if let Some(payload) = payload {
            asked = with_edns(asked, payload, 0);
        }
        let (message, bytes) = reply(&asked, Rcode::NoError, &addresses[..count], transport);
        assert_eq!(message.metadata.truncation, truncated, "{payload:?} {transport:?} {count}");
        assert_eq!(message.answers.len(), if truncated { 0 } else { count });
        let limit = payload.map_or(512, |payload| 512.max(payload.into()));
        assert!(transport == Transport::Tcp || bytes.len() <= limit, "{} > {limit}", bytes.len());
    }
}

#[test]
fn a_truncated_answer_keeps_the_heads_bits() {
    let asked = with_edns(query("a.example.", RecordType::TXT), 600, 0);
    let mut answer = asked.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.authoritative = true;
    answer.metadata.recursion_available = true;
    let long = RData::TXT(TXT::new(vec!["x".repeat(255), "y".repeat(255), "z".repeat(200)]));
    answer.add_answer(Record::from_rdata(answer.queries[0].name().clone(), 60, long));
    let (asked_bytes, answer_bytes) = (asked.to_vec().unwrap(), answer.to_vec().unwrap());
    let mut out = Vec::new();
    Query::parse(&asked_bytes).unwrap().write_truncated(&answer_bytes, &mut out);
    let message = Message::from_vec(&out).unwrap();
    assert!(message.metadata.truncation && message.metadata.authoritative);
    assert_eq!((message.metadata.id, message.queries.len(), message.answers.len()), (0x1234, 1, 0));
    assert!(message.edns.is_some());
}

#[test]
fn names_are_text_with_escapes() {
    let text = |name: &[u8]| {
        let mut message = vec![0; HEADER_LEN];
        message[5] = 1;
        message.extend(name);
        message.extend([0, 0, 1, 0, 1]);
        Query::parse(&message).unwrap().name()
    };
    assert_eq!(text(b"\x01a\x0aContainers\x08_int-rnl"), "a.Containers._int-rnl.");
    assert_eq!(text(b"\x03a.b\x02\\c"), "a\\.b.\\\\c.");
    assert_eq!(text(b"\x04\xff \0z"), "\\255\\032\\000z.");
    assert_eq!(text(b""), ".");
}

#[test]
fn what_is_no_query_is_told_apart() {
    let good = query("a.example.", RecordType::A).to_vec().unwrap();
    let rejected = |rcode| Some(NotAQuery::Rejected(rcode));
    let check = |expected, what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = good.clone();
        change(&mut message);
        assert_eq!(Query::parse(&message).err(), expected, "{what}");
    };
    check(None, "as it is", &|_| {});
    check(None, "NOTIFY", &|m| m[2] |= 4 << 3);
    check(None, "bytes behind the question", &|m| m.extend([1, 2, 3]));
    check(None, "OPT that is cut short", &|m| {
        m[11] = 1;
        m.extend([0, 0, 41, 0xff]);
    });
    check(Some(NotAQuery::Ignored), "short header", &|m| m.truncate(11));
    check(Some(NotAQuery::Ignored), "response", &|m| m[2] |= QR);
    check(rejected(Rcode::NotImp), "IQUERY", &|m| m[2] |= 1 << 3);
    check(rejected(Rcode::NotImp), "UPDATE", &|m| m[2] |= 5 << 3);
    check(rejected(Rcode::FormErr), "no question", &|m| m[5] = 0);
    check(rejected(Rcode::FormErr), "two questions", &|m| m[5] = 2);
    check(rejected(Rcode::FormErr), "answers", &|m| m[7] = 2);
    check(rejected(Rcode::FormErr), "authorities", &|m| m[8] = 1);
    check(rejected(Rcode::FormErr), "additionals", &|m| m[11] = 3);
    check(rejected(Rcode::FormErr), "half a class", &|m| m.truncate(m.len() - 1));
    check(rejected(Rcode::FormErr), "compressed name", &|m| m[12] = 0xc0);
    check(rejected(Rcode::FormErr), "name without an end", &|m| m.truncate(14));
    let long = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], &[0, 0, 1, 0, 1]].concat();
    check(None, "255 bytes of name", &|m| m.splice(12.., long.clone()).for_each(drop));
    let too_long = [&[63; 64][..], &[63; 64], &[63; 64], &[62; 63], &[0, 0, 1, 0, 1]].concat();
    check(rejected(Rcode::FormErr), "256 bytes", &|m| m.splice(12.., too_long.clone()).for_each(drop));
}

#[test]
fn a_rejection_is_a_header() {
    let mut asked = query("a.example.", RecordType::A);
    asked.metadata.op_code = OpCode::Update;
    let mut out = vec![1];
    write_rejection(&asked.to_vec().unwrap(), Rcode::NotImp, &mut out);
    assert_eq!(out, [0x12, 0x34, 0xa9, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn an_answer_belongs_to_its_question() {
    let asked = query("a.example.", RecordType::A);
    let asked_bytes = asked.to_vec().unwrap();
    let parsed = Query::parse(&asked_bytes).unwrap();
    let check = |expected: bool, what: &str, change: &dyn Fn(&mut Message)| {
        let mut answer = asked.clone();
        answer.metadata.message_type = MessageType::Response;
        change(&mut answer);
        assert_eq!(parsed.is_answered_by(&answer.to_vec().unwrap()), expected, "{what}");
    };
    check(true, "the same", &|_| {});
    check(true, "another case", &|a| a.queries = query("A.EXAMPLE.", RecordType::A).queries);
    check(true, "an error without the question", &|a| {
        a.queries.clear();
        a.metadata.response_code = ResponseCode::FormErr;
    });
    check(false, "success without the question", &|a| a.queries.clear());
    check(false, "another name", &|a| a.queries = query("b.example.", RecordType::A).queries);
    check(false, "another type", &|a| a.queries = query("a.example.", RecordType::AAAA).queries);
    check(false, "another class", &|a| a.queries[0].query_class = DNSClass::CH);
    check(false, "a query", &|a| a.metadata.message_type = MessageType::Query);
    check(false, "another opcode", &|a| a.metadata.op_code = OpCode::Notify);
    assert!(!parsed.is_answered_by(&[]));
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(mut message in proptest::collection::vec(any::<u8>(), 0..600), plausible: bool) {
        if plausible && message.len() > 12 {
            message[2] &= 0x01;
            let counts = [0, 1, 0, message[7] & 1, 0, 0, 0, message[11] & 1];
            message[4..12].copy_from_slice(&counts);
            message[12] &= 0x3f;
        }
        let mut out = Vec::new();
        match Query::parse(&message) {
            Ok(query) => {
                let _ = query.name();
                query.write_reply(Rcode::NoError, &[Ipv4Addr::LOCALHOST], Transport::Udp, &mut out);
                prop_assert!(query.is_answered_by(&out));
                prop_assert!(out.len() <= 512);
                query.write_truncated(&message, &mut out);
                prop_assert!(query.is_answered_by(&out));
            }
            Err(NotAQuery::Rejected(rcode)) => {
                write_rejection(&message, rcode, &mut out);
                prop_assert_eq!(out.len(), HEADER_LEN);
            }
            Err(NotAQuery::Ignored) => prop_assert!(message.len() < HEADER_LEN || message[2] & QR != 0),
        }
    }

    /// Another implementation's message is read as what it is.
    #[test]
    fn written_queries_are_read(
        name in "([a-zA-Z0-9_][a-zA-Z0-9_-]{0,62}\\.){1,3}", qtype: u16, payload in proptest::option::of(any::<u16>()),
    ) {
        let mut message = query(&name, RecordType::from(qtype));
        if let Some(payload) = payload {
            message = with_edns(message, payload, 0);
        }
        let bytes = message.to_vec().unwrap();
        let query = Query::parse(&bytes).unwrap();
        prop_assert_eq!(query.name(), name);
        prop_assert_eq!(query.qtype(), qtype);
        prop_assert_eq!(query.reply_limit(Transport::Udp), payload.map_or(512, |payload| 512.max(payload.into())));
    }
}
