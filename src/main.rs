//! gvproxy: the userspace network of a virtual machine, and its sockets on the host.
//! The sequence of a run, and its exit codes: 0 an orderly end, 1 a failure, 2 a command line that is none, 3 what `-qmp-status` says of a
//! machine without our card.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use gvproxy::cli::{self, Parsed};
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

fn main() -> ExitCode {
    gvproxy::sys::prepare_signals();
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

    let log = match Log::stderr() {
        Ok(log) => log,
        Err(error) => return print(io::stderr(), &format!("{error:#}\n"), ExitCode::FAILURE),
    };
    let (ignored, asked) = (raw.ignored.clone(), Asked::new(*raw));
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return fail(&log, "fatal", &format!("{error:#}")),
    };
    let log = match open(&log, &asked) {
        Ok(log) => log,
        Err(error) => return fail(&log, "fatal", &format!("{error:#}")),
    };
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
    let config = match Config::resolve(&asked, Path::new(RESOLV_CONF), &preflight::ensure_to_be_had) {
        Ok(config) => config,
        Err(error) => return fail(&log, "fatal", &format!("{error:#}")),
    };
    if config.show_machines {
        return match vm::status::show(&config) {
            Ok((text, all_up)) => {
                log.flush();
                print(io::stdout(), &text, if all_up { ExitCode::SUCCESS } else { NO_CARD.into() })
            }
            Err(error) => fail(&log, "error", &format!("{error:#}")),
        };
    }
    let mut control_plane = match ControlPlane::new(&log) {
        Ok(control_plane) => control_plane,
        Err(error) => return fail(&log, "error", &format!("{error:#}")),
    };
    asked.warn(config.device_ip);
    // Whoever reads this may end the process with a signal.
    tracing::info!("{VERSION}");
    let path = config.pid_file.clone();
    let exit = match control_plane.unless_ended(move || path.map_or(Ok(()), |path| pidfile::ensure(&path))) {
        Ok(Some(())) => control_plane.run(config),
        Ok(None) => {
            control_plane.leave();
            Ok(Exit::Signal)
        }
        Err(error) => return fail(&log, "error", &format!("{error:#}")),
    };
    match exit {
        Ok(exit) => {
            tracing::info!("gvproxy exiting: {exit}");
            log.flush();
            ExitCode::SUCCESS
        }
        Err(error) => fail(&log, "error", &format!("gvproxy exiting: {error:#}")),
    }
}

/// The log as the flags want it, with everything written into it from here on.
fn open(log: &Log, asked: &Asked) -> anyhow::Result<Log> {
    let file = asked.log_file();
    let log = match file.as_os_str().is_empty() {
        true => log.clone(),
        false => log.clone().with_file(file).map_err(|error| asked.place("log-file", error))?,
    };
    let level = asked.log_level();
    log.install(*level.as_ref().unwrap_or(&LevelFilter::INFO))?;
    if let Err(unknown) = level {
        tracing::warn!("bad log level {}, falling back to \"info\"", quote(unknown));
    }
    Ok(log)
}

fn fail(log: &Log, severity: &str, message: &str) -> ExitCode {
    log.last_words(severity, message);
    ExitCode::FAILURE
}

/// A reader that went away is no failure of ours.
fn print(mut to: impl Write, text: &str, code: ExitCode) -> ExitCode {
    let _ = to.write_all(text.as_bytes());
    code
}
