use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use proptest::prelude::*;

use super::super::message::tests::{query, with_edns};
use super::*;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 127, last)
}

fn record(name: &str, last: u8) -> Record {
    Record { name: name.into(), ip: Some(ip(last)), regexp: None }
}

fn pattern(pattern: &str, last: u8) -> Record {
    Record { name: String::new(), ip: Some(ip(last)), regexp: Some(regex::Regex::new(pattern).unwrap()) }
}

fn zone(name: &str, records: Vec<Record>, default_ip: Option<Ipv4Addr>) -> Zone {
    Zone { name: name.into(), records, default_ip, protected: false }
}

fn zones() -> Zones {
    let containers = vec![
        record("gateway", 1),
        record("Host", 254),
        record("b.a", 9),
        Record { name: "addressless".into(), ip: None, regexp: None },
        record("host", 99),
    ];
    let testing = vec![record("api", 2), pattern("crc-(.*?)-master-0", 3), pattern("^UPPER$", 4)];
    Zones::new(vec![
        zone("containers.internal.", containers, None),
        zone("crc.testing.", testing, Some(ip(5))),
        zone("internal.", vec![record("gateway.containers", 77)], Some(ip(6))),
        zone("inert", vec![record("a", 1)], Some(ip(7))),
    ])
}

/// What the zones answer: the code and the addresses; `None` for a question that is forwarded.
fn ask(zones: &Zones, message: &Message) -> Option<(ResponseCode, Vec<Ipv4Addr>)> {
    let mut out = Vec::new();
    match zones.handle_query(&message.to_vec().unwrap(), Transport::Udp, &mut out) {
        Verdict::Forward => None,
        Verdict::Drop => panic!("dropped: {message}"),
        Verdict::Reply => {
            let reply = Message::from_vec(&out).unwrap();
            let address = |record: &hickory_proto::rr::Record| match record.data {
                RData::A(address) => address.0,
                _ => panic!("not an A record: {record}"),
            };
            Some((reply.metadata.response_code, reply.answers.iter().map(address).collect()))
        }
    }
}

#[track_caller]
fn check(name: &str, qtype: RecordType, expected: Option<(ResponseCode, &[u8])>) {
    let found = ask(&zones(), &query(name, qtype));
    let expected = expected.map(|(code, last)| (code, last.iter().copied().map(ip).collect()));
    assert_eq!(found, expected, "{name} {qtype}");
}

const OK: ResponseCode = ResponseCode::NoError;
const NXDOMAIN: ResponseCode = ResponseCode::NXDomain;

#[test]
fn the_first_record_that_matches_wins() {
    check("gateway.containers.internal.", RecordType::A, Some((OK, &[1])));
    check("host.containers.internal.", RecordType::A, Some((OK, &[254])));
    check("b.a.containers.internal.", RecordType::A, Some((OK, &[9])));
    check("addressless.containers.internal.", RecordType::A, Some((OK, &[])));
    check("api.crc.testing.", RecordType::A, Some((OK, &[2])));
    check("crc-x1-master-0.crc.testing.", RecordType::A, Some((OK, &[3])));
    check("pre-crc-x1-master-0-post.crc.testing.", RecordType::A, Some((OK, &[3])));
}

#[test]
fn the_default_answers_what_no_record_does() {
    check("anything.at.all.crc.testing.", RecordType::A, Some((OK, &[5])));
    check("absent.containers.internal.", RecordType::A, Some((NXDOMAIN, &[])));
    check("absent.containers.internal.", RecordType::MX, Some((NXDOMAIN, &[])));
    check("a.containers.internal.", RecordType::A, Some((NXDOMAIN, &[])));
}

#[test]
fn the_case_does_not_matter() {
    check("HOST.Containers.INTERNAL.", RecordType::A, Some((OK, &[254])));
    check("CRC-x-MASTER-0.crc.testing.", RecordType::A, Some((OK, &[3])));
    check("UPPER.crc.testing.", RecordType::A, Some((OK, &[4])));
}

#[test]
fn a_zone_owns_its_names_for_every_type() {
    for qtype in
        [RecordType::AAAA, RecordType::MX, RecordType::TXT, RecordType::HTTPS, RecordType::Unknown(65_000)]
    {
        check("host.containers.internal.", qtype, Some((OK, &[])));
        check("x.crc.testing.", qtype, Some((OK, &[])));
    }
    check("host.containers.internal.", RecordType::ANY, Some((OK, &[254])));
    let mut chaos = query("host.containers.internal.", RecordType::A);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(ask(&zones(), &chaos), Some((OK, vec![])));
}

#[test]
fn what_no_zone_matches_is_forwarded() {
    for name in
        ["containers.internal.", "example.com.", "xcontainers.internal.x.", "crc.testing.", "a.inert.", "."]
    {
        let expected = (name == "containers.internal.").then_some((OK, &[6][..]));
        check(name, RecordType::A, expected);
    }
    check("xcrc.testing.", RecordType::A, None);
    let escaped = query("a\\.crc.testing.", RecordType::A);
    assert_eq!(ask(&zones(), &escaped), None, "a dot inside a label parts nothing");
}

