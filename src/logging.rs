//! The log: logrus's text format over `tracing`, one bounded line an event. Owns: the log file.
//! May not: fail, panic or wait once it is open; a full disk, a full or a closed pipe loses lines. Read next:
//! `writer.rs`; `main.rs`.
//!
//! Spans are not written: what a line has to say stands in its own fields.

pub mod event_log;
pub mod frames;
mod limited;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

use crate::text::push_quoted;

use writer::Writer;

pub use limited::Limited;

/// A line stops growing here, in bytes; what guests and peers can have written into it is theirs to choose.
const LINE_MAX: usize = 4096;
/// A value stops growing here, in bytes before it is quoted.
const VALUE_MAX: usize = 2048;
/// Modules whose events are written at the level that was asked for; others are only heard when they warn.
const OURS: [&str; 4] = ["gvforwarder", "gvproxy", "netstack", "qmp"];

/// Where log lines go. Clones share the file.
#[derive(Clone, Debug)]
pub struct Log {
    stderr: Writer,
    file: Option<Writer>,
    format: Format,
}

impl Log {
    /// Standard error. To be called while the process has one thread, else times are in UTC.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn stderr() -> Result<Self> {
        // RFC 3339 has no seconds in an offset; only zones of before 1972 do.
        let offset =
            UtcOffset::current_local_offset().ok().filter(|offset| offset.seconds_past_minute() == 0);
        let format = Format { offset: offset.unwrap_or(UtcOffset::UTC) };
        Ok(Self { stderr: Writer::stderr(format).context("cannot start the log")?, file: None, format })
    }

    /// The file at `path` instead, emptied.
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let file = Writer::file(path, self.format, self.stderr.clone())
            .with_context(|| format!("unable to open log file {}", path.display()))?;
        Ok(Self { file: Some(file), ..self })
    }

    /// Writes every event of the process from here on that is as severe as `ours`, and every panic.
    ///
    /// # Errors
    /// The process has a log already.
    pub fn install(&self, ours: LevelFilter) -> Result<()> {
        let others = ours.min(if ours >= LevelFilter::DEBUG { LevelFilter::INFO } else { LevelFilter::WARN });
        let layer = Logrus { log: self.clone(), ours, others };
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;
        // What standard error says is lost where nobody kept it; support reads the log. The standard
        // library's own hook would wait for it.
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            log.writer().write(&log.format.line("error", &panic.to_string(), &[]));
            let mut text = format!("thread '{}' {panic}\n", thread::current().name().unwrap_or("<unnamed>"));
            let trace = Backtrace::capture();
            if trace.status() == BacktraceStatus::Captured {
                text.push_str(&trace.to_string());
            }
            log.stderr.write(&text);
            log.flush();
        }));
        Ok(())
    }

    /// Writes a line about the end of the process, to standard error as well where the log is a file, and
    /// returns when it is written, or cannot be. `severity` is a level's name in logrus: `fatal`, `error`.
    pub fn last_words(&self, severity: &str, message: &str) {
        let line = self.format.line(severity, message, &[]);
        self.stderr.write(&line);
        if let Some(file) = &self.file {
            file.write(&line);
        }
        self.flush();
    }

    /// Returns when what was logged is written, or a second later.
    pub fn flush(&self) {
        self.stderr.flush();
        if let Some(file) = &self.file {
            file.flush();
        }
    }

    /// Whether it is a file, which can be moved away.
    pub fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// Opens the file again by its name, for what is logged from now on.
    pub fn reopen(&self) {
        if let Some(file) = &self.file {
            file.reopen();
        }
    }

    fn writer(&self) -> &Writer {
        self.file.as_ref().unwrap_or(&self.stderr)
    }
}

/// What a line looks like.
#[derive(Clone, Copy, Debug)]
struct Format {
    /// Of local time, as it was at the start: later the process has threads, beside which nobody may ask for
    /// it.
    offset: UtcOffset,
}

impl Format {
    fn line(self, severity: &str, message: &str, fields: &[(&str, String)]) -> String {
        let now = OffsetDateTime::now_utc().to_offset(self.offset);
        let time =
            now.replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default();
        let mut line = format!("time=\"{time}\" level={severity} msg=");
        push_value(&mut line, message);
        for (name, value) in fields {
            if line.len() >= LINE_MAX {
                break;
            }
            // logrus does the same with a field that would look like one of its own.
            let prefix = if matches!(*name, "time" | "level" | "msg") { "fields." } else { "" };
            line.push_str(&format!(" {prefix}{name}="));
            push_value(&mut line, value);
        }
        line.push('\n');
        line
    }
}

/// Plain where logrus leaves a value plain, else quoted.
fn push_value(line: &mut String, value: &str) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/@^+".contains(&b);
    if value.bytes().all(plain) && line.len() + value.len() <= LINE_MAX {
        line.push_str(value);
    } else {
        push_quoted(line, value.as_bytes(), LINE_MAX);
    }
}

