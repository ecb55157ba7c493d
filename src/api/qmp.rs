//! `/qmp`: the virtual machines that are known by their QMP socket, and which network card of theirs is ours.

use super::Api;
use super::reply::{Refusal, Reply, json};

pub(super) fn answer(api: &Api) -> Result<Reply, Refusal> {
    json(&api.statuses.read())
}
