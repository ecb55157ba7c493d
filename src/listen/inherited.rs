//! Sockets that systemd listens on and passes: sd_listen_fds(3); or launchd. They outlive the daemon, and so
//! do the clients that wait in them.
//! Owns: those that nobody has taken yet. May not: remove a file of theirs. Read next: `../sys/sockets.rs`.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fd::OwnedFd;
use socket2::{Socket, Type};

use crate::addr::Inherited;
use crate::sys::sockets::{self, Passed};
use crate::text::{quote, reason};

/// What is said where nothing was passed.
const NONE: &str = "systemd has passed no socket: start this as the service of a .socket unit, or with systemd-socket-activate";

/// What [`claim`] found, or what is wrong with it.
static PASSED: OnceLock<Mutex<Result<Pool, String>>> = OnceLock::new();

/// All that were passed, with those that are left.
#[derive(Debug, Default)]
struct Pool(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    number: u32,
    name: String,
    /// `None` once it is taken.
    socket: Option<Socket>,
}

/// Makes the sockets that were passed ours: before this process opens anything, as their numbers are all that
/// tells them from its own.
pub fn claim() {
    let pool = || Mutex::new(sockets::passed().map(Pool::new).map_err(|error| reason(&error)));
    PASSED.get_or_init(pool);
}

/// Takes a socket. Each is given away once.
pub(super) fn take(wanted: &Inherited) -> Result<Socket> {
    if let Inherited::Name(name) = wanted
        && let Some(activated) = sockets::activated(name)
    {
        return of_launchd(activated).with_context(|| format!("listen {wanted}"));
    }
    let took =
        match PASSED.get().map(|passed| passed.lock().unwrap_or_else(PoisonError::into_inner)).as_deref_mut()
        {
            Some(Ok(pool)) => pool.take(wanted),
            Some(Err(why)) => Err(anyhow!("LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are wrong: {why}")),
            None => Pool::default().take(wanted),
        };
    took.with_context(|| format!("listen {wanted}"))
}

/// What launchd gives under one name, which is to be one socket.
fn of_launchd(activated: io::Result<Vec<OwnedFd>>) -> Result<Socket> {
    let found = activated.map_err(|error| anyhow!("launchd passes no such socket: {}", reason(&error)))?;
    let count = found.len();
    let [fd] = <[OwnedFd; 1]>::try_from(found)
        .map_err(|_| anyhow!("launchd passes {count} sockets of this name: SockFamily or SockNodeName in its property list says which"))?;
    let socket = Socket::from(fd);
    ensure_listening(&socket)?;
    Ok(socket)
}

/// Says which sockets nobody has taken, now that all are bound: who connects there waits for ever.
pub fn warn_of_unclaimed() {
    if let Some(passed) = PASSED.get()
        && let Ok(pool) = &*passed.lock().unwrap_or_else(PoisonError::into_inner)
    {
        for socket in pool.left() {
            tracing::warn!(%socket, "systemd has passed a socket that no -forward-sock fd:// names");
        }
    }
}

impl Pool {
    fn new(passed: Vec<Passed>) -> Self {
        let entry = |Passed { number, name, fd }| Entry { number, name, socket: Some(fd.into()) };
        Self(passed.into_iter().map(entry).collect())
    }

    fn take(&mut self, wanted: &Inherited) -> Result<Socket> {
        ensure!(!self.0.is_empty(), NONE);
        let all = self.0.iter().map(Entry::shown).collect::<Vec<_>>().join(", ");
        let fits = |entry: &&mut Entry| match wanted {
            Inherited::Only => true,
            Inherited::Number(number) => entry.number == *number,
            Inherited::Name(name) => entry.name == *name,
        };
        let mut found = self.0.iter_mut().filter(fits);
        let entry = match (found.next(), found.next()) {
            (Some(entry), None) => entry,
            (None, _) => bail!("systemd has passed no such socket; there is {all}"),
            (Some(_), Some(_)) => bail!("systemd has passed several: name one by its number; there is {all}"),
        };
        let Some(socket) = &entry.socket else { bail!("socket {} is given twice", entry.shown()) };
        ensure_listening(socket).with_context(|| format!("socket {}", entry.shown()))?;
        entry.socket.take().context("it is there")
    }

