//! Unix sockets on the host that lead into the guest, against a real sshd on loopback in place of the guest.

#![expect(clippy::unwrap_used, reason = "a test's helper fails like the test")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gvproxy::ssh::{MAX_CONNECTIONS, OpenError, Target, Tunnel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testkit::sshd::{PATIENCE, Pattern, Sshd, eventually, run, soon, sum, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

const MIB: u64 = 1 << 20;

/// Asserts that the client is closed without having been sent a byte.
async fn closed(mut client: UnixStream) {
    let mut answer = Vec::new();
    let end = client.read_to_end(&mut answer).await;
    // A client with unread requests is reset, which is a clean close as well.
    assert!(answer.is_empty(), "{end:?} after {answer:?}");
}

#[tokio::test]
async fn every_kind_of_key_and_file_logs_in() {
    let sshd = Sshd::new().await;
    let mut authorized = fs::read_to_string(sshd.path("authorized")).unwrap();
    let mut names = vec!["id".to_owned()];
    for (kind, bits) in
        [("ed25519", ""), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048")]
    {
        for format in ["RFC4716", "PEM", "PKCS8"] {
            // ssh-keygen writes Ed25519 in its own form only; openssl makes the PKCS#8 one below.
            if kind == "ed25519" && format != "RFC4716" {
                continue;
            }
            let name = format!("{kind}{bits}-{format}");
            let path = sshd.path(&name);
            let bits: &[&str] = if bits.is_empty() { &[] } else { &["-b", bits] };
            let form: &[&str] = if format == "RFC4716" { &[] } else { &["-m", format] };
            run("ssh-keygen", &[&["-q", "-t", kind, "-N", "", "-f", text(&path)], bits, form].concat());
            authorized += &fs::read_to_string(path.with_extension("pub")).unwrap();
            names.push(name);
        }
    }
    let pkcs8 = sshd.path("ed25519-openssl");
    run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", text(&pkcs8)]);
    authorized += &public_of(&pkcs8);
    names.push("ed25519-openssl".to_owned());
    fs::write(sshd.path("authorized"), authorized).unwrap();

    for name in names {
        let head = fs::read_to_string(sshd.path(&name)).unwrap();
        let forward = sshd
            .try_forward("service.sock", &name)
            .unwrap_or_else(|error| panic!("{name} ({}): {error:#}", head.lines().next().unwrap()));
        soon(&name, forward.echo()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        forward.stop().await;
    }
}

/// The public half of a PKCS#8 Ed25519 key as a line of authorized_keys; OpenSSH 9.2 cannot derive it itself.
fn public_of(key: &std::path::Path) -> String {
    let der = run("openssl", &["pkey", "-in", text(key), "-pubout", "-outform", "DER"]);
    let mut blob = Vec::new();
    for part in [b"ssh-ed25519".as_slice(), &der[der.len() - 32..]] {
        blob.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        blob.extend(part);
    }
    let raw = key.with_extension("blob");
    fs::write(&raw, blob).unwrap();
    let base64 = String::from_utf8(run("base64", &["-w0", text(&raw)])).unwrap();
    format!("ssh-ed25519 {base64}\n")
}

#[tokio::test]
async fn an_unusable_identity_is_refused_at_start() {
    let sshd = Sshd::prepare().await;
    let locked = sshd.path("locked");
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "secret", "-f", text(&locked)]);
    let locked_pem = sshd.path("locked-pem");
    run(
        "ssh-keygen",
        &["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "secret", "-f", text(&locked_pem)],
    );
    let locked_pkcs8 = sshd.path("locked-pkcs8");
    run("ssh-keygen", &["-q", "-t", "ecdsa", "-m", "PKCS8", "-N", "secret", "-f", text(&locked_pkcs8)]);
    fs::write(sshd.path("junk"), "not a key\n").unwrap();

    for (name, want) in [
        ("locked", "passphrase"),
        ("locked-pem", "passphrase"),
        ("locked-pkcs8", "passphrase"),
        ("junk", "not a usable ssh private key"),
        ("missing", "cannot read the ssh identity"),
    ] {
        let error = format!("{:#}", sshd.try_forward("service.sock", name).expect_err(name));
        assert!(error.contains(want) && error.contains(text(&sshd.path(name))), "{name}: {error}");
        assert!(!error.contains('\n'), "{name}: {error}");
    }
    let left: Vec<_> =
        fs::read_dir(sshd.dir.path()).unwrap().flatten().map(|file| file.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("forward")), "left behind: {left:?}");
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_forward() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let socket = forward.socket.clone();
    let meta = fs::metadata(&socket).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());

    // A client in the middle of something is dropped, and does not keep the forward.
    let mut client = forward.connect().await;
    client.write_all(b"Ex").await.unwrap();
    let mut echo = [0];
    soon("the echo", client.read_exact(&mut echo)).await.unwrap();
    forward.stop().await;
    soon("the close", closed(client)).await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn two_hundred_clients_at_once() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let mut clients = JoinSet::new();
    for number in 0..200_u32 {
        let mut client = forward.connect().await;
        clients.spawn(async move {
            client.write_all(b"E").await.unwrap();
            for _ in 0..5 {
                let bytes = number.to_be_bytes().repeat(1000);
                client.write_all(&bytes).await.unwrap();
                let mut back = vec![0; bytes.len()];
                client.read_exact(&mut back).await.unwrap();
                assert!(back == bytes, "client {number} got another's bytes");
            }
        });
    }
    while let Some(client) = soon("a client", clients.join_next()).await {
        client.unwrap();
    }
    assert!(sshd.dials.load(Ordering::Relaxed) <= MAX_CONNECTIONS);
}

