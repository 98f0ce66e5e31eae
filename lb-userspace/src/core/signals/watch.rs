//! Counters of customers' packets at regular looks → signs that a backend is not well, as they begin and end.
//!
//! Anybody can send packets to a VIP. So no sign is made of one that a stranger could bring about for a single backend alone: who
//! floods a service does so to all of its backends, and that takes none of them away from the others.

use std::collections::{BTreeMap, HashMap};

use lb_common::abi::Traffic;

use super::super::wanted::BackendKey;

/// Looks after which what was seen is too old to be added up.
const WINDOW_LOOKS: u32 = 10;
/// SYNs that come again, from which on they are a sign.
const MIN_REPEATED: u64 = 3;
/// So many SYNs of a connection come again that are not taken for another's: after one second and three (RFC 6298 section 5). Who sends
/// more of them sends them for another reason.
const REPEATED_OF_ONE: u64 = 2;
/// For each connection that went on, so many SYNs that came again are a sign.
const REPEATED_FOR_ONE: u64 = 4;
/// Connections that ended, from which on their ends are compared.
const MIN_ENDED: u64 = 20;
/// RSTs in a look, from which on they may be a flood.
const MIN_FLOOD: u64 = 1_000;
/// For each connection that was opened or went on, so many RSTs are a flood.
const FLOOD_FOR_ONE: u64 = 10;

/// What customers' packets show of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// SYNs come again, and nothing follows them.
    Unanswered,
    /// Customers reset its connections, and hardly any of the service's other backends.
    Resets,
    /// Far more RSTs than there can be connections.
    ResetFlood,
}

impl Signal {
    /// So many of the first are judged: the others say nothing of the backend.
    pub const JUDGED: usize = 2;

    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Resets => "resets",
            Self::ResetFlood => "reset_flood",
        }
    }

    /// Whether it is about the backend, and not about who sends packets to it.
    pub fn is_of_the_backend(self) -> bool {
        self != Self::ResetFlood
    }

    /// What is wrong, in a clause.
    pub fn reason(self, counted: &Traffic) -> String {
        let &Traffic { opened, repeated, answered, fins, resets, .. } = counted;
        match self {
            Self::Unanswered => format!(
                "customers get no answer: {repeated} SYNs came again, {opened} connections were opened and {answered} went on"
            ),
            Self::Resets => format!(
                "customers reset its connections: {resets} RSTs and {fins} FINs, and hardly any RST at the service's others"
            ),
            Self::ResetFlood => {
                format!("a flood of {resets} RSTs for {opened} connections opened and {answered} gone on")
            }
        }
    }
}

/// A backend's counters at a look.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// Its service's name.
    pub service: &'a str,
    /// Its name.
    pub backend: &'a str,
    /// Its id, which is nobody else's: another one is another server.
    pub id: u16,
    /// All that was counted for it.
    pub traffic: Traffic,
}

/// A sign that begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Showing {
    /// The backend.
    pub key: BackendKey,
    /// The sign.
    pub signal: Signal,
    /// Whether it begins; else it is over.
    pub begins: bool,
    /// What was counted meanwhile.
    pub counted: Traffic,
}

/// What a look says of a backend's health, if anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The backend.
    pub key: BackendKey,
    /// What of it is seen.
    pub signal: Signal,
    /// All is well; or what was counted that is not.
    pub result: Result<(), Traffic>,
}

/// What was seen at the last looks.
#[derive(Clone, Debug, Default)]
pub struct PassiveWatch {
    /// By id, for many are looked at often. Of one that never had any traffic there is nothing to keep, and there may be thousands.
    backends: HashMap<u16, Option<Box<Watched>>>,
}

#[derive(Clone, Debug)]
struct Watched {
    key: BackendKey,
    last: Traffic,
    openings: Window,
    ends: Window,
    /// What came since the last look.
    now: Traffic,
    showing: BTreeMap<Signal, bool>,
}

