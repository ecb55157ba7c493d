//! What can be measured, by group and name. Owns: names, units, the network that each row needs.
//! Read next: `main.rs`.

use crate::forwarder::Dest;
use crate::measure::Direction;
use crate::setup::Shape;
use crate::sockets::{self, Way};
use crate::ssh::Lead;

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    IdleMemory,
    Wakeups,
    RoundTrip,
    ConnectRate,
    /// Bulk transfer over so many connections.
    Stream(Direction, usize),
    /// Bulk transfer through a published port.
    Port(Direction),
    /// Bulk transfer through `/tunnel` of the API.
    Tunnel(Direction),
    /// Datagrams of so many bytes.
    Udp(Direction, usize),
    /// Bulk transfer through a unix socket that is forwarded over SSH.
    Ssh(Direction),
    /// The same by the guest's agent.
    Agent(Direction),
    Connect(Lead),
    /// So many flows that are open and silent.
    IdleFlows(usize),
    /// One busy flow beside so many silent ones.
    Crowd(usize),
    Churn,
    /// Of a forwarder without a network, or of the agent's way.
    Sockets(sockets::What),
}

/// A figure of a row: what it is of the row's subject, and its unit.
pub(crate) type Figure = (&'static str, &'static str);

const THROUGHPUT: &[Figure] = &[("", "Gbit/s"), ("its CPU", "s/GB")];
const TIMES: &[Figure] = &[("", "us p50"), ("p99", "us")];
const TRIPS: &[Figure] = &[("", "us p50"), ("p99", "us"), ("CPU of each", "us")];
const CONNECTS: &[Figure] = &[("", "1/s"), ("each", "us p50"), ("each, p99", "us"), ("CPU of each", "us")];
const DATAGRAMS: &[Figure] =
    &[("", "packets/s"), ("lost", "%"), ("dropped by the guest's card", "%"), ("CPU of each", "us")];
const FLOWS: &[Figure] = &[("opened", "1/s"), ("memory of each", "KiB")];
const PORT: &[Figure] = &[("", "Gbit/s"), ("its CPU", "s/GB"), ("of a flow without it", "part")];
const TUNNEL: &[Figure] = &[("", "Gbit/s"), ("its CPU", "s/GB"), ("of a published port", "part")];
const AGENT: &[Figure] = &[("", "Gbit/s"), ("its CPU", "s/GB"), ("of the SSH way", "part")];
const CLIENTS: &[Figure] = &[
    ("failed", "count"),
    ("answer", "ms p50"),
    ("answer, p99", "ms"),
    ("answer, longest", "ms"),
    ("p99 by p50", "part"),
    ("descriptors gained", "count"),
];
const OF_ALONE: &str = "of alone";
const CROWD: &[Figure] = &[
    ("guest to host", OF_ALONE),
    ("guest to host, its CPU", OF_ALONE),
    ("host to guest", OF_ALONE),
    ("host to guest, its CPU", OF_ALONE),
];
const CHURN: &[Figure] = &[
    ("connections", "count"),
    ("failed", "count"),
    ("rate", "1/s"),
    ("memory gained", "KiB"),
    ("descriptors gained", "count"),
];

/// A measurement, and the lines of the table that it fills.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) name: String,
    figures: &'static [Figure],
    pub(crate) shape: Shape,
    pub(crate) what: What,
    /// Needs a daemon on which nothing has happened yet.
    fresh: bool,
    /// Takes so long that it is measured in the first run only.
    pub(crate) once: bool,
}

/// Rows of a group of their own, the points of a chart; they are measured only when they are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Points {
    pub(crate) group: &'static str,
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) points: &'static [usize],
}

impl Points {
    /// The row of one point.
    pub(crate) fn line(&self, direction: Direction, point: usize) -> String {
        format!("by {}, {}: {point}", self.group, direction.name())
    }
}

