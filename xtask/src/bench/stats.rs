//! Samples → medians and how far they spread.

/// A median, and half the distance between the quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) spread: f64,
}

impl Estimate {
    /// Of these samples; `None` if there are none, or one is no number.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        if sorted.is_empty() || sorted.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let spread = (quantile(&sorted, 0.75) - quantile(&sorted, 0.25)) / 2.0;
        Some(Self { median: quantile(&sorted, 0.5), spread })
    }

    /// Of samples taken in turns with those of a reference, what each is above it.
    pub(crate) fn of_differences(samples: &[f64], reference: &[f64]) -> Option<Self> {
        Self::of(samples.iter().zip(reference).map(|(sample, reference)| sample - reference))
    }

    /// The same as parts of it.
    pub(crate) fn of_ratios(samples: &[f64], reference: &[f64]) -> Option<Self> {
        Self::of(samples.iter().zip(reference).map(|(sample, reference)| sample / reference))
    }

    /// The spread as a part of the median.
    pub(crate) fn relative_spread(self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.spread / self.median).abs() }
    }
}

/// Between the two nearest of sorted samples.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let position = at * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

/// Points of a curve → the power of its size that it grows with: the slope of a straight line through the logarithms.
pub(crate) fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| logs.iter().map(pick).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = logs.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let variance: f64 = logs.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    (logs.len() > 1 && variance > 0.0).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_does_not_heed_one_that_strays() {
        let estimate = Estimate::of([3.0, 1.0, 2.0, 900.0, 2.0]).expect("samples");
        assert_eq!(estimate, Estimate { median: 2.0, spread: 0.5 });
        assert_eq!(Estimate::of([1.0, 2.0]).expect("samples").median, 1.5);
        assert_eq!(Estimate::of([]), None);
        assert_eq!(Estimate::of([1.0, f64::NAN]), None);
    }

    #[test]
    fn pairs_are_compared_with_each_other() {
        // The machine became twice as slow meanwhile: differences spread, ratios do not.
        let (samples, reference) = ([20.0, 40.0, 40.0], [10.0, 20.0, 20.0]);
        assert_eq!(Estimate::of_ratios(&samples, &reference), Some(Estimate { median: 2.0, spread: 0.0 }));
        assert_eq!(
            Estimate::of_differences(&samples, &reference),
            Some(Estimate { median: 20.0, spread: 2.5 })
        );
        assert_eq!(Estimate::of_ratios(&[1.0], &[0.0]), None);
        assert_eq!(Estimate { median: -4.0, spread: 1.0 }.relative_spread(), 0.25);
    }

    #[test]
    fn a_curve_has_an_exponent() {
        let square = [(1.0, 3.0), (10.0, 300.0), (100.0, 30_000.0)];
        assert!((exponent(&square).expect("points") - 2.0).abs() < 1e-9);
        assert!(exponent(&[(1.0, 5.0), (1_000.0, 5.0)]).expect("points").abs() < 1e-9);
        assert_eq!(exponent(&[(1.0, 1.0)]), None);
    }
}
