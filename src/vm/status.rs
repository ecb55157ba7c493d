//! What is known of the machines: for the API's `/qmp`, and for `-qmp-status`.
//!
//! Owns: the statuses, one entry for each machine. May not: change anything in a machine. Read next:
//! `life.rs`, which keeps it right.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use qmp::qapi::qmp::{query_name, query_status};
use qmp::{Address, Client, Timeouts};
use serde::{Deserialize, Serialize};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{attach, session};
use crate::addr::ListenAddress;
use crate::config::{Config, TOKEN_WANTED, Token};
use crate::dial::refuse_self;
use crate::disk;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// Whether there is a QMP session with a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connection {
    /// Not yet, or not any more: its QEMU is waited for.
    #[default]
    Waiting,
    /// Yes.
    Connected,
    /// It was let go, as others need the socket; what stands here is as it was then.
    LetGo,
}

/// One machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The QMP socket's URL.
    pub qmp: String,
    /// Whether there is a session.
    pub connection: Connection,
    /// QEMU's `-name`.
    pub name: Option<String>,
    /// QEMU's version.
    pub version: Option<String>,
    /// QEMU's process, where the socket tells.
    pub pid: Option<u32>,
    /// QEMU's word for what the machine does: `running`, `paused`, ...
    pub state: Option<String>,
    /// The network card that it has of ours.
    pub device: Option<Device>,
    /// Why it has none.
    pub problem: Option<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// QEMU's id of it.
    pub id: String,
    /// Its hardware address.
    pub mac: String,
    /// The bus that it is on.
    pub bus: Option<String>,
    /// Slot and function there.
    pub slot: Option<String>,
    /// QEMU's id of what is behind it.
    pub netdev: String,
    /// The socket that this is connected to.
    pub socket: String,
    /// Whether it is connected.
    pub link: bool,
}

impl fmt::Display for Status {
    /// Two lines for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { qmp, connection, name, version, pid, state, device, problem } = self;
        write!(f, "{qmp}: {}", name.as_deref().unwrap_or("no name"))?;
        match version {
            Some(version) => write!(f, ", QEMU {version}")?,
            None => f.write_str(", no QEMU yet")?,
        }
        if let Some(pid) = pid {
            write!(f, ", pid {pid}")?;
        }
        if let Some(state) = state {
            write!(f, ", {state}")?;
        }
        if *connection == Connection::LetGo {
            f.write_str(" when the session was ended")?;
        }
        match (device, problem) {
            (Some(device), _) => {
                let Device { id, mac, bus, slot, netdev, link, .. } = device;
                write!(f, "\n  {id}: {mac}")?;
                for (name, value) in [("bus", bus), ("slot", slot)] {
                    if let Some(value) = value {
                        write!(f, ", {name} {value}")?;
                    }
                }
                writeln!(f, ", netdev {netdev}, link {}", if *link { "up" } else { "down" })
            }
            (None, Some(problem)) => writeln!(f, "\n  no network card of gvproxy: {problem}"),
            (None, None) => writeln!(f, "\n  no network card of gvproxy"),
        }
    }
}

impl Status {
    /// Asks what does not change while QEMU runs, and the state. What QEMU does not say is left out.
    pub(super) async fn learn(&mut self, session: &mut session::Session) {
        let client = &mut session.client;
        let version = &client.version().qemu;
        self.version = Some(format!("{}.{}.{}", version.major, version.minor, version.micro));
        self.pid = session.pid;
        self.name = client.execute(query_name {}).await.ok().and_then(|info| info.name);
        self.state = state(client).await;
    }
}

/// QEMU's word for what the machine does.
pub(super) async fn state(client: &mut Client) -> Option<String> {
    let status = client.execute(query_status {}).await.ok()?.status;
    serde_json::to_value(status).ok()?.as_str().map(str::to_owned)
}

/// Every machine's status. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct StatusTable(Arc<Mutex<Slab<Status>>>);

impl StatusTable {
    /// All machines, in the order in which they came.
    pub fn read(&self) -> Vec<Status> {
        self.lock().iter().map(|(_, status)| status.clone()).collect()
    }

    pub(super) fn enter(&self, qmp: &Address) -> Entry {
        let key = self.lock().insert(Status { qmp: qmp.to_string(), ..Status::default() });
        Entry { statuses: self.clone(), key }
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Status>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One machine's entry, until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    statuses: StatusTable,
    key: usize,
}

impl Entry {
    pub(super) fn read(&self) -> Status {
        self.statuses.lock().get(self.key).cloned().unwrap_or_default()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Status)) {
        if let Some(status) = self.statuses.lock().get_mut(self.key) {
            change(status);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.statuses.lock().try_remove(self.key);
    }
}

/// What `-qmp-status` prints, and whether every machine has a card of a gvproxy that is connected.
///
/// # Errors
/// A machine, or the daemon that was to be asked, does not answer.
pub fn show(config: &Config) -> Result<(String, bool)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show_all(config))
}