    fn left(&self) -> Vec<String> {
        self.0.iter().filter(|entry| entry.socket.is_some()).map(Entry::shown).collect()
    }
}

impl Entry {
    fn shown(&self) -> String {
        format!("{} ({})", self.number, quote(&self.name))
    }
}

fn ensure_listening(socket: &Socket) -> Result<()> {
    let kind = socket.r#type().context("it is no socket")?;
    ensure!(kind == Type::STREAM, "it is no stream socket: ListenStream= is wanted");
    let listens = sockets::is_listening(socket).unwrap_or(true);
    ensure!(listens, "it is a connection, not a socket that listens: Accept=no is wanted");
    Ok(())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use rustix::fd::OwnedFd;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn listener() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    fn pool(sockets: impl IntoIterator<Item = (&'static str, OwnedFd)>) -> Pool {
        let passed = |(number, (name, fd)): (u32, (&str, _))| Passed { number, name: name.to_owned(), fd };
        Pool::new((3..).zip(sockets).map(passed).collect())
    }

    fn error(pool: &mut Pool, wanted: &Inherited) -> String {
        format!("{:#}", pool.take(wanted).unwrap_err())
    }

    fn name(name: &str) -> Inherited {
        Inherited::Name(name.into())
    }

    #[test]
    fn each_is_given_away_once() {
        let mut sockets = pool([("a", listener()), ("b", listener()), ("c", listener())]);
        assert_eq!(sockets.left(), [r#"3 ("a")"#, r#"4 ("b")"#, r#"5 ("c")"#]);
        sockets.take(&name("b")).unwrap();
        sockets.take(&Inherited::Number(3)).unwrap();
        assert_eq!(sockets.left(), [r#"5 ("c")"#]);
        assert_eq!(error(&mut sockets, &name("a")), r#"socket 3 ("a") is given twice"#);
        assert_eq!(error(&mut sockets, &Inherited::Number(4)), r#"socket 4 ("b") is given twice"#);
    }

    #[test]
    fn the_only_one_needs_no_name() {
        let mut one = pool([("unknown", listener())]);
        one.take(&Inherited::Only).unwrap();
        assert_eq!(error(&mut one, &Inherited::Only), r#"socket 3 ("unknown") is given twice"#);
    }

    #[test]
    fn what_is_not_there() {
        assert_eq!(error(&mut pool([]), &Inherited::Only), NONE);
        let mut sockets = pool([("a", listener()), ("a", listener())]);
        let there = r#"there is 3 ("a"), 4 ("a")"#;
        for wanted in [name("b"), Inherited::Number(5)] {
            assert_eq!(error(&mut sockets, &wanted), format!("systemd has passed no such socket; {there}"));
        }
        for wanted in [name("a"), Inherited::Only] {
            let text = format!("systemd has passed several: name one by its number; {there}");
            assert_eq!(error(&mut sockets, &wanted), text);
        }
        sockets.take(&Inherited::Number(4)).unwrap();
    }

    #[test]
    fn what_does_not_listen_stays() {
        let file = std::fs::File::open("/dev/null").unwrap().into();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap().into();
        let (connection, _other) = UnixStream::pair().unwrap();
        let mut sockets = pool([("file", file), ("udp", datagrams), ("connection", connection.into())]);
        for (wanted, why) in [
            ("file", r#"socket 3 ("file"): it is no socket"#),
            ("udp", r#"socket 4 ("udp"): it is no stream socket: ListenStream= is wanted"#),
            ("connection", r#"socket 5 ("connection"): it is a connection"#),
        ] {
            let text = error(&mut sockets, &name(wanted));
            assert!(text.starts_with(why), "{text}");
        }
        assert_eq!(sockets.left().len(), 3);
    }

    #[test]
    fn of_launchds_sockets_one_is_meant() {
        let listener = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        of_launchd(Ok(vec![listener()])).unwrap();
        let refused = |found| of_launchd(found).unwrap_err().to_string();
        assert!(refused(Ok(vec![listener(), listener()])).starts_with("launchd passes 2 sockets"));
        assert!(refused(Ok(Vec::new())).starts_with("launchd passes 0 sockets"));
        let unknown = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(refused(Err(unknown)), "launchd passes no such socket: entity not found");
        let datagrams = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        assert!(refused(Ok(vec![datagrams])).contains("no stream socket"));
    }
}