/// What was counted in the last looks, as long as it said nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    counted: Traffic,
    looks: u32,
    /// What was counted in the window before: its last connections may go on, or be asked for again, in this one.
    before: Traffic,
}

/// What a window says.
enum Says {
    Bad,
    Good,
    /// Not enough was seen yet.
    Nothing,
    /// For a long time, not enough was seen.
    Quiet,
}

impl Window {
    fn add(&mut self, traffic: Traffic) {
        self.counted += traffic;
        self.looks += 1;
    }

    /// SYNs that came again, as many as there can be of connections that did not go on.
    fn repeated(&self) -> u64 {
        let left = self.before.opened.saturating_sub(self.before.answered);
        let stuck = (self.counted.opened + left).saturating_sub(self.counted.answered);
        self.counted.repeated.min(stuck.saturating_mul(REPEATED_OF_ONE))
    }

    /// What it says; it begins anew if it says something.
    fn says(&mut self, bad: bool, good: bool) -> (Says, Traffic) {
        let says = match (bad, good) {
            (true, _) => Says::Bad,
            (false, true) => Says::Good,
            _ if self.looks < WINDOW_LOOKS => Says::Nothing,
            _ => Says::Quiet,
        };
        let counted = self.counted;
        if !matches!(says, Says::Nothing) {
            *self = Self { before: counted, ..Self::default() };
        }
        (says, counted)
    }
}

fn ended(traffic: &Traffic) -> u64 {
    traffic.fins + traffic.resets
}

impl PassiveWatch {
    /// Looks at the backends of a service. The first look at a backend only takes its counters down.
    pub fn look(&mut self, sights: &[Sight<'_>]) -> (Vec<Showing>, Vec<Judged>) {
        sights.iter().for_each(|sight| self.note(sight));
        let seen = |sight: &Sight<'_>| Some(self.backends.get(&sight.id)?.as_ref()?.ends.counted);
        let all: Traffic = sights.iter().filter_map(seen).sum();
        let (mut showings, mut judged) = (Vec::new(), Vec::new());
        for sight in sights {
            if let Some(Some(watched)) = self.backends.get_mut(&sight.id) {
                watched.judge(&all, &mut showings, &mut judged);
            }
        }
        (showings, judged)
    }

    /// Takes the counters down.
    fn note(&mut self, sight: &Sight<'_>) {
        let is_first = !self.backends.contains_key(&sight.id);
        let known = self.backends.entry(sight.id).or_default();
        let watched = match known {
            None if sight.traffic == Traffic::default() => return,
            None => {
                let new = known.insert(Box::new(Watched::new(sight)));
                new.now = if is_first { Traffic::default() } else { sight.traffic };
                new
            }
            Some(watched) if watched.is_of(sight) => {
                watched.now = sight.traffic.since(&watched.last);
                watched
            }
            Some(watched) => {
                **watched = Watched::new(sight);
                watched
            }
        };
        watched.last = sight.traffic;
        watched.openings.add(watched.now);
        watched.ends.add(watched.now);
    }

    /// How many backends are known.
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Forgets backends that are not looked at any more; says of ids which are.
    pub fn retain(&mut self, keeps: impl Fn(u16) -> bool) {
        self.backends.retain(|id, _| keeps(*id));
    }
}

impl Watched {
    fn new(sight: &Sight<'_>) -> Self {
        Self {
            key: BackendKey::new(sight.service, sight.backend),
            last: Traffic::default(),
            openings: Window::default(),
            ends: Window::default(),
            now: Traffic::default(),
            showing: BTreeMap::new(),
        }
    }

    fn is_of(&self, sight: &Sight<'_>) -> bool {
        (self.key.service.as_str(), self.key.backend.as_str()) == (sight.service, sight.backend)
    }

