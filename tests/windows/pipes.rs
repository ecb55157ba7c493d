//! Named pipes that lead over SSH to a unix socket, and their clients.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};

use testkit::sshd::Sshd;
use testkit::{eventually, free_port};

use super::{PATIENCE, builder, close, program};

/// A client that has `input` to say: what it heard, and how it ended.
pub(crate) fn say(pipe: &str, input: &[u8]) -> Output {
    let client = spawn("pipe", pipe, input);
    client.wait_with_output().unwrap()
}

/// The same, still running.
pub(crate) fn spawn(how: &str, pipe: &str, input: &[u8]) -> Child {
    let mut client = Command::new(program("client"))
        .args([how, pipe])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let input = input.to_vec();
    // It may have left.
    std::thread::spawn(move || stdin.write_all(&input));
    client
}

/// What the service behind the sshd says to `hello`.
#[track_caller]
pub(crate) fn assert_echo(pipe: &str, hello: &[u8]) {
    let input = [b"E", hello].concat();
    let output = say(pipe, &input);
    assert!(output.status.success(), "{:?}", output.status);
    assert!(output.stdout == hello, "{} bytes of {}", output.stdout.len(), hello.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_pipe() {
    let mut sshd = Sshd::prepare().await;
    sshd.start().await;
    let name = format!("gvproxy-clients-{}", std::process::id());
    let (url, user) = (format!("npipe:////./pipe/{name}"), sshd.user.clone());
    let dest = format!("ssh://{user}@{}{}", sshd.addr, sshd.path("service.sock").display());
    let api = free_port();
    let (link, listen) = ("tcp://127.0.0.1:0", format!("tcp://127.0.0.1:{api}"));
    let key = sshd.path("id").display().to_string();
    let daemon =
        builder(["-listen-qemu", link, "-listen", &listen, "-forward-sock", &url, "-forward-dest", &dest])
            .args(["-forward-identity", &key])
            .spawn();
    daemon.log_with("forward: listening");
    tokio::task::spawn_blocking(move || {
        // More than any buffer holds, both ways at once, and the end of each half.
        let long: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 5) as u8).collect();
        assert_echo(&name, &long);
        for number in 0..50_u8 {
            assert_echo(&name, &[number; 100]);
        }
        let clients: Vec<_> =
            (0..20_u8).map(|number| (number, spawn("pipe", &name, &[b'E', number]))).collect();
        for (number, client) in clients {
            let output = client.wait_with_output().unwrap();
            assert!(output.status.success(), "{number}: {:?}\n{}", output.status, daemon.stderr());
            assert_eq!(output.stdout, [number]);
        }
        // A name is one daemon's.
        let mut second = builder(["-listen-qemu", "tcp://127.0.0.1:0", "-forward-sock", &url])
            .args(["-forward-dest", &dest, "-forward-identity", &key])
            .spawn();
        let ended = second.wait(PATIENCE).expect("a second one fails");
        assert!(!ended.success() && second.stderr().contains(&url), "{}", second.stderr());
        // One that is exposed, and gone again.
        let other = format!("{name}-exposed");
        let local = format!("npipe:////./pipe/{other}");
        let remote = format!("ssh-tunnel://{user}@{}?key={key}", &dest[dest.find('@').unwrap() + 1..]);
        let body = format!(r#"{{"local":"{local}","remote":"{remote}","protocol":"npipe"}}"#);
        let exposed = super::ask(api, "/services/forwarder/expose", &body);
        assert_eq!(exposed.status, 200, "{exposed:?}");
        assert_echo(&other, b"hello");
        let body = format!(r#"{{"local":"{local}","protocol":"npipe"}}"#);
        assert_eq!(super::ask(api, "/services/forwarder/unexpose", &body).status, 200);
        eventually("the pipe is gone", PATIENCE, || {
            (say(&other, b"E").status.code() == Some(1)).then_some(())
        });
        // The first one is there all the same; and gone with the daemon.
        assert_echo(&name, b"hello");
        close(daemon);
        assert_eq!(say(&name, b"E").status.code(), Some(1), "no such pipe");
        sshd.stop();
    })
    .await
    .unwrap();
}

/// HTTP over a pipe: requests one after the other on one connection, and one that becomes a stream both ways,
/// as docker's attach does, whose halves end by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn http_over_a_pipe() {
    let mut sshd = Sshd::prepare().await;
    sshd.start().await;
    let service = std::os::unix::net::UnixListener::bind(sshd.path("http.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = service.accept().unwrap();
        let mut heard = Vec::new();
        let mut until = |stream: &mut std::os::unix::net::UnixStream| {
            heard.clear();
            while !heard.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                heard.push(byte[0]);
            }
            String::from_utf8(heard.clone()).unwrap()
        };
        for number in 0..3 {
            assert!(until(&mut stream).starts_with(&format!("GET /{number} ")));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
        assert!(until(&mut stream).starts_with("POST /attach "));
        stream.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        stream.write_all(&said).unwrap();
        said.len()
    });
    let name = format!("gvproxy-http-{}", std::process::id());
    let (url, key) = (format!("npipe:////./pipe/{name}"), sshd.path("id").display().to_string());
    let dest = format!("ssh://{}@{}{}", sshd.user, sshd.addr, sshd.path("http.sock").display());
    let daemon =
        builder(["-listen-qemu", "tcp://127.0.0.1:0", "-forward-sock", &url, "-forward-dest", &dest])
            .args(["-forward-identity", &key])
            .spawn();
    daemon.log_with("forward: listening");
    tokio::task::spawn_blocking(move || {
        let attached = vec![b'x'; 200_000];
        let mut asked = Vec::new();
        for number in 0..3 {
            asked.extend_from_slice(format!("GET /{number} HTTP/1.1\r\nHost: d\r\n\r\n").as_bytes());
        }
        asked.extend_from_slice(
            b"POST /attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        );
        asked.extend_from_slice(&attached);
        let output = say(&name, &asked);
        assert!(output.status.success(), "{:?}\n{}", output.status, daemon.stderr());
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".repeat(3);
        assert!(output.stdout.starts_with(&ok), "{:?}", String::from_utf8_lossy(&output.stdout));
        assert!(output.stdout.ends_with(&attached), "{} bytes", output.stdout.len());
        assert_eq!(server.join().unwrap(), attached.len());
        close(daemon);
        sshd.stop();
    })
    .await
    .unwrap();
}
