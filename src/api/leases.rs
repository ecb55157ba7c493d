//! `/services/dhcp/leases` and `/leases`: which hardware address has which IP address, reservations included.

use std::collections::BTreeMap;

use super::Api;
use super::reply::{Refusal, Reply, json};

pub(super) async fn answer(api: &Api) -> Result<Reply, Refusal> {
    let leases = api.handle.leases().await.into_iter();
    // In the order of the text, as the original's.
    let leases: BTreeMap<_, _> = leases.map(|(ip, mac)| (ip.to_string(), mac.to_string())).collect();
    json(&leases)
}
