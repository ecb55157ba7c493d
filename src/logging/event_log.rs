//! Lines for the event log of Windows: `[info ] NAME: message {key = value}`. Owns: the form of a line. May
//! not: fail; where there is no log, standard error has the lines.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::{LINE_MAX, OURS};
use crate::sys::event_log::{EventLog, Severity};
use crate::text::push_quoted;

/// Reports every event of the process from here on that is as severe as `ours`, under a name.
///
/// # Errors
/// The process has a log already.
pub fn install(name: String, ours: LevelFilter) -> anyhow::Result<()> {
    let layer = Reports { log: EventLog::open(), name, ours };
    Ok(tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?)
}

#[derive(Debug)]
struct Reports {
    log: Option<EventLog>,
    name: String,
    ours: LevelFilter,
}

impl<S: Subscriber> Layer<S> for Reports {
    fn enabled(&self, of: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        let is_ours = OURS.iter().any(|own| of.target().starts_with(own)) || of.target() == "win_sshproxy";
        *of.level() <= if is_ours { self.ours } else { self.ours.min(LevelFilter::WARN) }
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let level = *event.metadata().level();
        let mut parts = Parts::default();
        event.record(&mut parts);
        let line = parts.line(level, &self.name);
        let severity = match level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            Level::INFO => Severity::Information,
            _ => Severity::Debug,
        };
        if !self.log.as_ref().is_some_and(|log| log.report(severity, &line)) {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// What an event says.
#[derive(Debug, Default)]
struct Parts {
    message: String,
    fields: String,
}

impl Parts {
    fn line(&self, level: Level, name: &str) -> String {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut line = format!("[{level:<5}] {name}: {}", self.message);
        if !self.fields.is_empty() {
            let _ = write!(line, " {{{}}}", self.fields);
        }
        line
    }

    fn add(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            return push_plain(&mut self.message, value);
        }
        if !self.fields.is_empty() {
            self.fields.push_str(", ");
        }
        let _ = write!(self.fields, "{} = ", field.name());
        push_plain(&mut self.fields, value);
    }
}

/// What others said stands quoted where it is no plain text; and only so much of it.
fn push_plain(out: &mut String, value: &str) {
    let room = LINE_MAX.saturating_sub(out.len());
    if value.len() <= room && !value.contains(char::is_control) {
        return out.push_str(value);
    }
    push_quoted(out, value.as_bytes(), LINE_MAX);
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_originals() {
        let mut parts = Parts { message: "Listening on: x".into(), fields: String::new() };
        assert_eq!(parts.line(Level::INFO, "machine"), "[info ] machine: Listening on: x");
        parts.fields = "error = refused, dest = y".into();
        assert_eq!(
            parts.line(Level::ERROR, "machine"),
            "[error] machine: Listening on: x {error = refused, dest = y}"
        );
        let mut long = String::new();
        push_plain(&mut long, &"a\nb".repeat(10_000));
        assert!(long.len() <= LINE_MAX + 8 && !long.contains('\n'), "{}", long.len());
    }
}
