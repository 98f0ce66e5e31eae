//! What was measured → what follows from it: how costs grow, and what they mean on a wire.

use super::chart::Curve;
use super::figures::Group;
use super::stats::exponent;

/// What a driver takes to receive and to drop a packet: 24 million a second and core with XDP (Høiland-Jørgensen et al., "The
/// eXpress Data Path", CoNEXT 2018). Sending it again is taken to cost the same.
const DRIVER_NS: f64 = 2.0 * 1e3 / 24.0;
/// Katran's hit over 512 K flows by IPIP, compiled for Linux 6.18, above an empty program, on a machine where that one took 31 ns.
const KATRAN_NS: f64 = 290.0;
/// Preamble and gap between frames, in bytes.
const BETWEEN_FRAMES: f64 = 20.0;
/// The shortest frame, and the "simple IMIX" of seven short, four middling and one long frame.
const SIZES: [(&str, f64); 2] = [("64 bytes", 64.0), ("IMIX", (7.0 * 64.0 + 4.0 * 594.0 + 1_518.0) / 12.0)];
/// In bits a nanosecond.
const LINKS: [f64; 3] = [10.0, 25.0, 100.0];

/// The curves in the measurements: what has several sizes, against them.
pub(crate) fn curves(groups: &[Group], part: &str) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for group in groups.iter().filter(|group| group.part == part) {
        let Some((name, size)) = sized(&group.name) else { continue };
        for figure in group.figures().iter().filter(|figure| figure.who == "sluice") {
            let point = (size, figure.value.median);
            match curves.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push(point),
                None => curves.push((name.clone(), vec![point])),
            }
        }
    }
    curves.retain(|(_, points)| points.len() > 1);
    curves
}

/// The last number in a name, and the name with `N` in its place.
fn sized(name: &str) -> Option<(String, f64)> {
    let is_size = |word: &&str| word.parse::<f64>().is_ok();
    let number = name.split(' ').rfind(is_size)?;
    let (before, after) = name.rsplit_once(number)?;
    let (factor, after) = match after.strip_prefix(" K ").map(|rest| (1_024.0, rest)) {
        Some(found) => found,
        None => after.strip_prefix(" M ").map_or((1.0, after), |rest| (1_048_576.0, rest)),
    };
    let after = after.trim_start().trim_end_matches('s');
    Some((format!("{before}N {after}s"), number.parse::<f64>().ok()? * factor))
}

/// A section on how costs grow.
pub(crate) fn growth(groups: &[Group]) -> Option<String> {
    let row = |(name, points): Curve| {
        let exponent = exponent(&points)?;
        let (first, last) = (points.first()?, points.last()?);
        let slope = match exponent {
            flat if flat.abs() < 0.05 => "flat",
            slow if slow < 0.8 => "slower than its size",
            even if even < 1.2 => "as its size",
            _ => "faster than its size",
        };
        let (from, to) = (format!("{:.2} at {}", first.1, first.0), format!("{:.2} at {}", last.1, last.0));
        Some(format!("| {name} | {from} | {to} | size to the power {exponent:.2}: {slope} |\n"))
    };
    let curves = ["packet", "control"].into_iter().flat_map(|part| curves(groups, part));
    let rows: String = curves.filter_map(row).collect();
    (!rows.is_empty()).then(|| {
        format!("## growth\n\nDrawn in `target/bench/`.\n\n| measured | from | to | grows with |\n|---|---|---|---|\n{rows}")
    })
}

/// A section on the cores that a link needs.
pub(crate) fn wire(groups: &[Group]) -> Option<String> {
    let cost = |mode: &str| {
        let named = |size: &str| {
            let name = format!("{mode} IPv4 hit, {size} flows");
            groups.iter().find(|group| group.part == "packet" && group.name == name)
        };
        // Of translated connections, so many have a million entries.
        let group = named("1 M").or_else(|| named("512 K"))?;
        let figure = group.figures().into_iter().find(|figure| figure.who == "sluice")?;
        Some((format!("Sluice, {mode}"), figure.value.median))
    };
    let mut costs: Vec<(String, f64)> =
        ["l2-dsr", "ipip", "gue", "nat"].into_iter().filter_map(cost).collect();
    if costs.is_empty() {
        return None;
    }
    costs.push(("Katran, IPIP, 512 K flows".to_owned(), KATRAN_NS));
    costs.extend(ipvs(groups).map(|above| ("IPVS, dr".to_owned(), above)));
    let mut text = format!(
        "## wire\n\n**An estimate**, not a measurement: cores for a link that is full in one direction. A packet costs what it \
         takes above an empty program at a million flows (`nat`: half of them, a million entries), and {DRIVER_NS:.0} ns in the driver: a core receives and drops 24 \
         million packets a second with XDP (\"The eXpress Data Path\", CoNEXT 2018), and sending is taken to cost the same \
         again. Packets a second = link / 8 / (frame + {BETWEEN_FRAMES} bytes); cores = packets × cost. The IMIX is of seven \
         frames of 64 bytes, four of 594 and one of 1,518. Katran's cost was measured once, by the same method, where an empty program took 31 ns: beside a run on \
         a faster machine it is no comparison. That of IPVS is what the kernel's \
         forwarding takes here of a core, times what IPVS takes of forwarding in the guest, less what a bare XDP program takes \
         here.\n\n\
         | balancer | ns a packet |"
    );
    let columns = || SIZES.iter().flat_map(|(name, bytes)| LINKS.map(|link| (*name, *bytes, link)));
    text += &columns().map(|(name, _, link)| format!(" {link} GbE, {name} |")).collect::<String>();
    text += &format!("\n|---|---|{}\n", "---|".repeat(SIZES.len() * LINKS.len()));
    for (name, above) in costs {
        let cost = above + DRIVER_NS;
        let cells = columns().map(|(_, bytes, link)| format!(" {:.1} |", cores(cost, bytes, link)));
        text += &format!("| {name} | {above:.0} + {DRIVER_NS:.0} |{}\n", cells.collect::<String>());
    }
    Some(text)
}

