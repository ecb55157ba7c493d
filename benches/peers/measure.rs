//! What a measurement gives, and the window in which it is taken. Read next: `tcp.rs`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::setup::Setup;
use testkit::process::Process;

/// How long a load runs before it is measured: windows have grown by then.
const WARM_UP: Duration = Duration::from_millis(500);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    GuestToHost,
    HostToGuest,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::GuestToHost, Self::HostToGuest];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GuestToHost => "guest to host",
            Self::HostToGuest => "host to guest",
        }
    }

    /// (sender, receiver) of the two ends.
    pub(crate) fn order<T>(self, guest: T, host: T) -> (T, T) {
        match self {
            Self::GuestToHost => (guest, host),
            Self::HostToGuest => (host, guest),
        }
    }
}

/// The figures of one measurement, in the order in which its row names them.
#[derive(Clone, Debug)]
pub(crate) struct Sample(pub(crate) Vec<Option<f64>>);

impl Sample {
    pub(crate) fn one(figure: f64) -> Self {
        Self(vec![Some(figure)])
    }

    /// The median in microseconds, and the 99th percentile.
    pub(crate) fn percentiles(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        Self(vec![Some(at(0.5)), Some(at(0.99))])
    }
}

/// What happened in a while.
#[derive(Debug)]
pub(crate) struct Window {
    /// What each counter gained.
    pub(crate) counts: Vec<f64>,
    /// Processor seconds of the daemon, if there is one.
    pub(crate) cpu: Option<f64>,
    pub(crate) seconds: f64,
}

impl Window {
    /// Watches a load that runs already.
    pub(crate) fn watch(setup: &Setup, time: Duration, counters: &[&AtomicU64]) -> Self {
        Self::watch_cpu(|| setup.process.map(Process::cpu_seconds), time, counters)
    }

    /// The same of whatever has used the processor for `cpu` seconds.
    pub(crate) fn watch_cpu(cpu: impl Fn() -> Option<f64>, time: Duration, counters: &[&AtomicU64]) -> Self {
        let look = || {
            let counts: Vec<_> = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
            (counts, cpu(), Instant::now())
        };
        thread::sleep(WARM_UP);
        let before = look();
        thread::sleep(time);
        let after = look();
        Self {
            counts: before.0.iter().zip(after.0).map(|(before, after)| (after - before) as f64).collect(),
            cpu: before.1.zip(after.1).map(|(before, after)| after - before),
            seconds: (after.2 - before.2).as_secs_f64(),
        }
    }

    /// The daemon's processor seconds for each of `amount`.
    pub(crate) fn cpu_per(&self, amount: f64) -> Option<f64> {
        self.cpu.map(|cpu| cpu / amount).filter(|_| amount > 0.0)
    }
}
