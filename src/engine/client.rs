//! Clients that are led to a guest: to a TCP port, or to a socket. Of the latter its agent is told in one
//! line, once it has proved itself where it has to, and what it sends after `OK` in a line of its own is for
//! the client. The client's descriptor is the flow's other end, so that nothing stands between the two.
//!
//! Owns: a flow's greeting, and how long an agent may take for it. May not: decide what happens to a client
//! that was turned away.
//! Read next: `tcp.rs`; `../forward/network.rs`, who asks for it; `../guest/agent.rs`, the agent.

use rustix::fd::OwnedFd;
use std::net::SocketAddrV4;

use netstack::FlowId;
use netstack::tcp::{Abort, Flow, Phase};
use thiserror::Error;
use tokio::sync::oneshot;

use super::command::Command;
use super::tcp::Opening;
use super::{Engine, Handle};
use crate::agent::{ANSWER_TIME, MAX_LINE, Question, Refusal};
use crate::host::stream::HostStream;
use crate::permits::Permit;
use crate::text::quote;

/// Why a client was not led to where it wanted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// There is no guest with that address, or its link is gone; or there are too many flows.
    #[error("the guest is not there")]
    Unreachable,
    /// The guest's system does not answer.
    #[error("the guest does not answer")]
    Silence,
    /// Nobody listens at the port.
    #[error("the guest refuses the connection")]
    Reset,
    /// Whoever accepted closed the connection instead of answering.
    #[error("the agent closed the connection without an answer")]
    Left,
    /// Or did nothing at all.
    #[error("no answer within 10 s")]
    Mute,
    /// Or answered something else than that it agrees.
    #[error(transparent)]
    Agent(#[from] Refusal),
}

/// A client that was turned away.
#[derive(Debug)]
pub struct Rejected {
    /// The client, of which nothing has been read; `None` if it is closed already.
    pub client: Option<OwnedFd>,
    /// Why.
    pub why: Refused,
}

/// A client that asks for a guest.
#[derive(Debug)]
pub(super) struct ConnectRequest {
    client: OwnedFd,
    permit: Permit,
    to: SocketAddrV4,
    preface: Preface,
    reply: Reply,
}

/// What the guest hears before it hears the client.
#[derive(Debug)]
pub enum Preface {
    /// The client's own words, which somebody has read already.
    Early(Vec<u8>),
    /// What an agent is asked, whose answers are not the client's.
    Asked(Question),
}

type Reply = oneshot::Sender<Result<(), Rejected>>;

/// What is missing before bytes may pass.
#[derive(Debug)]
pub(super) struct Greeting {
    /// What is still to be said.
    words: Vec<u8>,
    /// What an agent is asked by that.
    question: Option<Question>,
    /// The flow is connected, and the time runs.
    pub(super) begun: bool,
    answer: Vec<u8>,
    reply: Option<Reply>,
}

impl Greeting {
    fn new(preface: Preface, reply: Reply) -> Self {
        let (words, question) = match preface {
            Preface::Early(words) => (words, None),
            Preface::Asked(question) => (question.first(), Some(question)),
        };
        Self { words, question, begun: false, answer: Vec::new(), reply: Some(reply) }
    }

    /// Says and hears what can be. `Some` once it is over; the client then knows if it went well.
    pub(super) fn advance(&mut self, flow: &mut Flow) -> Option<Result<(), Refused>> {
        let over = loop {
            flow.send(|space| {
                let sent = self.words.len().min(space.len());
                for (to, byte) in space.iter_mut().zip(self.words.drain(..sent)) {
                    *to = byte;
                }
                sent
            });
            if self.question.is_none() {
                // A guest that has ended already hears nothing, but may have spoken.
                let is_said = self.words.is_empty() || flow.phase() == Phase::Aborted;
                break is_said.then_some(Ok(()))?;
            }
            flow.recv(|bytes| self.take_line(bytes));
            match self.judge(flow.recv_finished())? {
                Ok(Some(words)) => self.words = words,
                Ok(None) => break Ok(()),
                Err(why) => break Err(why),
            }
        };
        if over.is_ok()
            && let Some(reply) = self.reply.take()
        {
            // It goes on, also if nobody wants to hear so.
            let _ = reply.send(Ok(()));
        }
        Some(over)
    }

    /// Takes what belongs to the line, and says how much that is.
    fn take_line(&mut self, bytes: &[u8]) -> usize {
        if self.answer.ends_with(b"\n") {
            return 0;
        }
        let near = bytes.get(..MAX_LINE - self.answer.len()).unwrap_or(bytes);
        let taken = near.iter().position(|&byte| byte == b'\n').map_or(near.len(), |at| at + 1);
        self.answer.extend_from_slice(near.get(..taken).unwrap_or_default());
        taken
    }

    /// What is to be said to the answer, if it is there, or nothing more.
    fn judge(&mut self, ended: bool) -> Option<Result<Option<Vec<u8>>, Refused>> {
        let question = self.question.as_mut()?;
        let heard = match self.answer.strip_suffix(b"\n") {
            Some(line) => question.handle_answer(line),
            None if self.answer.len() == MAX_LINE => Err(Refusal::Garbage(quote(&self.answer))),
            None if ended => return Some(Err(Refused::Left)),
            None => return None,
        };
        self.answer.clear();
        Some(heard.map_err(Refused::from))
    }

