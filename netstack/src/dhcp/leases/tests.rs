use core::net::SocketAddrV4;

use proptest::prelude::*;

use super::super::tests::{config, mac};
use super::*;
use crate::Subnet;

const START: Duration = Duration::ZERO;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 127, last)
}

fn alone() -> Asker<'static> {
    at(0, &|_| Use::None)
}

/// At a port, beside others who use some addresses.
fn at(port: u32, use_of: &dyn Fn(Ipv4Addr) -> Use) -> Asker<'_> {
    Asker { port: PortId(port), use_of, ..Asker::alone(SocketAddrV4::new(ip(0), 68)) }
}

fn leases(prefix_len: u8) -> Leases {
    Leases::new(&NetworkConfig { subnet: Subnet::new(ip(0), prefix_len), ..config() })
}

#[test]
fn reserved_addresses_are_never_in_the_pool() {
    let mut table = leases(24);
    let given: Vec<_> =
        (1001..=1255).map_while(|client| table.offer(mac(client), None, &alone(), START)).collect();
    let expected: Vec<_> = (3..=253).map(ip).collect();
    assert_eq!(given, expected, ".1 gateway, .2 reservation, .254 host, .255 broadcast");
    for reserved in [ip(0), ip(1), ip(2), ip(254), ip(255), Ipv4Addr::new(10, 0, 0, 1)] {
        assert!(!table.bind(mac(999), reserved, false, &alone(), START), "{reserved}");
    }
}

#[test]
fn subnets_without_room_offer_nothing() {
    for prefix_len in [31, 32] {
        assert_eq!(leases(prefix_len).offer(mac(1), None, &alone(), START), None, "/{prefix_len}");
    }
}

#[test]
fn a_client_keeps_its_address_past_its_lease() {
    let mut table = leases(24);
    assert_eq!(table.offer(mac(1), None, &alone(), START), Some(ip(3)));
    assert!(table.bind(mac(1), ip(3), true, &alone(), START));
    assert_eq!(table.offer(mac(2), None, &alone(), START), Some(ip(4)));
    let later = LEASE_TIME * 2;
    assert_eq!(table.iter(later).collect::<Vec<_>>(), [(ip(2), mac(0xee))], "expired");
    assert_eq!(table.offer(mac(3), None, &alone(), later), Some(ip(5)), "unused addresses go first");
    assert_eq!(table.offer(mac(1), None, &alone(), later), Some(ip(3)));
}

#[test]
fn a_full_pool_gives_what_has_been_free_for_the_longest() {
    // Hosts .1 to .6; .1 is the gateway, .2 a reservation.
    let mut table = leases(29);
    for (client, last) in [(1, 3), (2, 4), (3, 5), (4, 6)] {
        let now = Duration::from_secs(u64::from(client));
        assert_eq!(table.offer(mac(client), None, &alone(), now), Some(ip(last)));
        assert!(table.bind(mac(client), ip(last), true, &alone(), now));
    }
    let full = Duration::from_secs(10);
    assert_eq!(table.offer(mac(5), None, &alone(), full), None);
    assert!(!table.bind(mac(5), ip(4), false, &alone(), full), "an address of another client");
    table.release(mac(2), ip(3), &alone(), full);
    assert_eq!(table.offer(mac(5), None, &alone(), full), None, "released by a client that does not have it");
    table.release(mac(3), ip(5), &alone(), full);
    table.release(mac(2), ip(4), &alone(), full + Duration::from_secs(1));
    let later = full + Duration::from_secs(2);
    assert_eq!(table.offer(mac(5), None, &alone(), later), Some(ip(5)));
    assert_eq!(table.offer(mac(3), None, &alone(), later), Some(ip(4)), "its own went to another client");
    assert_eq!(table.offer(mac(2), None, &alone(), later), None);
}

#[test]
fn an_offer_stands_for_a_minute() {
    let mut table = leases(29);
    for client in 1..=4 {
        assert!(table.offer(mac(client), None, &alone(), START).is_some());
    }
    assert_eq!(table.offer(mac(5), None, &alone(), OFFER_TIME - Duration::from_millis(1)), None);
    assert_eq!(table.offer(mac(5), None, &alone(), OFFER_TIME), Some(ip(3)));
    assert!(!table.bind(mac(1), ip(3), true, &alone(), OFFER_TIME));
}

