//! The configuration in force and the one to come → which services the change leaves without backends to serve them.
//!
//! What has not been checked yet is taken for healthy, before and after: only what the change itself does is told.

use std::collections::HashMap;

use super::config::{AllDown, BackendState, Config, Service};
use super::health::ServiceStatus;
use super::wanted::Knowledge;

/// Services that are named at most.
const MOST: usize = 10;

/// A line for each service that is served worse by the configuration itself: `down` or `failing-open` where it was not.
pub fn left_without(before: &Config, after: &Config, knowledge: &Knowledge, dry_run: bool) -> Vec<String> {
    let former: HashMap<&str, &Service> =
        before.services.iter().map(|service| (service.name.as_str(), service)).collect();
    let changed = after.services.iter().filter_map(|service| {
        let was = former.get(service.name.as_str()).filter(|was| **was != service)?;
        warning(was, service, knowledge, dry_run)
    });
    let mut warnings: Vec<String> = changed.collect();
    let more = warnings.len().saturating_sub(MOST);
    if more > 0 {
        warnings.truncate(MOST);
        warnings.push(format!("the same of {more} more services; `sluice status` shows each"));
    }
    warnings
}

fn warning(was: &Service, service: &Service, knowledge: &Knowledge, dry_run: bool) -> Option<String> {
    let serving = knowledge.hoped_serving(service);
    if rank(serving.status) <= rank(knowledge.hoped_serving(was).status) {
        return None;
    }
    let mut backends = service.backends.iter();
    let none_is_wanted =
        !backends.any(|backend| backend.state == BackendState::Enabled && backend.weight > 0);
    let why = match serving.shortfall {
        _ if none_is_wanted => "none is enabled with a weight above 0".to_owned(),
        Some(shortfall) => shortfall.to_string(),
        None => "none that is enabled is healthy".to_owned(),
    };
    let then = match service.all_down {
        _ if none_is_wanted => "new flows are dropped, whatever all_down says",
        AllDown::Drop => "all_down = \"drop\": new flows are dropped",
        AllDown::FailOpen => "all_down = \"fail-open\": new flows go to all enabled ones, healthy or not",
    };
    let is = if dry_run { "would be" } else { "is" };
    let lacks = match serving.status {
        ServiceStatus::Down => "without any backend that takes new flows",
        _ => "without enough healthy backends",
    };
    Some(format!("service {} {is} {lacks}: {why}; {then}", service.name))
}

/// How badly a service is served.
fn rank(status: ServiceStatus) -> u8 {
    match status {
        ServiceStatus::Healthy | ServiceStatus::Degraded => 0,
        ServiceStatus::FailingOpen => 1,
        ServiceStatus::Down => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::parse;
    use crate::core::health::Health;
    use crate::core::wanted::BackendKey;

    /// A service of two backends that are checked.
    fn config(all_down: AllDown) -> Config {
        let mut config = parse(
            "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvips = [\"192.0.2.1:80\"]\n\
             [service.health]\ntype = \"tcp\"\n[[service.backend]]\nname = \"b1\"\naddress = \"10.0.0.1\"\n\
             [[service.backend]]\nname = \"b2\"\naddress = \"10.0.0.2\"\n",
        )
        .expect("valid");
        config.services[0].all_down = all_down;
        config
    }

    fn knowledge(health: [Health; 2]) -> Knowledge {
        let known = ["b1", "b2"].into_iter().zip(health);
        let known = known.map(|(name, health)| (BackendKey::new("web", name), health));
        Knowledge { health: known.collect(), ..Knowledge::default() }
    }

    /// What is told of a change while the backends are like this.
    fn told(all_down: AllDown, health: [Health; 2], change: impl Fn(&mut Service)) -> Vec<String> {
        let (before, mut after) = (config(all_down), config(all_down));
        change(&mut after.services[0]);
        left_without(&before, &after, &knowledge(health), false)
    }

    const BOTH: [Health; 2] = [Health::Healthy; 2];
    const FIRST: [Health; 2] = [Health::Healthy, Health::Unhealthy];

    #[test]
    fn taking_the_last_backend_away_is_told_however_it_is_done() {
        let none = "service web is without any backend that takes new flows: none is enabled with a weight above 0; new flows \
                    are dropped, whatever all_down says";
        let ways: [fn(&mut Service); 4] = [
            |web| web.backends.iter_mut().for_each(|backend| backend.state = BackendState::Drain),
            |web| web.backends.iter_mut().for_each(|backend| backend.state = BackendState::Disabled),
            |web| web.backends.iter_mut().for_each(|backend| backend.weight = 0),
            |web| web.backends.clear(),
        ];
        for way in ways {
            assert_eq!(told(AllDown::FailOpen, BOTH, way), [none]);
            assert_eq!(told(AllDown::Drop, [Health::Unknown; 2], way), [none], "not checked yet");
        }
        let drain_first = |web: &mut Service| web.backends[0].state = BackendState::Drain;
        assert_eq!(told(AllDown::Drop, BOTH, drain_first), [""; 0], "another one serves");
        assert_eq!(
            told(AllDown::Drop, FIRST, drain_first),
            [
                "service web is without any backend that takes new flows: none that is enabled is healthy; all_down = \"drop\": \
              new flows are dropped"
            ]
        );
        assert_eq!(
            told(AllDown::FailOpen, FIRST, drain_first),
            [
                "service web is without enough healthy backends: none that is enabled is healthy; all_down = \"fail-open\": new \
              flows go to all enabled ones, healthy or not"
            ]
        );
        assert_eq!(
            told(AllDown::Drop, FIRST, |web| web.min_healthy = 2),
            [
                "service web is without any backend that takes new flows: min_healthy = 2 is not reached, 1 of 2 enabled \
              backends healthy; all_down = \"drop\": new flows are dropped"
            ]
        );
    }

    #[test]
    fn what_was_so_before_or_is_new_is_not_told() {
        let clear = |web: &mut Service| web.backends.clear();
        assert_eq!(told(AllDown::Drop, [Health::Unhealthy; 2], clear), [""; 0], "it was down");
        assert_eq!(told(AllDown::FailOpen, [Health::Unhealthy; 2], clear).len(), 1, "it failed open");
        let renamed = |web: &mut Service| (web.name, web.backends) = ("new".to_owned(), Vec::new());
        assert_eq!(told(AllDown::Drop, BOTH, renamed), [""; 0], "a new one gets its backends next");
    }

    #[test]
    fn many_services_are_told_of_in_a_few_lines() {
        let mut before = config(AllDown::Drop);
        let web = before.services.remove(0);
        before.services.extend((0..12).map(|at| Service { name: format!("s{at}"), ..web.clone() }));
        let mut after = before.clone();
        after.services.iter_mut().for_each(|service| service.backends.clear());
        let told = left_without(&before, &after, &Knowledge::default(), true);
        assert!(told[0].starts_with("service s0 would be without any"), "{told:?}");
        assert_eq!(
            (told.len(), told[10].as_str()),
            (11, "the same of 2 more services; `sluice status` shows each")
        );
    }
}
