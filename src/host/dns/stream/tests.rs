use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::*;
use crate::limit::Limit;

/// A client's end, and the server of the other end. A message of bytes is answered by the same bytes; one
/// that starts with `n` takes the seconds that follow as a digit, one that starts with `-` has no answer, one
/// that starts with `!` panics.
fn connect(buffer: usize) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(buffer);
    let resolve = |message: Vec<u8>| async move {
        match message[..] {
            [b'-', ..] => None,
            [b'!', ..] => panic!("as the test wants it"),
            [b'n', secs, ..] => {
                tokio::time::sleep(Duration::from_secs((secs - b'0').into())).await;
                Some(message)
            }
            _ => Some(message),
        }
    };
    (client, tokio::spawn(serve_stream(server, slot(), turn, resolve)))
}

/// Whose turn it always is.
async fn turn(_: usize) {}

fn slot() -> Slot<()> {
    Limit::new(1, Duration::ZERO).admit(()).unwrap()
}

fn framed(messages: &[&[u8]]) -> Vec<u8> {
    messages.iter().flat_map(|message| [&(message.len() as u16).to_be_bytes(), *message].concat()).collect()
}

async fn read_message(client: &mut DuplexStream) -> Vec<u8> {
    let mut message = vec![0; client.read_u16().await.unwrap().into()];
    client.read_exact(&mut message).await.unwrap();
    message
}

/// What comes until the server is done, and when that is.
async fn rest(client: &mut DuplexStream, start: Instant) -> (Vec<u8>, u64) {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    (rest, start.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn answers_overtake_each_other() {
    let (mut client, server) = connect(65_536);
    let start = Instant::now();
    client.write_all(&framed(&[b"n3 slow", b"-", b"", b"quick", b"n1 middle"])).await.unwrap();
    for expected in [&b""[..], b"quick", b"n1 middle", b"n3 slow"] {
        assert_eq!(read_message(&mut client).await, expected);
    }
    assert_eq!(start.elapsed().as_secs(), 3);
    assert_eq!(rest(&mut client, start).await, (vec![], 3 + 8), "idle since the last answer");
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_query_may_come_in_any_pieces() {
    let (mut client, _server) = connect(7);
    for byte in framed(&[b"first", b"second"]) {
        client.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(read_message(&mut client).await, b"first");
    assert_eq!(read_message(&mut client).await, b"second");
    let long = vec![7; 65_535];
    let (mut reader, mut writer) = tokio::io::split(client);
    let frame = framed(&[&long]);
    let (written, answer) = tokio::join!(writer.write_all(&frame), async {
        let mut answer = vec![0; frame.len()];
        reader.read_exact(&mut answer).await.map(|_| answer)
    });
    written.unwrap();
    assert_eq!(answer.unwrap(), frame);
}

#[tokio::test(start_paused = true)]
async fn a_half_close_waits_for_the_answers() {
    let (mut client, server) = connect(65_536);
    let start = Instant::now();
    client.write_all(&framed(&[b"n5 slow", b"quick"])).await.unwrap();
    client.write_all(&[0, 9, b'c', b'u', b't']).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client, start).await, (framed(&[b"quick", b"n5 slow"]), 5));
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_left() {
    let start = Instant::now();
    let (mut client, _server) = connect(64);
    assert_eq!(rest(&mut client, start).await, (vec![], 10));

    // Bytes that make no message do not count.
    let start = Instant::now();
    let (mut client, server) = connect(64);
    client.write_all(&framed(&[b"whole"])).await.unwrap();
    assert_eq!(read_message(&mut client).await, b"whole");
    for byte in [0, 9, b'd', b'r', b'i', b'p'] {
        client.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(rest(&mut client, start).await, (vec![], 8));
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_left() {
    let (mut client, server) = connect(16);
    let start = Instant::now();
    client.write_all(&framed(&[b"an answer longer than the buffer"])).await.unwrap();
    server.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_128_queries() {
    let (mut client, server) = connect(65_536);
    client.write_all(&framed(&[b"query".as_slice(); 200])).await.unwrap();
    let start = Instant::now();
    assert_eq!(rest(&mut client, start).await, (framed(&[b"query".as_slice(); 128]), 0));
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn queries_on_their_way_are_bounded() {
    let (mut client, server) = tokio::io::duplex(65_536);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let resolve = {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        move |message| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Ordering::Relaxed);
                Some(message)
            }
        }
    };
    let server = tokio::spawn(serve_stream(server, slot(), turn, resolve));
    client.write_all(&framed(&[b"query".as_slice(); 100])).await.unwrap();
    client.shutdown().await.unwrap();
    let start = Instant::now();
    assert_eq!(rest(&mut client, start).await, (framed(&[b"query".as_slice(); 100]), 4));
    assert_eq!(most.load(Ordering::Relaxed), MAX_PIPELINED);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_question_that_panics_costs_its_own_answer() {
    let (mut client, server) = connect(64);
    client.write_all(&framed(&[b"!", b"good"])).await.unwrap();
    assert_eq!(read_message(&mut client).await, b"good");
    drop(client);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_idle_makes_room() {
    let limit = Limit::new(2, Duration::ZERO);
    let open = |secs: u64| {
        let (client, server) = tokio::io::duplex(64);
        let slot = limit.admit(()).unwrap();
        let resolve = move |message| async move {
            tokio::time::sleep(Duration::from_secs(secs)).await;
            Some(message)
        };
        (client, tokio::spawn(serve_stream(server, slot, turn, resolve)))
    };
    let start = Instant::now();
    let (mut busy, _busy) = open(3);
    busy.write_all(&framed(&[b"slow"])).await.unwrap();
    let (mut idle, _idle) = open(0);
    idle.write_all(&framed(&[b"quick"])).await.unwrap();
    assert_eq!(read_message(&mut idle).await, b"quick");
    let (mut new, _new) = open(0);
    assert_eq!(rest(&mut idle, start).await, (vec![], 0));
    new.write_all(&framed(&[b"new"])).await.unwrap();
    assert_eq!(read_message(&mut new).await, b"new");
    assert_eq!(read_message(&mut busy).await, b"slow");
}

#[tokio::test(start_paused = true)]
async fn one_that_speaks_slowly_is_no_silent_one() {
    let limit = Limit::new(2, Duration::ZERO);
    let connect = || {
        let (client, server) = tokio::io::duplex(64);
        let slot = limit.admit(()).unwrap();
        (client, tokio::spawn(serve_stream(server, slot, turn, async |message| Some(message))))
    };
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    let (mut slow, _server) = connect();
    pause().await;
    let (mut silent, _other) = connect();
    pause().await;
    let frame = framed(&[b"slow"]);
    slow.write_all(&frame[..3]).await.unwrap();
    pause().await;
    let _newest = connect();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "it makes room");
    slow.write_all(&frame[3..]).await.unwrap();
    assert_eq!(read_message(&mut slow).await, b"slow");
}
