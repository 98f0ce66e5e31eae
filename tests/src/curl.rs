//! A customer's `curl`: turns arguments as a customer types them into a parsed answer.

use anyhow::{Context, Result, bail};

use crate::host::Host;
use crate::http::{Response, read_response};

impl Host {
    /// Runs `curl` on this host; an error with curl's words if no HTTP answer came within 3 s.
    pub fn curl(&self, arguments: &[&str]) -> Result<Response> {
        let mut curl = self.command("curl");
        // The body as it is on the wire: the answer is parsed once, by us.
        curl.args(["--silent", "--show-error", "--include", "--raw", "--max-time", "3"]).args(arguments);
        let output = curl.output().context("running curl")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        read_response(&mut output.stdout.as_slice()).context("reading curl's output")
    }
}
