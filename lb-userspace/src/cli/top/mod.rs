//! `sluice top`: a live view of services and backends, drops, tables and events.

mod look;
mod once;
mod rows;
mod screen;
mod state;
mod table;
mod terminal;
mod text;

use std::io::IsTerminal;
use std::time::Duration;

use ratatui::crossterm::event::{Event as Input, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::client::Client;
use super::{Failure, Format};
use crate::core::config::parse_duration;
use crate::core::edit::Edit;
use crate::core::live::{Live, live};
use crate::core::stats::Snapshot;
use crate::io::api::{ApplyReport, EditRequest};
use crate::io::events::Events;
use look::Look;
use state::{Command, Top, Wish};
use terminal::Screen;

/// How many events are asked for.
const EVENTS: usize = 100;
/// How long an answer may take before it is said that the agent does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The quickest that may be asked for.
const QUICKEST: Duration = Duration::from_millis(100);

/// Watch services and backends live: rates, shares, health, drops, table pressure, events
///
/// Keys: arrows move, Enter opens a service, s sorts, / filters, d drains and e enables a backend (after a question), ? lists
/// the others. OPEN is the median time that TCP connections took to open. Only customers' packets are seen, so it is the backend's
/// answer plus the customer's way to and fro; answers that get lost do not show. `NO_COLOR` does without colour. Without a terminal, it prints once what happens, as --once does.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Time between two looks, over which rates are taken
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = period)]
    interval: Duration,
    /// Print one view and end
    #[arg(long)]
    once: bool,
    /// How to print one view; json implies --once
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

fn period(text: &str) -> Result<Duration, String> {
    let period = parse_duration(text).map_err(|error| error.to_string())?;
    if period < QUICKEST { Err("must be at least 100ms".to_owned()) } else { Ok(period) }
}

/// What a look at the agent has seen, or why it has not.
type Seen = Result<(Live, Events), Failure>;

/// What two looks at the agent make of it.
struct Watcher {
    client: Client,
    former: Option<(Snapshot, Instant)>,
}

impl Watcher {
    /// Looks every so often, and tells what it saw until nobody listens.
    async fn keep_looking(mut self, period: Duration, told: mpsc::Sender<Seen>) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        loop {
            ticks.tick().await;
            let seen = self.look().await;
            if told.send(seen).await.is_err() {
                return;
            }
        }
    }

    /// What happens now, and what happened lately.
    async fn look(&mut self) -> Seen {
        let answers = async {
            let snapshot: Snapshot = self.client.get("/v1/status").await?;
            let at = Instant::now();
            let events: Events = self.client.get(&format!("/v1/events?limit={EVENTS}")).await?;
            Ok((snapshot, at, events))
        };
        let (snapshot, at, events) = self.client.within(PATIENCE, answers).await?;
        let seconds =
            self.former.as_ref().map_or(0.0, |(_, before)| at.duration_since(*before).as_secs_f64());
        let now = live(self.former.as_ref().map(|(snapshot, _)| snapshot), &snapshot, seconds);
        self.former = Some((snapshot, at));
        Ok((now, events))
    }
}

pub(super) async fn run(arguments: &Arguments, client: &Client) -> Result<(), Failure> {
    let mut watcher = Watcher { client: Client::new(client.socket().to_owned()), former: None };
    let first = watcher.look().await?;
    let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
    let screen = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if arguments.once || arguments.output == Format::Json || !screen || dumb {
        tokio::time::sleep(arguments.interval).await;
        let (live, events) = watcher.look().await?;
        return once::print(arguments.output, &live, &events.events);
    }
    let mut top = Top::default();
    top.update(first.0, first.1.events);
    let (told, seen) = mpsc::channel(1);
    tokio::spawn(watcher.keep_looking(arguments.interval, told));
    watch(&mut top, seen, client).await
}

/// Shows what happens until somebody has seen enough.
async fn watch(top: &mut Top, mut seen: mpsc::Receiver<Seen>, client: &Client) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(Failure::failed);
    let (mut terminate, mut interrupt, mut hangup) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?, listen(SignalKind::hangup())?);
    let look = Look::from_environment();
    let mut inputs = terminal::inputs().map_err(Failure::failed)?;
    let mut screen = Screen::take().map_err(Failure::failed)?;
    let mut is_news = true;
    loop {
        if is_news && screen.is_free() {
            screen.draw(|frame| screen::draw(frame, top, &look)).map_err(Failure::failed)?;
            is_news = false;
        }
        let command = tokio::select! {
            sent = screen.send(), if !screen.is_free() => {
                sent.map_err(Failure::failed)?;
                continue;
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            input = inputs.recv() => match input {
                // The terminal is gone.
                None => return Ok(()),
                Some(Input::Key(key)) if key.kind != KeyEventKind::Release => top.on_key(key),
                Some(_) => None,
            },
            seen = seen.recv() => {
                match seen {
                    Some(Ok(_)) if top.paused => {}
                    Some(Ok((live, events))) => top.update(live, events.events),
                    Some(Err(failure)) => top.gone = Some(failure.to_string()),
                    None => return Err(Failure::failed("what looks at the agent has ended")),
                }
                None
            }
        };
        is_news = true;
        match command {
            None => {}
            Some(Command::Quit) => return Ok(()),
            Some(Command::Redraw) => screen.forget().map_err(Failure::failed)?,
            Some(Command::Carry(wish)) => top.notice = Some(carry(&wish, client).await),
        }
    }
}

/// Has the agent do what was confirmed; what came of it, in a line.
async fn carry(wish: &Wish, client: &Client) -> String {
    let Wish { service, backend, state, revision } = wish;
    let set = [("state".to_owned(), (*state).into())].into();
    let edit = Edit::BackendSet { service: service.clone(), backend: backend.clone(), set };
    let request =
        EditRequest { edit, dry_run: false, if_revision: Some(*revision), confirm_within_seconds: None };
    match client.post::<ApplyReport>("/v1/edit", &request).await {
        Ok(report) => format!("{backend} of {service}: {state} is in force, revision {}", report.revision),
        Err(Failure::Unreachable(why)) => why.replace('\n', "; "),
        Err(failure) => format!("nothing was changed: {failure}").replace('\n', "; "),
    }
}
