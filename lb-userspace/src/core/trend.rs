//! Counters every few seconds → the traffic of the last hour, in bounded memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time between two points.
pub const STEP: Duration = Duration::from_secs(5);
/// Points that are kept: an hour.
pub const POINTS: usize = 720;
/// Services that have points of their own: the first ones of the configuration. With 16 bytes a point, all points together
/// take 6 MiB at most.
pub const MAX_SERVICES: usize = 512;

/// What was counted up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, by the IP header.
    pub bytes: u64,
    /// Flows that were given a backend.
    pub new_flows: u64,
    /// Packets dropped; of a service, none is known.
    pub drops: u64,
}

/// Rates over one step; single precision is more than a chart shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    packets: f32,
    bits: f32,
    new_flows: f32,
    drops: f32,
}

/// The last hour.
#[derive(Debug, Default)]
pub struct Trends {
    former: Option<(Duration, BTreeMap<Subject, Counters>)>,
    points: BTreeMap<Subject, VecDeque<Point>>,
    /// When the latest point ended, in milliseconds since 1970.
    ended_ms: i64,
}

/// What has points: everything together, or a service.
type Subject = Option<String>;

/// The last hour of everything together, or of one service: each list from the oldest point to the latest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrendReport {
    /// The service; none if this is everything together.
    pub service: Option<String>,
    /// Seconds between two points.
    pub step_seconds: u64,
    /// When the latest point ended, in milliseconds since 1970.
    pub ended_ms: i64,
    /// Packets forwarded each second.
    pub packets_per_second: Vec<f32>,
    /// Their bits each second, by the IP header.
    pub bits_per_second: Vec<f32>,
    /// Flows that were given a backend, each second.
    pub new_flows_per_second: Vec<f32>,
    /// Packets dropped each second; empty for a service.
    pub drops_per_second: Vec<f32>,
}

impl Trends {
    /// Takes in what was counted up to now; `now` is any clock that only goes forward. Steps that were missed get the mean.
    pub fn push(
        &mut self,
        total: Counters,
        services: impl IntoIterator<Item = (String, Counters)>,
        now: Duration,
        now_ms: i64,
    ) {
        let services = services.into_iter().take(MAX_SERVICES).map(|(name, counters)| (Some(name), counters));
        let counted: BTreeMap<Subject, Counters> = services.chain([(None, total)]).collect();
        self.points.retain(|subject, _| counted.contains_key(subject));
        if let Some((then, former)) = self.former.take() {
            let elapsed = now.saturating_sub(then).as_secs_f64();
            if elapsed <= 0.0 {
                self.former = Some((then, former));
                return;
            }
            let steps = ((elapsed / STEP.as_secs_f64()).round() as usize).clamp(1, POINTS);
            for (subject, &after) in &counted {
                let Some(&before) = former.get(subject) else { continue };
                let points = self.points.entry(subject.clone()).or_default();
                let point = point(before, after, elapsed);
                for _ in 0..steps {
                    if points.len() >= POINTS {
                        points.pop_front();
                    }
                    points.push_back(point);
                }
            }
            self.ended_ms = now_ms;
        }
        self.former = Some((now, counted));
    }

    /// The last hour of a service, or of everything; none if there is no such service.
    pub fn report(&self, service: Option<&str>) -> Option<TrendReport> {
        let subject = service.map(str::to_owned);
        let known = self.former.as_ref().is_none_or(|(_, counted)| counted.contains_key(&subject));
        if !known {
            return None;
        }
        let none = VecDeque::new();
        let points = self.points.get(&subject).unwrap_or(&none);
        let list = |value: fn(&Point) -> f32| points.iter().map(value).map(tenths).collect();
        Some(TrendReport {
            step_seconds: STEP.as_secs(),
            ended_ms: self.ended_ms,
            packets_per_second: list(|point| point.packets),
            bits_per_second: list(|point| point.bits),
            new_flows_per_second: list(|point| point.new_flows),
            drops_per_second: if subject.is_none() { list(|point| point.drops) } else { Vec::new() },
            service: subject,
        })
    }
}

fn tenths(value: f32) -> f32 {
    (value * 10.0).round() / 10.0
}

/// A counter that began anew has not moved.
fn point(before: Counters, after: Counters, seconds: f64) -> Point {
    let rate = |before: u64, after: u64| (after.saturating_sub(before) as f64 / seconds) as f32;
    Point {
        packets: rate(before.packets, after.packets),
        bits: 8.0 * rate(before.bytes, after.bytes),
        new_flows: rate(before.new_flows, after.new_flows),
        drops: rate(before.drops, after.drops),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(packets: u64) -> Counters {
        Counters { packets, bytes: packets * 100, new_flows: packets / 10, drops: 2 * packets }
    }

    fn push(trends: &mut Trends, packets: u64, services: &[&str], seconds: u64) {
        let services = services.iter().map(|name| ((*name).to_owned(), counters(packets / 2)));
        trends.push(counters(packets), services, Duration::from_secs(seconds), seconds as i64 * 1_000);
    }

    #[test]
    fn points_are_rates_and_missed_steps_get_the_mean() {
        let mut trends = Trends::default();
        assert_eq!(trends.report(None).unwrap().packets_per_second, [0.0; 0]);
        push(&mut trends, 1_000, &["web"], 0);
        push(&mut trends, 1_100, &["web"], 5);
        push(&mut trends, 1_400, &["web", "new"], 15);
        push(&mut trends, 7, &["web", "new"], 15);
        let total = trends.report(None).unwrap();
        assert_eq!(total.packets_per_second, [20.0, 30.0, 30.0]);
        assert_eq!(total.bits_per_second, [16_000.0, 24_000.0, 24_000.0]);
        assert_eq!((total.drops_per_second[0], total.new_flows_per_second[0]), (40.0, 2.0));
        assert_eq!((total.ended_ms, total.step_seconds), (15_000, 5));
        let web = trends.report(Some("web")).unwrap();
        assert_eq!((web.packets_per_second.len(), web.drops_per_second.len()), (3, 0));
        assert_eq!(web.packets_per_second[0], 10.0);
        assert_eq!(trends.report(Some("new")).unwrap().packets_per_second, [0.0; 0]);
        assert_eq!(trends.report(Some("none")), None);
        push(&mut trends, 0, &["new"], 20);
        assert_eq!(trends.report(Some("web")), None, "it is gone");
        assert_eq!(trends.report(None).unwrap().packets_per_second.last(), Some(&0.0), "counted anew");
    }

    #[test]
    fn memory_is_bounded() {
        let mut trends = Trends::default();
        let names: Vec<String> = (0..MAX_SERVICES + 9).map(|number| format!("s{number:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        push(&mut trends, 0, &names, 0);
        for step in 1..=4 {
            push(&mut trends, step, &names, step * 3_000);
        }
        assert_eq!(trends.points.len(), MAX_SERVICES + 1);
        assert!(trends.points.values().all(|points| points.len() == POINTS));
        assert_eq!(size_of::<Point>(), 16);
        assert_eq!(trends.report(Some(names[MAX_SERVICES])), None);
    }
}
