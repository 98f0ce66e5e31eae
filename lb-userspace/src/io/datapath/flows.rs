//! The mapped tables → the flows in them, and whose they are.

use lb_common::flow::Tick;

use super::TableSet;
use crate::core::flows::{FlowReport, Question, report};

impl TableSet {
    /// Counts the flows. Reads the flow table once; rings are not touched.
    pub fn flow_report(&self, now: Tick, question: &Question) -> FlowReport {
        let mut owners = vec![None; self.backends.records().len()];
        for (id, service) in self.backend_ids() {
            let at = usize::from(id);
            let names =
                (self.service_names.records().get(service as usize), self.backend_names.records().get(at));
            if let ((Some(service), Some(backend)), Some(owner)) = (names, owners.get_mut(at)) {
                *owner = Some((service.as_str().to_owned(), backend.as_str().to_owned()));
            }
        }
        report(self.flow_buckets(), &owners, now, question)
    }
}