#[tokio::test]
async fn one_client_after_another_shares_one_connection() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    for _ in 0..50 {
        soon("an echo", forward.echo()).await.unwrap();
    }
    assert_eq!(sshd.dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn half_close_carries_both_ways() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();

    // The client ends first: the guest answers after it.
    let mut client = forward.connect().await;
    client.write_all(b"Pabc").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(soon("the count", client.read_u64()).await.unwrap(), 3);
    soon("the sum", client.read_u64()).await.unwrap();
    assert_eq!(soon("the end", client.read(&mut [0])).await.unwrap(), 0);

    // The guest ends first: the client's bytes still arrive.
    let guest = tokio::net::UnixListener::bind(sshd.path("half.sock")).unwrap();
    let forward = sshd.forward_to("half.sock", "id");
    let mut client = forward.connect().await;
    let (mut service, _) = soon("the guest's side", guest.accept()).await.unwrap();
    service.write_all(b"bye").await.unwrap();
    service.shutdown().await.unwrap();
    let mut last = Vec::new();
    soon("the guest's end", client.read_to_end(&mut last)).await.unwrap();
    assert_eq!(last, b"bye");
    let mut pattern = Pattern::default();
    soon("the upload", pattern.write(&mut client, MIB)).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(soon("the guest's reading", sum(&mut service)).await.unwrap(), (MIB, pattern.sum()));
}

#[tokio::test]
async fn a_hundred_mib_each_way_at_the_same_time() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let count = 100 * MIB;

    let mut up = forward.connect().await;
    let upload = tokio::spawn(async move {
        let mut pattern = Pattern::default();
        up.write_all(b"P").await.unwrap();
        pattern.write(&mut up, count).await.unwrap();
        up.shutdown().await.unwrap();
        assert_eq!(up.read_u64().await.unwrap(), count);
        assert_eq!(up.read_u64().await.unwrap(), pattern.sum());
    });
    let mut down = forward.connect().await;
    down.write_all(b"G").await.unwrap();
    down.write_u64(count).await.unwrap();
    let got = soon("the download", sum(&mut down)).await.unwrap();
    let mut pattern = Pattern::default();
    pattern.write(&mut tokio::io::sink(), count).await.unwrap();
    assert_eq!(got, (count, pattern.sum()));
    soon("the upload", upload).await.unwrap();
}

