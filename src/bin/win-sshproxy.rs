//! win-sshproxy: named pipes of Windows that lead to sockets behind a machine's sshd, for podman machine on
//! WSL and Hyper-V. The sequence of a run, and its exit codes. 0: an end, orderly or not, which the event log
//! tells of. 10: a usage error.
#![windows_subsystem = "windows"]

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use gvproxy::addr::{Dest, HostPort, ListenAddress, SshDest};
use gvproxy::dial::{self, Dial};
use gvproxy::forward::{Source, ssh};
use gvproxy::logging::event_log;
use gvproxy::permits::Permits;
use gvproxy::ssh::{Penalties, load_key};
use gvproxy::sys::signals::Quit;
use gvproxy::sys::stream::Stream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;

const NAME: &str = "win-sshproxy";
const VERSION: &str = concat!("win-sshproxy version v", env!("CARGO_PKG_VERSION"));
const USAGE: &str = "Usage: win-sshproxy [-debug] NAME STATEDIR SOURCE DEST IDENTITY [SOURCE DEST IDENTITY...]\n\n\
    NAME      stands in the event log's lines\n\
    STATEDIR  gets win-sshproxy.tid, which says whom WM_QUIT is to be posted to\n\
    SOURCE    a pipe, npipe:////./pipe/NAME, or a unix socket's path\n\
    DEST      ssh://USER@HOST:PORT/SOCKET\n\
    IDENTITY  the file of the private key\n";
/// What the original exits with.
const BAD_USAGE: u8 = 10;
/// How long the end waits for clients to be given up.
const FAREWELL: Duration = Duration::from_secs(5);

/// What was asked for.
#[derive(Debug, PartialEq)]
struct Asked {
    debug: bool,
    name: String,
    state: PathBuf,
    forwards: Vec<(ListenAddress, SshDest)>,
}

fn main() -> ExitCode {
    gvproxy::sys::own_process();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == "-version") {
        return print(io::stdout(), &format!("{VERSION}\n"), ExitCode::SUCCESS);
    }
    let asked = match parse(&words) {
        Ok(asked) => asked,
        Err(error) => {
            let text = format!("{error:#}\n\n{USAGE}");
            gvproxy::sys::show_message(NAME, &text);
            return print(io::stderr(), &text, BAD_USAGE.into());
        }
    };
    let level = if asked.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    if let Err(error) = event_log::install(asked.name.clone(), level) {
        return print(io::stderr(), &format!("{error:#}\n"), ExitCode::FAILURE);
    }
    gvproxy::sys::prepare_process();
    if let Err(error) = run(asked) {
        tracing::error!(error = format!("{error:#}"), "ended");
    }
    ExitCode::SUCCESS
}

fn parse(words: &[OsString]) -> Result<Asked> {
    let (debug, words) = match words {
        [first, rest @ ..] if first == "-debug" => (true, rest),
        words => (false, words),
    };
    let [name, state, triples @ ..] = words else {
        return Err(anyhow!("NAME and STATEDIR are missing"));
    };
    let (triples, rest) = triples.as_chunks::<3>();
    ensure!(!triples.is_empty() && rest.is_empty(), "SOURCE, DEST and IDENTITY are wanted, once or more");
    let forwards = triples.iter().map(|[source, dest, identity]| {
        let at = ListenAddress::parse(source).with_context(|| format!("SOURCE {}", source.display()))?;
        let dest = dest.to_str().context("DEST is no Unicode")?;
        match Dest::parse(dest) {
            Ok(Dest::Ssh(to)) => Ok((at, SshDest { key: Some(identity.into()), ..to })),
            Ok(_) => Err(anyhow!("DEST: ssh://USER@HOST:PORT/SOCKET is wanted")),
            // What was typed may hold a password.
            Err(why) => Err(anyhow!("DEST: {why}")),
        }
    });
    Ok(Asked {
        debug,
        name: name.to_string_lossy().into_owned(),
        state: state.into(),
        forwards: forwards.collect::<Result<_>>()?,
    })
}

/// The host's own network, in which a machine's sshd has a port.
struct HostNetwork;

