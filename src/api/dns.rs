//! `/services/dns/all`, `add`, `remove` and `remove/record`: the gateway's own zones. Owns: their form in
//! JSON, and which may be added.
//! Read next: `netstack::dns::Zones`.

use std::net::Ipv4Addr;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use netstack::dns::{Record, Zone, ZoneChange, ZoneError};
use regex::Regex;
use serde::Serialize;

use super::decode::Object;
use super::reply::{Refusal, Reply, done, json, posted};
use super::{Api, Client};
use crate::text::quote;

/// A regular expression that needs more memory than this is refused.
const REGEXP_SIZE: usize = 1 << 20;
/// Bytes of a domain name with its final dot, and of a label (RFC 1035, 2.3.4).
const MAX_NAME: usize = 254;
const MAX_LABEL: usize = 63;

/// The names are those of the original's Go type.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownZone {
    name: String,
    records: Option<Vec<ShownRecord>>,
    #[serde(rename = "DefaultIP")]
    default_ip: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownRecord {
    name: String,
    #[serde(rename = "IP")]
    ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    regexp: Option<String>,
}

pub(super) async fn answer_all(api: &Api) -> Result<Reply, Refusal> {
    let zones: Vec<_> = api.handle.zones().await.into_iter().map(ShownZone::from).collect();
    json(&Some(zones).filter(|zones| !zones.is_empty()))
}

/// What a request asks to change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Add,
    Remove,
    RemoveRecords,
}

pub(super) async fn answer_change(
    api: &Api,
    client: &Client,
    request: Request<Incoming>,
    change: Change,
) -> Result<Reply, Refusal> {
    let body = posted(client, request).await?;
    let zone = zone(Object::decode("Zone", &body)?)?;
    match change {
        Change::Add => check(&zone),
        _ if zone.name.is_empty() => Err(NAMELESS.into()),
        Change::RemoveRecords if zone.records.is_empty() || zone.records.iter().any(is_nameless) => {
            Err("record name is required".into())
        }
        Change::Remove | Change::RemoveRecords => Ok(()),
    }
    .map_err(Refusal::bad_request)?;
    tracing::debug!(?change, zone = zone.name, records = zone.records.len(), "changing a zone");
    let change = match change {
        Change::Add => ZoneChange::Add(zone),
        Change::Remove => ZoneChange::Remove(zone.name),
        Change::RemoveRecords => ZoneChange::RemoveRecords(zone),
    };
    api.handle.change_zones(change).await?;
    Ok(done())
}

const NAMELESS: &str = "zone name is required";

fn is_nameless(record: &Record) -> bool {
    record.name.is_empty() && record.regexp.is_none()
}

/// Whether a zone may be added: it names a domain, and has something to say about it.
fn check(zone: &Zone) -> Result<(), String> {
    let name = zone.name.as_str();
    match name {
        "" => return Err(NAMELESS.into()),
        "." => return Err("the root zone cannot be added: it would take every name".into()),
        _ => {}
    }
    let Some(domain) = name.strip_suffix('.') else {
        return Err(format!("zone name {} must end with a dot", quote(name)));
    };
    if name.len() > MAX_NAME || domain.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
        return Err(format!("zone name {} is not a domain name", quote(name)));
    }
    if !has_dns_characters(name) {
        return Err(format!("zone name {} has characters that no domain name has", quote(name)));
    }
    if zone.records.is_empty() && zone.default_ip.is_none() {
        return Err(format!("zone {name} needs a record or a default IP address"));
    }
    for record in &zone.records {
        let name = quote(&record.name);
        if is_nameless(record) {
            return Err("a record needs a name or a regular expression".into());
        }
        if !has_dns_characters(&record.name) {
            return Err(format!("record name {name} has characters that no domain name has"));
        }
        if record.ip.is_none() && record.regexp.is_none() {
            return Err(format!("record {name} needs an IP address or a regular expression"));
        }
    }
    Ok(())
}

