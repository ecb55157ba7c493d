//! The server's side of a QMP session, by hand.

use qmp::{Client, HandshakeError, Timeouts};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufStream, DuplexStream, duplex};

pub(crate) const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "scripted"}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);

/// One scripted QEMU. What cannot be sent because the client left is not an error here: the client's result
/// is what is judged.
pub(crate) struct Peer<S> {
    pub(crate) socket: BufStream<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { socket: BufStream::new(stream) }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.socket.write_all(bytes.as_ref()).await;
        let _ = self.socket.flush().await;
    }

    pub(crate) async fn send_json(&mut self, message: Value) {
        self.send(format!("{message}\r\n")).await;
    }

    /// The next command; `None` when the client closed.
    pub(crate) async fn command(&mut self) -> Option<Value> {
        let mut line = String::new();
        if self.socket.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    pub(crate) async fn expect(&mut self, name: &str) -> Value {
        let command = self.command().await.unwrap_or_else(|| panic!("closed instead of {name}"));
        assert_eq!(command["execute"], name, "{command}");
        command
    }

    pub(crate) async fn answer(&mut self, command: &Value, value: Value) {
        self.send_json(json!({"return": value, "id": command["id"]})).await;
    }

    /// Greets and agrees on capabilities.
    pub(crate) async fn greet(&mut self) {
        self.send(GREETING).await;
        let command = self.expect("qmp_capabilities").await;
        self.answer(&command, json!({})).await;
    }

    /// Answers `query-status` until the client closes.
    pub(crate) async fn serve(mut self) {
        while let Some(command) = self.command().await {
            self.answer(&command, json!({"status": "running", "running": true})).await;
        }
    }
}

/// A client and its peer, over a pipe that holds so many bytes each way.
pub(crate) async fn session(room: usize) -> (Client, Peer<DuplexStream>) {
    let (client, mut peer) = unmet(room);
    let (client, ()) = tokio::join!(client, peer.greet());
    (client.unwrap(), peer)
}

/// The same before the greeting.
pub(crate) fn unmet(
    room: usize,
) -> (impl Future<Output = Result<Client, HandshakeError>> + Send + 'static, Peer<DuplexStream>) {
    let (ours, theirs) = duplex(room);
    (Client::handshake(ours, Timeouts::default()), Peer::new(theirs))
}