pub(crate) const CHARTS: [Points; 2] = [
    Points {
        group: "mtu",
        title: "Throughput of one flow by MTU",
        x: "MTU, bytes",
        points: &[1500, 4000, 9000, 16000, 32000, 65520],
    },
    Points {
        group: "flows",
        title: "Throughput by count of flows, MTU 1500",
        x: "flows",
        points: &[1, 2, 4, 8, 16, 32],
    },
];

const SMALL: Shape = Shape::mtu(1500);
const LARGE: Shape = Shape::mtu(65520);

impl Row {
    fn new(
        group: &'static str,
        name: impl Into<String>,
        figures: &'static [Figure],
        shape: Shape,
        what: What,
    ) -> Self {
        Self { group, name: name.into(), figures, shape, what, fresh: false, once: false }
    }

    fn fresh(self) -> Self {
        Self { fresh: true, ..self }
    }

    fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// All of them, in the order of the table.
    pub(crate) fn all() -> Vec<Self> {
        let mut rows = vec![
            Self::new("idle", "idle memory", &[("", "MB")], SMALL, What::IdleMemory),
            Self::new("idle", "idle wakeups", &[("", "1/s")], SMALL, What::Wakeups).once(),
            Self::new("latency", "round trip", TIMES, SMALL, What::RoundTrip),
            Self::new("latency", "connect-request-close", &[("", "1/s")], SMALL, What::ConnectRate),
        ];
        for (mtu, shape) in [(1500, SMALL), (65520, LARGE)] {
            for (flows, noun) in [(1, "flow"), (8, "flows")] {
                for way in Direction::BOTH {
                    let name = format!("{mtu} {}, {flows} {noun}", way.name());
                    rows.push(Self::new("tcp", name, THROUGHPUT, shape, What::Stream(way, flows)));
                }
            }
        }
        for way in Direction::BOTH {
            let name = format!("published port, {}", way.name());
            rows.push(Self::new("port", name, PORT, SMALL, What::Port(way)));
        }
        for way in Direction::BOTH {
            let name = format!("tunnel, {}", way.name());
            rows.push(Self::new("tunnel", name, TUNNEL, SMALL, What::Tunnel(way)));
        }
        for mtu in [1500, 65520] {
            for (flows, noun) in [(1, "flow"), (8, "flows")] {
                let (name, what) = (
                    format!("{mtu} guest to guest, {flows} {noun}"),
                    What::Stream(Direction::GuestToHost, flows),
                );
                rows.push(Self::new("guests", name, THROUGHPUT, Shape::pair(mtu), what));
            }
        }
        for size in [64, 1400] {
            for way in Direction::BOTH {
                let name = format!("udp {size} B, {}", way.name());
                rows.push(Self::new("udp", name, DATAGRAMS, SMALL, What::Udp(way, size)));
            }
        }
        for (mtu, name) in [(None, "default MTU"), (Some(65520), "65520")] {
            let shape = Shape::ssh(mtu);
            for (way, up) in [(Direction::HostToGuest, "up"), (Direction::GuestToHost, "down")] {
                let name = format!("ssh {up}, {name}");
                rows.push(Self::new("ssh", name, THROUGHPUT, shape, What::Ssh(way)));
            }
            rows.push(Self::new(
                "ssh",
                format!("ssh connect, {name}"),
                TIMES,
                shape,
                What::Connect(Lead::Ssh),
            ));
        }
        for (mtu, name) in [(None, "default MTU"), (Some(65520), "65520")] {
            let shape = Shape::agent(mtu);
            for (way, up) in [(Direction::HostToGuest, "up"), (Direction::GuestToHost, "down")] {
                rows.push(Self::new("agent", format!("agent {up}, {name}"), AGENT, shape, What::Agent(way)));
            }
            let name = format!("agent connect, {name}");
            rows.push(Self::new("agent", name, TIMES, shape, What::Connect(Lead::Agent)));
        }
        rows.extend(Self::clients(Shape::agent(None), "agent"));
        for (count, name) in [(1_000, "1,000 flows"), (10_000, "10,000 flows")] {
            rows.push(Self::new("scale", name, FLOWS, SMALL, What::IdleFlows(count)).fresh());
        }
        let crowd = "busy flow beside 10,000 idle";
        rows.push(Self::new("scale", crowd, CROWD, SMALL, What::Crowd(10_000)).fresh());
        rows.push(Self::new("churn", "churn", CHURN, SMALL, What::Churn).fresh().once());
        rows.extend(Self::sockets());
        for chart in CHARTS {
            for &point in chart.points {
                let (shape, flows) = match chart.group {
                    "mtu" => (Shape::mtu(u16::try_from(point).unwrap()), 1),
                    _ => (SMALL, point),
                };
                for way in Direction::BOTH {
                    rows.push(Self::new(
                        chart.group,
                        chart.line(way, point),
                        THROUGHPUT,
                        shape,
                        What::Stream(way, flows),
                    ));
                }
            }
        }
        rows
    }