    fn judge(&mut self, all: &Traffic, showings: &mut Vec<Showing>, judged: &mut Vec<Judged>) {
        let (repeated, answered) = (self.openings.repeated(), self.openings.counted.answered);
        let bad = repeated >= MIN_REPEATED && repeated > answered * REPEATED_FOR_ONE;
        let openings = self.openings.says(bad, answered > repeated);

        let own = self.ends.counted;
        let (others, other_resets) = (ended(all) - ended(&own), all.resets - own.resets);
        let compared = own.resets >= MIN_ENDED && others >= MIN_ENDED;
        let bad = compared && own.resets * 2 >= ended(&own) && other_resets * 10 < others;
        let ends = self.ends.says(bad, ended(&own) >= MIN_ENDED && own.resets * 4 < ended(&own));

        for (signal, (says, counted)) in [(Signal::Unanswered, openings), (Signal::Resets, ends)] {
            let result = match says {
                Says::Nothing => continue,
                Says::Bad => Err(counted),
                Says::Good | Says::Quiet => Ok(()),
            };
            showings.extend(self.turned(signal, result.is_err(), counted));
            // Silence says nothing of a backend.
            if !matches!(says, Says::Quiet) {
                judged.push(Judged { key: self.key.clone(), signal, result });
            }
        }
        let Traffic { resets, opened, answered, .. } = self.now;
        let flood = resets >= MIN_FLOOD && resets > (opened + answered) * FLOOD_FOR_ONE;
        showings.extend(self.turned(Signal::ResetFlood, flood, self.now));
    }

