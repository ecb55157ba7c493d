//! `/services/forwarder/unexpose`: takes a port or socket of the host back. Read next:
//! `crate::forward::registry`.

use hyper::Request;
use hyper::body::Incoming;

use super::expose::{ExposeRequest, protocol_of};
use super::reply::{Refusal, Reply, done, posted};
use super::{Api, Client};
use crate::forward::registry::ExposeError;

pub(super) async fn answer(api: &Api, client: &Client, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let ExposeRequest { local, protocol, .. } =
        ExposeRequest::decode("UnexposeRequest", posted(client, request).await?)?;
    let protocol = protocol_of(&protocol).ok_or(ExposeError::NotFound)?;
    let _change = api.change_of(client).await;
    api.registry.unexpose(protocol, &local, client.scope.asker()).await?;
    Ok(done())
}
