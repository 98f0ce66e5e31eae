//! Two configurations → the services that differ, where nothing but these is concerned: a change of one of many then takes no look
//! at all the others.

use super::config::{Config, Forwarding, Service};

/// More services than this are looked at together with all others.
pub const MOST: usize = 16;

/// The services of `after` that differ from those of `before`, if they are few, and if what differs is known to no table but their own:
/// neither settings for all services, nor VIPs, nor addresses that translated packets are sent from.
pub fn changed<'a>(before: &Config, after: &'a Config) -> Option<Vec<&'a Service>> {
    if before.agent != after.agent || before.services.len() != after.services.len() {
        return None;
    }
    let pairs = before.services.iter().zip(&after.services).filter(|(old, new)| old != new);
    let changed: Vec<&Service> =
        pairs.map(|(old, new)| is_within(old, new).then_some(new)).take(MOST + 1).collect::<Option<_>>()?;
    (changed.len() <= MOST).then_some(changed)
}

/// Whether what differs is within the service.
fn is_within(old: &Service, new: &Service) -> bool {
    let addresses =
        |service: &Service| service.backends.iter().map(|backend| backend.address).collect::<Vec<_>>();
    let seen = |service: &Service| (service.protocol, service.forwarding, service.affinity);
    old.name == new.name
        && old.vips == new.vips
        && seen(old) == seen(new)
        && (new.forwarding != Forwarding::Nat || addresses(old) == addresses(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::parse;

    fn services(count: usize) -> Config {
        let mut text = "[agent]\ninterfaces = [\"eth0\"]\n".to_owned();
        for at in 0..count {
            let forwarding = if at == 1 { "nat" } else { "l2-dsr" };
            text += &format!(
                "[[service]]\nname = \"s{at}\"\nvips = [\"192.0.2.{at}:80\"]\nforwarding = \"{forwarding}\"\n\
                 [[service.backend]]\nname = \"a\"\naddress = \"10.0.0.1\"\n"
            );
        }
        parse(&text).expect("valid")
    }

    /// The names of the services that alone are concerned by a change.
    fn concerned(count: usize, change: impl FnOnce(&mut Config)) -> Option<Vec<String>> {
        let before = services(count);
        let mut after = before.clone();
        change(&mut after);
        let changed = changed(&before, &after)?;
        Some(changed.iter().map(|service| service.name.clone()).collect())
    }

    #[test]
    fn what_is_within_services_concerns_them_alone() {
        assert_eq!(concerned(3, |_| ()), Some(vec![]));
        assert_eq!(concerned(3, |config| config.services[2].backends.clear()), Some(vec!["s2".to_owned()]));
        assert_eq!(
            concerned(3, |config| config.services[1].backends[0].weight = 7),
            Some(vec!["s1".to_owned()])
        );
        let all =
            |config: &mut Config| config.services.iter_mut().for_each(|service| service.min_healthy = 1);
        assert_eq!(concerned(MOST, all).map(|names| names.len()), Some(MOST));
        assert_eq!(concerned(MOST + 1, all), None, "many");
    }

    #[test]
    fn what_all_services_share_concerns_all() {
        assert_eq!(concerned(3, |config| config.agent.ring_seed = 1), None);
        assert_eq!(concerned(3, |config| config.services[0].vips[0].port = 81), None);
        assert_eq!(concerned(3, |config| config.services[0].forwarding = Forwarding::Gue), None);
        assert_eq!(concerned(3, |config| drop(config.services.pop())), None);
        assert_eq!(concerned(3, |config| config.services.swap(0, 2)), None);
        assert_eq!(concerned(3, |config| config.services[1].backends.clear()), None, "its sources may go");
    }
}