#[tokio::test]
async fn keys_are_exchanged_again_under_load() {
    let mut sshd = Sshd::prepare().await;
    sshd.options = "RekeyLimit 4M\nLogLevel DEBUG1";
    sshd.start().await;
    let forward = sshd.forward();
    let (mut from, mut to) = forward.connect().await.into_split();
    let count = 64 * MIB;
    let upload = tokio::spawn(async move {
        let mut pattern = Pattern::default();
        to.write_all(b"E").await.unwrap();
        pattern.write(&mut to, count).await.unwrap();
        to.shutdown().await.unwrap();
        pattern.sum()
    });
    let got = soon("the echo", sum(&mut from)).await.unwrap();
    assert_eq!(got, (count, upload.await.unwrap()));
    let exchanges = sshd.log().matches("SSH2_MSG_NEWKEYS received").count();
    assert!(exchanges > 10, "only {exchanges} key exchanges");
}

/// Each exchange takes the thread of all others milliseconds.
#[tokio::test]
async fn keys_are_exchanged_again_only_so_often() {
    const REKEYS: u64 = 16;
    let mut sshd = Sshd::prepare().await;
    sshd.options = "RekeyLimit 64K\nLogLevel DEBUG1";
    sshd.start().await;
    let forward = sshd.forward();
    let start = Instant::now();
    soon("a transfer", async {
        let mut client = forward.connect().await;
        client.write_u8(b'G').await.unwrap();
        client.write_u64(REKEYS * (64 << 10) + 1).await.unwrap();
        let mut pattern = Pattern::default();
        pattern.write(&mut tokio::io::sink(), REKEYS * (64 << 10) + 1).await.unwrap();
        assert_eq!(sum(&mut client).await.unwrap(), (REKEYS * (64 << 10) + 1, pattern.sum()));
    })
    .await;
    let (took, exchanges) = (start.elapsed(), sshd.log().matches("SSH2_MSG_KEXINIT sent").count());
    assert!(exchanges as u64 >= REKEYS, "{exchanges} exchanges");
    // Eight are ahead, and then there are two a second.
    assert!(took >= Duration::from_secs(3), "{exchanges} exchanges in {took:?}");
    forward.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_channel_only() {
    let sshd = Sshd::new().await;
    let guest = tokio::net::UnixListener::bind(sshd.path("watch.sock")).unwrap();
    let forward = sshd.forward_to("watch.sock", "id");
    let client = forward.connect().await;
    let (mut service, _) = soon("the guest's side", guest.accept()).await.unwrap();
    drop(client);
    let gone = async {
        // First the end of what the client sent, then nobody to write to.
        while service.write_all(b"more").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the guest's noticing", gone).await;
    let _client = forward.connect().await;
    soon("the next client", guest.accept()).await.unwrap();
    assert_eq!(sshd.dials.load(Ordering::Relaxed), 1);
}

/// Whether it had closed its half before or not, and though the service says nothing at all.
#[tokio::test]
async fn a_silent_service_is_told_that_its_client_left() {
    let sshd = Sshd::new().await;
    let guest = tokio::net::UnixListener::bind(sshd.path("watch.sock")).unwrap();
    let forward = sshd.forward_to("watch.sock", "id");
    for half_first in [false, true] {
        let mut client = forward.connect().await;
        client.write_all(b"ping").await.unwrap();
        let (mut service, _) = soon("the guest's side", guest.accept()).await.unwrap();
        let mut request = Vec::new();
        if half_first {
            client.shutdown().await.unwrap();
            soon("the request", service.read_to_end(&mut request)).await.unwrap();
        }
        drop(client);
        soon("the request", service.read_to_end(&mut request)).await.unwrap();
        assert_eq!(request, b"ping");
        eventually("the guest's noticing", || {
            let polled = &mut [PollFd::new(&service, PollFlags::OUT)];
            poll(polled, Some(&Timespec::default())).unwrap();
            polled[0].revents().contains(PollFlags::HUP)
        })
        .await;
    }
}

#[tokio::test]
async fn a_missing_socket_in_the_guest_closes_the_client() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward_to("later.sock", "id");
    for _ in 0..2 {
        soon("the close", closed(forward.connect().await)).await;
    }
    // The forward lives on, and finds the socket when it is there.
    let guest = tokio::net::UnixListener::bind(sshd.path("later.sock")).unwrap();
    let _client = forward.connect().await;
    soon("the guest's side", guest.accept()).await.unwrap();
}

/// russh keeps something of each channel that was refused. Each client is, three times.
#[tokio::test]
async fn a_login_on_which_many_were_refused_makes_place_for_another() {
    const REFUSED: usize = 4096;
    const AT_ONCE: usize = 600;
    let sshd = Sshd::new().await;
    let forward = sshd.forward_to("later.sock", "id");
    let dials = || sshd.dials.load(Ordering::Relaxed);
    let mut refused = 0;
    while dials() <= MAX_CONNECTIONS {
        assert!(refused < 2 * MAX_CONNECTIONS * REFUSED, "{} logins for {refused} refusals", dials());
        let mut clients = JoinSet::new();
        for _ in 0..AT_ONCE {
            clients.spawn(closed(forward.connect().await));
        }
        soon("the closes", clients.join_all()).await;
        refused += 3 * AT_ONCE;
    }
    assert!(refused >= REFUSED, "another login after {refused} refusals");
    let guest = tokio::net::UnixListener::bind(sshd.path("later.sock")).unwrap();
    let _client = forward.connect().await;
    soon("the guest's side", guest.accept()).await.unwrap();
}

#[tokio::test]
async fn an_sshd_that_wants_more_than_the_key_is_told_so() {
    let mut sshd = Sshd::prepare().await;
    sshd.options = "AuthenticationMethods publickey,password\nPasswordAuthentication yes";
    sshd.start().await;
    let error = refusal(&sshd).await;
    assert!(error.contains("took the key") && error.contains("wants more: password"), "{error}");
}

/// Whether a client is served, or what the log says when it is turned away.
async fn answer(sshd: &Sshd) -> Result<(), String> {
    let target = Target::new(sshd.addr, &sshd.user, sshd.path("id"));
    let tunnel = Tunnel::new(target, sshd.dialer(), Arc::clone(&sshd.penalties));
    let service = sshd.path("service.sock");
    let opened = soon("the answer", tunnel.open(text(&service), PATIENCE, || true)).await;
    opened.map(drop).map_err(|error| error.to_string())
}

async fn refusal(sshd: &Sshd) -> String {
    answer(sshd).await.unwrap_err()
}

#[tokio::test]
async fn an_sshd_that_forwards_no_sockets_is_blamed_for_it() {
    for options in ["AllowStreamLocalForwarding no", "DisableForwarding yes"] {
        let mut sshd = Sshd::prepare().await;
        sshd.options = options;
        sshd.start().await;
        let error = refusal(&sshd).await;
        assert!(error.contains("AllowStreamLocalForwarding"), "{error}");
    }
    let mut sshd = Sshd::prepare().await;
    let version = sshd.start_dropbear().await;
    match answer(&sshd).await {
        Ok(()) => assert!(version.as_str() >= "2024", "{version}"),
        Err(error) => {
            assert!(error.starts_with("the guest's sshd cannot forward unix sockets"), "{error}");
            let names = ["Dropbear", "OpenSSH", "agent://"];
            assert!(names.iter().all(|name| error.contains(name)), "{error}");
            assert!(version.as_str() < "2024", "{version}: {error}");
        }
    }
}

#[tokio::test]
async fn a_stalled_client_delays_nobody() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    // Both clients are there before one of them stalls, with more to read than any buffer on the way holds.
    let mut stalled = forward.connect().await;
    let mut busy = forward.connect().await;
    busy.write_all(b"E").await.unwrap();
    stalled.write_all(b"G").await.unwrap();
    stalled.write_u64(100 * MIB).await.unwrap();
    let mut first = [0];
    soon("the first byte", stalled.read_exact(&mut first)).await.unwrap();
    // One that the guest does not read from stalls the other way.
    let mut unread = forward.connect().await;
    unread.write_all(b"H").await.unwrap();
    let unread = tokio::spawn(async move { Pattern::default().write(&mut unread, 100 * MIB).await });

    let start = Instant::now();
    for _ in 0..1000 {
        busy.write_all(&[7; 4096]).await.unwrap();
        soon("the busy client", busy.read_exact(&mut [0; 4096])).await.unwrap();
    }
    let mut bulk = forward.connect().await;
    bulk.write_all(b"G").await.unwrap();
    bulk.write_u64(50 * MIB).await.unwrap();
    assert_eq!(soon("the bulk client", sum(&mut bulk)).await.unwrap().0, 50 * MIB);
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());

    // The stalled one has lost nothing.
    let (count, _) = soon("the stalled client", sum(&mut stalled)).await.unwrap();
    assert_eq!(count + 1, 100 * MIB);
    assert!(!unread.is_finished());
    unread.abort();
}

