//! One machine's life: what QEMU reports, and what follows from it for the card, the log and those who are
//! notified.
//!
//! Owns: when the card is looked after: at the start of a session, when its link ends, after what may have
//! been in its way. May not: plug or unplug itself. Read next: `attach.rs`, `session.rs`.

use std::time::{Duration, Instant as Clock};

use qmp::qapi::qmp::{
    MIGRATION, MigrationCapability, MigrationCapabilityStatus, MigrationStatus, SHUTDOWN,
    migrate_set_capabilities,
};
use qmp::{Client, Event, Lost};
use tokio::time::{Instant, sleep, sleep_until};

use super::attach::{self, Card};
use super::session::{self, Session};
use super::status::{Connection, Entry, state};
use super::{Environment, VmChange};
use crate::logging::Limited;
use crate::supervise::Backoff;

/// The pause before the card is looked after again, which doubles each time that it was in vain.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// The pause before a session is tried again that failed, or was shorter.
const ANEW: Duration = Duration::from_secs(1);
/// A card that worked for so long is a new beginning.
const LASTING: Duration = Duration::from_secs(60);
/// Log lines of what a guest can bring about, and in which time.
const LOG_BURST: u32 = 20;
const LOG_WINDOW: Duration = Duration::from_secs(60);

/// Follows the machine through all its QEMUs. Returns when the run ends, or when it is to end because of this
/// one.
pub(super) async fn follow(qmp: &qmp::Address, card: &Card, entry: &Entry, with: &Environment) {
    tracing::info!(%qmp, "waiting for the virtual machine");
    let mut begun = false;
    let mut life =
        Life { qmp, card, entry, with, limited: Limited::new(LOG_BURST, LOG_WINDOW), taken_out: false };
    loop {
        let mut session = tokio::select! {
            session = session::wait(qmp) => session,
            () = with.stopped() => {
                if begun {
                    with.leave(qmp, card, None).await;
                }
                return;
            }
        };
        begun = true;
        let start = Clock::now();
        let end = tokio::select! {
            end = life.live(&mut session) => end,
            () = with.stopped() => return with.leave(qmp, card, Some(session)).await,
        };
        drop(session);
        entry.change(|status| status.connection = Connection::Waiting);
        let is_machine = match end {
            End::Machine => true,
            End::Session(error) => {
                // QEMU is still there, as far as anybody knows.
                tracing::warn!(%qmp, error = format!("{error:#}"), "the QMP session failed");
                false
            }
        };
        if is_machine {
            life.log("virtual machine ended", None);
            life.taken_out = false;
            entry.change(|status| {
                (status.device, status.problem, status.version) = (None, None, None);
                (status.pid, status.state) = (None, None);
            });
            with.tell(VmChange::Ended, card);
            with.engine.end_lease(card.mac).await;
            if with.exit_with_vm {
                return;
            }
        }
        // What greets and leaves is not met as often as it likes.
        if !is_machine || start.elapsed() < ANEW {
            tokio::select! {
                () = sleep(ANEW) => {}
                () = with.stopped() => return with.leave(qmp, card, None).await,
            }
        }
    }
}

/// What is over.
enum End {
    /// The machine: its QEMU closed the session.
    Machine,
    /// The session alone: it makes no sense, or nobody answers in it.
    Session(anyhow::Error),
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Closed | Lost::Io(_) => Self::Machine,
            lost => Self::Session(lost.into()),
        }
    }
}

struct Life<'a> {
    qmp: &'a qmp::Address,
    card: &'a Card,
    entry: &'a Entry,
    with: &'a Environment,
    limited: Limited,
    /// Somebody took the card out of this QEMU, and is to have his way.
    taken_out: bool,
}

