//! What no QEMU can be made to do: a server that is slow, breaks off, talks nonsense. The clock is tokio's
//! paused one wherever time-outs are waited for, so they are exact and take no time; nothing may hang, panic,
//! or grow without a bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

mod peer;

use std::cell::Cell;
use std::error::Error;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use peer::{GREETING, Peer, session, unmet};
use qmp::qapi::ErrorClass;
use qmp::qapi::qmp::{query_status, stop};
use qmp::{Address, Client, ExecuteError, HandshakeError, Lost, MAX_LINE, Timeouts, UnplugError, WaitError};
use serde_json::json;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::yield_now;
use tokio::time::Instant;

const ROOM: usize = 64 * 1024;

fn chain(error: &dyn Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    error.to_string() + &source.unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_greeting_byte_by_byte() {
    let (client, mut peer) = unmet(1);
    let (client, ()) = tokio::join!(client, async {
        for byte in GREETING.as_bytes() {
            peer.send([*byte]).await;
        }
        let command = peer.expect("qmp_capabilities").await;
        peer.send(b"\r\n\r\n").await;
        peer.answer(&command, json!({})).await;
    });
    assert_eq!(client.unwrap().version().package, "scripted");
}

#[tokio::test(start_paused = true)]
async fn no_greeting_is_busy() {
    let begin = Instant::now();
    for half in ["", r#"{"QMP": {"version":"#] {
        let (client, mut peer) = unmet(ROOM);
        peer.send(half).await;
        let error = client.await.unwrap_err();
        assert!(matches!(error, HandshakeError::Busy { .. }), "{error:?}");
        assert!(chain(&error).contains("another client"), "{}", chain(&error));
        assert!(peer.command().await.is_none(), "the client is still there");
    }
    assert_eq!(begin.elapsed(), 2 * Timeouts::default().greeting);
}

#[tokio::test(start_paused = true)]
async fn no_qmp_greeting() {
    for text in [
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "{\"return\": {}, \"id\": 0}\n",
        "{\"event\": \"STOP\"}\n",
        "{\"QMP\": {}}\n",
        "{\"QMP\": \"7.2\"}\n",
        "\u{0}\u{1}\n",
    ] {
        let (client, mut peer) = unmet(ROOM);
        peer.send(text).await;
        let error = client.await.unwrap_err();
        assert!(matches!(error, HandshakeError::NotQmp(_)), "{text:?}: {error:?}");
        assert!(peer.command().await.is_none(), "the client is still there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_an_end() {
    let (client, mut peer) = unmet(ROOM);
    let sending = tokio::spawn(async move {
        peer.send(vec![b'x'; 64 * MAX_LINE]).await;
        peer.command().await
    });
    let error = client.await.unwrap_err();
    assert!(matches!(error, HandshakeError::NotQmp(Lost::TooLong)), "{error:?}");
    assert!(sending.await.unwrap().is_none(), "the client is still there");

    let (mut client, mut peer) = session(ROOM).await;
    let (result, ()) = tokio::join!(client.execute(query_status {}), async {
        peer.expect("query-status").await;
        peer.send(b"{\"return\": \"").await;
        peer.send(vec![b'x'; 2 * MAX_LINE]).await;
    });
    assert!(matches!(result, Err(ExecuteError::Lost { source: Lost::TooLong, .. })), "{result:?}");
    assert!(!client.is_connected());
}

#[tokio::test(start_paused = true)]
async fn closed_at_each_step() {
    let answer = r#"{"return": {}, "id": 0}"#;
    let script: String = format!("{GREETING}{answer}\r\n");
    for length in 0..script.len() {
        let (client, mut peer) = unmet(ROOM);
        let (result, ()) = tokio::join!(client, async {
            peer.send(&script.as_bytes()[..length]).await;
            drop(peer);
        });
        let greeted = length > GREETING.find('\n').unwrap();
        match result {
            Err(HandshakeError::Lost(Lost::Closed)) if !greeted => {}
            Err(HandshakeError::Capabilities(ExecuteError::Lost { source: Lost::Closed, command }))
                if greeted =>
            {
                assert_eq!(command, "qmp_capabilities");
            }
            other => panic!("{length} of {}: {other:?}", script.len()),
        }
    }

    let (mut client, mut peer) = session(ROOM).await;
    peer.send(
        r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#.to_owned() + "\n",
    )
    .await;
    peer.send("{\"eve").await;
    drop(peer);
    let result = client.execute(query_status {}).await;
    assert!(matches!(result, Err(ExecuteError::Lost { source: Lost::Closed, .. })), "{result:?}");
    assert_eq!(client.next_event().await.unwrap().name, "SHUTDOWN", "what came before the end is kept");
    assert!(matches!(client.next_event().await, Err(Lost::Closed)));
    assert!(matches!(client.wait_event(|_| true, Duration::MAX).await, Err(WaitError::Lost(Lost::Closed))));
    assert!(matches!(client.execute(stop {}).await, Err(ExecuteError::Lost { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_error_to_each_command() {
    let error = json!({"class": "CommandNotFound", "desc": "The command has not been found"});
    let (client, mut peer) = unmet(ROOM);
    let (result, ()) = tokio::join!(client, async {
        peer.send(GREETING).await;
        let command = peer.expect("qmp_capabilities").await;
        peer.send_json(json!({"error": error, "id": command["id"]})).await;
    });
    assert!(matches!(result, Err(HandshakeError::Capabilities(ExecuteError::Refused { .. }))), "{result:?}");

    let (mut client, mut peer) = session(ROOM).await;
    tokio::spawn(async move {
        while let Some(command) = peer.command().await {
            // As QEMU does where it could not read the command: without its number.
            peer.send_json(json!({"error": error})).await;
            peer.send_json(json!({"event": "STOP", "data": {"for": command["execute"]}})).await;
        }
    });
    let result = client.execute(stop {}).await.unwrap_err();
    assert_eq!(result.refusal().unwrap().class, ErrorClass::CommandNotFound);
    assert_eq!(
        chain(&result),
        "stop: QEMU says The command has not been found (CommandNotFound)",
        "the class and the text"
    );
    assert!(client.network().await.unwrap_err().refusal().is_some());
    let unplugged = client.unplug("nic0", Duration::from_secs(1)).await;
    assert!(
        matches!(unplugged, Err(UnplugError::Execute { source: ExecuteError::Refused { .. }, .. })),
        "{unplugged:?}"
    );
    let slot = client.free_pci_bus().await.unwrap_err();
    assert!(matches!(slot, qmp::SlotError::Execute(_)), "{slot:?}");
    assert!(client.is_connected());
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_nobody_elses() {
    let (mut client, mut peer) = session(ROOM).await;
    let begin = Instant::now();
    let error = client.execute(query_status {}).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Timeout { command: "query-status", .. }), "{error:?}");
    assert_eq!(begin.elapsed(), Timeouts::default().command);

    let first = peer.expect("query-status").await;
    peer.answer(&first, json!({"status": "paused", "running": false})).await;
    let (second, ()) = tokio::join!(client.execute(query_status {}), async {
        let command = peer.expect("query-status").await;
        assert_ne!(command["id"], first["id"]);
        peer.answer(&command, json!({"status": "running", "running": true})).await;
    });
    assert!(second.unwrap().running);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_dropped_half_sent() {
    let (mut client, mut peer) = session(8).await;
    {
        let mut dropped = Box::pin(client.execute(query_status {}));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx))).await;
        assert!(polled.is_pending(), "the pipe holds eight bytes");
    }
    // Nobody reads, so neither of these gets anywhere, nor waits in memory.
    for _ in 0..20 {
        let result = client.execute(stop {}).await;
        assert!(matches!(result, Err(ExecuteError::Timeout { .. })), "{result:?}");
    }
    let (result, ()) = tokio::join!(client.execute(query_status {}), async {
        let dropped = peer.expect("query-status").await;
        let next = peer.expect("query-status").await;
        assert_eq!(next["id"].as_u64(), dropped["id"].as_u64().map(|id| id + 1));
        peer.answer(&dropped, json!({"status": "paused", "running": false})).await;
        peer.answer(&next, json!({"status": "running", "running": true})).await;
    });
    assert!(result.unwrap().running);
}

#[tokio::test(start_paused = true)]
async fn events_wait_in_order_and_one_can_be_picked() {
    let (mut client, mut peer) = session(ROOM).await;
    let (result, ()) = tokio::join!(client.execute(query_status {}), async {
        let command = peer.expect("query-status").await;
        for name in ["STOP", "OF_TOMORROW", "RESUME"] {
            peer.send_json(json!({"event": name})).await;
        }
        peer.answer(&command, json!({"status": "running", "running": true})).await;
        peer.send_json(json!({"event": "RESET"})).await;
    });
    result.unwrap();
    let second = Duration::from_secs(1);
    assert_eq!(client.wait_event(|event| event.name == "RESET", second).await.unwrap().name, "RESET");
    assert_eq!(client.wait_event(|event| event.name == "RESUME", second).await.unwrap().name, "RESUME");
    let begin = Instant::now();
    let missing = client.wait_event(|event| event.name == "POWERDOWN", second).await;
    assert!(matches!(missing, Err(WaitError::Timeout(_))), "{missing:?}");
    assert_eq!(begin.elapsed(), second);
    assert_eq!(client.next_event().await.unwrap().name, "STOP");
    assert_eq!(client.next_event().await.unwrap().name, "OF_TOMORROW");
    assert_eq!(client.lost_events(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_events_is_bounded_and_delays_no_time_out() {
    let (mut client, mut peer) = session(ROOM).await;
    let flood = tokio::spawn(async move {
        let mut number = 0_u64;
        // Long enough to pass the bound, and then for as long as somebody reads.
        while number < 40_000 {
            peer.send_json(json!({"event": "FLOOD", "data": {"number": number}})).await;
            number += 1;
        }
        peer
    });
    let result = client.execute(query_status {}).await;
    assert!(matches!(result, Err(ExecuteError::Timeout { .. })), "{result:?}");
    let peer = flood.await.unwrap();
    let first = client.next_event().await.unwrap().data["number"].as_u64().unwrap();
    assert!(first > 0 && first == client.lost_events(), "{first} {}", client.lost_events());
    let mut last = first;
    while last < 39_999 {
        let next = client.next_event().await.unwrap().data["number"].as_u64().unwrap();
        assert_eq!(next, last + 1);
        last = next;
    }
    drop(peer);
}

/// What was read at once is many messages, and others of the thread have their turn between them.
#[tokio::test]
async fn a_flood_of_events_keeps_nobody_waiting() {
    const EVENTS: usize = 10_000;
    let (mut client, mut peer) = session(1 << 20).await;
    for _ in 0..EVENTS {
        peer.send_json(json!({"event": "FLOOD"})).await;
    }
    let (is_over, turns) = (Cell::new(false), Cell::new(0));
    let others = async {
        while !is_over.get() {
            turns.set(turns.get() + 1);
            yield_now().await;
        }
    };
    let all = async {
        for _ in 0..EVENTS {
            client.next_event().await.unwrap();
        }
        is_over.set(true);
    };
    tokio::join!(all, others);
    assert!(turns.get() >= EVENTS / 500, "{} turns", turns.get());
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_another_shape() {
    let (mut client, mut peer) = session(ROOM).await;
    tokio::spawn(async move {
        let command = peer.expect("query-status").await;
        peer.answer(&command, json!({"status": "of-tomorrow", "running": true})).await;
        peer.serve().await;
    });
    let error = client.execute(query_status {}).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Reply { command: "query-status", .. }), "{error:?}");
    assert!(client.execute(query_status {}).await.unwrap().running);
}

#[tokio::test(start_paused = true)]
async fn messages_out_of_turn_end_the_session() {
    for message in ["{\"return\": {}, \"id\": 99}\n", GREETING, "{\"return\": {}, \"id\": 1}\n"] {
        let (mut client, mut peer) = session(ROOM).await;
        peer.send(message).await;
        let lost = client.next_event().await;
        assert!(matches!(lost, Err(Lost::OutOfTurn(_))), "{message}: {lost:?}");
        assert!(peer.command().await.is_none(), "the client is still there");
        assert!(matches!(client.next_event().await, Err(Lost::Closed)));
    }
}

/// Real messages with bytes changed, lost, doubled: whatever comes of it, it comes.
#[tokio::test(start_paused = true)]
async fn damaged_messages() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % below
    };
    let whole = format!(
        "{}\r\n{}\r\n{}\r\n",
        json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"},
               "timestamp": {"seconds": 1, "microseconds": 2}}),
        json!({"error": {"class": "GenericError", "desc": "no"}, "id": 0}),
        json!({"return": {"status": "running", "running": true}, "id": 1}),
    );
    let (mut ended, mut replied) = (0, 0);
    for case in 0..500 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"{}[]\",:\n\\"[random(9)]),
            }
        }
        let (mut client, mut peer) = session(ROOM).await;
        peer.send(&bytes).await;
        match client.execute(query_status {}).await {
            Ok(_) | Err(ExecuteError::Refused { .. } | ExecuteError::Reply { .. }) => replied += 1,
            Err(ExecuteError::Lost { .. }) => {
                ended += 1;
                assert!(peer.command().await.is_none() || peer.command().await.is_none(), "case {case}");
            }
            Err(ExecuteError::Timeout { .. }) => {}
            Err(error @ ExecuteError::Arguments { .. }) => panic!("case {case}: {error}"),
        }
    }
    assert!(ended > 0 && replied > 0, "{ended} {replied}");
}

