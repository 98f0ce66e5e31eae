//! HTTPS for the lab: turns a host name into a certificate authority and a server certificate, made by `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::run_checked;

/// The files of a lab's certificates.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    /// What clients trust.
    pub(crate) authority: PathBuf,
    /// What servers show.
    pub(crate) certificate: PathBuf,
    /// The servers' key.
    pub(crate) key: PathBuf,
}

/// Makes an authority and a certificate of it for `host` in `directory`.
pub(crate) fn make(directory: &Path, host: &str) -> Result<Certificates> {
    let file = |name: &str| directory.join(name);
    let extensions = file("server.ext");
    fs::write(&extensions, format!("subjectAltName=DNS:{host}\n")).context("writing server.ext")?;
    let run = |arguments: &str| {
        let mut openssl = Command::new("openssl");
        run_checked(openssl.args(arguments.split(' ')).current_dir(directory)).context("making certificates")
    };
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=lab-authority"))?;
    run(&format!("req {new_key} -keyout server.key -out server.csr -subj /CN={host}"))?;
    run(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem",
    )?;
    Ok(Certificates { authority: file("ca.pem"), certificate: file("server.pem"), key: file("server.key") })
}
