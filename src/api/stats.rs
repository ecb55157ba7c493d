//! `/stats`: counters, in the tree of the original's network stack. What has no counterpart here is 0; the
//! keys are there. One more group, `Relay`, is of what passes from descriptor to descriptor, past the virtual
//! network. Read next: `netstack::DropReason`; `crate::relay`.

use netstack::DropReason;
use serde_json::{Map, Value, json};

use super::Api;
use super::reply::{self, Refusal, Reply};
use crate::engine::Counters;
use crate::relay;

const ICMP_V4: &str = "DstUnreachable EchoReply EchoRequest InfoReply InfoRequest ParamProblem Redirect SrcQuench \
                       TimeExceeded Timestamp TimestampReply";
const ICMP_V6: &str = "DstUnreachable EchoReply EchoRequest MulticastListenerDone MulticastListenerQuery \
                       MulticastListenerReport MulticastListenerReportV2 NeighborAdvert NeighborSolicit PacketTooBig \
                       ParamProblem RedirectMsg RouterAdvert RouterSolicit TimeExceeded";
const IGMP: &str = "LeaveGroup MembershipQuery V1MembershipReport V2MembershipReport V3MembershipReport";

/// Every group of counters by its path, and the names of its counters.
const GROUPS: &[(&str, &str)] = &[
    ("", "BytesReceived BytesSent DroppedPackets"),
    (
        "ARP",
        "DisabledPacketsReceived MalformedPacketsReceived OutgoingRepliesDropped OutgoingRepliesSent \
         OutgoingRequestBadLocalAddressErrors OutgoingRequestInterfaceHasNoLocalAddressErrors OutgoingRequestsDropped \
         OutgoingRequestsSent PacketsReceived RepliesReceived RequestsReceived RequestsReceivedUnknownTargetAddress",
    ),
    ("ICMP.V4.PacketsReceived", "Invalid"),
    ("ICMP.V4.PacketsReceived.ICMPv4PacketStats", ICMP_V4),
    ("ICMP.V4.PacketsSent", "Dropped RateLimited"),
    ("ICMP.V4.PacketsSent.ICMPv4PacketStats", ICMP_V4),
    ("ICMP.V6.PacketsReceived", "Invalid RouterOnlyPacketsDroppedByHost Unrecognized"),
    ("ICMP.V6.PacketsReceived.ICMPv6PacketStats", ICMP_V6),
    ("ICMP.V6.PacketsSent", "Dropped RateLimited"),
    ("ICMP.V6.PacketsSent.ICMPv6PacketStats", ICMP_V6),
    ("IGMP.PacketsReceived", "ChecksumErrors Invalid Unrecognized"),
    ("IGMP.PacketsReceived.IGMPPacketStats", IGMP),
    ("IGMP.PacketsSent", "Dropped"),
    ("IGMP.PacketsSent.IGMPPacketStats", IGMP),
    (
        "IP",
        "DisabledPacketsReceived IPTablesForwardDropped IPTablesInputDropped IPTablesOutputDropped \
         IPTablesPostroutingDropped IPTablesPreroutingDropped InvalidDestinationAddressesReceived \
         InvalidSourceAddressesReceived MalformedFragmentsReceived MalformedPacketsReceived OptionRecordRouteReceived \
         OptionRouterAlertReceived OptionTimestampReceived OptionUnknownReceived OutgoingPacketErrors PacketsDelivered \
         PacketsReceived PacketsSent ValidPacketsReceived",
    ),
    (
        "IP.Forwarding",
        "Errors ExhaustedTTL ExtensionHeaderProblem HostUnreachable InitializingSource LinkLocalDestination \
         LinkLocalSource NoMulticastPendingQueueBufferSpace OutgoingDeviceClosedForSend OutgoingDeviceNoBufferSpace \
         PacketTooBig UnexpectedMulticastInputInterface UnknownOutputEndpoint Unrouteable",
    ),
    ("NICs", "MalformedL4RcvdPackets TxPacketsDroppedNoBufferSpace"),
    ("NICs.DisabledRx", "Bytes Packets"),
    (
        "NICs.Neighbor",
        "DroppedConfirmationForNoninitiatedNeighbor DroppedInvalidLinkAddressConfirmations UnreachableEntryLookups",
    ),
    ("NICs.Rx", "Bytes Packets"),
    ("NICs.Tx", "Bytes Packets"),
    (
        "TCP",
        "ActiveConnectionOpenings ChecksumErrors CurrentConnected CurrentEstablished EstablishedClosed \
         EstablishedResets EstablishedTimedout FailedConnectionAttempts FailedPortReservations FastRecovery \
         FastRetransmit ForwardMaxInFlightDrop InvalidSegmentsReceived ListenOverflowAckDrop \
         ListenOverflowInvalidSynCookieRcvd ListenOverflowSynCookieRcvd ListenOverflowSynCookieSent \
         ListenOverflowSynDrop PassiveConnectionOpenings ResetsReceived ResetsSent Retransmits SACKRecovery \
         SegmentSendErrors SegmentsAckedWithDSACK SegmentsSent SlowStartRetransmits SpuriousRTORecovery \
         SpuriousRecovery TLPRecovery Timeouts ValidSegmentsReceived",
    ),
    (
        "UDP",
        "ChecksumErrors MalformedPacketsReceived PacketSendErrors PacketsReceived PacketsSent ReceiveBufferErrors \
         UnknownPortErrors",
    ),
];

