//! A real Chromium on one of the lab's hosts: turns scripts and keys into what a page makes of them, and keeps what it asked for.
//!
//! It is spoken to by the DevTools protocol over two pipes: <https://chromedevtools.github.io/devtools-protocol/>.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde_json::{Value, json};

use crate::host::Host;
use crate::process::Daemon;

/// How long Chromium may take for an answer: its start takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it tells of: requests, and what goes wrong.
const DOMAINS: [&str; 4] = ["Network", "Runtime", "Log", "Page"];

/// A browser with one page; killed when dropped.
#[derive(Debug)]
pub struct Browser {
    to: File,
    messages: Receiver<Value>,
    commands: u64,
    session: Option<String>,
    requests: Vec<String>,
    complaints: Vec<String>,
    // Last: its end closes the pipes.
    _chromium: Daemon,
}

impl Browser {
    /// Starts one on `host`, with its profile and all other files in `folder`.
    pub fn start(host: &Host, folder: &Path) -> Result<Self> {
        let temporary = folder.join("chromium-tmp");
        fs::create_dir_all(&temporary)?;
        let mut chromium = host.command("chromium");
        chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        chromium.args(["--no-first-run", "--remote-debugging-pipe"]);
        chromium.arg(format!("--user-data-dir={}", folder.join("chromium").display())).env("HOME", folder);
        // It leaves things there.
        chromium.env("TMPDIR", &temporary);
        let ((reads, to), (from, writes)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        give_pipes(&mut chromium, reads, writes);
        let daemon = Daemon::spawn(chromium, "chromium", &folder.join("chromium.log"))?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(File::from(from)).split(0) {
                let read = message.ok().and_then(|message| serde_json::from_slice(&message).ok());
                if read.is_none_or(|message: Value| sender.send(message).is_err()) {
                    return;
                }
            }
        });
        let mut browser = Self {
            to: to.into(),
            messages,
            commands: 0,
            session: None,
            requests: Vec::new(),
            complaints: Vec::new(),
            _chromium: daemon,
        };
        browser.attach().context("starting chromium")?;
        Ok(browser)
    }

    /// Attaches to a page of its own.
    fn attach(&mut self) -> Result<()> {
        let page = self.command("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": page["targetId"], "flatten": true});
        let attached = self.command("Target.attachToTarget", attach)?;
        self.session = Some(attached["sessionId"].as_str().context("no session")?.to_owned());
        for domain in DOMAINS {
            self.command(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(())
    }

    /// Goes to an address, and waits until the page is there.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.command("Page.navigate", json!({"url": url}))?;
        match opened["errorText"].as_str() {
            Some(error) => bail!("{url}: {error}"),
            None => self.wait_for("document.readyState === 'complete'", PATIENCE),
        }
    }

    /// What an expression of JavaScript comes to in the page; promises are waited for.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let script = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.command("Runtime.evaluate", script)?;
        match answer.get("exceptionDetails") {
            Some(exception) => bail!("{expression}: {exception}"),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Asks until an expression is true in the page.
    pub fn wait_for(&mut self, expression: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let value = self.evaluate(expression)?;
            if value == true {
                return Ok(());
            }
            if Instant::now() > end {
                let page = self.evaluate("document.body.innerText")?;
                bail!("waited {limit:?} in vain for {expression}; the page says:\n{page}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key that makes a letter, or one with a name such as `Tab`.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let text = if key.chars().count() == 1 { key } else { "" };
        let down = json!({"type": "keyDown", "key": key, "code": key, "text": text});
        self.command("Input.dispatchKeyEvent", down)?;
        self.command("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key, "code": key})).map(drop)
    }

    /// Makes the window so large, in points of the page.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.command("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    /// Has the page believe that its reader prefers `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.command("Emulation.setEmulatedMedia", features).map(drop)
    }

    /// Writes a picture of the whole page.
    pub fn screenshot(&mut self, file: &Path) -> Result<()> {
        let what = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.command("Page.captureScreenshot", what)?;
        let mut decode = Command::new("base64");
        decode.arg("--decode").stdin(Stdio::piped()).stdout(File::create(file)?);
        let mut decode = decode.spawn().context("starting base64")?;
        let mut stdin = decode.stdin.take().context("no stdin")?;
        stdin.write_all(picture["data"].as_str().unwrap_or_default().as_bytes())?;
        drop(stdin);
        if !decode.wait()?.success() {
            bail!("base64 failed");
        }
        Ok(())
    }

    /// All that was asked for since the start, as addresses.
    pub fn requests(&mut self) -> &[String] {
        self.listen();
        &self.requests
    }

    /// What its console would show since the start: errors, warnings, and whatever else scripts say.
    pub fn complaints(&mut self) -> &[String] {
        self.listen();
        &self.complaints
    }

    /// Sends a command and waits for its answer.
    fn command(&mut self, method: &str, params: Value) -> Result<Value> {
        self.commands += 1;
        let mut command = json!({"id": self.commands, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&command)?;
        bytes.push(0);
        self.to.write_all(&bytes).with_context(|| format!("{method}: chromium is gone"))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut message = match self.messages.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => bail!("{method}: no answer within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("{method}: chromium is gone"),
            };
            if message["id"] != self.commands {
                self.note(&message);
            } else if let Some(error) = message.get("error") {
                bail!("{method}: {error}");
            } else {
                return Ok(message["result"].take());
            }
        }
    }

    /// Takes in what it told unasked.
    fn listen(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match message["method"].as_str() {
            Some("Network.requestWillBeSent") => self.requests.push(text(&params["request"]["url"])),
            Some("Network.webSocketCreated" | "Network.webTransportCreated") => {
                self.requests.push(text(&params["url"]));
            }
            Some("Runtime.consoleAPICalled") => self.complaints.push(params["args"].to_string()),
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            Some("Log.entryAdded") => self.complaints.push(params["entry"].to_string()),
            _ => {}
        }
    }
}

/// Has the command find the pipes where Chromium looks for them: it reads from 3 and writes to 4.
fn give_pipes(command: &mut Command, reads: OwnedFd, writes: OwnedFd) {
    // SAFETY: the closure runs between fork and exec and makes system calls only; it neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            // Out of the way first, for one may have the other's number.
            let high = [&reads, &writes].map(|end| libc::fcntl(end.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10));
            for (end, number) in high.into_iter().zip([3, 4]) {
                if end < 0 || libc::dup2(end, number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}
