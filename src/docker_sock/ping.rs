//! Whether anybody answers at a socket of Docker's API. Owns: nothing. Read next: `command.rs`.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::text::{push_quoted, reason};

/// For all of it. A forward accepts at once and waits for a guest that boots.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest head of an answer in bytes.
const HEAD_MAX: usize = 8 << 10;
/// What is shown of a server's name, in bytes.
const NAME_MAX: usize = 100;

/// Who answers `/_ping`, as it calls itself; or why nobody does.
pub(super) fn ping(socket: &Path) -> Result<String, String> {
    match head(socket, PATIENCE) {
        Ok(head) => server(&head),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(format!("no answer within {} s", PATIENCE.as_secs()))
        }
        Err(error) => Err(reason(&error)),
    }
}

/// The head of the answer, or as much as came of it.
fn head(path: &Path, patience: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + patience;
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A socket with a full queue would block for as long as it likes.
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(patience))?;
    socket.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() < HEAD_MAX && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::WouldBlock.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => head.extend(chunk.iter().take(n)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

fn server(head: &[u8]) -> Result<String, String> {
    if head.is_empty() {
        return Err("the connection is closed without an answer".into());
    }
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.") || status.split(' ').nth(1) != Some("200") {
        return Err(format!("not a Docker API: {}", shown(status)));
    }
    let name = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("server"))
        .map_or("a server without a name", |(_, name)| name.trim());
    Ok(shown(name))
}

/// In quotes: it is whatever the other end sent.
fn shown(text: &str) -> String {
    let mut out = String::new();
    push_quoted(&mut out, text.as_bytes(), NAME_MAX);
    out
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answered(answer: &'static [u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n = client.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"GET /_ping HTTP/1.1\r\nHost: d\r\n"), "{request:?}");
            client.write_all(answer).unwrap();
        });
        let said = ping(&path);
        server.join().unwrap();
        said
    }

    #[test]
    fn who_answers() {
        let podman = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nSERVER: Libpod/5.4.0 (linux)\r\n\r\nOK";
        assert_eq!(answered(podman), Ok(r#""Libpod/5.4.0 (linux)""#.into()));
        assert_eq!(answered(b"HTTP/1.0 200 OK\r\n\r\nOK"), Ok(r#""a server without a name""#.into()));
        assert_eq!(answered(b"HTTP/1.1 200 OK\r\nServer: \x1b[31m\r\n\r\n"), Ok(r#""\x1b[31m""#.into()));
    }

    #[test]
    fn who_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(ping(&path), Err("no such file or directory".into()));
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(ping(&path), Err("connection refused".into()));
        assert_eq!(answered(b""), Err("the connection is closed without an answer".into()));
        let not_found = b"HTTP/1.1 404 Not Found\r\nServer: x\r\n\r\n";
        assert_eq!(answered(not_found), Err(r#"not a Docker API: "HTTP/1.1 404 Not Found""#.into()));
        assert_eq!(answered(b"SSH-2.0-x\r\n"), Err(r#"not a Docker API: "SSH-2.0-x""#.into()));
    }

    #[test]
    fn who_never_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let silent = head(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock, "{silent}");
        // Byte by byte the whole still ends in time.
        let server = std::thread::spawn(move || {
            let (_first, _) = listener.accept().unwrap();
            let (mut client, _) = listener.accept().unwrap();
            while client.write_all(b"x").is_ok() {}
        });
        let endless = head(&path, Duration::from_millis(20));
        assert!(endless.is_err() || endless.is_ok_and(|head| head.len() < HEAD_MAX + 1024));
        server.join().unwrap();
    }
}