#[test]
fn a_declined_address_is_left_alone() {
    let mut table = leases(24);
    assert_eq!(table.offer(mac(1), None, &alone(), START), Some(ip(3)));
    assert!(table.bind(mac(1), ip(3), true, &alone(), START));
    table.decline(mac(2), ip(3), &alone(), START);
    assert_eq!(
        table.offer(mac(1), None, &alone(), START),
        Some(ip(3)),
        "declined by a client that does not have it"
    );
    table.decline(mac(1), ip(3), &alone(), START);
    assert_eq!(table.offer(mac(1), Some(ip(3)), &alone(), START), Some(ip(4)));
    assert_eq!(table.offer(mac(2), Some(ip(3)), &alone(), DECLINE_TIME), Some(ip(3)));
    assert_eq!(
        table.offer(mac(1), None, &alone(), DECLINE_TIME),
        Some(ip(4)),
        "the old client lost nothing else"
    );
}

#[test]
fn the_table_is_bounded_in_a_large_subnet() {
    let mut table = leases(8);
    let given = (1000..)
        .take(MAX_LEASES + 1)
        .filter_map(|client| table.offer(mac(client), None, &alone(), START))
        .count();
    assert_eq!(given, MAX_LEASES);
    assert!(!table.bind(mac(0xff_ffff), Ipv4Addr::new(192, 200, 0, 1), false, &alone(), START));
    assert!(table.offer(mac(0xff_ffff), None, &alone(), OFFER_TIME).is_some());
    assert_eq!(table.table.len(), MAX_LEASES);
}

#[test]
fn a_port_that_has_everything_leaves_others_their_share() {
    let mut table = leases(24);
    let free = |_: Ipv4Addr| Use::None;
    let pool: u32 = 251;
    for client in 0..pool {
        let address = table.offer(mac(1000 + client), None, &at(0, &free), START).unwrap();
        assert!(table.bind(mac(1000 + client), address, true, &at(0, &free), START));
    }
    assert_eq!(table.offer(mac(9999), None, &at(0, &free), START), None);
    let given: BTreeSet<_> = (1..=10)
        .filter_map(|client| table.offer(mac(client), None, &at(client % 2 + 1, &free), START))
        .collect();
    assert_eq!(given.len(), 10);
    for (port, client) in [(1, 2), (2, 1)] {
        let address = table.offer(mac(client), None, &at(port, &free), START).unwrap();
        assert!(given.contains(&address) && table.bind(mac(client), address, true, &at(port, &free), START));
    }
    // Who has not much more loses nothing that is leased, and who is gone no more than others.
    let few = leases(28);
    let mut table = few;
    for client in 0..12 {
        let at = at(client % 3 / 2, &free);
        let address = table.offer(mac(1000 + client), None, &at, START).unwrap();
        assert!(table.bind(mac(1000 + client), address, true, &at, START));
    }
    assert_eq!(table.offer(mac(1), None, &at(1, &free), START), None, "8 to 4");
    assert!(table.offer(mac(1), None, &at(2, &free), START).is_some(), "8 to none");
}

#[test]
fn an_address_that_is_anothers_is_given_last() {
    let mut table = leases(29);
    let used = |address: Ipv4Addr| if [ip(3), ip(5)].contains(&address) { Use::By(1) } else { Use::None };
    let beside = at(0, &used);
    assert_eq!(table.offer(mac(1), Some(ip(3)), &beside, START), Some(ip(4)));
    assert!(!table.bind(mac(2), ip(5), false, &beside, START));
    assert_eq!(table.offer(mac(2), None, &beside, START), Some(ip(6)));
    assert_eq!(table.offer(mac(3), None, &beside, START), None, "a guest that was given it by hand keeps it");
    let crowd = |address: Ipv4Addr| if address == ip(5) { Use::By(200) } else { used(address) };
    assert_eq!(
        table.offer(mac(4), None, &at(0, &crowd), START),
        Some(ip(5)),
        "one that has taken all does not"
    );
    // What is kept for machines that are gone, for who has none.
    let mut table = leases(29);
    let kept = |_: Ipv4Addr| Use::Kept;
    assert!(!table.bind(mac(1), ip(3), false, &at(0, &kept), START));
    assert!(table.offer(mac(1), Some(ip(3)), &at(0, &kept), START).is_some());
    assert_eq!(table.offer(mac(2), None, &at(0, &kept), START), None);
    assert_eq!(table.offer(mac(3), None, &Asker { count: 1, ..at(1, &kept) }, START), None);
}

#[test]
fn what_was_offered_may_have_become_anothers() {
    let mut table = leases(29);
    let free = |_: Ipv4Addr| Use::None;
    assert_eq!(table.offer(mac(1), Some(ip(5)), &at(0, &free), START), Some(ip(5)));
    let used = |address: Ipv4Addr| if address == ip(5) { Use::By(1) } else { Use::None };
    assert!(!table.bind(mac(1), ip(5), true, &at(0, &used), START), "somebody came with it");
    assert_eq!(table.offer(mac(1), Some(ip(5)), &at(0, &used), START), Some(ip(3)));
    assert!(table.bind(mac(1), ip(3), true, &at(0, &used), START));
    // What is leased is its own, whoever says what.
    let used = |_: Ipv4Addr| Use::By(1);
    assert_eq!(table.offer(mac(1), None, &at(0, &used), START), Some(ip(3)));
    assert_eq!(table.offer(mac(1), None, &at(0, &used), LEASE_TIME), None);
}

