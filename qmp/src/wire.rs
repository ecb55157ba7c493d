//! The wire: one JSON object a line, in both directions.
//!
//! Owns: cutting bytes into lines with a bound, reading a line as a message. Does no I/O. The bound is why
//! [`qapi`]'s own codec is not used: it keeps what has no line end for as long as memory lasts.

use bytes::{Buf, BytesMut};
use qapi::{Any, Dictionary, ErrorClass, qmp};

use crate::{Event, Lost, Refusal};

/// The longest message that is taken, in bytes. QEMU 7.2's longest, `query-qmp-schema`, is about 200 kB.
pub const MAX_LINE: usize = 1 << 20;
/// How much of what is no message goes into the error.
const EXCERPT: usize = 60;

/// Bytes as they come, until they are a line. Fill [`Lines::buffer`] behind its end.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) buffer: BytesMut,
    /// There is no line end in front of this.
    scanned: usize,
}

impl Lines {
    /// The next whole line without its end; `None` when more bytes are needed. Empty lines are left out.
    pub(crate) fn next_line(&mut self) -> Result<Option<BytesMut>, Lost> {
        while let Some(at) = self.buffer.iter().skip(self.scanned).position(|byte| *byte == b'\n') {
            let length = self.scanned + at;
            self.scanned = 0;
            if length > MAX_LINE {
                return Err(Lost::TooLong);
            }
            let line = self.buffer.split_to(length);
            self.buffer.advance(1);
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
        self.scanned = self.buffer.len();
        if self.scanned > MAX_LINE { Err(Lost::TooLong) } else { Ok(None) }
    }
}

/// One message from QEMU.
#[derive(Debug)]
pub(crate) enum Message {
    Greeting(qmp::QMP),
    Event(Event),
    /// The answer to the command of this number; QEMU gives none when it could not read the command.
    Reply {
        id: Option<u64>,
        result: Result<Any, Refusal>,
    },
}

impl Message {
    pub(crate) fn read(line: &[u8]) -> Result<Self, Lost> {
        let garbage = || Lost::Garbage(excerpt(line));
        let Ok(Any::Object(mut message)) = serde_json::from_slice(line) else { return Err(garbage()) };
        if let Some(greeting) = message.remove("QMP") {
            return serde_json::from_value(greeting).map(Self::Greeting).map_err(|_| garbage());
        }
        if let Some(Any::String(name)) = message.remove("event") {
            return Ok(Self::Event(Event::from_message(name, message)));
        }
        let id = match message.get("id") {
            None => None,
            Some(id) => Some(id.as_u64().ok_or_else(garbage)?),
        };
        let result = match (message.remove("return"), message.remove("error")) {
            (Some(value), None) => Ok(value),
            (None, Some(Any::Object(error))) => Err(refusal(error).ok_or_else(garbage)?),
            _ => return Err(garbage()),
        };
        Ok(Self::Reply { id, result })
    }
}

fn refusal(mut error: Dictionary) -> Option<Refusal> {
    let class = serde_json::from_value(error.remove("class")?).unwrap_or(ErrorClass::GenericError);
    let Any::String(desc) = error.remove("desc")? else { return None };
    Some(Refusal { class, desc })
}

/// How a line begins, for an error text.
fn excerpt(line: &[u8]) -> String {
    let (begin, more) = line.split_at_checked(EXCERPT).map_or((line, ""), |(begin, _)| (begin, "..."));
    String::from_utf8_lossy(begin).into_owned() + more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> (Vec<String>, Lines) {
        let mut lines = Lines::default();
        lines.buffer.extend_from_slice(text);
        let mut out = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            out.push(String::from_utf8(line.to_vec()).unwrap());
        }
        (out, lines)
    }

    #[test]
    fn whole_lines_come_out_and_half_ones_wait() {
        let (out, mut lines) = lines(b"{}\r\n\r\n\n{\"a\":1}\n{\"b\"");
        assert_eq!(out, ["{}\r", "{\"a\":1}"]);
        lines.buffer.extend_from_slice(b":2}\n");
        assert_eq!(lines.next_line().unwrap().unwrap(), b"{\"b\":2}"[..]);
        assert!(lines.next_line().unwrap().is_none());
    }

    #[test]
    fn a_line_is_bounded_whether_it_ends_or_not() {
        let (out, mut longest) = lines(&[vec![b'x'; MAX_LINE], vec![b'\n']].concat());
        assert_eq!((out.len(), out[0].len()), (1, MAX_LINE));
        longest.buffer.extend_from_slice(&vec![b'x'; MAX_LINE]);
        assert!(longest.next_line().unwrap().is_none());
        longest.buffer.extend_from_slice(b"x");
        assert!(matches!(longest.next_line(), Err(Lost::TooLong)));

        let mut ended = Lines::default();
        ended.buffer.extend_from_slice(&[vec![b'x'; MAX_LINE + 1], vec![b'\n']].concat());
        assert!(matches!(ended.next_line(), Err(Lost::TooLong)));
    }

    #[test]
    fn replies() {
        let reply = |line: &str| match Message::read(line.as_bytes()) {
            Ok(Message::Reply { id, result }) => (id, result),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(reply(r#"{"return": {}, "id": 7}"#), (Some(7), Ok(Any::Object(Dictionary::new()))));
        let refused = |class| Err(Refusal { class, desc: "no".into() });
        let line = r#"{"error": {"class": "DeviceNotFound", "desc": "no"}, "id": 7}"#;
        assert_eq!(reply(line), (Some(7), refused(ErrorClass::DeviceNotFound)));
        let line = r#"{"error": {"class": "OfTomorrow", "desc": "no"}}"#;
        assert_eq!(reply(line), (None, refused(ErrorClass::GenericError)));
    }

    #[test]
    fn everything_else_is_garbage_and_shown_in_part() {
        let long = format!("[{}]", "0,".repeat(500) + "0");
        let deep = "[".repeat(100_000);
        for line in [
            "",
            "x",
            "1",
            "[]",
            "{}",
            "{\"return\": 1, \"error\": 1}",
            "{\"error\": {\"class\": 1}}",
            "{\"event\": 1}",
            "{\"QMP\": 1}",
            "{\"return\": 1, \"id\": \"x\"}",
            "{\"return\": {}",
            "\u{feff}{}",
            &long,
            &deep,
        ] {
            match Message::read(line.as_bytes()) {
                Err(Lost::Garbage(shown)) => assert!(shown.len() <= EXCERPT + 3, "{shown}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        assert!(matches!(Message::read(b"\xff\xfe{\"return\": 1}"), Err(Lost::Garbage(_))));
    }
}
