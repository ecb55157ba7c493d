//! `/cam`: behind which port of the switch a hardware address is.

use std::collections::BTreeMap;

use super::Api;
use super::reply::{Refusal, Reply, json};

pub(super) async fn answer(api: &Api) -> Result<Reply, Refusal> {
    let addresses = api.handle.addresses().await.into_iter();
    let ports: BTreeMap<_, _> = addresses.map(|(mac, port)| (mac.to_string(), port.0)).collect();
    json(&ports)
}
