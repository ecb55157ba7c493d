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
    /// Whether nothing may change it while the daemon runs.
    pub protected: bool,
}

/// A change of the zones while they are served.
#[derive(Clone, Debug)]
pub enum ZoneChange {
    /// Adds a zone behind the others. If there is one of the same name, it is changed instead: the new
    /// records stand before the old ones, and the new default address replaces the old one, even if there is
    /// none. What is added is never protected.
    Add(Zone),
    /// Removes the zone of this name.
    Remove(String),
    /// Removes records from the zone of this name: each whose name one of these has, and of those without a
    /// name each whose pattern one has. The zone goes too if nothing is left in it.
    RemoveRecords(Zone),
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The zone may not be changed.
    #[error("zone {0} is protected")]
    Protected(String),
    /// There is no such zone.
    #[error("zone {0} not found")]
    NoZone(String),
    /// The zone has no such record: its name or pattern.
    #[error("record {0} not found")]
    NoRecord(String),
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

impl Record {
    /// Its name, or its pattern where it has none.
    fn called(&self) -> &str {
        match &self.regexp {
            Some(regexp) if self.name.is_empty() => regexp.as_str(),
            _ => &self.name,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match other.name.is_empty() {
            true => self.name.is_empty() && self.called() == other.called(),
            false => self.name.eq_ignore_ascii_case(&other.name),
        }
    }
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

    /// Makes a change, whole or not at all. Names are compared without case.
    ///
    /// # Errors
    /// The zone is protected, or there is nothing to remove.
    pub fn change(&mut self, change: ZoneChange) -> Result<(), ZoneError> {
        match change {
            ZoneChange::Add(mut zone) => {
                zone.protected = false;
                match self.unprotected(&zone.name) {
                    Ok(at) => {
                        let old = &mut self.0[at];
                        zone.records.append(&mut old.records);
                        *old = zone;
                    }
                    Err(ZoneError::NoZone(_)) => self.0.push(zone),
                    Err(error) => return Err(error),
                }
            }
            ZoneChange::Remove(name) => {
                let at = self.unprotected(&name)?;
                self.0.remove(at);
            }
            ZoneChange::RemoveRecords(Zone { name, records, .. }) => {
                let at = self.unprotected(&name)?;
                let zone = &mut self.0[at];
                if let Some(record) =
                    records.iter().find(|record| !zone.records.iter().any(|old| old.is(record)))
                {
                    return Err(ZoneError::NoRecord(record.called().to_owned()));
                }
                zone.records.retain(|old| !records.iter().any(|record| old.is(record)));
                if zone.records.is_empty() && zone.default_ip.is_none() {
                    self.0.remove(at);
                }
            }
        }
        Ok(())
    }

    /// Where the zone of this name stands.
    fn unprotected(&self, name: &str) -> Result<usize, ZoneError> {
        match self.0.iter().position(|zone| zone.name.eq_ignore_ascii_case(name)) {
            None => Err(ZoneError::NoZone(name.to_owned())),
            Some(at) if self.0[at].protected => Err(ZoneError::Protected(name.to_owned())),
            Some(at) => Ok(at),
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
