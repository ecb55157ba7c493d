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
/// How long one more waits to be let in for those that take nothing, before these are given up: less than that may take.
const OPENING: Duration = Duration::from_secs(8);
/// How long others wait, who may have nothing to come.
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
    clients: HashMap<u32, Client>,
}

#[derive(Debug, Default)]
struct Client {
    held: usize,
    /// When it last took something of that.
    moved: Option<Instant>,
    given_up: Arc<Notify>,
}

impl State {
    fn note(&self, opening: &mut Option<Instant>, others: &mut Option<Instant>) {
        let now = Instant::now();
        let since = |is_so: bool, since: Option<Instant>| is_so.then(|| since.unwrap_or(now));
        *opening = since(self.opening > 0, *opening);
        *others = since(self.clients.values().any(|client| client.held == 0), *others);
    }

    /// Gives up those that have taken nothing for so long and have more than their part to take, where somebody has waited for as long.
    fn give_up(&self, waited: Option<Instant>, patience: Duration) {
        if waited.is_none_or(|since| since.elapsed() < patience) {
            return;
        }
        let part = MAX_BACKLOG / self.clients.len().max(1);
        for client in self.clients.values().filter(|client| client.held >= part) {
            if client.moved.is_none_or(|moved| moved.elapsed() >= patience) {
                client.given_up.notify_one();
            }
        }
    }
}

impl Backlog {
    /// Counts what comes on this channel from now on, until its [`Share`] is dropped.
    pub(super) fn enter(&self, channel: u32) {
        self.state().clients.entry(channel).or_default();
    }

    /// The channel's part of it.
    pub(super) fn share(&self, channel: u32) -> Share {
        let given_up = self.state().clients.entry(channel).or_default().given_up.clone();
        Share { backlog: self.clone(), channel, given_up }
    }

    /// Counts a packet that came, and waits for as long as there is too much.
    pub(super) async fn add(&self, channel: u32, bytes: usize) {
        {
            let mut state = self.state();
            // What comes on a channel that nobody has any more is gone already.
            let Some(client) = state.clients.get_mut(&channel) else { return };
            client.held += bytes + PACKET_COST;
            state.held += bytes + PACKET_COST;
            state.was_much |= state.held >= MUCH;
        }
        // Since when one more is to be let in, and since when others have nothing to take.
        let (mut opening, mut others) = (None, None);
        loop {
            let mut room = pin!(self.0.room.notified());
            room.as_mut().enable();
            {
                let state = self.state();
                if state.held <= MAX_BACKLOG {
                    return;
                }
                state.note(&mut opening, &mut others);
                state.give_up(opening, OPENING);
                state.give_up(others, OTHERS);
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
    }
}

/// A channel that is being opened.
#[derive(Debug)]
pub(super) struct Opening<'a>(&'a Backlog);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.state().opening -= 1;
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
            client.moved = Some(Instant::now());
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

    /// A backlog of so many channels, and their shares.
    fn backlog(channels: u32) -> (Backlog, Vec<Share>) {
        let backlog = Backlog::default();
        let shares = (0..channels).map(|number| {
            backlog.enter(number);
            backlog.share(number)
        });
        let shares = shares.collect();
        (backlog, shares)
    }

    async fn fill(backlog: &Backlog, channel: u32) {
        for _ in 0..MAX_BACKLOG / (PACKET + PACKET_COST) {
            backlog.add(channel, PACKET).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_its_clients_and_gives_up_who_takes_nothing() {
        let (backlog, shares) = backlog(3);
        fill(&backlog, 0).await;
        let start = Instant::now();
        // The third has nothing, and waits.
        let mut more = pin!(backlog.add(1, PACKET));
        assert!(timeout(OPENING, &mut more).await.is_err());
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
        let (backlog, shares) = backlog(2);
        fill(&backlog, 0).await;
        let mut more = pin!(backlog.add(1, PACKET));
        let _opening = backlog.opening();
        for _ in 0..32 {
            shares[0].took(0, 1);
            let given_up = timeout(OPENING - LOOK, shares[0].given_up());
            tokio::select! {
                () = &mut more => panic!("there is no room"),
                given_up = given_up => assert!(given_up.is_err(), "it moves"),
            }
        }
        shares[0].took(1, PACKET);
        more.await;

        // All have something to take, as who has left does not count, until one more is to be let in.
        let (backlog, mut shares) = self::backlog(2);
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
            given_up = timeout(OPENING * 2, shares[0].given_up()) => assert!(given_up.is_ok(), "one waits for it"),
        }
        shares[0].took(1, PACKET);
        more.await;
    }

    #[tokio::test(start_paused = true)]
    async fn small_packets_count_and_those_for_nobody_do_not() {
        let (backlog, shares) = backlog(1);
        for _ in 0..CAPACITY {
            backlog.add(0, 0).await;
        }
        assert!(timeout(OPENING, backlog.add(0, 0)).await.is_err(), "a packet has its cost");
        drop(shares);
        for _ in 0..2 * CAPACITY {
            backlog.add(0, PACKET).await;
        }
        assert_eq!(backlog.state().held, 0);
    }
}
