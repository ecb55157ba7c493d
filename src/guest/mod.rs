//! The guest's side: a tap whose frames go to gvproxy on the host, for guests whose hypervisor has no network
//! card to give.
//! Owns: the order of a session, and when the next one is tried. May not: end for anything that the host
//! does.
//! Read next: `relay.rs`, `dhcp/mod.rs`.
//!
//! A session is a link to the host. The interface is made in the first and stays for the next ones with its
//! address, unless somebody else configures it: then it goes with the link, which is how that one learns of
//! it.

pub mod agent;
mod dhcp;
mod endpoint;
pub mod manual;
mod offers;
mod relay;
mod resolvers;
pub mod settings;
mod tap;

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use dhcp::{Client, Event};
use relay::{End, MAX_FRAME, TapRelay};
use settings::Settings;
use tap::Tap;

use crate::supervise::{Backoff, LastFailure};
use crate::sys::interfaces::Interfaces;

/// The first pause after a link that could not be had, or was lost; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);

/// The first of `names` that is an interface here.
///
/// # Errors
/// The system does not tell.
pub fn existing<'a>(mut names: impl Iterator<Item = &'a str>) -> Result<Option<&'a str>> {
    let interfaces = Interfaces::open().context("interfaces")?;
    let exists = |name: &&str| matches!(interfaces.link(name), Ok(Some(_)));
    Ok(names.find(|name| !name.is_empty() && exists(name)))
}

/// The guest's network.
#[derive(Debug)]
pub struct Guest {
    settings: Settings,
    tap: Option<Tap>,
    client: Option<Client>,
    backoff: Backoff,
    /// The reason that was logged last, so that the same one is logged once.
    last: LastFailure,
}

impl Guest {
    /// Nothing is made yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            tap: None,
            client: None,
            backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            last: LastFailure::default(),
        }
    }

    /// Keeps the guest connected. Dropping the guest takes its interface down.
    pub async fn run(&mut self) -> std::convert::Infallible {
        if !self.settings.preexisting {
            tap::recover(&self.settings);
        }
        loop {
            if let Err(error) = self.session().await {
                let reason = format!("{error:#}");
                match self.last.is_news(&reason) {
                    true => tracing::error!(reason, "no link: trying again"),
                    false => tracing::debug!(reason, "no link"),
                }
            }
            tokio::time::sleep(self.backoff.next_pause()).await;
        }
    }

    /// One link, from its beginning to its end.
    async fn session(&mut self) -> Result<()> {
        let (endpoint, token) = (self.settings.endpoint.clone(), self.settings.token.clone());
        let connection = tokio::task::spawn_blocking(move || endpoint.dial(token.as_ref()))
            .await
            .context("dial")?
            .context("cannot connect to host")?;
        let tap = match &mut self.tap {
            Some(tap) => tap,
            None => self.tap.insert(Tap::open(&self.settings)?),
        };
        let relay = TapRelay::start(tap.frames()?, connection, !self.settings.preexisting)?;
        tracing::info!(interface = self.settings.interface, "linked to the host");
        let result = match self.settings.preexisting {
            true => {
                relay.receive(&mut [0]).await;
                Ok(())
            }
            false => self.lease(&relay).await,
        };
        if relay.has_heard() {
            self.backoff.reset();
            self.last.forget();
        }
        let end = relay.end();
        if self.settings.preexisting || result.is_err() || matches!(end, End::Tap(_)) {
            (self.tap, self.client) = (None, None);
        }
        result?;
        match end {
            End::Stopped => Ok(()),
            End::Host(reason) => Err(reason),
            End::Tap(error) => Err(anyhow!("the interface is gone: {}", crate::text::reason(&error))),
        }
    }

    /// Keeps the interface configured until the link ends.
    async fn lease(&mut self, relay: &TapRelay) -> Result<()> {
        let tap = self.tap.as_mut().ok_or_else(|| anyhow!("no interface"))?;
        let client = match &mut self.client {
            Some(client) => {
                client.restart(Instant::now());
                client
            }
            None => self.client.insert(Client::new(tap.mac(), seed()?, Instant::now())),
        };
        let mut frame = vec![0; MAX_FRAME];
        loop {
            while let Some(event) = client.poll_event(Instant::now()) {
                apply(event, tap, relay, &self.settings).await?;
            }
            let received = tokio::select! {
                received = relay.receive(&mut frame) => received,
                () = tokio::time::sleep_until(client.deadline().into()) => continue,
            };
            let Some(length) = received else { return Ok(()) };
            if let Some(event) = client.handle_frame(frame.get(..length).unwrap_or_default(), Instant::now())
            {
                apply(event, tap, relay, &self.settings).await?;
            }
        }
    }
}

async fn apply(event: Event, tap: &mut Tap, relay: &TapRelay, settings: &Settings) -> Result<()> {
    match event {
        Event::Send(frame) => relay.send(&frame).await,
        Event::Configure(lease) => {
            let router = lease.router.map(tracing::field::display);
            tracing::info!(address = %lease.address, prefix = lease.prefix, router, mtu = lease.mtu, "leased");
            tap.configure(lease, settings.mtu_limit)?;
        }
        Event::Deconfigure => {
            tracing::warn!("the lease is lost");
            tap.deconfigure();
        }
    }
    Ok(())
}

/// Tells the exchanges of one run from those of another.
fn seed() -> io::Result<u32> {
    Ok(crate::sys::random_seed()? as u32)
}
