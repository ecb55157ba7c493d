//! What the guest has sent on one connection, and its clients have not taken.
//!
//! Owns: how much that may be, and which clients are given up so that the others go on. May not: touch bytes (`channel.rs`).

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::sys::memory::give_back_much;

/// Bytes that may wait for the clients of a connection. What is more stays in the connection, and all of them wait for it.
pub(super) const MAX_BACKLOG: usize = 8 << 20;
/// What a packet costs beside its bytes.
const PACKET_COST: usize = 256;
/// The most packets that can wait, so that they never do by their number.
pub(super) const CAPACITY: usize = MAX_BACKLOG / PACKET_COST;
/// How long one more waits to be let in, and for its first byte, for those that take nothing, before these are given up: less than that
/// may take.
const ENTERING: Duration = Duration::from_secs(8);
/// How long others wait, who may have nothing to come; and one that is let in is one of these after so long without a byte.
const OTHERS: Duration = Duration::from_secs(60);
/// How often it is looked whether that is so.
const LOOK: Duration = Duration::from_secs(1);
/// A backlog of so much leaves freed memory between what is in use, which the allocator would keep.
const MUCH: usize = MAX_BACKLOG / 4;
/// How long after that has gone it is given back: others may be leaving too.
const SETTLE: Duration = Duration::from_secs(5);

/// The backlog of one connection. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// It has been [`MUCH`] since memory was given back.
    was_much: bool,
    /// Channels that are being opened.
    opening: usize,
    /// Since when one more waits for the connection, to be let in or for its first byte.
    entering: Option<Instant>,
    /// Since when others do, who have nothing to take.
    others: Option<Instant>,
    clients: HashMap<u32, Client>,
}

#[derive(Debug)]
struct Client {
    held: usize,
    /// When it last took something of that, or first had something to take.
    moved: Instant,
    /// It has nothing yet since it was let in, at this time.
    entered: Option<Instant>,
    given_up: Arc<Notify>,
}

impl Client {
    fn new() -> Self {
        let now = Instant::now();
        Self { held: 0, moved: now, entered: Some(now), given_up: Arc::default() }
    }
}

impl State {
    fn is_one_entering(&self) -> bool {
        let is_new = |client: &Client| client.entered.is_some_and(|at| at.elapsed() < OTHERS);
        self.opening > 0 || self.clients.values().any(is_new)
    }

    /// Notes who waits while there is too much, and gives up those that they wait for.
    fn make_room(&mut self) {
        let now = Instant::now();
        let since = |is_so: bool, since: Option<Instant>| is_so.then(|| since.unwrap_or(now));
        self.entering = since(self.is_one_entering(), self.entering);
        self.others = since(self.clients.values().any(|client| client.held == 0), self.others);
        self.give_up(self.entering, ENTERING);
        self.give_up(self.others, OTHERS);
    }

    /// Gives up those that have taken nothing for so long and have more than their part to take, where somebody has waited for as long.
    fn give_up(&self, waited: Option<Instant>, patience: Duration) {
        if waited.is_none_or(|since| since.elapsed() < patience) {
            return;
        }
        let part = MAX_BACKLOG / self.clients.len().max(1);
        for client in self.clients.values().filter(|client| client.held >= part) {
            if client.moved.elapsed() >= patience {
                client.given_up.notify_one();
            }
        }
    }

    /// Nobody who enters waits any more.
    fn end_entering(&mut self) {
        if self.entering.is_some() && !self.is_one_entering() {
            self.entering = None;
        }
    }
}

impl Backlog {
    /// Counts what comes on this channel from now on, until its [`Share`] is dropped.
    pub(super) fn enter(&self, channel: u32) {
        self.state().clients.entry(channel).or_insert_with(Client::new);
    }

    /// The channel's part of it.
    pub(super) fn share(&self, channel: u32) -> Share {
        let given_up = self.state().clients.entry(channel).or_insert_with(Client::new).given_up.clone();
        Share { backlog: self.clone(), channel, given_up }
    }

    /// Counts a packet that came, and waits for as long as there is too much.
    pub(super) async fn add(&self, channel: u32, bytes: usize) {
        {
            let mut state = self.state();
            // What comes on a channel that nobody has any more is gone already.
            let Some(client) = state.clients.get_mut(&channel) else { return };
            if client.held == 0 {
                client.moved = Instant::now();
            }
            let is_first = bytes > 0 && client.entered.take().is_some();
            client.held += bytes + PACKET_COST;
            state.held += bytes + PACKET_COST;
            state.was_much |= state.held >= MUCH;
            if is_first {
                state.end_entering();
            }
        }
        loop {
            let mut room = pin!(self.0.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.held <= MAX_BACKLOG {
                    return;
                }
                state.make_room();
            }
            let _ = timeout(LOOK, room).await;
        }
    }

    /// Channels that are being opened.
    pub(super) fn being_opened(&self) -> usize {
        self.state().opening
    }

    /// Counts one more channel that is being opened, until what it gives is dropped.
    pub(super) fn opening(&self) -> Opening<'_> {
        self.state().opening += 1;
        Opening(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let was_full = state.held > MAX_BACKLOG;
        change(&mut state);
        if was_full && state.held <= MAX_BACKLOG {
            self.0.room.notify_one();
        }
        if state.held < MUCH {
            state.others = None;
        }
    }
}

/// A channel that is being opened.
#[derive(Debug)]
pub(super) struct Opening<'a>(&'a Backlog);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.opening -= 1;
        state.end_entering();
    }
}