pub(super) async fn answer(api: &Api) -> Result<Reply, Refusal> {
    let mut tree = tree(&api.handle.counters().await);
    tree.insert("Relay".to_owned(), relayed(api.relays.stats()));
    reply::json(&tree)
}

/// Bytes are counted from the start; the rest is what there is now.
fn relayed(stats: relay::Stats) -> Value {
    let relay::Stats { open, spliced, copied, pipes, spare_pipes } = stats;
    json!({
        "CurrentConnected": open, "BytesSpliced": spliced, "BytesCopied": copied, "Pipes": pipes, "SparePipes": spare_pipes,
    })
}

fn tree(counters: &Counters) -> Map<String, Value> {
    let mut tree = Map::new();
    for (path, names) in GROUPS {
        let group = path.split('.').filter(|part| !part.is_empty()).try_fold(&mut tree, |group, part| {
            group.entry(part).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
        });
        if let Some(group) = group {
            group.extend(names.split_whitespace().map(|name| {
                let key = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                (name.to_owned(), value(&key, counters).into())
            }));
        }
    }
    tree
}

/// What is counted here under `key`.
fn value(key: &str, counters: &Counters) -> u64 {
    let Counters { received, sent, drops, tcp_flows, .. } = counters;
    match key {
        "BytesReceived" | "NICs.Rx.Bytes" => received.bytes,
        "BytesSent" | "NICs.Tx.Bytes" => sent.bytes,
        "NICs.Rx.Packets" => received.frames,
        "NICs.Tx.Packets" => sent.frames,
        "DroppedPackets" => drops.total(),
        "NICs.TxPacketsDroppedNoBufferSpace" => drops.of(DropReason::PortFull),
        "ARP.MalformedPacketsReceived" => drops.of(DropReason::Arp),
        "ARP.OutgoingRequestsDropped" => drops.of(DropReason::Resolving),
        "ICMP.V4.PacketsReceived.Invalid" => drops.of(DropReason::Icmp),
        "IP.MalformedPacketsReceived" => drops.of(DropReason::Ipv4),
        "IP.MalformedFragmentsReceived" => drops.of(DropReason::Fragment),
        "IP.InvalidSourceAddressesReceived" => drops.of(DropReason::Martian),
        "TCP.CurrentConnected" | "TCP.CurrentEstablished" => *tcp_flows,
        "TCP.ForwardMaxInFlightDrop" => drops.of(DropReason::Flows),
        "TCP.InvalidSegmentsReceived" => drops.of(DropReason::Tcp),
        "UDP.MalformedPacketsReceived" => drops.of(DropReason::Udp),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Traffic;

    #[test]
    fn counters_are_where_the_tree_has_them() {
        let received = Traffic { frames: 3, bytes: 200 };
        let counters = Counters { received, tcp_flows: 7, ..Counters::default() };
        let tree = Value::Object(tree(&counters));
        for (pointer, count) in [
            ("/BytesReceived", 200),
            ("/NICs/Rx/Packets", 3),
            ("/TCP/CurrentEstablished", 7),
            ("/ICMP/V6/PacketsSent/ICMPv6PacketStats/TimeExceeded", 0),
        ] {
            assert_eq!(tree.pointer(pointer), Some(&count.into()), "{pointer}");
        }
    }

    #[test]
    fn every_counter_has_its_key() {
        let source = include_str!("stats.rs");
        let keys = source.lines().filter_map(|line| line.trim().split_once(" => ")?.0.strip_prefix('"'));
        for key in keys.flat_map(|keys| keys.split(" | ")).map(|key| key.trim_matches('"')) {
            let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
            let group = GROUPS.iter().find(|(group, _)| *group == path);
            assert!(group.is_some_and(|(_, names)| names.split_whitespace().any(|n| n == name)), "{key}");
        }
    }
}