#[tokio::test(start_paused = true)]
async fn unplug_ends_as_the_guest_says() {
    let within = Duration::from_secs(3);
    let deleted =
        json!({"event": "DEVICE_DELETED", "data": {"device": "nic0", "path": "/machine/peripheral/nic0"}});
    let (mut client, mut peer) = session(ROOM).await;
    // Of an earlier device of that name: not what is waited for.
    peer.send_json(deleted.clone()).await;
    peer.send_json(json!({"event": "STOP"})).await;
    client.wait_event(|event| event.name == "STOP", within).await.unwrap();
    let begin = Instant::now();
    let (result, ()) = tokio::join!(client.unplug("nic0", within), async {
        let command = peer.expect("device_del").await;
        peer.answer(&command, json!({})).await;
        peer.send_json(json!({"event": "DEVICE_DELETED", "data": {"device": "nic1", "path": ""}})).await;
    });
    assert!(matches!(result, Err(UnplugError::NoAnswer { .. })), "{result:?}");
    assert_eq!(begin.elapsed(), within);

    let (result, ()) = tokio::join!(client.unplug("nic0", within), async {
        let command = peer.expect("device_del").await;
        // Before the reply is as good as after it.
        peer.send_json(deleted).await;
        peer.answer(&command, json!({})).await;
    });
    result.unwrap();

    let (result, ()) = tokio::join!(client.unplug("nic0", within), async {
        let command = peer.expect("device_del").await;
        peer.answer(&command, json!({})).await;
        peer.send_json(json!({"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "nic0", "path": ""}}))
            .await;
    });
    assert!(matches!(result, Err(UnplugError::Guest { .. })), "{result:?}");
}

#[tokio::test]
async fn dropping_the_client_closes_at_once() {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let peer = Peer::new(
        tokio::net::UnixStream::from_std({
            let copy = theirs.try_clone().unwrap();
            copy.set_nonblocking(true).unwrap();
            copy
        })
        .unwrap(),
    );
    let mut peer = peer;
    let ours = tokio::net::UnixStream::from_std(ours).unwrap();
    let (client, ()) = tokio::join!(Client::handshake(ours, Timeouts::default()), peer.greet());
    let client = client.unwrap();
    let mut byte = [0];
    assert_eq!(theirs.read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock, "open until then");
    drop(client);
    assert_eq!(theirs.read(&mut byte).unwrap(), 0, "closed, without another turn of the runtime");
}

#[tokio::test(start_paused = true)]
async fn nobody_serves_the_path() {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("none"));
    let error = Client::connect(&address, Timeouts::default()).await.unwrap_err();
    assert!(error.is_absent() && error.is_transient() && !error.is_busy(), "{error:?}");
    assert!(chain(&error).contains(&address.to_string()), "{}", chain(&error));

    let begin = Instant::now();
    let within = Duration::from_secs(7);
    let error = Client::connect_within(&address, Timeouts::default(), Some(within)).await.unwrap_err();
    assert!(error.is_absent(), "{error:?}");
    assert_eq!(begin.elapsed(), within);

    // Left over by a process that ended.
    let left = directory.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    let error = Client::connect(&Address::Unix(left), Timeouts::default()).await.unwrap_err();
    assert!(error.is_absent(), "{error:?}");
}

#[tokio::test]
async fn connects_once_somebody_serves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let address = Address::Unix(path.clone());
    let within = Some(Duration::from_secs(60));
    let (client, ()) = tokio::join!(Client::connect_within(&address, Timeouts::default(), within), async {
        let listener = UnixListener::bind(&path).unwrap();
        // The first goes while it greets, the second is a QEMU that stays.
        let mut first = Peer::new(listener.accept().await.unwrap().0);
        first.send(&GREETING[..20]).await;
        drop(first);
        let mut second = Peer::new(listener.accept().await.unwrap().0);
        second.greet().await;
        tokio::spawn(second.serve());
    });
    assert!(client.unwrap().execute(query_status {}).await.unwrap().running);
}

#[tokio::test]
async fn does_not_insist_on_what_speaks_something_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ssh");
    let listener = UnixListener::bind(&path).unwrap();
    let address = Address::Unix(path);
    let (result, ()) = tokio::join!(Client::connect_within(&address, Timeouts::default(), None), async {
        Peer::new(listener.accept().await.unwrap().0).send("SSH-2.0-x\r\n").await;
    });
    let error = result.unwrap_err();
    assert!(matches!(error.handshake(), Some(HandshakeError::NotQmp(_))), "{error:?}");
    assert!(chain(&error).contains("SSH-2.0-x"), "{}", chain(&error));
}