struct Logrus {
    log: Log,
    ours: LevelFilter,
    others: LevelFilter,
}

impl<S: Subscriber> Layer<S> for Logrus {
    fn enabled(&self, metadata: &Metadata<'_>, _: LayerContext<'_, S>) -> bool {
        let root = metadata.target().split("::").next().unwrap_or_default();
        *metadata.level() <= if OURS.contains(&root) { self.ours } else { self.others }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.ours.max(self.others))
    }

    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let mut values = Values::default();
        event.record(&mut values);
        let severity = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        self.log.writer().write(&self.log.format.line(severity, &values.message, &values.fields));
    }
}

#[derive(Default)]
struct Values {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Values {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut bounded = Bounded(String::new());
        if write!(bounded, "{value:?}").is_err() {
            bounded.0.push_str("...");
        }
        match field.name() {
            "message" => self.message = bounded.0,
            name => self.fields.push((name, bounded.0)),
        }
    }
}

/// Takes text up to [`VALUE_MAX`] and then refuses, which ends the formatting.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = VALUE_MAX - self.0.len();
        let end = text.floor_char_boundary(room);
        self.0.push_str(text.get(..end).unwrap_or_default());
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What `events` write into a log file, without the times.
    fn written(debug: bool, events: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "old").unwrap();
        let format = Format { offset: UtcOffset::UTC };
        let log = Log { stderr: Writer::stderr(format).unwrap(), file: None, format };
        let log = log.with_file(&path).unwrap();
        let (ours, others) = if debug {
            (LevelFilter::DEBUG, LevelFilter::INFO)
        } else {
            (LevelFilter::INFO, LevelFilter::WARN)
        };
        let subscriber = tracing_subscriber::registry().with(Logrus { log: log.clone(), ours, others });
        tracing::subscriber::with_default(subscriber, events);
        log.flush();
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|line| line.split_once("Z\" ").unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_logrus_text() {
        let lines = written(true, || {
            tracing::info!("waiting for clients...");
            tracing::info!(port = 3, name = "a b", path = %"/x/y.sock", "plain");
            tracing::warn!(empty = "", level = "x", "");
            tracing::error!(reason = ?Some("x\n"), "it \"failed\"\x1b[31m");
            tracing::debug!(flag = true, "d");
            tracing::trace!("never");
        });
        let expected = [
            r#"level=info msg="waiting for clients...""#,
            r#"level=info msg=plain port=3 name="a b" path=/x/y.sock"#,
            r#"level=warning msg= empty= fields.level=x"#,
            r#"level=error msg="it \"failed\"\x1b[31m" reason="Some(\"x\\n\")""#,
            r#"level=debug msg=d flag=true"#,
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn others_speak_when_they_warn() {
        let events = || {
            tracing::debug!("ours");
            tracing::info!(target: "russh::client", "chatter");
            tracing::debug!(target: "mio", "noise");
            tracing::warn!(target: "russh", "trouble");
            tracing::debug!(target: "netstack::tcp", "flow");
            tracing::info!(target: "gvproxyish", "not ours");
        };
        assert_eq!(written(false, events), ["level=warning msg=trouble"]);
        let debug = ["ours", "chatter", "trouble", "flow", "not ours"];
        let lines = written(true, events);
        assert_eq!(lines.len(), debug.len(), "{lines:#?}");
        assert!(lines.iter().zip(debug).all(|(line, word)| line.contains(word)), "{lines:#?}");
    }

    #[test]
    fn a_line_is_bounded() {
        let long = "\u{1}é".repeat(100_000);
        let lines = written(false, || tracing::info!(a = long, b = %long, c = ?long, d = "last", "{long}"));
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.len() < LINE_MAX + 64 && line.contains("..."), "{}: {line}", line.len());
        let plain = "x".repeat(100_000);
        let lines = written(false, || tracing::info!(a = plain, b = plain, c = plain, "m"));
        assert!(lines[0].len() < LINE_MAX + 64, "{lines:?}");
    }

    #[test]
    fn times_are_rfc_3339_with_the_offset() {
        for (seconds, end) in [(0, "Z"), (3600, "+01:00"), (-12_600, "-03:30")] {
            let offset = UtcOffset::from_whole_seconds(seconds).unwrap();
            let line = Format { offset }.line("info", "m", &[]);
            let time = line.strip_prefix("time=\"").unwrap().split('"').next().unwrap();
            assert!(time.ends_with(end) && time.len() == 19 + end.len(), "{line}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn last_words_reach_the_file_and_a_full_disk_is_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        Log::stderr().unwrap().with_file(&path).unwrap().last_words("fatal", "no way");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("level=fatal msg=\"no way\"\n"), "{text}");
        Log::stderr().unwrap().with_file(Path::new("/dev/full")).unwrap().last_words("error", "gone");
        let error = Log::stderr().unwrap().with_file(&dir.path().join("none/log")).unwrap_err();
        assert!(error.to_string().starts_with("unable to open log file "), "{error}");
    }
}