impl Dial for HostNetwork {
    fn dial(&self, to: &HostPort, limit: Duration) -> impl Future<Output = io::Result<Stream>> + Send {
        let to = to.clone();
        async move { timeout(limit, dial::connect(&to)).await? }
    }
}

/// The file that says whom `WM_QUIT` is for; it goes with the process.
struct ThreadFile(PathBuf);

impl ThreadFile {
    fn write(state: &Path, thread: Option<u32>) -> Result<Self> {
        let path = state.join(format!("{NAME}.tid"));
        let text = format!("{}:{}\n", std::process::id(), thread.unwrap_or_default());
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for ThreadFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Serves until somebody asks for the end. One that cannot be served ends all.
fn run(asked: Asked) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut quit = Quit::new().context("cannot be asked to end")?;
        let (stop, stopped) = watch::channel(false);
        let (permits, dialer) = (Permits::new(0), Arc::new(HostNetwork));
        let mut running = JoinSet::new();
        for (at, to) in asked.forwards {
            if let SshDest { key: Some(key), passphrase, .. } = &to {
                load_key(key, passphrase.as_ref())?;
            }
            let source = Source::bind(&at)?;
            let (dialer, permits, stopped) = (Arc::clone(&dialer), permits.clone(), stopped.clone());
            running.spawn(async move {
                let penalties = Arc::<Penalties>::default();
                ssh::run(source, to, dialer, penalties, &permits, stopped).await
            });
        }
        // Its queue is there: whoever reads the file may post at once.
        let file = ThreadFile::write(&asked.state, quit.thread_id())?;
        tracing::info!(version = VERSION, "started");
        let ended = tokio::select! {
            why = quit.asked() => {
                tracing::info!(why, "asked to end");
                Ok(())
            }
            Some(ended) = running.join_next() => ended.map_err(anyhow::Error::from).flatten(),
        };
        stop.send_replace(true);
        // A client is closed with its task, whatever it waits for.
        let _ = timeout(FAREWELL, async { while running.join_next().await.is_some() {} }).await;
        drop(file);
        ended
    })
}

/// A reader that went away is no failure of ours.
fn print(mut to: impl io::Write, text: &str, code: ExitCode) -> ExitCode {
    gvproxy::sys::borrow_console();
    let _ = to.write_all(text.as_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&words).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn triples() {
        let one =
            asked("-debug machine /state /a.sock ssh://core@127.0.0.1:2222/run/podman.sock /key").unwrap();
        assert!(one.debug && one.name == "machine" && one.state == Path::new("/state"));
        let [(at, to)] = &one.forwards[..] else { panic!("{one:?}") };
        assert_eq!(at, &ListenAddress::private("/a.sock".into()));
        assert_eq!((to.user.as_str(), to.path.as_str(), to.sshd.port), ("core", "/run/podman.sock", 2222));
        assert_eq!((to.key.as_deref(), to.secure), (Some(Path::new("/key")), false));
        let two = asked("m /s /a ssh://u@h/x /k /b ssh://v@h:1/y?secure=true /l").unwrap();
        assert_eq!(two.forwards.iter().map(|(_, to)| to.secure).collect::<Vec<_>>(), [true, true]);
        assert!(!two.debug);
    }

    #[test]
    fn what_is_missing_or_wrong() {
        for (line, why) in [
            ("", "NAME and STATEDIR are missing"),
            ("m /s", "SOURCE, DEST and IDENTITY are wanted, once or more"),
            ("m /s /a ssh://u@h/x", "SOURCE, DEST and IDENTITY are wanted, once or more"),
            ("m /s /a ssh://u@h/x /k /b", "SOURCE, DEST and IDENTITY are wanted, once or more"),
            ("m /s /a tcp://h:1 /k", "DEST: ssh://USER@HOST:PORT/SOCKET is wanted"),
            ("m /s /a ssh://u@h /k", "DEST: remote uri must contain a path to a socket file"),
        ] {
            assert_eq!(asked(line), Err(why.into()), "{line}");
        }
    }
}
