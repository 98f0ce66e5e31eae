//! Questions to the kernel: turns an address, index or name into one netlink request and its answer into a value.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourState};
use tokio::time::timeout;

use super::message::{self, Link, Neighbour, Route};
use super::{Mac, NetlinkError};

/// The kernel answers in microseconds. Only an answer that cannot be decoded never arrives here.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket for requests. It subscribes to nothing, so no flood of notifications can cost an answer.
#[derive(Debug)]
pub(super) struct Requests {
    handle: rtnetlink::Handle,
}

impl Requests {
    pub(super) fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // Ends by itself when the handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The route that a packet to `address` would take now.
    pub(super) async fn route(&self, address: IpAddr) -> Result<Route, NetlinkError> {
        let request = RouteNetlinkMessage::GetRoute(message::route_to(address));
        match self.request(request, 0).await {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => Ok(message::route(&answer)),
            Ok(_) => Err(NetlinkError::NoAnswer),
            // What looking up an unreachable, prohibit or blackhole route, or none at all, comes to.
            Err(NetlinkError::Refused(
                Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL,
            )) => Ok(Route::None),
            Err(error) => Err(error),
        }
    }

    /// The entry of `address` in the neighbour table.
    pub(super) async fn neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<Neighbour>, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(message::neighbour_at(ifindex, address));
        match self.request(request, 0).await {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(answer))) => Ok(message::neighbour(&answer)),
            Ok(_) => Err(NetlinkError::NoAnswer),
            Err(NetlinkError::Refused(Errno::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel resolve or verify `address`, as if it had a packet to send there.
    pub(super) async fn solicit(&self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut neighbour = message::neighbour_at(ifindex, address);
        neighbour.header.flags = NeighbourFlags::Use;
        neighbour.header.state = NeighbourState::None;
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewNeighbour(neighbour), flags).await.map(drop)
    }

    /// Makes the kernel ask `address` whether it still has this MAC address, and forget that if nobody answers.
    pub(super) async fn doubt(&self, ifindex: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let mut neighbour = message::neighbour_at(ifindex, address);
        neighbour.header.state = NeighbourState::Probe;
        neighbour.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.request(RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_ACK | NLM_F_REPLACE).await.map(drop)
    }

    /// The interface of this index.
    pub(super) async fn link(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        self.get_link(request).await
    }

    /// The interface of this name.
    pub(super) async fn link_named(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(request).await
    }

    async fn get_link(&self, mut request: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        // Statistics are most of the answer and cost the kernel most of its time.
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.request(RouteNetlinkMessage::GetLink(request), 0).await {
            Ok(Some(RouteNetlinkMessage::NewLink(answer))) => Ok(Some(message::link(&answer))),
            Ok(_) => Err(NetlinkError::NoAnswer),
            // The last one is how a name longer than any interface can have is refused.
            Err(NetlinkError::Refused(Errno::ENODEV | Errno::ERANGE | Errno::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one request. The answer is `None` where all the kernel has to say is that it is done.
    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(message).map_err(|_| NetlinkError::NoAnswer)?;
        let answer = timeout(PATIENCE, answers.next()).await.map_err(|_| NetlinkError::NoAnswer)?;
        match answer.map(|answer| answer.payload) {
            None => Ok(None),
            Some(NetlinkPayload::InnerMessage(answer)) => Ok(Some(answer)),
            Some(NetlinkPayload::Error(error)) => {
                Err(NetlinkError::Refused(Errno::from_raw(error.raw_code().wrapping_neg())))
            }
            Some(_) => Err(NetlinkError::NoAnswer),
        }
    }
}
