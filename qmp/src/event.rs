//! Events: what QEMU tells without being asked.
//!
//! Owns: [`Event`]. It is kept as it came, so that an event this crate has no type for ends nothing.

use std::time::{Duration, SystemTime};

use qapi::{Any, Dictionary};

/// One event. Decide by [`name`](Self::name); read the data with [`read`](Self::read).
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// QEMU's name for it, such as `SHUTDOWN`.
    pub name: String,
    /// What belongs to it; `Null` when there is nothing.
    pub data: Any,
    /// When it happened, by QEMU's clock; `None` when that failed.
    pub time: Option<SystemTime>,
}

impl Event {
    /// The data as the type `E` of [`qapi::qmp`], if it is this event: `event.read::<qapi::qmp::SHUTDOWN>()`.
    /// `None` for another event, and for data that the type does not know, as from a newer QEMU: then `name`
    /// and `data` still tell.
    pub fn read<E: qapi::Event>(&self) -> Option<E> {
        if self.name != E::NAME {
            return None;
        }
        let data = if self.data.is_null() { Any::Object(Dictionary::new()) } else { self.data.clone() };
        serde_json::from_value(data).ok()
    }

    /// Of an `event` message, without its name.
    pub(crate) fn from_message(name: String, mut rest: Dictionary) -> Self {
        let part = |key| rest.get("timestamp").and_then(|time| time.get(key)).and_then(Any::as_u64);
        let time = part("seconds").zip(part("microseconds")).and_then(|(seconds, microseconds)| {
            SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))?
                .checked_add(Duration::from_micros(microseconds))
        });
        Self { name, data: rest.remove("data").unwrap_or(Any::Null), time }
    }
}

#[cfg(test)]
mod tests {
    use qapi::qmp;
    use serde_json::json;

    use super::*;

    fn event(message: Any) -> Event {
        let Any::Object(mut rest) = message else { panic!("{message} is no object") };
        let name = rest.remove("event").unwrap().as_str().unwrap().to_owned();
        Event::from_message(name, rest)
    }

    #[test]
    fn typed_by_name() {
        let shutdown = event(json!({
            "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit", "later": 1},
            "timestamp": {"seconds": 1, "microseconds": 500_000},
        }));
        assert_eq!(shutdown.read::<qmp::SHUTDOWN>().unwrap().reason, qmp::ShutdownCause::host_qmp_quit);
        assert!(shutdown.read::<qmp::RESET>().is_none());
        assert_eq!(shutdown.time, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)));
        assert!(event(json!({"event": "STOP"})).read::<qmp::STOP>().is_some());
    }

    #[test]
    fn what_no_type_knows_stays_readable() {
        let newer = event(json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "tea-break"}}));
        assert!(newer.read::<qmp::SHUTDOWN>().is_none());
        assert_eq!((newer.name.as_str(), &newer.data["reason"]), ("SHUTDOWN", &json!("tea-break")));
        for time in [json!(-1), json!(u64::MAX), json!("x")] {
            let odd = event(json!({"event": "X", "timestamp": {"seconds": time, "microseconds": u64::MAX}}));
            assert_eq!(odd.time, None, "{odd:?}");
        }
    }
}
