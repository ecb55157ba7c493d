//! A socket of the guest by way of its sshd. Owns: what is said about it. May not: know how SSH works
//! (`crate::ssh`).
//! Read next: `../ssh/offer.rs`.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{FAREWELL, Host, MAX_CLIENTS, Retry, stopped};
use crate::forward::Logins;
use crate::ssh::{Arrival, ConnectError, Exchanges, Offer, OfferError, Record, Target};
use crate::sys::stream;

/// Keeps a socket at `path` in the guest of `target`.
pub(super) async fn run(target: &Target, path: &str, host: &Arc<Host>, shutdown: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    let mut retry = Retry::default();
    let (dialer, penalties, mut record) =
        (Logins(Arc::clone(&host.connector)), &host.connector.penalties, Record::default());
    let exchanges = Exchanges::new();
    let mut stop = pin!(stopped(shutdown));
    loop {
        let made = tokio::select! {
            () = &mut stop => return,
            made = Offer::make(&dialer, penalties, target, &mut record, &exchanges, path) => made,
        };
        let refused = match made {
            Ok(mut offer) => {
                let since = Instant::now();
                retry.made(path, host);
                let take = |client: Arrival| {
                    while clients.try_join_next().is_some() {}
                    if clients.len() < MAX_CLIENTS {
                        clients.spawn(serve_client(client, Arc::clone(host)));
                    } else {
                        host.say("there are too many");
                    }
                };
                let is_over = tokio::select! {
                    () = &mut stop => true,
                    () = offer.serve(take) => false,
                };
                if is_over {
                    let _ = timeout(FAREWELL, offer.withdraw()).await;
                    return;
                }
                debug!(path, "reverse: the connection to the guest was lost");
                retry.lost(since);
                false
            }
            Err(error) => {
                if retry.is_news(&error) {
                    say(&error, target, path);
                } else {
                    debug!(%error, path, "reverse: still no socket in the guest");
                }
                !is_absence(&error)
            }
        };
        tokio::select! {
            () = &mut stop => return,
            () = sleep(retry.pause(refused)) => {}
        }
    }
}

/// Whether it is no refusal.
fn is_absence(error: &OfferError) -> bool {
    use ConnectError::{Dropped, Unreachable};
    matches!(error, OfferError::Connect(Unreachable(_) | Dropped(_)) | OfferError::Lost)
}

/// What there is to do about it.
fn say(error: &OfferError, target: &Target, path: &str) {
    let todo = match error {
        OfferError::Connect(ConnectError::Unreachable(_) | ConnectError::Dropped(_)) | OfferError::Lost => {
            return info!(%error, addr = %target.addr, path, "reverse: waiting for the guest");
        }
        OfferError::Connect(ConnectError::Auth { .. }) => {
            "add the identity's public key to the user's authorized_keys in the guest"
        }
        OfferError::Connect(ConnectError::MoreWanted { .. }) => {
            "see AuthenticationMethods in its sshd_config"
        }
        OfferError::Connect(ConnectError::Key(_)) => "give a key file that can be used",
        OfferError::Incapable => "use OpenSSH's sshd there, or gvforwarder's agent",
        OfferError::Connect(ConnectError::HostKey(_)) => "this may be another machine; change one of the two",
        OfferError::InUse => {
            "end that program, which may be an earlier connection of this daemon, or take another path"
        }
        OfferError::NoSocket => "remove it, or take another path",
        OfferError::NoDirectory => "make it in the guest, or take another path",
        OfferError::NotWritable => "take another path, or another user",
        OfferError::Refused | OfferError::Unexplained(_) => {
            "its sshd_config needs AllowStreamLocalForwarding, and StreamLocalBindUnlink if a dead socket is in the way"
        }
    };
    warn!(%error, addr = %target.addr, user = target.user, path, todo, "reverse: no socket in the guest, trying again");
}

/// Joins one client with the host's socket.
async fn serve_client(client: Arrival, host: Arc<Host>) {
    let Some((socket, _place)) = host.connect().await else { return client.refuse().await };
    let ended = match stream::watch(socket) {
        Ok(socket) => client.accept().await.relay(socket).await,
        Err(error) => Err(error),
    };
    debug!(?ended, dest = %host.dest, "reverse: client ended");
}
