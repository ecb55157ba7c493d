//! What guests ask of the control plane: names that the host's resolvers know, and what they ask the gateway
//! itself.
//! Owns: how many questions are under way. May not: decide whose turn it is, which `../engine/requests.rs`
//! does.
//! Read next: `../host/dns/mod.rs`; `../api/mod.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use netstack::PortId;
use netstack::dns::{Transport, Verdict, server_failure};
use tokio::time::sleep_until;

use crate::api::Api;
use crate::budget::Budget;
use crate::engine::{Handle, Request};
use crate::host::dns::{Upstream, serve_stream};
use crate::limit::{Limit, Slot};
use crate::logging::Limited;
use crate::permits::{Owners, Permits};
use crate::sys::descriptor_share;
use crate::sys::memory::{give_back, give_back_much};
use crate::sys::names;
use crate::sys::stream::Stream;

/// Questions of guests to the host's resolvers at a time, those that wait for descriptors among them; and as
/// many at the least, however few there are.
const MAX_DNS_QUESTIONS: usize = 4096;
const MIN_DNS_QUESTIONS: usize = 512;
/// Descriptors that one takes: a socket for each server.
const PER_DNS_QUESTION: usize = 3;
/// DNS connections of guests at a time, and the part of the descriptors that they may take at most.
const MAX_DNS_STREAMS: usize = 1024;
const DNS_STREAM_SHARE: usize = 8;
/// Bytes of each port's questions by TCP that are under way, and of their answers until those are written:
/// some hundred.
const DNS_STREAM_BYTES: u32 = 8 << 20;
/// The longest answer.
const LONGEST_DNS_ANSWER: usize = u16::MAX as usize;
/// Requests between two looks of which what came and went between them may be much.
const MANY_REQUESTS: u32 = 1000;
/// How often it is looked whether much memory is kept that guests' work took, and how many times after the
/// last of that.
const LOOK_FOR_MEMORY: Duration = Duration::from_secs(10);
const LOOKS_FOR_MEMORY: u32 = 12;

/// Questions of guests about names that the host is to answer.
struct Questions {
    upstream: Upstream,
    admitted: Limit<PortId>,
    sockets: Owners<PortId>,
    failed: Limited,
}

impl Questions {
    /// The answer, if there is one. Where descriptors are few it waits for some; where its slot is wanted
    /// for another it is SERVFAIL.
    async fn ask(
        &self,
        port: PortId,
        slot: &Slot<PortId>,
        message: &Bytes,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let answer = slot.hold(async {
            let _sockets = self.sockets.permits(port).wait().await;
            self.upstream.ask(message, transport).await
        });
        answer.await.unwrap_or_else(|| self.fail(port, message, transport))
    }

    /// SERVFAIL, for one that has no slot, or no longer.
    fn fail(&self, port: PortId, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if let Some(suppressed) = self.failed.admit(Instant::now()) {
            tracing::warn!(%port, suppressed, "too many DNS questions of a guest are under way: some fail");
        }
        server_failure(message, transport)
    }
}

/// Serves what the engine asks: questions about names, and what guests ask the gateway itself.
pub(super) async fn resolve(handle: Handle, api: Arc<Api>, permits: Permits) {
    let questions = Arc::new(Questions {
        upstream: Upstream::new(names::resolv_conf(), names::hosts()),
        admitted: Limit::new(
            descriptor_share(PER_DNS_QUESTION, MAX_DNS_QUESTIONS).max(MIN_DNS_QUESTIONS),
            Duration::ZERO,
        ),
        sockets: Owners::new(permits.taking(PER_DNS_QUESTION).for_strangers()),
        failed: Limited::new(1, Duration::from_secs(60)),
    });
    let streams = Limit::new(descriptor_share(DNS_STREAM_SHARE, MAX_DNS_STREAMS), Duration::ZERO);
    let budget = Arc::new(Budget::new(DNS_STREAM_BYTES));
    let (mut looks, mut look) = (0, Instant::now());
    // Since the last look, and the looks to come since there were many.
    let (mut requests, mut after_many) = (0, 0_u32);
    loop {
        let request = tokio::select! {
            request = handle.next_request() => request,
            () = sleep_until(look.into()), if looks > 0 => {
                (looks, look) = (looks - 1, Instant::now() + LOOK_FOR_MEMORY);
                if std::mem::take(&mut requests) >= MANY_REQUESTS {
                    after_many = LOOKS_FOR_MEMORY;
                }
                match after_many {
                    0 => give_back_much(),
                    _ => give_back(),
                }
                after_many = after_many.saturating_sub(1);
                continue;
            }
        };
        if looks == 0 {
            look = Instant::now() + LOOK_FOR_MEMORY;
        }
        looks = LOOKS_FOR_MEMORY;
        requests += 1;
        let (handle, questions) = (handle.clone(), Arc::clone(&questions));
        match request {
            Request::DnsQuestion { client, message } => {
                let (port, message) = (client.port(), Bytes::from(message));
                // Of this very task, so that no more of them are there than permits.
                let Some(slot) = questions.admitted.admit(port) else {
                    if let Some(answer) = questions.fail(port, &message, Transport::Udp) {
                        handle.dns_answer(client, answer).await;
                    }
                    continue;
                };
                tokio::spawn(async move {
                    if let Some(answer) = questions.ask(port, &slot, &message, Transport::Udp).await {
                        handle.dns_answer(client, answer).await;
                    }
                });
            }
            Request::HttpStream { guest, stream } => {
                tokio::spawn(Arc::clone(&api).serve_guest(guest, stream));
            }
            Request::DnsStream { link, stream } => {
                let Some(slot) = streams.admit(link) else { continue };
                let Ok(stream) = Stream::from_std(stream) else { continue };
                let budget = Arc::clone(&budget);
                tokio::spawn(async move {
                    let turn = async |bytes| {
                        let part = budget.part(link, bytes + LONGEST_DNS_ANSWER).await;
                        handle.turn_of(link).await;
                        part
                    };
                    let resolve = |message: Vec<u8>| {
                        answer(handle.clone(), Arc::clone(&questions), link, message.into())
                    };
                    serve_stream(stream, slot, turn, resolve).await;
                });
            }
        }
    }
}

/// Answers one DNS message that came by TCP.
async fn answer(handle: Handle, questions: Arc<Questions>, link: PortId, message: Bytes) -> Option<Vec<u8>> {
    let (verdict, reply) = handle.dns_query(message.clone()).await;
    match verdict {
        Verdict::Reply => Some(reply),
        Verdict::Forward => {
            let Some(slot) = questions.admitted.admit(link) else {
                return questions.fail(link, &message, Transport::Tcp);
            };
            questions.ask(link, &slot, &message, Transport::Tcp).await
        }
        Verdict::Drop => None,
    }
}
