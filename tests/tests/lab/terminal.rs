//! `sluice top` at the far end of a line: what it sends, and whether it still listens when the line is slow. Nothing there answers what a
//! terminal may be asked.

use std::process::Child;
use std::time::{Duration, Instant};

use lb_tests::{Lab, Load, Pty, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second.
const FAST: u32 = 1 << 20;
const SLOW: u32 = 2 << 10;
/// Time between two looks, the shortest there is, and the most that is sent for one at which nothing has changed but the time.
const LOOK: Duration = Duration::from_millis(100);
const QUIET_FRAME: usize = 256;
/// What the kernel keeps of what is written to a terminal and not read: a queue, of which 4 KiB have been handed over.
const HANDED_OVER: usize = 4 << 10;
const QUEUE: usize = (8 << 10) + HANDED_OVER;
/// More than a frame of 80 by 24 takes, drawn anew.
const FRAME: usize = 4 << 10;

/// `top` in a terminal of 80 by 24 of which so many bytes a second are read, once it is drawn.
fn top(lab: &Lab, bytes_per_second: u32) -> (Pty, Child) {
    let mut command = lab.sluice_command().expect("sluice");
    let interval = format!("{}ms", LOOK.as_millis());
    command.args(["top", "--interval", &interval]).env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
    let terminal = Pty::new(&mut command, 80, 24, bytes_per_second).expect("a terminal");
    let child = command.spawn().expect("top");
    wait_for(&terminal, 0, "EVENTS");
    (terminal, child)
}

/// Waits until something is drawn behind so many bytes; how many bytes came up to then.
fn wait_for(terminal: &Pty, from: usize, what: &str) -> usize {
    let said = || terminal.seen()[from..].windows(what.len()).any(|bytes| bytes == what.as_bytes());
    wait_until(&format!("{what:?} is drawn"), PATIENCE, said).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&terminal.seen()));
    });
    terminal.seen().len() - from
}

/// Presses `q`; how many bytes came until it had ended, and until the screen was the user's again.
fn quit(terminal: &mut Pty, child: &mut Child) -> (usize, usize) {
    let from = terminal.seen().len();
    terminal.press("q").expect("a key");
    wait_until("top has ended", PATIENCE, || child.try_wait().expect("a process").is_some()).expect("an end");
    let ended = terminal.seen().len() - from;
    assert!(child.wait().expect("an end").success());
    (ended, wait_for(terminal, from, "\u{1b}[?1049l"))
}

#[test]
fn what_does_not_change_is_not_sent_again() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let (mut terminal, mut child) = top(&lab, FAST);
    // Each look moves the trail of rates by a letter, until all of it is the same.
    let (from, began) = (terminal.seen().len(), Instant::now());
    std::thread::sleep(LOOK * 40);
    let sent = terminal.seen().len() - from;
    let looks = (began.elapsed().as_millis() / LOOK.as_millis()) as usize + 1;
    assert!(sent > 0 && sent < looks * QUIET_FRAME, "{sent} bytes for {looks} looks");
    eprintln!("{sent} bytes for {looks} looks");

    let from = terminal.seen().len();
    terminal.press("\u{c}").expect("Ctrl-L");
    wait_for(&terminal, from, "EVENTS");
    quit(&mut terminal, &mut child);
}

#[test]
fn a_slow_line_gets_few_frames_and_no_old_ones_and_keys_are_heeded() {
    let lab = Lab::builder().start().expect("a lab");
    let _agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let load = Load::start(lab.customer(), lab.vip(80), "/", 2);
    let (mut terminal, mut child) = top(&lab, SLOW);
    let are_many = || terminal.seen().len() > 2 * QUEUE;
    wait_until("there has been more to be seen than the line brings", PATIENCE, are_many).expect("frames");
    let from = terminal.seen().len();
    terminal.press("?").expect("a key");
    let late = wait_for(&terminal, from, "any key");
    assert!(late < QUEUE + 4 * FRAME, "{late} bytes were sent before what was new");
    terminal.press("x").expect("a key");
    let (ended, left) = quit(&mut terminal, &mut child);
    eprintln!("{late} bytes before help, {ended} before the end, {left} before the screen was left");
    assert!(ended < FRAME, "{ended} bytes were sent before it ended");
    assert!(left < HANDED_OVER + 2 * FRAME, "{left} bytes were sent before the screen was left");
    load.stop().expect("report");
}