/// What one channel's client has still to take. Nothing counts any more once it is dropped.
pub(super) struct Share {
    backlog: Backlog,
    channel: u32,
    given_up: Arc<Notify>,
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl Share {
    /// Packets of so many bytes together wait no more.
    pub(super) fn took(&self, packets: usize, bytes: usize) {
        self.backlog.change(|state| {
            let Some(client) = state.clients.get_mut(&self.channel) else { return };
            let taken = (bytes + packets * PACKET_COST).min(client.held);
            client.held -= taken;
            client.moved = Instant::now();
            state.held -= taken;
        });
    }

    /// Waits until the client is given up for the others of its connection.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
        info!("ssh: a client that takes nothing is closed, as others of its connection wait for it");
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut is_over = false;
        self.backlog.change(|state| {
            let left = state.clients.remove(&self.channel).map_or(0, |client| client.held);
            state.held -= left;
            state.end_entering();
            is_over = state.was_much && state.held < MUCH;
            state.was_much &= !is_over;
        });
        // At the end of the process there is no runtime any more, nor a need.
        if let Some(runtime) = is_over.then(Handle::try_current).and_then(Result::ok) {
            runtime.spawn(async {
                sleep(SETTLE).await;
                give_back_much();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 32 << 10;

    /// A backlog of so many channels that have had something, and their shares.
    async fn backlog(channels: u32) -> (Backlog, Vec<Share>) {
        let backlog = Backlog::default();
        let mut shares = Vec::new();
        for number in 0..channels {
            backlog.enter(number);
            backlog.add(number, 1).await;
            shares.push(backlog.share(number));
            shares[number as usize].took(1, 1);
        }
        (backlog, shares)
    }

    async fn fill(backlog: &Backlog, channel: u32) {
        for _ in 0..MAX_BACKLOG / (PACKET + PACKET_COST) {
            backlog.add(channel, PACKET).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_its_clients_and_gives_up_who_takes_nothing() {
        let (backlog, shares) = backlog(3).await;
        fill(&backlog, 0).await;
        let start = Instant::now();
        // The third has nothing, and waits.
        let mut more = pin!(backlog.add(1, PACKET));
        assert!(timeout(ENTERING, &mut more).await.is_err());
        let gone = async {
            shares[0].given_up().await;
            shares[0].took(CAPACITY, MAX_BACKLOG);
        };
        tokio::join!(more, gone);
        assert!(start.elapsed() >= OTHERS, "{:?}", start.elapsed());
        drop(shares);
        assert_eq!(backlog.state().held, 0);
        assert!(backlog.state().clients.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_slow_or_alone_is_waited_for() {
        let (backlog, shares) = backlog(2).await;
        fill(&backlog, 0).await;
        let mut more = pin!(backlog.add(1, PACKET));
        let _opening = backlog.opening();
        for _ in 0..32 {
            shares[0].took(0, 1);
            let given_up = timeout(ENTERING - LOOK, shares[0].given_up());
            tokio::select! {
                () = &mut more => panic!("there is no room"),
                given_up = given_up => assert!(given_up.is_err(), "it moves"),
            }
        }
        shares[0].took(1, PACKET);
        more.await;

        // All have something to take, as who has left does not count, until one more is to be let in.
        let (backlog, mut shares) = self::backlog(2).await;
        shares.truncate(1);
        fill(&backlog, 0).await;
        let mut more = pin!(backlog.add(0, PACKET));
        tokio::select! {
            () = &mut more => panic!("there is no room"),
            given_up = timeout(OTHERS * 2, shares[0].given_up()) => assert!(given_up.is_err(), "nobody waits for it"),
        }
        let _opening = backlog.opening();
        tokio::select! {
            () = &mut more => panic!("there is no room"),
            given_up = timeout(ENTERING * 2, shares[0].given_up()) => assert!(given_up.is_ok(), "one waits for it"),
        }
        shares[0].took(1, PACKET);
        more.await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_let_in_waits_as_little_for_its_first_byte() {
        let (backlog, shares) = backlog(3).await;
        let start = Instant::now();
        let opening = backlog.opening();
        fill(&backlog, 0).await;
        let one_goes = async |number: usize| {
            let mut more = pin!(backlog.add(1, PACKET));
            tokio::select! {
                () = &mut more => panic!("there is no room"),
                () = shares[number].given_up() => {}
            }
            // What it holds is gone with it.
            let held = backlog.state().clients[&(number as u32)].held;
            shares[number].took(0, held);
            more.await;
            shares[1].took(1, PACKET);
        };
        one_goes(0).await;
        assert!(start.elapsed() < ENTERING + 2 * LOOK, "{:?}", start.elapsed());
        // Another fills it before anything comes for the new one.
        backlog.enter(3);
        drop(opening);
        let _new = backlog.share(3);
        fill(&backlog, 2).await;
        one_goes(2).await;
        assert!(start.elapsed() < 2 * ENTERING + 4 * LOOK, "{:?}", start.elapsed());
        backlog.add(3, 1).await;
        assert_eq!(backlog.state().entering, None);
    }

    #[tokio::test(start_paused = true)]
    async fn small_packets_count_and_those_for_nobody_do_not() {
        let (backlog, shares) = backlog(1).await;
        for _ in 0..CAPACITY {
            backlog.add(0, 0).await;
        }
        assert!(timeout(ENTERING, backlog.add(0, 0)).await.is_err(), "a packet has its cost");
        drop(shares);
        for _ in 0..2 * CAPACITY {
            backlog.add(0, PACKET).await;
        }
        assert_eq!(backlog.state().held, 0);
    }
}
