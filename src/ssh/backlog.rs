//! What the guest has sent on one connection, and its clients have not taken.
//!
//! Owns: how much that may be, and which clients are given up so that the others go on. May not: touch bytes
//! (`channel.rs`).

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::logging::Limited;
use crate::sys::memory::give_back_much;

/// Bytes that may wait for the clients of a connection. What is more stays in the connection, and all of them
/// wait for it.
pub(super) const MAX_BACKLOG: usize = 8 << 20;
/// The same of a connection beside many others.
const MAX_SMALL_BACKLOG: usize = 512 << 10;
/// Bytes that a client's socket takes before it is full: the system's usual 208 KiB, and some more.
const SOCKET: usize = 256 << 10;
/// What a packet costs beside its bytes.
const PACKET_COST: usize = 256;
/// The most packets that can wait, so that they never do by their number.
pub(super) const CAPACITY: usize = MAX_BACKLOG / PACKET_COST;
/// How long one waits to be let in, or for the first byte of its answer, for those that take nothing, before
/// these are given up: less than to be let in may take.
const ENTERING: Duration = Duration::from_secs(8);
/// How long others wait, who may have nothing to come.
const OTHERS: Duration = Duration::from_secs(60);
/// How often it is looked whether that is so.
const LOOK: Duration = Duration::from_secs(1);
/// A backlog of so much leaves freed memory between what is in use, which the allocator would keep.
const MUCH: usize = MAX_BACKLOG / 4;
/// How long after that has gone it is given back: others may be leaving too.
const SETTLE: Duration = Duration::from_secs(5);

/// Clients that are given up, of all connections: a guest can have many be.
static GIVEN_UP: Limited = Limited::new(1, Duration::from_secs(60));

/// The backlog of one connection. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Backlog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    room: Notify,
}

#[derive(Debug)]
struct State {
    /// What it may hold, in bytes.
    most: usize,
    held: usize,
    /// It has been [`MUCH`] since memory was given back.
    was_much: bool,
    /// Channels that are being opened.
    opening: usize,
    /// Since when those wait who are to be let in, the longest first.
    waiting: Vec<Instant>,
    /// Bytes that have come for the clients.
    came: u64,
    clients: HashMap<u32, Client>,
}

#[derive(Debug)]
struct Client {
    held: usize,
    /// When it last took something of that, or first had something to take.
    moved: Instant,
    /// When it last took something, or came.
    last_took: Instant,
    answer: Answer,
    given_up: Arc<Notify>,
}

/// The first byte of what a client is told.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It has asked nothing.
    Unasked,
    /// It asked then, when so many bytes had come.
    Awaited(Instant, u64),
    /// It came, or is not waited for.
    Over,
}

impl Client {
    fn new(answer: Answer) -> Self {
        let now = Instant::now();
        Self { held: 0, moved: now, last_took: now, answer, given_up: Arc::default() }
    }

    /// Since when it waits for its answer. Behind `most` bytes of others' there is none to come.
    fn awaits(&mut self, came: u64, most: u64) -> Option<Instant> {
        match self.answer {
            Answer::Awaited(_, before) if came - before >= most => {
                self.answer = Answer::Over;
                None
            }
            Answer::Awaited(since, _) => Some(since),
            Answer::Unasked | Answer::Over => None,
        }
    }
}

impl State {
    /// Gives up those that somebody has waited for, while there is too much. Others, who may have nothing to
    /// come, wait `since` then.
    fn make_room(&mut self, since: Option<Instant>) {
        // So much may be on its way before an answer: in sshd and TCP, and what the sockets of others take in
        // no time.
        let (came, most) = (self.came, MAX_BACKLOG + self.clients.len() * SOCKET);
        let asked = self.clients.values_mut().filter_map(|client| client.awaits(came, most as u64)).min();
        let entering = asked.into_iter().chain(self.waiting.first().copied()).min();
        let is_one_given_up = self.give_up(entering, ENTERING) | self.give_up(since, OTHERS);
        if is_one_given_up {
            // What comes in the place of theirs was on its way before an answer, too.
            for client in self.clients.values_mut() {
                if let Answer::Awaited(_, before) = &mut client.answer {
                    *before = came;
                }
            }
        }
    }

