//! `/services/dns/all` and `/services/dns/add`: the gateway's own zones. Owns: their form in JSON.
//! Read next: `netstack::dns::Zones`.

use std::net::Ipv4Addr;

use hyper::Request;
use hyper::body::Incoming;
use netstack::dns::{Record, Zone};
use regex::Regex;
use serde::Serialize;

use super::decode::Object;
use super::reply::{Refusal, Reply, done, json, posted};
use super::{Api, Client};

/// A regular expression that needs more memory than this is refused.
const REGEXP_SIZE: usize = 1 << 20;

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

pub(super) async fn answer_add(
    api: &Api,
    client: &Client,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let body = posted(client, request).await?;
    let zone = zone(Object::decode("Zone", &body)?)?;
    tracing::debug!(zone = zone.name, records = zone.records.len(), "zone added");
    api.handle.add_zone(zone).await;
    Ok(done())
}

fn zone(mut object: Object) -> Result<Zone, Refusal> {
    let name = object.text("Name")?;
    let records = object.objects("Records", "Record")?.into_iter().map(record).collect::<Result<_, _>>()?;
    Ok(Zone { name, records, default_ip: ip(&mut object, "DefaultIP")? })
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