#[tokio::test]
async fn over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (client, ()) = tokio::join!(Client::connect(&address, Timeouts::default()), async {
        let mut peer = Peer::new(listener.accept().await.unwrap().0);
        peer.greet().await;
        tokio::spawn(peer.serve());
    });
    assert!(client.unwrap().execute(query_status {}).await.unwrap().running);
}

/// Answers as a machine with more ports than anybody needs, all of them in use, each time after `pause`.
async fn have_many_ports(mut peer: Peer<DuplexStream>, pause: Duration) {
    let ports: Vec<_> = (0..1000)
        .map(|number| json!({"name": format!("rp{number}"), "type": "child<pcie-root-port>"}))
        .collect();
    while let Some(command) = peer.command().await {
        tokio::time::sleep(pause).await;
        let list = command["execute"] == "qom-list";
        peer.answer(&command, if list { json!(ports) } else { json!(false) }).await;
    }
}

#[tokio::test]
async fn so_many_ports_are_looked_at() {
    let (mut client, peer) = session(ROOM).await;
    tokio::spawn(have_many_ports(peer, Duration::ZERO));
    let error = client.free_pci_bus().await.unwrap_err().to_string();
    assert_eq!(error.matches("rp").count(), 64, "{error}");
}

/// A machine that answers everything, slowly: many commands have together the time of one.
#[tokio::test(start_paused = true)]
async fn a_slow_answer_to_each_command() {
    let (mut client, peer) = session(ROOM).await;
    tokio::spawn(have_many_ports(peer, Duration::from_secs(3)));
    let begin = Instant::now();
    let error = client.free_pci_bus().await.unwrap_err();
    assert!(matches!(error, qmp::SlotError::Execute(ExecuteError::Timeout { .. })), "{error:?}");
    assert_eq!(begin.elapsed(), Timeouts::default().command);
    client.execute(stop {}).await.unwrap_err();
    assert!(client.is_connected());
}