#[test]
fn a_lease_is_ended_from_its_own_port() {
    let mut table = leases(24);
    let free = |_: Ipv4Addr| Use::None;
    assert_eq!(table.offer(mac(1), None, &at(1, &free), START), Some(ip(3)));
    table.withdraw(mac(1), &at(2, &free), START);
    assert!(table.bind(mac(1), ip(3), true, &at(1, &free), START));
    table.release(mac(1), ip(3), &at(2, &free), START);
    table.decline(mac(1), ip(3), &at(2, &free), START);
    assert_eq!(
        table.owner(ip(3), START),
        Some(Owner { client: mac(1), port: Some(PortId(1)), is_reserved: false, is_offer: false })
    );
    // Its machine has come to another port.
    let moved = Asker { home_of: &|_| Some(PortId(2)), ..at(2, &free) };
    table.release(mac(1), ip(3), &moved, START);
    assert_eq!(table.owner(ip(3), START), None);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Offer(u32, Option<u8>),
    Bind(u32, u8, bool),
    Withdraw(u32),
    Release(u32, u8),
    Decline(u32, u8),
    Wait(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let client = || prop_oneof![0..12_u32, Just(0xee)];
    let last = || 0..=16_u8;
    prop_oneof![
        (client(), proptest::option::of(last())).prop_map(|(c, wish)| Op::Offer(c, wish)),
        (client(), last(), any::<bool>()).prop_map(|(c, last, of_offer)| Op::Bind(c, last, of_offer)),
        client().prop_map(Op::Withdraw),
        (client(), last()).prop_map(|(c, last)| Op::Release(c, last)),
        (client(), last()).prop_map(|(c, last)| Op::Decline(c, last)),
        (0..5_000_u16).prop_map(Op::Wait),
    ]
}

proptest! {
    /// Keeps its own list of what clients were told, and never sees one address told to two at a time.
    #[test]
    fn an_address_is_never_given_to_two_live_clients(ops in proptest::collection::vec(op(), 1..200)) {
        let mut table = leases(28);
        let mut told: BTreeMap<Ipv4Addr, (Mac, Duration)> = BTreeMap::new();
        let mut now = START;
        for op in ops {
            let given = match op {
                Op::Offer(client, wish) => table
                    .offer(mac(client), wish.map(ip), &alone(), now)
                    .map(|address| (mac(client), address, OFFER_TIME)),
                Op::Bind(client, last, of_offer) => table
                    .bind(mac(client), ip(last), of_offer, &alone(), now)
                    .then_some((mac(client), ip(last), LEASE_TIME)),
                Op::Withdraw(client) => {
                    let bound: Vec<_> = table.iter(now).collect();
                    table.withdraw(mac(client), &alone(), now);
                    told.retain(|address, (owner, _)| *owner != mac(client) || bound.contains(&(*address, *owner)));
                    None
                }
                Op::Release(client, last) => {
                    table.release(mac(client), ip(last), &alone(), now);
                    if told.get(&ip(last)).is_some_and(|(owner, _)| *owner == mac(client)) {
                        told.remove(&ip(last));
                    }
                    None
                }
                Op::Decline(client, last) => {
                    table.decline(mac(client), ip(last), &alone(), now);
                    if told.get(&ip(last)).is_some_and(|(owner, _)| *owner == mac(client)) {
                        told.remove(&ip(last));
                    }
                    None
                }
                Op::Wait(secs) => {
                    now += Duration::from_secs(secs.into());
                    None
                }
            };
            if let Some((client, address, time)) = given {
                let free = told.get(&address).is_none_or(|(owner, until)| *owner == client || *until <= now);
                prop_assert!(free, "{address} to {client} at {now:?}: {told:?}");
                prop_assert!(address == ip(2) || ![ip(0), ip(1), ip(15)].contains(&address), "{address}");
                prop_assert!(address.octets()[3] < 15, "outside the subnet: {address}");
                let until = told.get(&address).map_or(START, |(_, until)| *until).max(now + time);
                told.insert(address, (client, until));
            }
            prop_assert!(table.table.len() <= 12, "pool of .3 to .14: {:?}", table.table);
            for (client, address) in &table.by_client {
                prop_assert_eq!(table.table.get(address).map(|lease| lease.client), Some(*client));
            }
        }
    }
}