    /// Those of forwarders between sockets of the host.
    fn sockets() -> Vec<Self> {
        let mut rows = Vec::new();
        for dest in [Dest::Unix, Dest::Tcp] {
            let mut add = |name: String, figures, what| {
                let (name, shape) = (format!("{dest} {name}"), Shape::sockets(dest));
                rows.push(Self::new("sockets", name, figures, shape, What::Sockets(what)));
            };
            for block in [32, 256] {
                for (way, name) in [(Way::Forth, "forth"), (Way::Back, "back")] {
                    let what = sockets::What::Stream(way, block << 10);
                    add(format!("{name}, writes of {block} KiB"), THROUGHPUT, what);
                }
            }
            add("round trip".into(), TRIPS, sockets::What::RoundTrip);
            add("connect-request-close".into(), CONNECTS, sockets::What::ConnectRate);
        }
        rows.extend(Self::clients(Shape::sockets(Dest::Crowded), "unix to unix"));
        rows
    }

    fn clients(shape: Shape, way: &str) -> [Self; 2] {
        let row = |name: &str, what| {
            Self::new("clients", format!("{way} clients, {name}"), CLIENTS, shape, What::Sockets(what)).once()
        };
        [row("1,000 at once", sockets::What::AtOnce(1000)), row("100 a second", sockets::What::InTurn)]
    }

    /// Those that `parts` ask for: a group's name, or a part of a row's. No parts are all but the points of
    /// charts, which `charts` adds.
    pub(crate) fn chosen(parts: &[String], charts: bool) -> Vec<Self> {
        let mut rows = Self::all();
        let groups = Self::groups();
        let asked_for = |row: &Self, part: &String| match groups.contains(&part.as_str()) {
            true => row.group == part,
            false => !row.is_point() && row.name.contains(part.as_str()),
        };
        rows.retain(|row| match parts {
            _ if row.is_point() && charts => true,
            [] => !row.is_point(),
            _ => parts.iter().any(|part| asked_for(row, part)),
        });
        rows
    }

    fn is_point(&self) -> bool {
        CHARTS.iter().any(|chart| chart.group == self.group)
    }

    pub(crate) fn groups() -> Vec<&'static str> {
        let mut groups: Vec<_> = Self::all().iter().map(|row| row.group).collect();
        groups.dedup();
        groups
    }

    /// Whether one daemon can serve both.
    pub(crate) fn shares_network(&self, other: &Self) -> bool {
        !self.fresh && !other.fresh && self.group == other.group && self.shape == other.shape
    }

    /// The lines of the table: name, unit.
    pub(crate) fn lines(&self) -> Vec<(String, &'static str)> {
        let line = |(what, unit): &Figure| match *what {
            "" => (self.name.clone(), *unit),
            what => (format!("{}: {what}", self.name), *unit),
        };
        self.figures.iter().map(line).collect()
    }
}
