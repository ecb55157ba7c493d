//! One question to all servers, in the order of `resolv.conf`.
//! Owns: who is asked when, and whose answer counts. May not: speak to a server; `exchange.rs` does.
//!
//! Every question begins with the first server, whatever became of the one before: an internal name is known
//! to the first alone, and the next would deny it. The next is asked as well when the first is slow, but its
//! answer waits for the first's as long as the library of the host would wait, within what clients wait. Only
//! of a server that is known to be dead little is expected.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use netstack::dns::Transport;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::exchange::{self, Question};
use super::health::Health;

/// How long the answers of others wait for a server that is known to be dead.
const GRACE: Duration = Duration::from_millis(100);
/// A server that refuses may be about to start again: how long the answers of others wait for that, how long
/// the client does when there is none, and how often it is asked meanwhile.
const RESTART: Duration = Duration::from_secs(1);
const LONG_RESTART: Duration = Duration::from_secs(2);
const REFUSED_RETRY: Duration = Duration::from_millis(100);

/// A question on its way.
#[derive(Debug)]
pub(super) struct Race {
    question: Arc<Question>,
    health: Health,
    start: Instant,
    end: Instant,
    candidates: Vec<Candidate>,
    exchanges: JoinSet<(usize, std::io::Result<Vec<u8>>)>,
}

#[derive(Debug)]
struct Candidate {
    server: SocketAddr,
    dead: bool,
    asked: Option<Instant>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not yet asked.
    Waiting,
    Asked,
    /// It cannot be reached, and is asked again then.
    Refused(Instant),
    /// It cannot be reached.
    Out,
    /// It answered, but another may know better.
    Weak(Vec<u8>),
    Answered(Vec<u8>),
}

impl Race {
    /// Asks `servers` for at most `limit`.
    pub(super) fn new(question: Question, servers: &[SocketAddr], health: &Health, limit: Duration) -> Self {
        health.retain(servers);
        let candidates = servers.iter().map(|&server| Candidate {
            server,
            dead: health.is_dead(server),
            asked: None,
            state: State::Waiting,
        });
        let start = Instant::now();
        Self {
            candidates: candidates.collect(),
            question: Arc::new(question),
            health: health.clone(),
            start,
            end: start + limit,
            exchanges: JoinSet::new(),
        }
    }

    /// The answer that counts; if all refuse, the first of these.
    pub(super) async fn run(mut self) -> Option<Vec<u8>> {
        loop {
            let now = Instant::now();
            self.ask_those_due(now);
            let until = match self.find(now) {
                Ok(until) => until,
                Err(found) => {
                    self.note_missing(found.unwrap_or(self.candidates.len()));
                    return self.take(found?);
                }
            };
            tokio::select! {
                Some(ended) = self.exchanges.join_next() => if let Ok((index, result)) = ended {
                    self.note(index, result);
                },
                () = sleep_until(until) => {}
            }
        }
    }

    fn ask_those_due(&mut self, now: Instant) {
        let mut due = true;
        for (index, candidate) in self.candidates.iter_mut().enumerate() {
            let again = matches!(candidate.state, State::Refused(again) if again <= now);
            if again || due && matches!(candidate.state, State::Waiting) {
                let (server, question) = (candidate.server, Arc::clone(&self.question));
                self.exchanges.spawn(async move { (index, exchange::ask(server, &question).await) });
                candidate.asked.get_or_insert(now);
                candidate.state = State::Asked;
            }
            due = match candidate.state {
                State::Waiting => false,
                State::Asked => {
                    candidate.dead || candidate.asked.is_some_and(|asked| now >= asked + self.question.hedge)
                }
                _ => true,
            };
        }
    }

    fn note(&mut self, index: usize, result: std::io::Result<Vec<u8>>) {
        let now = Instant::now();
        let Some(candidate) = self.candidates.get_mut(index) else { return };
        candidate.state = match result {
            Ok(answer) => {
                self.health.heard(candidate.server);
                let cut = self.question.transport == Transport::Tcp && exchange::is_truncated(&answer);
                match cut || exchange::is_refusal(&answer) {
                    true => State::Weak(answer),
                    false => State::Answered(answer),
                }
            }
            Err(error) => {
                tracing::debug!(server = %candidate.server, %error, "resolver did not answer");
                match candidate.dead || now >= self.start + LONG_RESTART {
                    true => State::Out,
                    false => State::Refused(now + REFUSED_RETRY),
                }
            }
        };
    }

    /// How long to wait, or else whose answer counts.
    fn find(&self, now: Instant) -> Result<Instant, Option<usize>> {
        let mut weak = None;
        let mut under_way = false;
        for (index, candidate) in self.candidates.iter().enumerate() {
            match &candidate.state {
                State::Answered(_) => return Err(Some(index)),
                State::Weak(_) => weak = weak.or(Some(index)),
                State::Out => {}
                State::Waiting | State::Asked | State::Refused(_) => {
                    under_way = true;
                    if now < self.end.min(self.start + self.patience(candidate)) {
                        return Ok(self.next_event(now));
                    }
                }
            }
        }
        match weak {
            None if under_way && now < self.end => Ok(self.next_event(now)),
            weak => Err(weak),
        }
    }

    /// When something is due if no server answers.
    fn next_event(&self, now: Instant) -> Instant {
        let events = self.candidates.iter().flat_map(|candidate| {
            let again = match candidate.state {
                State::Refused(again) => Some(again),
                _ => None,
            };
            let hedge = candidate.asked.map(|asked| asked + self.question.hedge);
            [again, hedge, Some(self.start + self.patience(candidate))]
        });
        events.flatten().filter(|&at| at > now).min().unwrap_or(self.end).min(self.end)
    }

    /// How long after the start the answers of later servers wait for this one's.
    fn patience(&self, candidate: &Candidate) -> Duration {
        // Clients give up after the same time as the library would: what they get has to be there before.
        let whole = self.question.timeout * 9 / 10;
        match candidate.state {
            _ if candidate.dead => GRACE.min(whole),
            State::Refused(_) | State::Out => RESTART.min(whole),
            _ => whole,
        }
    }

    /// Notes that those before `found` have not answered.
    fn note_missing(&self, found: usize) {
        for candidate in self.candidates.iter().take(found) {
            let Some(asked) = candidate.asked else { continue };
            match candidate.state {
                State::Asked if candidate.dead => self.health.probe(candidate.server, &self.question),
                State::Asked | State::Refused(_) | State::Out => {
                    self.health.missed(candidate.server, asked, self.patience(candidate));
                }
                State::Waiting | State::Weak(_) | State::Answered(_) => {}
            }
        }
    }

    fn take(self, index: usize) -> Option<Vec<u8>> {
        match self.candidates.into_iter().nth(index)?.state {
            State::Weak(answer) | State::Answered(answer) => Some(answer),
            State::Waiting | State::Asked | State::Refused(_) | State::Out => None,
        }
    }
}
