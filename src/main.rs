//! gvproxy: the userspace network of a virtual machine, and its sockets on the host. The sequence of a run,
//! and its exit codes. 0: an orderly end. 1: a failure. 2: a usage error. 3: `-qmp-status` found a machine
//! without our card.
#![windows_subsystem = "windows"]

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use gvproxy::cli::{self, Parsed, RawArgs};
use gvproxy::config::{Asked, Config, RESOLV_CONF};
use gvproxy::daemon::{ControlPlane, Exit};
use gvproxy::docker_sock::command as docker_sock;
use gvproxy::listen;
use gvproxy::logging::Log;
use gvproxy::pidfile;
use gvproxy::preflight;
use gvproxy::text::quote;
use gvproxy::vm;
use tracing::level_filters::LevelFilter;

#[global_allocator]
static ALLOCATOR: gvproxy::sys::memory::Allocator = gvproxy::sys::memory::Allocator;

const VERSION: &str = concat!("gvproxy version v", env!("CARGO_PKG_VERSION"));
/// What Go's `flag` package exits with.
const BAD_USAGE: u8 = 2;
/// Of `-qmp-status`: a machine has no card of ours, or one that is not connected.
const NO_CARD: u8 = 3;

/// Why the program fails, and how severe the original calls that.
struct Failure {
    severity: &'static str,
    error: anyhow::Error,
}

impl Failure {
    /// Nothing can be done with these flags, this file, or this log.
    fn fatal(error: anyhow::Error) -> Self {
        Self { severity: "fatal", error }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { severity: "error", error }
    }
}

fn main() -> ExitCode {
    gvproxy::sys::own_process();
    listen::claim();
    let argv: Vec<OsString> = std::env::args_os().collect();
    if argv.get(1).is_some_and(|word| word == docker_sock::WORD) {
        let said = docker_sock::run(&argv);
        print(io::stdout(), &said.out, ExitCode::SUCCESS);
        return print(io::stderr(), &said.err, said.code.into());
    }
    let raw = match cli::parse(&argv) {
        Parsed::Run(raw) => raw,
        Parsed::Help(text) => return print(io::stderr(), &text, ExitCode::SUCCESS),
        Parsed::Usage(text) => return print(io::stderr(), &text, BAD_USAGE.into()),
    };
    if raw.version {
        return print(io::stdout(), &format!("{VERSION}\n"), ExitCode::SUCCESS);
    }
    let mut log = match Log::stderr() {
        Ok(log) => log,
        Err(error) => return print(io::stderr(), &format!("{error:#}\n"), ExitCode::FAILURE),
    };
    match run(*raw, &argv, &mut log) {
        Ok(code) => code,
        Err(Failure { severity, error }) => {
            log.last_words(severity, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Does what the flags ask for. `log` becomes what they want it to be.
fn run(raw: RawArgs, argv: &[OsString], log: &mut Log) -> Result<ExitCode, Failure> {
    let ignored = raw.ignored.clone();
    let asked = Asked::new(raw).map_err(Failure::fatal)?;
    open(log, &asked).map_err(Failure::fatal)?;
    tracing::debug!(
        version = VERSION,
        os = std::env::consts::OS,
        arch = std::env::consts::ARCH,
        ?argv,
        "started"
    );
    if let Some(word) = &ignored {
        tracing::warn!(word = %word.display(), "the flags end at this word: it and what follows is ignored");
    }
    let config = Config::resolve(&asked, Path::new(RESOLV_CONF), &preflight::ensure_to_be_had);
    let config = config.map_err(Failure::fatal)?;
    if config.show_machines {
        let (text, all_up) = vm::status::show(&config)?;
        log.flush();
        return Ok(print(io::stdout(), &text, if all_up { ExitCode::SUCCESS } else { NO_CARD.into() }));
    }
    let exit = match serve(&asked, config, log)? {
        Exit::Stopped => "signal caught",
        Exit::GuestLeft => "virtual machine left",
        Exit::Replaced => "another process has its sockets' paths",
    };
    tracing::info!("gvproxy exiting: {exit}");
    log.flush();
    Ok(ExitCode::SUCCESS)
}

/// Runs until the end, unless a signal comes first.
fn serve(asked: &Asked, config: Config, log: &Log) -> Result<Exit> {
    let control_plane = ControlPlane::new()?;
    control_plane.catch_signals(log)?;
    asked.warn(config.device_ip);
    // Whoever reads this may end the process with a signal.
    tracing::info!("{VERSION}");
    let path = config.pid_file.clone();
    let is_to_be_had = move || path.map_or(Ok(()), |path| pidfile::ensure(&path));
    if control_plane.unless_ended(is_to_be_had)?.is_none() {
        control_plane.leave();
        return Ok(Exit::Stopped);
    }
    gvproxy::sys::prepare_process();
    control_plane.run(config).context("gvproxy exiting")
}

/// Makes `log` what the flags want, with everything written into it from here on.
fn open(log: &mut Log, asked: &Asked) -> Result<()> {
    let file = asked.log_file();
    if !file.as_os_str().is_empty() {
        *log = log.clone().with_file(file).map_err(|error| asked.place("log-file", error))?;
    }
    let level = asked.log_level();
    log.install(*level.as_ref().unwrap_or(&LevelFilter::INFO))?;
    if let Err(unknown) = level {
        tracing::warn!("bad log level {}, falling back to \"info\"", quote(unknown));
    }
    Ok(())
}

/// A reader that went away is no failure of ours.
fn print(mut to: impl Write, text: &str, code: ExitCode) -> ExitCode {
    gvproxy::sys::borrow_console();
    let _ = to.write_all(text.as_bytes());
    code
}
