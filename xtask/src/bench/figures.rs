//! Lines of samples, as the measuring program prints them → figures: a value with its spread, and its ratio to a reference
//! measured in turns with it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::stats::Estimate;

/// Series that were measured in turns.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Group {
    pub(crate) part: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) series: BTreeMap<String, Vec<f64>>,
}

/// What the series of a part are compared with: the first of these that was measured with them.
const REFERENCES: [&str; 4] = ["empty", "bare XDP", "direct", "fixed work"];

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) part: String,
    pub(crate) name: String,
    /// What was measured: `sluice` and others.
    pub(crate) who: String,
    pub(crate) unit: String,
    /// On this machine. Of packets: above an empty program.
    pub(crate) value: Estimate,
    /// To the reference.
    pub(crate) ratio: Option<Estimate>,
}

impl Group {
    /// From a line.
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let text = |name: &str| {
            value[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {line}"))
        };
        let numbers =
            |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let series = value["series"].as_object().with_context(|| format!("no series: {line}"))?;
        let series = series.iter().map(|(who, list)| (who.clone(), numbers(list))).collect();
        Ok(Self { part: text("part")?, name: text("name")?, unit: text("unit")?, series })
    }

    /// As it is kept.
    pub(crate) fn to_json(&self) -> Value {
        json!({ "part": self.part, "name": self.name, "unit": self.unit, "series": self.series })
    }

    /// The reference's samples, if it has one.
    fn reference(&self) -> Option<(&'static str, &[f64])> {
        REFERENCES.into_iter().find_map(|name| Some((name, self.series.get(name)?.as_slice())))
    }

    /// Its results; the reference itself comes first.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let reference = self.reference();
        let figure = |(who, samples): (&String, &Vec<f64>)| {
            let of_reference = reference.is_some_and(|(name, _)| name == who);
            let value = match reference {
                // A program is told by what it takes above an empty one.
                Some((name, empty)) if name == REFERENCES[0] && !of_reference => {
                    Estimate::of_differences(samples, empty)
                }
                _ => Estimate::of(samples.iter().copied()),
            };
            let ratio = reference.filter(|_| !of_reference);
            Some(Figure {
                part: self.part.clone(),
                name: self.name.clone(),
                who: who.clone(),
                unit: self.unit.clone(),
                value: value?,
                ratio: ratio.and_then(|(_, reference)| Estimate::of_ratios(samples, reference)),
            })
        };
        let mut figures: Vec<Figure> = self.series.iter().filter_map(figure).collect();
        figures.sort_by_key(|figure| reference.is_none_or(|(name, _)| name != figure.who));
        figures
    }

    /// The ratio of one of its series to another.
    pub(crate) fn ratio(&self, who: &str, to: &str) -> Option<Estimate> {
        Estimate::of_ratios(self.series.get(who)?, self.series.get(to)?)
    }
}

impl Figure {
    /// What it is known by.
    pub(crate) fn key(&self) -> String {
        format!("{}: {}: {}", self.part, self.name, self.who)
    }

    /// Whether more of it is better.
    pub(crate) fn more_is_better(&self) -> bool {
        matches!(self.unit.as_str(), "Mpps" | "requests/s" | "%")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_by_what_it_takes_above_an_empty_one() {
        let line =
            r#"{"part":"packet","name":"hit","unit":"ns","series":{"sluice":[60,80],"empty":[50,40]}}"#;
        let group = Group::parse(line).expect("a group");
        assert_eq!(Group::parse(&group.to_json().to_string()).expect("as kept"), group);
        let figures = group.figures();
        assert_eq!(figures.iter().map(|figure| figure.who.as_str()).collect::<Vec<_>>(), ["empty", "sluice"]);
        assert_eq!((figures[0].value.median, figures[0].ratio), (45.0, None));
        assert_eq!(figures[1].value.median, 25.0);
        assert_eq!(figures[1].ratio.expect("a ratio").median, 1.6);
        assert_eq!(figures[1].key(), "packet: hit: sluice");
        assert_eq!(group.ratio("empty", "sluice").expect("both are there").median, (50.0 / 60.0 + 0.5) / 2.0);
    }

    #[test]
    fn others_are_told_as_they_are() {
        let line = r#"{"part":"live","name":"64 K","unit":"Mpps","series":{"l2-dsr":[3],"bare XDP":[4]}}"#;
        let figures = Group::parse(line).expect("a group").figures();
        assert_eq!(figures[1].value.median, 3.0);
        assert_eq!(figures[1].ratio.expect("a ratio").median, 0.75);
        assert!(figures[1].more_is_better());
        assert!(Group::parse("{}").is_err());
        assert!(Group::parse("no JSON").is_err());
    }
}
