//! What the host and the guest's agent have in common. A connection begins with one line of the host's and one that answers it, `OK`, or
//! `ERR` and why. With the path of a socket as the line, it is then one to that socket. With [`ACCEPT`] and a path, the agent makes a socket
//! there and the connection waits: [`CLIENT`] says that it is now one with a client of that socket. Until then the host says nothing, and
//! the agent an empty line now and then, so that each notices when the other is gone.
//! Owns: how a line is read. Read next: `guest/agent.rs` and `guest/offers.rs`, which serve; `engine/lead.rs` and `reverse/agent.rs`, which ask.

use std::io;
use std::mem;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Where the agent listens, for TCP and on vsock: a port that only a privileged program may have, so that no other program of the guest
/// can be taken for it.
pub const PORT: u16 = 846;
/// Begins the line that asks for a socket in the guest; a path stands behind it.
pub const ACCEPT: &[u8] = b"ACCEPT ";
/// Stands before the path where the host has no other connection that waits: any that the agent knows is of a host that is gone.
pub const ONLY: &[u8] = b"ONLY ";
/// The line behind which everything is the client's, or for it.
pub const CLIENT: &[u8] = b"CLIENT";
/// How often there is an empty line while a connection waits for its client.
pub const SIGN_EVERY: Duration = Duration::from_secs(10);
/// How long either may be without a sign of the other before the connection is given up.
pub const SIGN_LIMIT: Duration = Duration::from_secs(30);

/// The next line, without its end; what came behind it stays in `heard`, which grows to `most` bytes. `None` where those are no line.
///
/// # Errors
/// What reading gives; `UnexpectedEof` where the other side ended first.
pub(crate) async fn next_line(
    from: &mut (impl AsyncRead + Unpin),
    heard: &mut Vec<u8>,
    most: usize,
) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
            let rest = heard.split_off(end + 1);
            let mut line = mem::replace(heard, rest);
            line.pop();
            return Ok(Some(line));
        }
        let room = most.saturating_sub(heard.len());
        if room == 0 {
            return Ok(None);
        }
        if (&mut *from).take(room as u64).read_buf(heard).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