    /// Gives up those that have taken nothing for so long and have more than their part to take, where
    /// somebody has waited for as long. Whether there was one.
    fn give_up(&self, waits: Option<Instant>, patience: Duration) -> bool {
        if waits.is_none_or(|since| since.elapsed() < patience) {
            return false;
        }
        let part = self.most / self.clients.len().max(1);
        let takes_nothing = |client: &&Client| client.held >= part && client.moved.elapsed() >= patience;
        let given_up = self.clients.values().filter(takes_nothing);
        given_up.map(|client| client.given_up.notify_one()).count() > 0
    }
}

impl Backlog {
    /// That of a connection beside so few others that it may hold all of [`MAX_BACKLOG`].
    pub(super) fn large() -> Self {
        Self::of(MAX_BACKLOG)
    }

    /// That of one beside many.
    pub(super) fn small() -> Self {
        Self::of(MAX_SMALL_BACKLOG)
    }

    /// There are few others now.
    pub(super) fn enlarge(&self) {
        self.change(|state| state.most = MAX_BACKLOG);
    }

    fn of(most: usize) -> Self {
        let state = State {
            most,
            held: 0,
            was_much: false,
            opening: 0,
            waiting: Vec::new(),
            came: 0,
            clients: HashMap::new(),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), room: Notify::new() }))
    }

    /// Counts what comes on this channel, which we have opened, from now on until its [`Share`] is dropped.
    pub(super) fn enter(&self, channel: u32) {
        self.client(channel, Answer::Unasked);
    }

    /// The channel's part of it. One that the guest has opened has no answer to come.
    pub(super) fn share(&self, channel: u32) -> Share {
        let given_up = self.client(channel, Answer::Over);
        Share { backlog: self.clone(), channel, given_up }
    }

    fn client(&self, channel: u32, answer: Answer) -> Arc<Notify> {
        self.state().clients.entry(channel).or_insert_with(|| Client::new(answer)).given_up.clone()
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
            if bytes > 0 {
                client.answer = Answer::Over;
            }
            client.held += bytes + PACKET_COST;
            state.held += bytes + PACKET_COST;
            state.was_much |= state.held >= MUCH;
            state.came += bytes as u64;
        }
        let mut since = None;
        loop {
            let mut room = pin!(self.0.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.held <= state.most {
                    return;
                }
                let is_one_without = state.clients.values().any(|client| client.held == 0);
                since = is_one_without.then(|| since.unwrap_or_else(Instant::now));
                state.make_room(since);
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

    /// Counts one that waits to be let in, until what it gives is dropped.
    pub(super) fn waiting(&self) -> Waiting<'_> {
        let since = Instant::now();
        self.state().waiting.push(since);
        Waiting { backlog: self, since }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let was_full = state.held > state.most;
        change(&mut state);
        if was_full && state.held <= state.most {
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

/// One that waits to be let in.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    backlog: &'a Backlog,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waiting = &mut self.backlog.state().waiting;
        // Of two at the same time it does not matter which.
        if let Some(index) = waiting.iter().position(|since| *since == self.since) {
            waiting.remove(index);
        }
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
    /// The client has sent something.
    pub(super) fn asked(&self) {
        let mut state = self.backlog.state();
        let came = state.came;
        if let Some(client) = state.clients.get_mut(&self.channel)
            && matches!(client.answer, Answer::Unasked)
        {
            client.answer = Answer::Awaited(Instant::now(), came);
        }
    }

    /// Packets of so many bytes together wait no more.
    pub(super) fn took(&self, packets: usize, bytes: usize) {
        self.backlog.change(|state| {
            let Some(client) = state.clients.get_mut(&self.channel) else { return };
            let taken = (bytes + packets * PACKET_COST).min(client.held);
            client.held -= taken;
            client.moved = Instant::now();
            client.last_took = client.moved;
            state.held -= taken;
        });
    }

    /// The client's socket has no room for what has just come: there was something to take all along.
    pub(super) fn socket_is_full(&self) {
        if let Some(client) = self.backlog.state().clients.get_mut(&self.channel) {
            client.moved = client.last_took;
        }
    }

    /// Waits until the client is given up for the others of its connection.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
        if let Some(suppressed) = GIVEN_UP.admit(std::time::Instant::now()) {
            info!(
                suppressed,
                "ssh: a client that takes nothing is closed, as others of its connection wait for it"
            );
        }
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

    /// A backlog of so many channels that have had something, and their shares.
    async fn backlog(channels: u32) -> (Backlog, Vec<Share>) {
        let backlog = Backlog::large();
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
        // The third has nothing, and waits; as does one that the guest let in here, whatever that says.
        let of_guest = backlog.share(3);
        of_guest.asked();
        fill(&backlog, 0).await;
        let start = Instant::now();
        let mut more = pin!(backlog.add(1, PACKET));
        assert!(timeout(ENTERING, &mut more).await.is_err());
        let gone = async {
            shares[0].given_up().await;
            shares[0].took(CAPACITY, MAX_BACKLOG);
        };
        tokio::join!(more, gone);
        assert!(start.elapsed() >= OTHERS, "{:?}", start.elapsed());
        drop((shares, of_guest));
        assert_eq!(backlog.state().held, 0);
        assert!(backlog.state().clients.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_slow_or_alone_is_waited_for() {
        let (backlog, shares) = backlog(2).await;
        fill(&backlog, 0).await;
        let mut more = pin!(backlog.add(1, PACKET));
        let _waiting = backlog.waiting();
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
        let _waiting = backlog.waiting();
        tokio::select! {
            () = &mut more => panic!("there is no room"),
            given_up = timeout(ENTERING * 2, shares[0].given_up()) => assert!(given_up.is_ok(), "one waits for it"),
        }
        shares[0].took(1, PACKET);
        more.await;
    }

    /// Also where what they leave is filled by others that take nothing, again and again.
    #[tokio::test(start_paused = true)]
    async fn one_that_is_let_in_waits_as_little_for_its_first_byte() {
        let (backlog, shares) = backlog(4).await;
        for small in [2, 3] {
            backlog.add(small, 1).await;
        }
        let start = Instant::now();
        let waiting = backlog.waiting();
        let one_goes = async |number: u32| {
            while backlog.state().held + PACKET + PACKET_COST <= MAX_BACKLOG {
                backlog.add(number, PACKET).await;
            }
            let mut more = pin!(backlog.add(1, PACKET));
            tokio::select! {
                () = &mut more => panic!("there is no room"),
                () = shares[number as usize].given_up() => {}
            }
            // What it holds is gone with it.
            let held = backlog.state().clients[&number].held;
            shares[number as usize].took(0, held);
            more.await;
            shares[1].took(1, PACKET);
        };
        one_goes(0).await;
        assert!(start.elapsed() < ENTERING + 2 * LOOK, "{:?}", start.elapsed());
        // Others fill it before anything comes for the new one.
        backlog.enter(4);
        drop(waiting);
        let new = backlog.share(4);
        new.asked();
        one_goes(2).await;
        one_goes(3).await;
        assert!(start.elapsed() < 2 * ENTERING + 4 * LOOK, "{:?}", start.elapsed());
        backlog.add(4, 1).await;
        let state = backlog.state();
        assert!(state.waiting.is_empty() && matches!(state.clients[&4].answer, Answer::Over));
    }

    /// As the sockets of many others are filled faster than a service answers.
    #[tokio::test(start_paused = true)]
    async fn one_that_is_let_in_is_still_waited_for_after_a_burst() {
        let (backlog, shares) = backlog(50).await;
        backlog.enter(50);
        let new = backlog.share(50);
        new.asked();
        for share in &shares {
            for _ in 0..6 {
                backlog.add(share.channel, PACKET).await;
                share.took(1, PACKET);
            }
        }
        fill(&backlog, 0).await;
        let mut more = pin!(backlog.add(1, PACKET));
        tokio::select! {
            () = &mut more => panic!("there is no room"),
            given_up = timeout(ENTERING + 2 * LOOK, shares[0].given_up()) => given_up.expect("one waits"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_pauses_goes_on_while_nobody_waits_for_it() {
        let (backlog, shares) = backlog(2).await;
        // These have asked for what is not to come.
        (2..8).for_each(|poll| backlog.enter(poll));
        let polls: Vec<_> = (2..8).map(|poll| backlog.share(poll)).collect();
        polls.iter().for_each(Share::asked);
        for _ in 0..(2 << 20) / PACKET {
            backlog.add(0, PACKET).await;
        }
        while backlog.state().held + PACKET + PACKET_COST <= MAX_BACKLOG {
            backlog.add(1, PACKET).await;
        }
        let download = async {
            for _ in 0..10_000 {
                let mut more = pin!(backlog.add(1, PACKET));
                assert!(timeout(Duration::from_millis(10), &mut more).await.is_err(), "it is full");
                shares[1].took(1, PACKET);
                more.await;
            }
        };
        tokio::select! {
            () = download => {}
            () = shares[0].given_up() => panic!("given up"),
        }
        // Until one comes that does.
        let _waiting = backlog.waiting();
        let mut more = pin!(backlog.add(1, PACKET));
        tokio::select! {
            () = &mut more => panic!("there is no room"),
            given_up = timeout(ENTERING + 2 * LOOK, shares[0].given_up()) => given_up.expect("one waits"),
        }
    }

    /// What comes in the place of the first that are given up is for others whose sockets are as full.
    #[tokio::test(start_paused = true)]
    async fn many_whose_sockets_are_full_are_waited_for_once() {
        const AT_ONCE: usize = MAX_SMALL_BACKLOG / (PACKET + PACKET_COST);
        let (backlog, shares) = backlog(4 * AT_ONCE as u32).await;
        backlog.change(|state| state.most = MAX_SMALL_BACKLOG);
        let start = Instant::now();
        let _waiting = backlog.waiting();
        for shares in shares.chunks(AT_ONCE) {
            for share in shares {
                backlog.add(share.channel, PACKET).await;
                share.socket_is_full();
            }
            let more = backlog.add(shares[0].channel, PACKET);
            let given_up = async {
                for share in shares {
                    share.given_up().await;
                }
            };
            tokio::select! {
                () = more => panic!("there is no room"),
                () = given_up => {}
            }
            // What they hold is gone with them.
            shares.iter().for_each(|share| share.took(CAPACITY, MAX_BACKLOG));
        }
        assert!(start.elapsed() < ENTERING + 8 * LOOK, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_one_holds_little_until_it_may_grow() {
        let backlog = Backlog::small();
        let _share = backlog.share(0);
        for _ in 0..MAX_SMALL_BACKLOG / (PACKET + PACKET_COST) {
            backlog.add(0, PACKET).await;
        }
        let mut more = pin!(backlog.add(0, PACKET));
        assert!(timeout(LOOK, &mut more).await.is_err(), "it is full");
        backlog.enlarge();
        timeout(Duration::from_millis(1), more).await.expect("there is room");
        while backlog.state().held + PACKET + PACKET_COST <= MAX_BACKLOG {
            backlog.add(0, PACKET).await;
        }
        assert!(timeout(LOOK, backlog.add(0, PACKET)).await.is_err(), "it is full");
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_are_given_up_are_one_line() {
        struct Lines(Arc<Mutex<usize>>);
        impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
            fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
                *self.0.lock().unwrap() += 1;
            }
        }
        use tracing_subscriber::layer::SubscriberExt as _;
        let lines = Arc::default();
        let log = tracing_subscriber::registry().with(Lines(Arc::clone(&lines)));
        let _log = tracing::subscriber::set_default(log);
        let (_backlog, shares) = backlog(100).await;
        for share in &shares {
            share.given_up.notify_one();
            share.given_up().await;
        }
        assert!(*lines.lock().unwrap() <= 1, "{lines:?} lines");
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