async fn show_all(config: &Config) -> Result<(String, bool)> {
    let machines = match config.listen.iter().chain(&config.services).next() {
        Some(endpoint) => {
            let asked = |status: &Status| config.machines.iter().any(|m| m.qmp.to_string() == status.qmp);
            of_daemon(endpoint, config.api_token.as_ref()).await?.into_iter().filter(asked).collect()
        }
        None => {
            let mut machines = Vec::new();
            for machine in &config.machines {
                machines.push(of_machine(&machine.qmp).await?);
            }
            machines
        }
    };
    let is_up = |status: &Status| status.device.as_ref().is_some_and(|device| device.link);
    let all_up = machines.len() == config.machines.len() && machines.iter().all(is_up);
    Ok((machines.iter().map(Status::to_string).collect(), all_up))
}

async fn of_machine(qmp: &Address) -> Result<Status> {
    let mut session = match session::connect(qmp, Timeouts::default()).await {
        Err(error) if error.is_busy() => {
            return Err(error).context(
                "the QMP socket serves another client; a gvproxy that has it is asked with -listen or -services, its own endpoint",
            );
        }
        session => session?,
    };
    let mut status = Status { qmp: qmp.to_string(), connection: Connection::Connected, ..Status::default() };
    status.learn(&mut session).await;
    status.device = attach::find_any(&attach::network(&mut session.client).await?);
    Ok(status)
}

/// Asks the daemon that serves `endpoint`.
async fn of_daemon(endpoint: &ListenAddress, token: Option<&Token>) -> Result<Vec<Status>> {
    let request = format!("GET /qmp HTTP/1.0\r\nHost: localhost\r\n{}\r\n", Token::header(token));
    let asked = async {
        match endpoint {
            ListenAddress::Unix { path, .. } => {
                let stream = disk::connect(path).await.with_context(|| path.display().to_string())?;
                ask(stream, &request).await
            }
            ListenAddress::Tcp { host, port } => {
                let host = if host.is_empty() { "127.0.0.1" } else { host };
                ask(refuse_self(TcpStream::connect((host, *port)).await?)?, &request).await
            }
            ListenAddress::Vsock { .. } => bail!("a vsock endpoint is not for programs of the host"),
            ListenAddress::Abstract(_) | ListenAddress::Pipe(_) | ListenAddress::Inherited(_) => {
                bail!("no endpoint of the API")
            }
        }
    };
    let answer =
        timeout(PATIENCE, asked).await.with_context(|| format!("no answer within {PATIENCE:?}"))??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.lines().next().unwrap_or_default();
    let wanted = if status.contains(" 401 ") { TOKEN_WANTED } else { "" };
    anyhow::ensure!(status.contains(" 200 "), "the daemon says {status}{wanted}");
    serde_json::from_str(body).context("the daemon's answer is none")
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let mut status = Status { qmp: "unix:///q".into(), ..Status::default() };
        assert_eq!(status.to_string(), "unix:///q: no name, no QEMU yet\n  no network card of gvproxy\n");
        status.problem = Some("no free slot".into());
        (status.name, status.version) = (Some("vm".into()), Some("7.2.22".into()));
        (status.pid, status.state) = (Some(12), Some("running".into()));
        let text = status.to_string();
        assert_eq!(
            text,
            "unix:///q: vm, QEMU 7.2.22, pid 12, running\n  no network card of gvproxy: no free slot\n"
        );
        status.device = Some(Device {
            id: "d".into(),
            mac: "5a:94:ef:e4:0c:ee".into(),
            bus: Some("hot0".into()),
            slot: Some("00.0".into()),
            netdev: "n".into(),
            socket: "/s".into(),
            link: true,
        });
        let line = "  d: 5a:94:ef:e4:0c:ee, bus hot0, slot 00.0, netdev n, link up\n";
        assert!(status.to_string().ends_with(line), "{status}");
    }

    #[tokio::test]
    async fn of_an_endless_answer_so_much_is_read() {
        let (stream, mut daemon) = tokio::io::duplex(64 << 10);
        let answers = tokio::spawn(async move { while daemon.write_all(&[b'x'; 4096]).await.is_ok() {} });
        let answer = ask(stream, "GET /qmp HTTP/1.0\r\n\r\n").await.unwrap();
        assert_eq!(answer.len() as u64, MAX_ANSWER);
        // The stream is closed then, and whoever writes hears of it.
        answers.await.unwrap();
    }

    #[test]
    fn an_entry_goes_with_its_owner() {
        let statuses = StatusTable::default();
        let entry = statuses.enter(&Address::Unix("/q".into()));
        entry.change(|status| status.pid = Some(7));
        assert_eq!((statuses.read()[0].pid, statuses.read()[0].qmp.as_str()), (Some(7), "unix:///q"));
        drop(entry);
        assert!(statuses.read().is_empty());
    }
}
