//! Requests of the API → answers.

use std::net::SocketAddr;

use super::Next;
use super::state::{Agent, Server};
use crate::core::explain::{Explanation, Ingress, Question, explain, frame};
use crate::io::api::{self, ApiError, Detached, ListenError, Request};
use crate::io::datapath::Datapath;
use crate::io::exporters;

impl Agent {
    /// Answers a request. Whoever asked may have gone: that is no error.
    pub(super) async fn on_request(&mut self, request: Request) -> Next {
        match request {
            Request::Status(answer) => {
                let _ = answer.send(self.snapshot().map_err(ApiError::failed));
            }
            Request::Metrics(answer) => {
                let snapshot = self.snapshot().map_err(ApiError::failed);
                let _ = answer.send(snapshot.map(|snapshot| exporters::render(&snapshot, &self.histograms)));
            }
            Request::Apply(request, answer) => {
                let _ = answer.send(self.on_apply(request).await);
            }
            Request::Explain(question, answer) => {
                let _ = answer.send(self.explain(&question));
            }
            Request::Detach(answer) => {
                let detached = self.pins.remove_all().map(|interfaces| Detached { interfaces });
                self.detached = detached.is_ok();
                let _ = answer.send(detached.map_err(ApiError::failed));
                if self.detached {
                    return Next::End;
                }
            }
        }
        Next::Continue
    }

    fn explain(&self, question: &Question) -> Result<Explanation, ApiError> {
        let interface = match &question.interface {
            None => self.interfaces.first(),
            Some(name) => self.interfaces.iter().find(|interface| interface.name == *name),
        };
        let interface = interface.ok_or_else(|| {
            let names: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
            ApiError::invalid(format!("--iface: not one of the agent's interfaces ({})", names.join(", ")))
        })?;
        let ingress = Ingress { index: interface.ifindex, mac: interface.mac };
        let frame = frame(&question.packet, ingress).map_err(ApiError::invalid)?;
        let tables = self.kernel.tables();
        let slices = tables.slices().ok_or_else(|| ApiError::failed("the tables are empty"))?;
        let now = self.kernel.now().map_err(ApiError::failed)?;
        Ok(explain(slices, &tables.image(), now, frame, ingress))
    }

    /// Serves metrics on a port, if there is to be one.
    pub(super) async fn serve_metrics(
        &self,
        address: Option<SocketAddr>,
    ) -> Result<Option<Server>, ListenError> {
        let Some(address) = address else { return Ok(None) };
        let listener = api::listen_public(address).await?;
        let routes = api::public_routes(self.requests.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                log::error!("agent.metrics: {error}");
            }
        });
        Ok(Some(Server { address, task }))
    }
}