/// Nanoseconds that IPVS takes for a packet above a bare XDP program, by a ratio of the guest's and figures of this machine.
fn ipvs(groups: &[Group]) -> Option<f64> {
    let of_part =
        |part: &str, name: &str| groups.iter().find(|group| group.part == part && group.name.contains(name));
    let here = of_part("live", "closed loop, 1 core, 64 K flows")?;
    let took = |who: &str| {
        let figure = here.figures().into_iter().find(|figure| figure.who == who)?;
        Some(1e3 / figure.value.median)
    };
    let slower = of_part("ipvs", "closed loop")?.ratio("forwarding", "IPVS dr")?.median;
    Some(took("forwarding")? * slower - took("bare XDP")?)
}

/// Cores that packets of so many nanoseconds and bytes keep busy on a link.
fn cores(nanoseconds: f64, bytes: f64, bits_a_nanosecond: f64) -> f64 {
    bits_a_nanosecond / 8.0 / (bytes + BETWEEN_FRAMES) * nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, sluice: f64) -> Group {
        let series = [("empty", 50.0), ("sluice", 50.0 + sluice)];
        let series = series.map(|(who, sample)| (who.to_owned(), vec![sample])).into();
        Group { part: "packet".into(), name: name.into(), unit: "ns".into(), series }
    }

    #[test]
    fn names_tell_sizes() {
        for (name, size) in [("1 flow", 1.0), ("64 K flows", 65_536.0), ("8 M flows", 8_388_608.0)] {
            let sized = sized(&format!("l2-dsr IPv4 hit, {name}")).expect("a size");
            assert_eq!(sized, ("l2-dsr IPv4 hit, N flows".to_owned(), size));
        }
        assert_eq!(sized("ring of 100 backends"), Some(("ring of N backends".to_owned(), 100.0)));
        assert_eq!(sized("ARP"), None);
    }

    #[test]
    fn growth_is_named() {
        let groups = [group("a hit, 1 flow", 10.0), group("a hit, 64 K flows", 10.0), group("ARP", 1.0)];
        let text = growth(&groups).expect("a curve");
        assert!(
            text.contains("| a hit, N flows | 10.00 at 1 | 10.00 at 65536 | size to the power 0.00: flat |"),
            "{text}"
        );
        assert_eq!(growth(&groups[..1]), None);
    }

    #[test]
    fn the_cost_of_ipvs_is_that_of_forwarding_times_a_ratio() {
        let rates = |part: &str, series: &[(&str, f64)]| {
            let series = series.iter().map(|(who, rate)| ((*who).to_owned(), vec![*rate])).collect();
            let name = "closed loop, 1 core, 64 K flows".into();
            Group { part: part.into(), name, unit: "Mpps".into(), series }
        };
        let here = rates("live", &[("bare XDP", 4.0), ("forwarding", 1.0)]);
        let guest = rates("ipvs", &[("forwarding", 0.2), ("IPVS dr", 0.1)]);
        assert_eq!(ipvs(&[here.clone(), guest]), Some(1_750.0));
        assert_eq!(ipvs(&[here]), None);
    }

    #[test]
    fn a_full_link_keeps_cores_busy() {
        // 14.88 million packets of 64 bytes a second on 10 GbE.
        assert!((cores(1_000.0, 64.0, 10.0) - 14.88).abs() < 0.01);
        let text = wire(&[group("ipip IPv4 hit, 1 M flows", 50.0)]).expect("a cost");
        assert!(text.contains("| Sluice, ipip | 50 + 83 | 2.0 |") && text.contains("| Katran"), "{text}");
        assert_eq!(wire(&[]), None);
    }
}
