//! What the host and the guest's agent have in common. A connection begins with one line of the host's and
//! one that answers it, `OK`, or `ERR` and why. With the path of a socket as the line, it is then one to that
//! socket. With [`ACCEPT`] and a path, the agent makes a socket there and the connection waits: [`CLIENT`]
//! says that it is now one with a client of that socket. Until then the host says nothing, and the agent an
//! empty line now and then, so that each notices when the other is gone. With a secret both prove themselves
//! before the line.
//! Owns: how a line is read, what the host asks and makes of the answers. Read next: `agent/secret.rs`, the
//! proofs; `guest/agent.rs` and `guest/offers.rs`, which serve; `engine/client.rs` and `reverse/agent.rs`,
//! which ask.

pub(crate) mod secret;

use std::io;
use std::mem;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::text::{quote, shown};
use secret::Challenge;
pub use secret::SharedSecret;

/// Where the agent listens, for TCP and on vsock: a port that only a privileged program may have, so that no
/// other program of the guest can be taken for it.
pub const PORT: u16 = 846;
/// Begins the line that asks for a socket in the guest; a path stands behind it.
pub const ACCEPT: &[u8] = b"ACCEPT ";
/// Stands before the path where the host has no other connection that waits: any that the agent knows is of a
/// host that is gone.
pub const ONLY: &[u8] = b"ONLY ";
/// The line behind which everything is the client's, or for it.
pub const CLIENT: &[u8] = b"CLIENT";
/// How often there is an empty line while a connection waits for its client.
pub const SIGN_EVERY: Duration = Duration::from_secs(10);
/// How long either may be without a sign of the other before the connection is given up.
pub const SIGN_LIMIT: Duration = Duration::from_secs(30);

/// How long an agent that accepted may take for all its answers.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Bytes of a line of either side's, with its end.
pub const MAX_LINE: usize = 256;

/// Why an agent that has answered is of no use. What it said is quoted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Something else than an agent says.
    #[error("no agent's answer: {0}")]
    Garbage(String),
    /// Its own words.
    #[error("the agent says {0}")]
    Rejected(String),
    /// Whatever it is, it has not proved that.
    #[error("the agent does not prove that it has the secret of -agent-secret-file, but says {0}")]
    NoProof(String),
    /// Its proof is wrong.
    #[error("the agent has another secret: -agent-secret-file has to be the same at both ends")]
    OtherSecret,
}

/// What the host asks of an agent, on one connection.
#[derive(Debug)]
pub struct Question {
    /// Without its end.
    line: Vec<u8>,
    /// Until the agent has proved itself, where it has to: no word of the line is said before.
    challenge: Option<Challenge>,
}

impl Question {
    /// A question to whoever is there, or to an agent with the same secret.
    ///
    /// # Errors
    /// The system has no source of randomness.
    pub fn new(line: Vec<u8>, secret: Option<&SharedSecret>) -> io::Result<Self> {
        Ok(Self { line, challenge: secret.map(Challenge::new).transpose()? })
    }

    /// What is to be said first.
    pub fn first(&self) -> Vec<u8> {
        let line = self.challenge.as_ref().map(Challenge::line);
        with_end(line.as_ref().unwrap_or(&self.line))
    }

    /// Takes an answer without its end: what is to be said next, or `None` once the agent agrees.
    ///
    /// # Errors
    /// The agent is not believed, or does not agree.
    pub fn handle_answer(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        if let Some(challenge) = &self.challenge {
            let proved = with_end(&challenge.meet(answer, &self.line)?);
            self.challenge = None;
            return Ok(Some(proved));
        }
        match (answer, answer.strip_prefix(b"ERR ")) {
            (b"OK", _) => Ok(None),
            (_, Some(words)) => Err(Refusal::Rejected(quote(words))),
            (_, None) => Err(Refusal::Garbage(quote(answer))),
        }
    }
}

pub(crate) fn with_end(line: &[u8]) -> Vec<u8> {
    [line, b"\n"].concat()
}

/// What has to run in the guest, so that the agent at `port` serves `path` by `flag`, to a host that has a
/// secret or none.
pub(crate) fn command(port: u16, secret: Option<&SharedSecret>, flag: &str, path: &str) -> String {
    let port = match port {
        PORT => String::new(),
        port => format!(" -agent-port {port}"),
    };
    let secret = secret.map_or("", |_| " -agent-secret-file FILE");
    format!("gvforwarder -agent{port}{secret} {flag} {}", shown(path))
}

/// The next line, without its end; what came behind it stays in `heard`, which grows to [`MAX_LINE`] bytes.
/// `None` where those are no line.
///
/// # Errors
/// What reading gives; `UnexpectedEof` where the other side ended first.
pub(crate) async fn next_line(
    from: &mut (impl AsyncRead + Unpin),
    heard: &mut Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
            let rest = heard.split_off(end + 1);
            let mut line = mem::replace(heard, rest);
            line.pop();
            return Ok(Some(line));
        }
        let room = MAX_LINE.saturating_sub(heard.len());
        if room == 0 {
            return Ok(None);
        }
        if (&mut *from).take(room as u64).read_buf(heard).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
