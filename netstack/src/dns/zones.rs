//! The zones that the gateway answers from its own data.
//! Owns: the list of zones and the rules by which they are searched. May not: read or write the wire form.
//! Read next: `message.rs`.

use core::net::Ipv4Addr;

use super::message::{NotAQuery, Query, Rcode, Transport, write_rejection};

/// A DNS zone that the gateway answers from its own data.
#[derive(Clone, Debug)]
pub struct Zone {
    /// With the final dot: `containers.internal.`; without it the zone matches nothing.
    /// The empty name is a catch-all for every name that no zone before it matches.
    pub name: String,
    /// Tried in order; the first that matches wins.
    pub records: Vec<Record>,
    /// The answer for a name that no record matches.
    pub default_ip: Option<Ipv4Addr>,
}

/// One record of a [`Zone`].
#[derive(Clone, Debug)]
pub struct Record {
    /// What stands before the zone's name; it may hold dots. The empty name matches nothing.
    pub name: String,
    /// The answer; without one the name exists and has no address.
    pub ip: Option<Ipv4Addr>,
    /// Unanchored; tried on what stands before the zone's name.
    pub regexp: Option<regex::Regex>,
}

/// What becomes of a message to the gateway's port 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is in `out`.
    Reply,
    /// The message goes to the host's resolvers as it is.
    Forward,
    /// No answer: a response, or shorter than a header.
    Drop,
}

/// The zones, in the order in which they are tried.
///
/// A zone matches the names below its own, not its own, case-insensitively (RFC 4343). The first zone that
/// matches owns the name: no later zone and no upstream is asked, whatever the type.
#[derive(Clone, Debug, Default)]
pub struct Zones(Vec<Zone>);

impl Zones {
    /// In the order in which they are tried.
    pub fn new(zones: Vec<Zone>) -> Self {
        Self(zones)
    }

    /// In the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Zone> {
        self.0.iter()
    }

    /// Adds a zone behind the others. One of the same name takes its place instead: the records of `zone`
    /// stand before the old ones, and its default address replaces the old one even where it has none.
    pub fn add_zone(&mut self, mut zone: Zone) {
        match self.0.iter_mut().find(|old| old.name == zone.name) {
            Some(old) => {
                zone.records.append(&mut old.records);
                *old = zone;
            }
            None => self.0.push(zone),
        }
    }

    /// One message to the gateway's port 53. `out` is replaced on [`Verdict::Reply`], and in no defined state
    /// otherwise.
    pub fn handle_query(&self, message: &[u8], transport: Transport, out: &mut Vec<u8>) -> Verdict {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(NotAQuery::Ignored) => return Verdict::Drop,
            Err(NotAQuery::Rejected(rcode)) => {
                write_rejection(message, rcode, out);
                return Verdict::Reply;
            }
        };
        match self.find(&query.name()) {
            Found::NotOwned => return Verdict::Forward,
            Found::NoName => query.write_reply(Rcode::NxDomain, &[], transport, out),
            Found::Name(Some(ip)) if query.wants_a() => {
                query.write_reply(Rcode::NoError, &[ip], transport, out)
            }
            Found::Name(_) => query.write_reply(Rcode::NoError, &[], transport, out),
        }
        Verdict::Reply
    }

    fn find(&self, name: &str) -> Found {
        let Some((zone, rest)) = self.0.iter().find_map(|zone| Some((zone, below(name, &zone.name)?))) else {
            return Found::NotOwned;
        };
        let lower = rest.to_ascii_lowercase();
        let record = zone.records.iter().find(|record| {
            (!record.name.is_empty() && record.name.eq_ignore_ascii_case(rest))
                || record.regexp.as_ref().is_some_and(|re| re.is_match(rest) || re.is_match(&lower))
        });
        match (record, zone.default_ip) {
            (Some(record), _) => Found::Name(record.ip),
            (None, Some(ip)) => Found::Name(Some(ip)),
            (None, None) => Found::NoName,
        }
    }
}

/// What the zones say about a name.
enum Found {
    /// No zone matches.
    NotOwned,
    /// A zone matches, and has nothing for the name.
    NoName,
    /// The name exists; its address, if it has one.
    Name(Option<Ipv4Addr>),
}

/// What stands before `.zone` in `name`.
fn below<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    let (rest, end) = name.split_at_checked(name.len().checked_sub(zone.len())?)?;
    let rest = rest.strip_suffix('.')?;
    // A dot after an odd number of backslashes is part of a label.
    let escaped = rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1;
    (end.eq_ignore_ascii_case(zone) && !escaped && !rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests;
