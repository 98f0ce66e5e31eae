//! The HTTP servers of the lab: turns a role (web server, app server, CDN) into an nginx configuration and a running
//! nginx.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::certs::Certificates;
use crate::host::{Host, connect};
use crate::process::{Daemon, wait_until};

/// The port of the app servers.
pub(crate) const APP_PORT: u16 = 8080;

/// A second port at which the web servers serve the same, for services whose backends have another port than the VIP.
pub const BACKEND_PORT: u16 = 8000;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// An nginx that can be killed and started again.
#[derive(Debug)]
pub(crate) struct Nginx {
    directory: PathBuf,
    port: u16,
    running: Mutex<Option<Daemon>>,
}

impl Nginx {
    /// Writes the configuration for `name` under `directory`; `server` is what stands in the `http` block.
    pub(crate) fn new(directory: &Path, name: &str, port: u16, server: &str) -> Result<Self> {
        let directory = directory.join(name);
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let file = directory.join("nginx.conf");
        fs::write(&file, configuration(&directory, server))
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(Self { directory, port, running: Mutex::new(None) })
    }

    /// Starts it in the namespace of `host` and waits until it accepts connections.
    pub(crate) fn start(&self, host: &Host) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut nginx = host.command("nginx");
        nginx.arg("-p").arg(&self.directory).arg("-c").arg("nginx.conf");
        // The log of its early start, before the configuration names one.
        nginx.arg("-e").arg(self.directory.join("error.log"));
        let name = format!("nginx on {}", host.name());
        let mut daemon = Daemon::spawn(nginx, &name, &self.directory.join("output.log"))?;
        let address = SocketAddr::from((host.address(), self.port));
        let mut ended = false;
        wait_until(&format!("{name} answers"), START_TIMEOUT, || {
            ended = daemon.exited().is_ok_and(|status| status.is_some());
            ended || host.run(|| connect(address, None).is_ok()).unwrap_or(false)
        })?;
        if ended {
            anyhow::bail!("{name} ended at once:\n{}", daemon.log());
        }
        *running = Some(daemon);
        Ok(())
    }

    /// Kills it.
    pub(crate) fn stop(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        drop(running.take());
    }
}

/// One process without master and workers, so that killing it leaves none.
fn configuration(directory: &Path, server: &str) -> String {
    let directory = directory.display();
    format!(
        "daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    server_tokens off;
    default_type text/plain;
    keepalive_timeout 600s;
    keepalive_requests 10000000;
    client_max_body_size 64m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{server}}}
"
    )
}

/// A web server: its own page at `/`, `/api` from the app tier, `/files/` to store and fetch.
pub(crate) fn web_server(name: &str, apps: &[Ipv4Addr], certificates: &Certificates, files: &Path) -> String {
    let upstreams: String = apps.iter().map(|app| format!("        server {app}:{APP_PORT};\n")).collect();
    let certificate = certificates.certificate.display();
    let key = certificates.key.display();
    let files = files.display();
    format!(
        "    upstream app_tier {{
{upstreams}    }}
    server {{
        listen 80 backlog=4096;
        listen [::]:80 backlog=4096;
        listen {BACKEND_PORT} backlog=4096;
        listen [::]:{BACKEND_PORT} backlog=4096;
        listen 443 ssl backlog=4096;
        listen [::]:443 ssl backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        add_header X-Served-By {name} always;
        location = / {{
            default_type text/html;
            return 200 '<!doctype html><title>Shop</title><h1>Welcome to the shop</h1><p>served by {name}</p>\\n';
        }}
        location = /healthz {{ return 200 'ok\\n'; }}
        location /api {{
            proxy_pass http://app_tier;
            proxy_connect_timeout 1s;
        }}
        location /files/ {{
            alias {files}/;
            dav_methods PUT DELETE;
        }}
    }}
"
    )
}

/// An app server: tells its name and what it was asked.
pub(crate) fn app_server(name: &str) -> String {
    format!(
        "    server {{
        listen {APP_PORT};
        listen [::]:{APP_PORT};
        default_type application/json;
        add_header X-App {name} always;
        location / {{ return 200 '{{\"app\":\"{name}\",\"path\":\"$request_uri\"}}\\n'; }}
    }}
"
    )
}

/// A CDN: a cache in front of the VIP that answers pages itself and passes the API on.
pub(crate) fn cdn(origin: Ipv4Addr, origin_name: &str, directory: &Path) -> String {
    let cache = directory.join("cdn-cache");
    let cache = cache.display();
    format!(
        "    proxy_cache_path {cache} keys_zone=pages:1m;
    server {{
        listen 80;
        listen [::]:80;
        proxy_set_header Host {origin_name};
        proxy_connect_timeout 2s;
        add_header X-Cache $upstream_cache_status always;
        location / {{
            proxy_pass http://{origin};
            proxy_cache pages;
            proxy_cache_key $request_uri;
            proxy_cache_valid 200 60s;
        }}
        location /api {{ proxy_pass http://{origin}; }}
    }}
"
    )
}