#[tokio::test]
async fn an_early_client_waits_for_the_guest() {
    let mut sshd = Sshd::prepare().await;
    let forward = sshd.forward();
    let mut early = JoinSet::new();
    for _ in 0..20 {
        let mut client = forward.connect().await;
        early.spawn(async move {
            client.write_all(b"Ehi").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"hi");
        });
    }
    eventually("a few attempts", || sshd.dials.load(Ordering::Relaxed) >= 4).await;
    sshd.start().await;
    let start = Instant::now();
    while let Some(client) = soon("an early client", early.join_next()).await {
        client.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
}

#[tokio::test]
async fn an_early_client_that_leaves_without_a_word_never_reaches_the_guest() {
    let mut sshd = Sshd::prepare().await;
    let guest = tokio::net::UnixListener::bind(sshd.path("watch.sock")).unwrap();
    let forward = sshd.forward_to("watch.sock", "id");
    for _ in 0..10 {
        drop(forward.connect().await);
    }
    let mut last = forward.connect().await;
    last.write_all(b"last").await.unwrap();
    sshd.start().await;
    let (mut service, _) = soon("the guest's side", guest.accept()).await.unwrap();
    let mut request = [0; 4];
    soon("the request", service.read_exact(&mut request)).await.unwrap();
    assert_eq!(&request, b"last");
}