impl Life<'_> {
    /// One session, to its end.
    async fn live(&mut self, session: &mut Session) -> End {
        let mut status = self.entry.read();
        status.connection = Connection::Connected;
        status.learn(session).await;
        let (name, version, pid) = (status.name.clone(), status.version.clone(), status.pid);
        if let Some(suppressed) = self.limited.admit(Clock::now()) {
            let state = &status.state;
            tracing::info!(qmp = %self.qmp, name, version, pid, state, suppressed, "virtual machine found");
        }
        self.entry.change(|entry| *entry = status);

        let client = &mut session.client;
        // Without it QEMU tells of a migration only by standing still.
        let events = MigrationCapabilityStatus { capability: MigrationCapability::events, state: true };
        if let Err(error) = client.execute(migrate_set_capabilities { capabilities: vec![events] }).await {
            tracing::debug!(%error, "no events of migrations");
        }
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let mut look = Some(Instant::now());
        let mut well_since = None;
        loop {
            let due = look.unwrap_or_else(Instant::now);
            tokio::select! {
                event = client.next_event() => {
                    let event = match event {
                        Ok(event) => event,
                        Err(lost) => return lost.into(),
                    };
                    if self.handle_event(client, &event).await {
                        if well_since.is_some_and(|since: Clock| since.elapsed() > LASTING) {
                            backoff.reset();
                        }
                        let pause = well_since.take().map_or(Duration::ZERO, |_| backoff.pause());
                        look = Some(Instant::now() + pause);
                    }
                }
                () = sleep_until(due), if look.is_some() => {
                    let is_well = match self.look_after(client).await {
                        Ok(is_well) => is_well,
                        Err(error) => return End::Session(error),
                    };
                    backoff.next_pause();
                    look = (!is_well).then(|| Instant::now() + backoff.pause());
                    well_since = is_well.then(Clock::now);
                }
            }
        }
    }

    /// Sees to it that the card is there; whether it is.
    ///
    /// # Errors
    /// QEMU does not answer.
    async fn look_after(&self, client: &mut Client) -> anyhow::Result<bool> {
        let before = self.entry.read();
        // A machine that is about to arrive is to be as it was where it comes from; then it is resumed.
        if self.taken_out || before.state.as_deref() == Some("inmigrate") {
            return Ok(true);
        }
        match attach::ensure(client, self.card, &self.with.terms.present).await {
            Ok(device) => {
                if before.device.as_ref().is_none_or(|known| !known.link || known.id != device.id) {
                    let (bus, slot) = (&device.bus, &device.slot);
                    tracing::info!(qmp = %self.qmp, device = device.id, mac = device.mac, bus, slot, "virtual machine attached");
                    self.with.tell(VmChange::Attached, self.card);
                }
                self.entry.change(|status| (status.device, status.problem) = (Some(device), None));
                Ok(true)
            }
            Err(error) if attach::is_silence(&error) => Err(error),
            Err(error) => {
                let problem = format!("{error:#}");
                // The end of the session is told where it is noticed.
                if client.is_connected() && before.problem.as_ref() != Some(&problem) {
                    tracing::error!(qmp = %self.qmp, error = problem, "cannot attach the virtual machine");
                    self.with.terms.tell_failure();
                }
                self.entry.change(|status| (status.device, status.problem) = (None, Some(problem)));
                Ok(false)
            }
        }
    }

    /// What happened; whether the card is to be looked after.
    async fn handle_event(&mut self, client: &mut Client, event: &Event) -> bool {
        let is_missing = !self.taken_out && self.entry.read().device.is_none();
        let text = |field: &str| event.data.get(field).and_then(|value| value.as_str());
        match event.name.as_str() {
            "STOP" => self.changed(client, VmChange::Stopped, "virtual machine stopped", None).await,
            "RESUME" => {
                self.changed(client, VmChange::Resumed, "virtual machine resumed", None).await;
                return is_missing;
            }
            "RESET" => {
                self.log("virtual machine reset", text("reason"));
                self.with.tell(VmChange::Reset, self.card);
                return is_missing;
            }
            "SHUTDOWN" => {
                let known = event.read::<SHUTDOWN>().map(|shutdown| format!("{:?}", shutdown.reason));
                let reason = text("reason").map(str::to_owned).or(known);
                self.changed(client, VmChange::Shutdown, "virtual machine shut down", reason.as_deref())
                    .await;
            }
            "MIGRATION" => {
                let completed =
                    event.read::<MIGRATION>().is_some_and(|event| event.status == MigrationStatus::completed);
                self.log("virtual machine migrates", text("status"));
                if completed {
                    self.changed(client, VmChange::Migrated, "virtual machine migrated", None).await;
                    return is_missing;
                }
            }
            "GUEST_PANICKED" | "SUSPEND" | "SUSPEND_DISK" | "WAKEUP" | "POWERDOWN" => {
                self.log("virtual machine", Some(&event.name));
                self.refresh(client).await;
            }
            "NETDEV_STREAM_CONNECTED" if self.card.is_netdev(text("netdev-id")) => self.set_link(true),
            "NETDEV_STREAM_DISCONNECTED" if self.is_own_netdev(text("netdev-id")) => {
                self.set_link(false);
                return true;
            }
            "DEVICE_DELETED" => {
                let Some(device) = text("device") else { return false };
                match self.entry.read().device {
                    Some(known) if known.id == device => self.check_taken_out(client, device).await,
                    Some(_) => {}
                    // It was in the way, perhaps.
                    None => return is_missing,
                }
            }
            _ => tracing::debug!(qmp = %self.qmp, event = event.name, "QMP event"),
        }
        false
    }

    /// The card is gone, if that was not told of one before it.
    async fn check_taken_out(&mut self, client: &mut Client, device: &str) {
        if attach::was_taken_out(client, self.card, device).await {
            tracing::warn!(qmp = %self.qmp, device, "somebody took the network card out");
            self.taken_out = true;
            let problem = Some("it was unplugged".to_owned());
            self.entry.change(|status| (status.device, status.problem) = (None, problem));
        }
    }

    /// Whether it is the netdev that the machine has of us, whoever made it.
    fn is_own_netdev(&self, id: Option<&str>) -> bool {
        let device = self.entry.read().device;
        self.card.is_netdev(id) || device.is_some_and(|device| Some(device.netdev.as_str()) == id)
    }

    fn set_link(&self, up: bool) {
        self.entry.change(|status| {
            if let Some(device) = &mut status.device {
                device.link = up;
            }
        });
    }

    async fn changed(&self, client: &mut Client, change: VmChange, what: &str, reason: Option<&str>) {
        self.log(what, reason);
        self.refresh(client).await;
        self.with.tell(change, self.card);
    }

    async fn refresh(&self, client: &mut Client) {
        let state = state(client).await;
        self.entry.change(|status| status.state = state);
    }

    fn log(&self, what: &str, reason: Option<&str>) {
        if let Some(suppressed) = self.limited.admit(Clock::now()) {
            tracing::info!(qmp = %self.qmp, reason, suppressed, "{what}");
        }
    }
}