    /// What the end of its flow means.
    pub(super) fn aborted(&self, reason: Abort) -> Refused {
        match reason {
            Abort::Unreachable => Refused::Unreachable,
            _ if self.begun => Refused::Left,
            Abort::Reset => Refused::Reset,
            Abort::Silence => Refused::Silence,
        }
    }
}

impl Engine {
    pub(super) fn forward_client(&mut self, request: ConnectRequest) {
        let ConnectRequest { client, permit, to, preface, reply } = request;
        match self.stack.tcp_connect(to, self.now, &mut self.links.batches) {
            Ok(flow) => {
                let client = HostStream::from_client(client);
                self.adopt(flow, client, Opening::Led(Box::new(Greeting::new(preface, reply))), None);
                if let Some(connection) = self.tcp.connections.get_mut(flow) {
                    connection.permit = Some(permit);
                }
            }
            Err(error) => {
                tracing::debug!(%to, %error, "cannot connect a client");
                let _ = reply.send(Err(Rejected { client: Some(client), why: Refused::Unreachable }));
            }
        }
    }

    /// From now on the agent's time runs.
    pub(super) fn begin_greeting(&mut self, flow: FlowId) {
        self.tcp.greetings.push_back((self.now + ANSWER_TIME, flow));
    }

    /// Gives the client of a greeting that failed back to who asked.
    pub(super) fn turn_away(&mut self, flow: FlowId, why: Refused) {
        let Some(connection) = self.tcp.connections.remove(flow) else { return };
        self.forget(connection.host.token);
        if let Opening::Led(greeting) = connection.opening
            && let Some(reply) = greeting.reply
        {
            let client = connection.host.into_stream(self.poll.registry()).ok();
            let _ = reply.send(Err(Rejected { client: client.map(OwnedFd::from), why }));
        }
        self.stack.tcp_release(flow, true);
    }

    /// Turns away those whose agent took too long.
    pub(super) fn end_greetings(&mut self) {
        while let Some((until, flow)) = self.tcp.greetings.front().copied() {
            let greets =
                self.tcp.connections.get(flow).is_some_and(|to| matches!(to.opening, Opening::Led(_)));
            if greets && until > self.now {
                return;
            }
            self.tcp.greetings.pop_front();
            if greets {
                self.turn_away(flow, Refused::Mute);
            }
        }
    }
}

impl Handle {
    /// Leads `client`, a connected stream socket that does not block, to the TCP port `to` of a guest, or, if
    /// that is an agent's which is asked, to wherever it leads. When it returns `Ok`, the client is connected
    /// and the engine's, to its end, and `permit` with it. Takes up to 20 s.
    ///
    /// # Errors
    /// See [`Refused`]; the client comes back, and may be led again.
    pub async fn forward_client(
        &self,
        client: OwnedFd,
        permit: Permit,
        to: SocketAddrV4,
        preface: Preface,
    ) -> Result<(), Rejected> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::ForwardClient(ConnectRequest { client, permit, to, preface, reply })).await;
        answer.await.unwrap_or(Err(Rejected { client: None, why: Refused::Unreachable }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an agent that sends `bytes` in pieces of `step`, then ends; and what of it is left for
    /// the client.
    fn answer(bytes: &[u8], step: usize) -> (Result<(), Refused>, usize) {
        let question = Question::new(b"/run/a".to_vec(), None).unwrap();
        let mut greeting = Greeting::new(Preface::Asked(question), oneshot::channel().0);
        assert_eq!(greeting.words, b"/run/a\n");
        let judge = |greeting: &mut Greeting, ended| {
            let over = greeting.judge(ended)?;
            Some(over.map(|words| assert_eq!(words, None)))
        };
        let mut taken = 0;
        for piece in bytes.chunks(step) {
            let took = greeting.take_line(piece);
            taken += took;
            if let Some(over) = judge(&mut greeting, false) {
                return (over, bytes.len() - taken);
            }
            assert_eq!(took, piece.len(), "an answer that is not over is taken as it comes");
        }
        (judge(&mut greeting, true).unwrap(), bytes.len() - taken)
    }

    #[test]
    fn what_agents_say() {
        let garbage = |text: &str| Err(Refusal::Garbage(quote(text)).into());
        let endless = "x".repeat(1000);
        for (bytes, over) in [
            ("OK\n", Ok(())),
            ("OK\nhello", Ok(())),
            ("ERR no\n", Err(Refusal::Rejected(quote("no")).into())),
            ("ERR \x1b[2J\r\n", Err(Refusal::Rejected(r#""\x1b[2J\r""#.into()).into())),
            ("OK", Err(Refused::Left)),
            ("", Err(Refused::Left)),
            ("OK \n", garbage("OK ")),
            ("ok\n", garbage("ok")),
            ("\n", garbage("")),
            ("SSH-2.0-x\r\n", garbage("SSH-2.0-x\r")),
            (&endless, garbage(&endless[..MAX_LINE])),
        ] {
            for step in [1, 2, 7, 5000] {
                let (got, left) = answer(bytes.as_bytes(), step);
                assert_eq!(got, over, "{bytes:?} by {step}");
                if got.is_ok() {
                    let heard = bytes.len() - left;
                    assert_eq!(heard, 3, "what stands behind the line is the client's");
                }
            }
        }
    }
}