#[tokio::test]
async fn hundreds_of_clients_that_leave_in_the_middle() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    for _ in 0..300 {
        let mut client = forward.connect().await;
        client.write_all(b"G").await.unwrap();
        client.write_u64(MIB).await.unwrap();
        soon("a first byte", client.read_exact(&mut [0])).await.unwrap();
    }
    soon("the echo", forward.echo()).await.unwrap();
    // Connections are not used for ever, as each such client leaves something behind in them; nor is each
    // used once.
    let dials = sshd.dials.load(Ordering::Relaxed);
    assert!((2..=2 * MAX_CONNECTIONS).contains(&dials), "{dials} connections");
}

#[tokio::test]
async fn the_end_does_not_wait_for_the_guest() {
    let sshd = Sshd::prepare().await;
    let forward = sshd.forward();
    let waiting = forward.connect().await;
    eventually("an attempt", || sshd.dials.load(Ordering::Relaxed) >= 1).await;
    let start = Instant::now();
    forward.stop().await;
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
    soon("the close", closed(waiting)).await;
}

#[tokio::test]
async fn guests_with_few_algorithms_are_reached() {
    for options in [
        "Ciphers chacha20-poly1305@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-256",
        // As in FIPS mode.
        "Ciphers aes256-gcm@openssh.com\nKexAlgorithms ecdh-sha2-nistp384",
        "KexAlgorithms diffie-hellman-group16-sha512",
    ] {
        let mut sshd = Sshd::prepare().await;
        sshd.options = options;
        sshd.start().await;
        soon(options, sshd.forward().echo()).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_waits_no_longer_than_it_may() {
    let sshd = Sshd::prepare().await;
    let target = Target::new(sshd.addr, &sshd.user, sshd.path("id"));
    let tunnel = Tunnel::new(target, sshd.dialer(), Arc::clone(&sshd.penalties));
    let (start, patience) = (Instant::now(), Duration::from_secs(1));
    let error = soon("the end of waiting", tunnel.open("/any", patience, || true)).await.unwrap_err();
    assert!(matches!(error, OpenError::TimedOut), "{error}");
    assert!(start.elapsed() >= patience && start.elapsed() < patience * 3, "took {:?}", start.elapsed());
    assert!(sshd.dials.load(Ordering::Relaxed) > 1);
}

#[tokio::test]
async fn a_guest_that_accepts_and_stays_silent_is_given_up() {
    let mut sshd = Sshd::prepare().await;
    let mute = tokio::net::TcpListener::bind(sshd.addr).await.unwrap();
    let forward = sshd.forward();
    let early = forward.connect().await;
    let (held, _) = soon("the first attempt", mute.accept()).await.unwrap();
    drop(mute);
    sshd.start().await;
    let start = Instant::now();
    soon("the echo", forward.echo()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(13), "took {:?}", start.elapsed());
    drop((early, held));
}

#[tokio::test]
async fn the_next_connection_works_after_a_reboot() {
    let mut sshd = Sshd::new().await;
    let forward = sshd.forward();
    for round in 0..3 {
        soon("the echo", forward.echo()).await.unwrap();
        let mut open = forward.connect().await;
        open.write_all(b"Ex").await.unwrap();
        soon("the open client", open.read_exact(&mut [0])).await.unwrap();
        sshd.stop();
        soon("the close", closed(open)).await;
        // This one comes while the guest is down.
        let waiting = forward.connect().await;
        let dials = sshd.dials.load(Ordering::Relaxed);
        eventually("an attempt", || sshd.dials.load(Ordering::Relaxed) >= dials + 2).await;
        sshd.start().await;
        let start = Instant::now();
        soon("the echo after a reboot", forward.echo()).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "round {round}: took {:?}", start.elapsed());
        drop(waiting);
    }
}

#[tokio::test]
async fn a_guest_that_vanished_is_found_out() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let mut open = forward.connect().await;
    open.write_all(b"Ex").await.unwrap();
    soon("the open client", open.read_exact(&mut [0])).await.unwrap();
    soon("the echo", forward.echo()).await.unwrap();
    assert_eq!(sshd.dials.load(Ordering::Relaxed), 2);
    sshd.freeze_sessions();
    // An idle connection that is frozen is given up within its limit, and a new one serves.
    let start = Instant::now();
    soon("the echo past a frozen session", forward.echo()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(13), "took {:?}", start.elapsed());
    // The client that was open is closed when the keepalive finds its guest gone.
    soon("the close", closed(open)).await;
    assert!(start.elapsed() < Duration::from_secs(35), "took {:?}", start.elapsed());
}

