//! What guests ask of the control plane, by port in turn: one piece at a time, and between two of them
//! everything else that is ready there. So neither the operator nor another guest waits for the thousands of
//! one.
//!
//! Owns: whose turn it is, and how much may wait for it. May not: do any of it. Read next:
//! `daemon/requests.rs`, which does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use netstack::{DnsClient, Guest, PortId, Turns};
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

use crate::sys::stream::StdStream;

/// Requests that may wait for their turn: those of a port as many as are free.
const MAX_REQUESTS: usize = MAX_QUESTIONS + 512;
/// Among them questions, which come faster than the control plane is woken. The rest is left to connections,
/// which would be refused, where a question is asked again.
const MAX_QUESTIONS: usize = 4096;

/// What the engine asks of the control plane.
#[derive(Debug)]
pub enum Request {
    /// A question for the host's resolvers, answered by [`Handle::dns_answer`](super::Handle::dns_answer).
    DnsQuestion {
        /// Who asked.
        client: DnsClient,
        /// The message as it came.
        message: Vec<u8>,
    },
    /// A guest connected to the gateway's DNS port.
    DnsStream {
        /// The port that the guest is behind: unlike its address it cannot be forged.
        link: PortId,
        /// The near end for the control plane.
        stream: StdStream,
    },
    /// A guest connected to the gateway's HTTP port.
    HttpStream {
        /// Who did; its port cannot be forged.
        guest: Guest,
        /// The near end for the control plane.
        stream: StdStream,
    },
}

impl Request {
    fn port(&self) -> PortId {
        match self {
            Self::DnsQuestion { client, .. } => client.port(),
            Self::DnsStream { link, .. } => *link,
            Self::HttpStream { guest, .. } => guest.port,
        }
    }
}

/// The requests of all ports, and what of them goes on later.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    turns: Turns<Piece>,
    /// Requests among them, of each port that has some, and of all.
    of_port: HashMap<PortId, usize>,
    requests: usize,
}

#[derive(Debug)]
enum Piece {
    Request(Request),
    /// What a task of the control plane waits for.
    Turn(oneshot::Sender<()>),
}

/// The port has as many as it may.
#[derive(Debug)]
pub(super) struct Full;

impl Requests {
    /// Asks, as soon as it is the port's turn.
    pub(super) fn ask(&self, request: Request) -> Result<(), Full> {
        let port = request.port();
        let max = match request {
            Request::DnsQuestion { .. } => MAX_QUESTIONS,
            Request::DnsStream { .. } | Request::HttpStream { .. } => MAX_REQUESTS,
        };
        let mut waiting = self.lock();
        waiting.admit(port, max)?;
        waiting.turns.push(port, Piece::Request(request));
        drop(waiting);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits until it is `port`'s turn: for work on the control plane that a guest can have without a new
    /// request.
    pub(super) async fn turn_of(&self, port: PortId) {
        let (granted, turn) = oneshot::channel();
        self.lock().turns.push(port, Piece::Turn(granted));
        self.filled.notify_one();
        // Nobody serves any more where that fails, and the runtime ends.
        let _ = turn.await;
    }

    /// The next request.
    pub(super) async fn next(&self) -> Request {
        loop {
            yield_now().await;
            let piece = self.lock().pop();
            match piece {
                Some(Piece::Request(request)) => return request,
                // Who has gone meanwhile needs none.
                Some(Piece::Turn(granted)) => drop(granted.send(())),
                None => self.filled.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Counts one more request of `port`, if it has less than are free of `max`.
    fn admit(&mut self, port: PortId, max: usize) -> Result<(), Full> {
        let own = self.of_port.entry(port).or_default();
        if *own >= max.saturating_sub(self.requests) {
            return Err(Full);
        }
        *own += 1;
        self.requests += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<Piece> {
        let piece = self.turns.pop()?;
        if let Piece::Request(request) = &piece {
            self.requests -= 1;
            if let Entry::Occupied(mut own) = self.of_port.entry(request.port()) {
                *own.get_mut() -= 1;
                if *own.get() == 0 {
                    own.remove();
                }
            }
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use crate::sys::stream::pair;
    use std::future::Future as _;
    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use netstack::Mac;

    use super::*;

    fn connection(port: u32) -> Request {
        let guest = Guest { address: Ipv4Addr::LOCALHOST, port: PortId(port), mac: Mac([0; 6]) };
        Request::HttpStream { guest, stream: pair().unwrap().0 }
    }

    #[tokio::test]
    async fn one_of_each_port_in_turn() {
        let requests = Requests::default();
        for _ in 0..3 {
            requests.ask(connection(1)).unwrap();
        }
        requests.ask(connection(2)).unwrap();
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(requests.next().await.port().0);
        }
        assert_eq!(order, [1, 2, 1, 1]);
        assert_eq!(requests.lock().requests, 0);
    }

    #[tokio::test]
    async fn work_of_before_waits_behind_its_ports_requests_alone() {
        let requests = Requests::default();
        let [mut many, mut one] = [1, 2].map(|port| Box::pin(requests.turn_of(PortId(port))));
        requests.ask(connection(1)).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        assert!(many.as_mut().poll(&mut context).is_pending());
        assert!(one.as_mut().poll(&mut context).is_pending());
        assert_eq!(requests.next().await.port().0, 1);
        let mut next = pin!(requests.next());
        let granted = std::iter::repeat_with(|| {
            assert!(next.as_mut().poll(&mut context).is_pending());
            [&mut one, &mut many].map(|turn| turn.as_mut().poll(&mut context).is_ready())
        });
        let first = granted.take(9).find(|granted| *granted != [false; 2]);
        assert_eq!(first, Some([true, false]), "one at a time, and the port that has had less");
    }

    #[test]
    fn a_port_leaves_as_many_to_others_as_it_has() {
        let mut waiting = Waiting::default();
        let mut fill = |port, max| std::iter::from_fn(|| waiting.admit(PortId(port), max).ok()).count();
        assert_eq!([fill(1, 4096), fill(2, 4096), fill(3, 4096)], [2048, 1024, 512]);
        assert_eq!([fill(1, 4608), fill(4, 4608)], [0, 512], "what questions leave is for connections");
    }
}
