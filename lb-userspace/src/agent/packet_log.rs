//! The program's own log records → the agent's log, for who asked for it.

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use crate::io::datapath::Kernel;

/// Forwards records for as long as the agent runs.
pub(super) fn spawn(kernel: &mut Kernel) {
    let Some(object) = kernel.object() else { return };
    let logger = EbpfLogger::init(object).map_err(|error| error.to_string());
    // SAFETY: the logger keeps one descriptor for as long as it lives, and the registration owns the logger.
    let logger =
        logger.and_then(|logger| unsafe { AsyncFd::register(logger) }.map_err(|error| error.to_string()));
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(error) => return log::warn!("packets cannot be logged: {error}"),
    };
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}