/// Who comes while the guest stands still gets another login, and does not end those that others use.
#[tokio::test]
async fn a_guest_that_stands_still_for_a_while_keeps_its_clients() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut client = forward.connect().await;
        client.write_all(b"Ex").await.unwrap();
        soon("an open client", client.read_exact(&mut [0])).await.unwrap();
        open.push(client);
    }
    sshd.freeze_sessions();
    let start = Instant::now();
    soon("an echo past those that stand still", forward.echo()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(13), "took {:?}", start.elapsed());
    sshd.thaw_sessions();
    for client in &mut open {
        client.write_all(b"y").await.unwrap();
        soon("an open client", client.read_exact(&mut [0])).await.unwrap();
    }
    // Logins that answer again are used again.
    let dials = sshd.dials.load(Ordering::Relaxed);
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut client = forward.connect().await;
        client.write_all(b"Ex").await.unwrap();
        soon("a later client", client.read_exact(&mut [0])).await.unwrap();
        open.push(client);
    }
    assert_eq!(sshd.dials.load(Ordering::Relaxed), dials);
}

/// More than there are logins for clients that keep up, each slower than what it reads.
#[tokio::test]
async fn clients_that_read_slowly_keep_nobody_out() {
    const CLIENTS: usize = 40;
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let mut slow = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = forward.connect().await;
        client.write_all(b"G").await.unwrap();
        client.write_u64(1 << 30).await.unwrap();
        soon("a slow client's first byte", client.read_exact(&mut [0])).await.unwrap();
        slow.spawn(async move {
            let mut paces = interval(Duration::from_millis(250));
            while client.read_exact(&mut [0; 8 << 10]).await.is_ok() {
                paces.tick().await;
            }
        });
    }
    for number in 0..10 {
        let start = Instant::now();
        soon("an echo beside them", forward.echo()).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "echo {number} took {:?}", start.elapsed());
    }
    assert!(slow.try_join_next().is_none(), "one of them was closed");
}

