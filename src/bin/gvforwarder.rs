//! gvforwarder: the guest's side of gvproxy, for guests without a network card of their own. The sequence of
//! a run, and its exit codes: 0 after a signal or with nothing to do, 1 a failure, 2 a command line that is
//! none.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use gvproxy::guest::agent::Agent;
use gvproxy::guest::settings::{Parsed, RawArgs, Settings, parse};
use gvproxy::guest::{Guest, existing};
use gvproxy::logging::Log;
use gvproxy::sys::signals::{Hangup, Quit};
use tracing::level_filters::LevelFilter;

const VERSION: &str = concat!("gvforwarder version v", env!("CARGO_PKG_VERSION"));
/// What Go's `flag` package exits with.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    gvproxy::sys::own_process();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let raw = match parse(&argv) {
        Parsed::Run(raw) => raw,
        Parsed::Help(text) => return print(io::stderr(), &text, ExitCode::SUCCESS),
        Parsed::Usage(text) => return print(io::stderr(), &text, BAD_USAGE.into()),
    };
    if raw.version {
        return print(io::stdout(), &format!("{VERSION}\n"), ExitCode::SUCCESS);
    }
    let log = match Log::stderr() {
        Ok(log) => log,
        Err(error) => return print(io::stderr(), &format!("{error:#}\n"), ExitCode::FAILURE),
    };
    let level = if raw.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    match log.install(level).and_then(|()| run(&raw)) {
        Ok(()) => {
            log.flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            log.last_words("fatal", &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(raw: &RawArgs) -> Result<()> {
    if let Some(word) = &raw.ignored {
        tracing::warn!(word = %word.display(), "the flags end at this word: it and what follows is ignored");
    }
    let settings = raw.agent()?;
    let mut guest = None;
    if raw.has_tap() {
        match existing(raw.stops())? {
            Some(name) if settings.is_none() => {
                tracing::info!("interface {name} prevented this program to run");
                return Ok(());
            }
            Some(name) => tracing::info!("interface {name} exists: no tap is made"),
            None => guest = Some(Guest::new(Settings::resolve(raw)?)),
        }
    }
    tracing::info!("{VERSION}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    let ended = runtime.block_on(async {
        let (mut quit, mut hangup) = (Quit::new()?, Hangup::unless_ignored()?);
        let agent = settings.map(Agent::bind).transpose()?;
        if agent.is_some() {
            gvproxy::sys::prepare_process();
        }
        let tap = async {
            match &mut guest {
                Some(guest) => guest.run().await,
                None => std::future::pending().await,
            }
        };
        let agent = async {
            match &agent {
                Some(agent) => agent.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            never = tap => match never {},
            never = agent => match never {},
            asked = quit.asked() => anyhow::Ok(asked),
            () = hangup.recv() => Ok("hangup"),
        }
    })?;
    drop(guest);
    // A host that is being asked for a link may take its time.
    runtime.shutdown_background();
    tracing::info!("gvforwarder exiting: {ended}");
    Ok(())
}

/// A reader that went away is no failure of ours.
fn print(mut to: impl Write, text: &str, code: ExitCode) -> ExitCode {
    let _ = to.write_all(text.as_bytes());
    code
}
