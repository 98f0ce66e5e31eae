//! The figures of a run and those committed → what got worse by more than the noise.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures::Figure;
use super::stats::Estimate;

/// Two runs of the same thing differ by as much even on a quiet machine.
const NOISE: f64 = 0.08;

/// The ratios by what they are known by.
pub(crate) type Ratios = BTreeMap<String, Estimate>;

/// Of a run.
pub(crate) fn ratios(figures: &[Figure]) -> Ratios {
    figures.iter().filter_map(|figure| Some((figure.key(), figure.ratio?))).collect()
}

/// As they are committed.
pub(crate) fn to_json(ratios: &Ratios) -> Value {
    // Four digits are more than is known, and keep changes readable.
    let rounded = |number: f64| (number * 1e4).round() / 1e4;
    let entry = |(key, ratio): (&String, &Estimate)| {
        (key.clone(), json!({ "ratio": rounded(ratio.median), "spread": rounded(ratio.spread) }))
    };
    Value::Object(ratios.iter().map(entry).collect())
}

/// From what is committed.
pub(crate) fn parse(text: &str) -> Result<Ratios> {
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    let entries = value.as_object().context("not a JSON object")?;
    let entry = |(key, entry): (&String, &Value)| {
        let number = |name: &str| entry[name].as_f64().with_context(|| format!("{key}: no {name}"));
        Ok((key.clone(), Estimate { median: number("ratio")?, spread: number("spread")? }))
    };
    entries.iter().map(entry).collect()
}

/// What of the measured is Sluice. Peers and floors get worse by the machine alone.
const OWN: [&str; 5] = ["sluice", "l2-dsr", "ipip", "gue", "nat"];

/// What of Sluice got worse, a line each.
pub(crate) fn worse(figures: &[Figure], committed: &Ratios) -> Vec<String> {
    let line = |figure: &Figure| {
        if !OWN.contains(&figure.who.as_str()) {
            return None;
        }
        let (now, before) = (figure.ratio?, *committed.get(&figure.key())?);
        let change = now.median / before.median - 1.0;
        let worse = if figure.more_is_better() { -change } else { change };
        let noise = NOISE.max(now.relative_spread() + before.relative_spread());
        (worse > noise).then(|| {
            format!(
                "{}: {:.3}, {:.3} before: {:.0} % worse, where {:.0} % are noise",
                figure.key(),
                now.median,
                before.median,
                worse * 100.0,
                noise * 100.0
            )
        })
    };
    figures.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_and_floors_may_get_worse() {
        let floor = |ratio| Figure { who: "bare XDP".to_owned(), ..figure("ns", ratio, 0.0) };
        let committed = ratios(&[floor(1.0), figure("ns", 1.0, 0.0)]);
        assert_eq!(worse(&[floor(2.0)], &committed), Vec::<String>::new());
        assert_eq!(worse(&[figure("ns", 2.0, 0.0)], &committed).len(), 1);
    }

    fn figure(unit: &str, ratio: f64, spread: f64) -> Figure {
        let ratio = Estimate { median: ratio, spread };
        let [part, name, who] = ["packet", "hit", "sluice"].map(str::to_owned);
        Figure { part, name, who, unit: unit.to_owned(), value: ratio, ratio: Some(ratio) }
    }

    #[test]
    fn only_what_is_worse_beyond_the_noise_is_told() {
        let committed = ratios(&[figure("ns", 2.0, 0.1)]);
        let told = |figure| worse(&[figure], &committed);
        assert!(told(figure("ns", 2.15, 0.0)).is_empty(), "within 8 %");
        assert!(told(figure("ns", 1.0, 0.0)).is_empty(), "better");
        assert!(told(figure("ns", 2.3, 0.3)).is_empty(), "as far as it spreads");
        let lines = told(figure("ns", 2.3, 0.0));
        assert_eq!(lines, ["packet: hit: sluice: 2.300, 2.000 before: 15 % worse, where 8 % are noise"]);
        assert_eq!(told(figure("Mpps", 2.3, 0.0)).len(), 0);
        assert_eq!(told(figure("Mpps", 1.7, 0.0)).len(), 1);
    }

    #[test]
    fn what_is_committed_is_read_back() {
        let ratios = ratios(&[figure("ns", 1.234_56, 0.01)]);
        let read = parse(&to_json(&ratios).to_string()).expect("as written");
        assert_eq!(read["packet: hit: sluice"], Estimate { median: 1.2346, spread: 0.01 });
        assert!(parse("[]").is_err());
        assert!(parse(r#"{"a": {"ratio": 1}}"#).is_err());
    }
}
