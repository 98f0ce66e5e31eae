//! Requests of the API → answers.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::Next;
use super::state::{Agent, Server};
use crate::core::explain::{Explanation, Ingress, Question, explain, frame, tell_why_down};
use crate::io::api::{
    self, ApiError, ChangeRequest, DetachRequest, Detached, ListenError, Request, Requests,
};
use crate::io::console;
use crate::io::datapath::{Datapath, PinDir};
use crate::io::events::EventLog;
use crate::io::neighbours::Interface;

impl Agent {
    /// Answers a request. Whoever asked may have gone: that is no error.
    pub(super) async fn on_request(&mut self, request: Request) -> Next {
        match request {
            Request::Status(answer) => {
                let _ = answer.send(self.snapshot().map_err(ApiError::failed));
            }
            Request::Metrics(answer) => {
                let snapshot = self.snapshot().map_err(ApiError::failed);
                let _ = answer.send(snapshot.map(|snapshot| (snapshot, self.histograms.clone())));
            }
            Request::Trend(service, answer) => {
                let _ = answer.send(self.trend(service.as_deref()));
            }
            Request::Change(ChangeRequest { asked, uid, answer }) => {
                let _ = answer.send(self.on_change(asked, uid).await);
            }
            Request::Confirm(uid, answer) => {
                let _ = answer.send(self.confirm(uid));
            }
            Request::History(answer) => {
                let _ = answer.send(Ok(self.history_report()));
            }
            Request::Explain(question, answer) => {
                let _ = answer.send(self.explain(&question));
            }
            Request::Detach(request, answer) => {
                let detached = self.detach(&request);
                self.detached = detached.is_ok();
                let _ = answer.send(detached);
                if self.detached {
                    return Next::End;
                }
            }
            Request::Capture(call) => self.on_capture(call),
            Request::Health(answer) => {
                let _ = answer.send(Ok(()));
            }
        }
        Next::Continue
    }

    fn detach(&self, request: &DetachRequest) -> Result<Detached, ApiError> {
        let own = self.pins.canonical();
        if let Some(asked) = &request.pin_dir
            && PinDir::new(asked).canonical() != own
        {
            let (own, asked) = (own.display(), asked.display());
            return Err(ApiError::invalid(format!(
                "this agent pins in {own}, not in {asked}: name the --socket of the agent that does, or --pin-dir {own}"
            )));
        }
        let interfaces = self.pins.remove_all().map_err(ApiError::failed)?;
        Ok(Detached { interfaces })
    }

    fn explain(&self, question: &Question) -> Result<Explanation, ApiError> {
        let names: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let names = names.join(", ");
        let asked =
            |interface: &&Interface| question.interface.as_ref().is_none_or(|name| interface.name == *name);
        let mut asked = self.interfaces.iter().filter(asked).peekable();
        if asked.peek().is_none() {
            return Err(ApiError::invalid(format!("--iface: not one of the agent's interfaces ({names})")));
        }
        let interface = asked.find(|interface| interface.is_there()).ok_or_else(|| {
            let asked = question.interface.as_ref().unwrap_or(&names);
            ApiError::conflict(format!("there is no interface {asked} now: no packet comes in there"))
        })?;
        let ingress = Ingress { index: interface.ifindex, mac: interface.mac };
        let frame = frame(&question.packet, ingress).map_err(ApiError::invalid)?;
        let mtus = self.interfaces.iter().map(|at| (at.ifindex, u16::try_from(at.mtu).unwrap_or(u16::MAX)));
        let mtus: Vec<(u32, u16)> = mtus.collect();
        let tables = self.kernel.tables();
        let slices = tables.slices().ok_or_else(|| ApiError::failed("the tables are empty"))?;
        let now = self.kernel.now().map_err(ApiError::failed)?;
        let mut explanation = explain(slices, &tables.names(), now, frame, ingress, &mtus);
        tell_why_down(&mut explanation, &self.config, &self.knowledge);
        Ok(explanation)
    }

    /// Serves metrics on a port, if there is to be one.
    pub(super) async fn serve_metrics(
        &self,
        address: Option<SocketAddr>,
    ) -> Result<Option<Server>, ListenError> {
        let Some(address) = address else { return Ok(None) };
        let listener = api::listen_public(address).await?;
        Ok(Some(serve_public(listener, address, self.requests.clone(), self.events.clone())))
    }
}

/// Serves metrics and the web console on a listener: who has connected to it before is answered now.
pub(super) fn serve_public(
    listener: TcpListener,
    address: SocketAddr,
    requests: Requests,
    events: EventLog,
) -> Server {
    let routes = api::public_routes(requests).merge(console::routes(events));
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            log::error!("agent.metrics: {error}");
        }
    });
    Server { address, task }
}