    fn turned(&mut self, signal: Signal, is: bool, counted: Traffic) -> Option<Showing> {
        let was = self.showing.insert(signal, is).unwrap_or(false);
        (was != is).then(|| Showing { key: self.key.clone(), signal, begins: is, counted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend's number, a sign, and whether that begins.
    type Shown = (usize, Signal, bool);

    /// A service's backends, whose counters grow from look to look.
    struct Backends {
        watch: PassiveWatch,
        sums: Vec<Traffic>,
        id: u16,
    }

    impl Backends {
        fn new(count: usize) -> Self {
            let old = Traffic { opened: 9_000, repeated: 900, resets: 9_000, ..Traffic::default() };
            let mut backends = Self { watch: PassiveWatch::default(), sums: vec![old; count], id: 1 };
            assert_eq!(backends.look(&[]), (vec![], vec![]), "what was counted before is no news");
            backends
        }

        fn look(&mut self, more: &[Traffic]) -> (Vec<Shown>, Vec<(usize, Option<Signal>)>) {
            for (sum, more) in self.sums.iter_mut().zip(more) {
                *sum += *more;
            }
            let names: Vec<String> = (0..self.sums.len()).map(|number| number.to_string()).collect();
            let sights: Vec<Sight<'_>> = (self.id..)
                .zip(names.iter().zip(&self.sums))
                .map(|(id, (backend, &traffic))| Sight { service: "web", backend, id, traffic })
                .collect();
            let (showings, judged) = self.watch.look(&sights);
            let number = |key: &BackendKey| key.backend.parse().unwrap();
            let showings =
                showings.iter().map(|showing| (number(&showing.key), showing.signal, showing.begins));
            let judged = judged
                .iter()
                .map(|judged| (number(&judged.key), judged.result.is_err().then_some(judged.signal)));
            (showings.collect(), judged.collect())
        }
    }

    fn openings(opened: u64, repeated: u64, answered: u64) -> Traffic {
        Traffic { opened, repeated, answered, ..Traffic::default() }
    }

    fn ends(fins: u64, resets: u64) -> Traffic {
        Traffic { opened: fins + resets, answered: fins + resets, fins, resets, ..Traffic::default() }
    }

    #[test]
    fn syns_that_come_again_and_go_nowhere_are_a_sign() {
        use Signal::Unanswered;
        let mut backends = Backends::new(2);
        let (good, bad) = (openings(10, 1, 10), openings(4, 2, 0));
        assert_eq!(backends.look(&[good, bad]), (vec![], vec![(0, None)]), "not enough yet");
        assert_eq!(
            backends.look(&[good, bad]),
            (vec![(1, Unanswered, true)], vec![(0, None), (1, Some(Unanswered))])
        );
        assert_eq!(
            backends.look(&[good, openings(4, 8, 1)]).1,
            [(0, None), (1, Some(Unanswered))],
            "told once"
        );
        assert_eq!(backends.look(&[good, good]), (vec![(1, Unanswered, false)], vec![(0, None), (1, None)]));
        // Losses on the customers' side: most connections go on.
        assert_eq!(backends.look(&[openings(100, 60, 70)]), (vec![], vec![(0, None)]));
        // A flood of SYNs that nobody repeats.
        assert_eq!(backends.look(&[openings(1_000_000, 0, 0)]), (vec![], vec![]));
    }

    /// Anybody may send the same SYN again and again, and addresses and ports choose the backend.
    #[test]
    fn the_syns_of_one_connection_are_no_sign_where_others_go_on() {
        let mut backends = Backends::new(1);
        for _ in 0..2 * WINDOW_LOOKS {
            assert_eq!(backends.look(&[openings(6, 27, 6)]), (vec![], vec![(0, None)]));
        }
        assert_eq!(Backends::new(1).look(&[openings(1, 27, 0)]), (vec![], vec![]), "nor by itself at once");
        // Those of before come again now.
        let mut backends = Backends::new(1);
        backends.look(&[openings(20, 0, 2)]);
        assert_eq!(backends.look(&[openings(0, 18, 0)]).0, [(0, Signal::Unanswered, true)]);
    }

    #[test]
    fn silence_ends_a_sign_but_says_nothing_good() {
        let mut backends = Backends::new(1);
        assert_eq!(backends.look(&[openings(3, 5, 0)]).0, [(0, Signal::Unanswered, true)]);
        for _ in 1..WINDOW_LOOKS {
            assert_eq!(backends.look(&[]), (vec![], vec![]));
        }
        assert_eq!(backends.look(&[]), (vec![(0, Signal::Unanswered, false)], vec![]));
        assert_eq!(backends.look(&[openings(1, 2, 0)]), (vec![], vec![]));
        for _ in 1..WINDOW_LOOKS {
            backends.look(&[]);
        }
        assert_eq!(backends.look(&[openings(1, 2, 0)]), (vec![], vec![]), "too old to be added up");
        backends.id = 7;
        backends.sums[0] += openings(1, 50, 0);
        assert_eq!(backends.look(&[]), (vec![], vec![]), "another server");
    }

    #[test]
    fn resets_are_a_sign_only_beside_others_without() {
        use Signal::Resets;
        let judged = |more: &[Traffic]| Backends::new(more.len()).look(more).0;
        assert_eq!(judged(&[ends(50, 2), ends(10, 40)]), [(1, Resets, true)]);
        let signals = Backends::new(2).look(&[ends(50, 2), ends(10, 40)]).1;
        assert_eq!(
            signals,
            [(0, None), (0, None), (1, None), (1, Some(Resets))],
            "it opens well, and ends badly"
        );
        assert_eq!(judged(&[ends(10, 40), ends(10, 40)]), [], "all alike");
        assert_eq!(judged(&[ends(10, 40)]), [], "alone");
        assert_eq!(judged(&[ends(5, 0), ends(0, 40)]), [], "too few to compare with");
        assert_eq!(judged(&[ends(50, 2), ends(5, 15)]), [], "too few");
        assert_eq!(judged(&[ends(50, 2), ends(41, 40)]), [], "most end well");
    }

    #[test]
    fn a_flood_of_resets_is_told_and_counts_for_nothing() {
        let mut backends = Backends::new(1);
        let (showing, judged) = backends.look(&[Traffic { resets: 1_000, ..openings(1, 0, 1) }]);
        assert_eq!((showing, judged), (vec![(0, Signal::ResetFlood, true)], vec![(0, None)]));
        assert_eq!(
            backends.look(&[ends(0, 1_000)]).0,
            [(0, Signal::ResetFlood, false)],
            "of a thousand connections"
        );
        assert_eq!(backends.look(&[Traffic { resets: 999, ..Traffic::default() }]).0, []);
    }
}