#[tokio::test]
async fn a_wrong_key_closes_clients_and_a_right_one_helps() {
    let sshd = Sshd::new().await;
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", text(&sshd.path("other"))]);
    let forward = sshd.forward_to("service.sock", "other");
    let (one, two) = (forward.connect().await, forward.connect().await);
    soon("the close", closed(one)).await;
    soon("the other close", closed(two)).await;
    let dials = sshd.dials.load(Ordering::Relaxed);
    assert_eq!(dials, 3, "attempts");
    // From now on clients are closed at once, as long as sshd holds the attempts against us.
    for _ in 0..20 {
        soon("a later close", closed(forward.connect().await)).await;
    }
    assert!(sshd.dials.load(Ordering::Relaxed) <= dials + 1);

    fs::copy(sshd.path("id"), sshd.path("other")).unwrap();
    soon("the echo with the right key", forward.echo()).await.unwrap();
}

/// A guest's sshd that opens channels by itself: each would be kept for as long as the connection lives.
#[tokio::test]
async fn a_guest_may_open_no_channel() {
    use russh::server;

    struct Hostile(Option<tokio::sync::oneshot::Sender<Vec<bool>>>);

    impl server::Handler for Hostile {
        type Error = russh::Error;

        async fn auth_publickey(
            &mut self,
            _: &str,
            _: server::VerifiedPublicKey<'_>,
        ) -> Result<server::Auth, Self::Error> {
            Ok(server::Auth::Accept)
        }

        async fn auth_succeeded(&mut self, session: &mut server::Session) -> Result<(), Self::Error> {
            let (handle, tell) = (session.handle(), self.0.take());
            tokio::spawn(async move {
                let opened = vec![
                    handle.channel_open_session().await.is_ok(),
                    handle.channel_open_agent().await.is_ok(),
                    handle.channel_open_x11("a", 1).await.is_ok(),
                    handle.channel_open_direct_tcpip("a", 1, "b", 1).await.is_ok(),
                    handle.channel_open_forwarded_tcpip("a", 1, "b", 1).await.is_ok(),
                    handle.channel_open_direct_streamlocal("/a").await.is_ok(),
                    handle.channel_open_forwarded_streamlocal("/a").await.is_ok(),
                ];
                if let Some(tell) = tell {
                    let _ = tell.send(opened);
                }
            });
            Ok(())
        }
    }

    let sshd = Sshd::prepare().await;
    let listener = tokio::net::TcpListener::bind(sshd.addr).await.unwrap();
    let forward = sshd.forward();
    let _client = forward.connect().await;
    let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
    let key = gvproxy::ssh::load_key(&sshd.path("host"), None).unwrap();
    let config = server::Config { keys: vec![key], ..server::Config::default() };
    let (tell, told) = tokio::sync::oneshot::channel();
    let session = server::run_stream(Arc::new(config), stream, Hostile(Some(tell))).await.unwrap();
    let session = tokio::spawn(session);
    assert_eq!(soon("the answers", told).await.unwrap(), [false; 7]);
    session.abort();
}