#[test]
fn the_nameless_zone_catches_the_rest() {
    let mut zones = zones();
    zones.change(ZoneChange::Add(zone("", vec![record("www.example.com", 8)], None))).unwrap();
    assert_eq!(ask(&zones, &query("www.example.com.", RecordType::A)), Some((OK, vec![ip(8)])));
    assert_eq!(ask(&zones, &query("example.com.", RecordType::A)), Some((NXDOMAIN, vec![])));
    assert_eq!(ask(&zones, &query("host.containers.internal.", RecordType::A)), Some((OK, vec![ip(254)])));
}

#[test]
fn a_zone_added_again_takes_the_place_of_the_old_one() {
    let mut zones = zones();
    let order = |zones: &Zones| zones.iter().map(|zone| zone.name.clone()).collect::<Vec<_>>();
    let before = order(&zones);
    zones
        .change(ZoneChange::Add(zone("CRC.testing.", vec![record("api", 20), record("new", 21)], None)))
        .unwrap();
    assert_eq!(order(&zones).join(" ").to_lowercase(), before.join(" "));
    assert_eq!(
        ask(&zones, &query("api.crc.testing.", RecordType::A)),
        Some((OK, vec![ip(20)])),
        "new ones first"
    );
    assert_eq!(ask(&zones, &query("crc-x-master-0.crc.testing.", RecordType::A)), Some((OK, vec![ip(3)])));
    assert_eq!(
        ask(&zones, &query("other.crc.testing.", RecordType::A)),
        Some((NXDOMAIN, vec![])),
        "no default"
    );
    zones.change(ZoneChange::Add(zone("late.testing.", vec![], Some(ip(30))))).unwrap();
    assert_eq!(ask(&zones, &query("x.late.testing.", RecordType::A)), Some((OK, vec![ip(30)])));
    assert_eq!(zones.iter().count(), before.len() + 1);
}

#[test]
fn zones_and_records_are_removed() {
    let mut zones = zones();
    let [api, node, upper] = [record("API", 0), pattern("crc-(.*?)-master-0", 0), pattern("^UPPER$", 0)];
    let none = zone("crc.testing.", vec![api.clone(), record("none", 1)], None);
    assert_eq!(zones.change(ZoneChange::RemoveRecords(none)), Err(ZoneError::NoRecord("none".into())));
    assert_eq!(
        ask(&zones, &query("api.crc.testing.", RecordType::A)),
        Some((OK, vec![ip(2)])),
        "all or none"
    );
    zones.change(ZoneChange::RemoveRecords(zone("crc.TESTING.", vec![api, node], None))).unwrap();
    for name in ["api.crc.testing.", "crc-x-master-0.crc.testing."] {
        assert_eq!(ask(&zones, &query(name, RecordType::A)), Some((OK, vec![ip(5)])), "{name}: the default");
    }
    zones.change(ZoneChange::Add(zone("crc.testing.", vec![], None))).unwrap();
    zones.change(ZoneChange::RemoveRecords(zone("crc.testing.", vec![upper], None))).unwrap();
    assert_eq!(ask(&zones, &query("x.crc.testing.", RecordType::A)), None, "nothing was left");
    let remove = |name: &str| ZoneChange::Remove(name.into());
    assert_eq!(zones.change(remove("crc.testing.")), Err(ZoneError::NoZone("crc.testing.".into())));
    zones.change(remove("Inert")).unwrap();
    assert_eq!(zones.iter().count(), 2);
}

#[test]
fn a_protected_zone_stays_as_it_is() {
    let protected = Zone { protected: true, ..zone("a.", vec![record("x", 1)], None) };
    let mut zones = Zones::new(vec![protected.clone()]);
    let refused = Err(ZoneError::Protected("A.".into()));
    assert_eq!(zones.change(ZoneChange::Add(zone("A.", vec![record("x", 2)], None))), refused);
    assert_eq!(zones.change(ZoneChange::Remove("A.".into())), refused);
    assert_eq!(zones.change(ZoneChange::RemoveRecords(zone("A.", vec![record("x", 1)], None))), refused);
    assert_eq!(ask(&zones, &query("x.a.", RecordType::A)), Some((OK, vec![ip(1)])));
    zones.change(ZoneChange::Add(Zone { name: "b.".into(), ..protected })).unwrap();
    zones.change(ZoneChange::Remove("b.".into())).unwrap();
}

#[test]
fn what_is_no_query_is_rejected_or_dropped() {
    let mut out = Vec::new();
    let mut message = with_edns(query("host.containers.internal.", RecordType::A), 1232, 0).to_vec().unwrap();
    assert_eq!(zones().handle_query(&message[..11], Transport::Udp, &mut out), Verdict::Drop);
    message[5] = 2;
    assert_eq!(zones().handle_query(&message, Transport::Udp, &mut out), Verdict::Reply);
    assert_eq!(out[3], Rcode::FormErr as u8);
    message[2] |= 0x80;
    assert_eq!(zones().handle_query(&message, Transport::Udp, &mut out), Verdict::Drop);
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(message in proptest::collection::vec(any::<u8>(), 0..300)) {
        zones().handle_query(&message, Transport::Udp, &mut Vec::new());
    }

    #[test]
    fn below_takes_any_text(name in "[a-c.\\\\]{0,12}", zone in "[a-cé.]{0,6}") {
        let expected = name
            .strip_suffix(&format!(".{zone}"))
            .filter(|rest| !rest.is_empty() && (rest.len() - rest.trim_end_matches('\\').len()) % 2 == 0);
        prop_assert_eq!(below(&name, &zone), expected);
    }
}