fn has_dns_characters(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl From<ZoneError> for Refusal {
    fn from(error: ZoneError) -> Self {
        let status = match error {
            ZoneError::Protected(_) => StatusCode::BAD_REQUEST,
            ZoneError::NoZone(_) | ZoneError::NoRecord(_) => StatusCode::NOT_FOUND,
        };
        Self::new(status, error.to_string())
    }
}

fn zone(mut object: Object) -> Result<Zone, Refusal> {
    let name = object.text("Name")?;
    let records = object.objects("Records", "Record")?.into_iter().map(record).collect::<Result<_, _>>()?;
    // Only who starts the daemon can protect one.
    Ok(Zone { name, records, default_ip: ip(&mut object, "DefaultIP")?, protected: false })
}

fn record(mut object: Object) -> Result<Record, Refusal> {
    let name = object.text("Name")?;
    let ip = ip(&mut object, "IP")?;
    let regexp = object.optional_text("Regexp", "regexp.Regexp: JSON value must be string type")?;
    let regexp = regexp.map(|text| regexp_of(&text)).transpose()?;
    Ok(Record { name, ip, regexp })
}

fn ip(object: &mut Object, field: &str) -> Result<Option<Ipv4Addr>, Refusal> {
    let text = object.text_of(field, "net.IP: JSON value must be string type")?;
    if text.is_empty() {
        return Ok(None);
    }
    // COMPAT(gvproxy): takes an IPv6 address, and answers with 0.0.0.0.
    let ip = text.parse().map_err(|_| Refusal::bad_request(format!("invalid IP address: {text}")))?;
    Ok(Some(ip))
}

fn regexp_of(text: &str) -> Result<Regex, Refusal> {
    regex::RegexBuilder::new(text).size_limit(REGEXP_SIZE).build().map_err(|error| {
        // The last line says what is wrong, those before point at it.
        let error = error.to_string();
        let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Refusal::bad_request(format!("error parsing regexp: {why}: `{text}`"))
    })
}

impl From<Zone> for ShownZone {
    fn from(zone: Zone) -> Self {
        let records: Vec<_> = zone.records.into_iter().map(ShownRecord::from).collect();
        let records = Some(records).filter(|records| !records.is_empty());
        Self { name: zone.name, records, default_ip: text(zone.default_ip) }
    }
}

impl From<Record> for ShownRecord {
    fn from(record: Record) -> Self {
        let regexp = record.regexp.map(|regexp| regexp.as_str().to_owned());
        Self { name: record.name, ip: text(record.ip), regexp }
    }
}

fn text(ip: Option<Ipv4Addr>) -> String {
    ip.map(|ip| ip.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &str) -> Result<String, String> {
        let zone = Object::decode("Zone", body.as_bytes()).and_then(zone).map_err(|refusal| refusal.text)?;
        Ok(serde_json::to_string(&ShownZone::from(zone)).unwrap())
    }

    #[test]
    fn zones_read_back() {
        for (body, zone) in [
            ("{}", r#"{"Name":"","Records":null,"DefaultIP":""}"#),
            (
                r#"{"name":"a.","records":[{"name":"z","ip":"1.2.3.4"},{"Regexp":"^x$"},{}],"DEFAULTIP":"1.1.1.1"}"#,
                r#"{"Name":"a.","Records":[{"Name":"z","IP":"1.2.3.4"},{"Name":"","IP":"","Regexp":"^x$"},{"Name":"","IP":""}],"DefaultIP":"1.1.1.1"}"#,
            ),
        ] {
            assert_eq!(shown(body).as_deref(), Ok(zone));
        }
    }

    #[test]
    fn what_may_be_added() {
        let checked =
            |body: &str| Object::decode("Zone", body.as_bytes()).and_then(zone).map(|zone| check(&zone));
        let label = "a".repeat(64);
        let long = "abcdefg.".repeat(32);
        for body in [
            r#"{"Name":"crc.testing.","Records":[{"Name":"api","IP":"1.2.3.4"},{"Regexp":"^x$","IP":"1.2.3.4"}]}"#,
            r#"{"Name":"apps-crc.testing.","DefaultIP":"1.2.3.4"}"#,
            r#"{"Name":"_x.A-1.","Records":[{"Name":"_a.b-1","IP":"1.2.3.4"}],"Protected":true}"#,
        ] {
            assert_eq!(checked(body), Ok(Ok(())), "{body}");
        }
        for (body, why) in [
            (r#"{"DefaultIP":"1.2.3.4"}"#.to_owned(), "zone name is required"),
            (r#"{"Name":".","DefaultIP":"1.2.3.4"}"#.to_owned(), "the root zone"),
            (r#"{"Name":"test","DefaultIP":"1.2.3.4"}"#.to_owned(), "must end with a dot"),
            (r#"{"Name":"a..b.","DefaultIP":"1.2.3.4"}"#.to_owned(), "not a domain name"),
            (r#"{"Name":".a.","DefaultIP":"1.2.3.4"}"#.to_owned(), "not a domain name"),
            (format!(r#"{{"Name":"{label}.","DefaultIP":"1.2.3.4"}}"#), "not a domain name"),
            (format!(r#"{{"Name":"{long}","DefaultIP":"1.2.3.4"}}"#), "not a domain name"),
            (r#"{"Name":"a b.","DefaultIP":"1.2.3.4"}"#.to_owned(), "characters"),
            (r#"{"Name":"*.a.","DefaultIP":"1.2.3.4"}"#.to_owned(), "characters"),
            (r#"{"Name":"é.","DefaultIP":"1.2.3.4"}"#.to_owned(), "characters"),
            (r#"{"Name":"a."}"#.to_owned(), "needs a record or a default IP address"),
            (r#"{"Name":"a.","Records":[{"IP":"1.2.3.4"}]}"#.to_owned(), "a record needs a name"),
            (r#"{"Name":"a.","Records":[{"Name":"x"}]}"#.to_owned(), "record \"x\" needs an IP address"),
            (r#"{"Name":"a.","Records":[{"Name":"x/y","IP":"1.2.3.4"}]}"#.to_owned(), "record name \"x/y\""),
        ] {
            let said = checked(&body).unwrap().unwrap_err();
            assert!(said.contains(why), "{body}: {said}");
        }
    }

    #[test]
    fn what_is_no_zone() {
        for (body, why) in [
            (r#"{"DefaultIP":"1.1.1"}"#, "invalid IP address: 1.1.1"),
            (r#"{"DefaultIP":"::1"}"#, "invalid IP address: ::1"),
            (
                r#"{"Records":"x"}"#,
                "json: cannot unmarshal string into Go struct field Zone.Records of type []types.Record",
            ),
            (
                r#"{"Records":[{},1]}"#,
                "json: cannot unmarshal number into Zone.Records.1 of type types.Record",
            ),
            (
                r#"{"Records":[{"IP":5}]}"#,
                "json: cannot unmarshal number into Go struct field Zone.Records.0.IP of type net.IP: JSON value must be string type",
            ),
            (r#"{"Records":[{"Regexp":"("}]}"#, "error parsing regexp: unclosed group: `(`"),
        ] {
            assert_eq!(shown(body), Err(why.into()), "{body}");
        }
        let huge = shown(r#"{"Records":[{"Regexp":"\\w{1000}{1000}"}]}"#).unwrap_err();
        assert!(huge.starts_with("error parsing regexp: "), "{huge}");
    }
}
