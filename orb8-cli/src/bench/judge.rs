//! From the figures of runs to rows with a verdict. Pure arithmetic.
//!
//! What two runs without an agent differ by is noise, and a difference within it is called undecided.

use orb8_util::stats::{Comparison, Interval, median};
use serde::Serialize;

use super::cpu;
use super::load::{Bytes, Loads};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Bytes a second over TCP.
    TcpRate,
    /// CPU seconds for a GiB over TCP.
    TcpCpu,
    /// Small datagrams a second.
    UdpRate,
    /// CPU seconds for a million of them.
    UdpCpu,
    /// Microseconds from a request to its answer, the middle one.
    LatencyP50,
    /// The one that 99 of 100 do not exceed.
    LatencyP99,
}

/// All of them, in the order of rows.
pub const MEASURES: [Measure; 6] = [
    Measure::TcpRate,
    Measure::TcpCpu,
    Measure::UdpRate,
    Measure::UdpCpu,
    Measure::LatencyP50,
    Measure::LatencyP99,
];

impl Measure {
    /// Its name, a contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpRate => "tcp_bytes_per_second",
            Self::TcpCpu => "tcp_cpu_seconds_per_gib",
            Self::UdpRate => "udp_packets_per_second",
            Self::UdpCpu => "udp_cpu_seconds_per_million_packets",
            Self::LatencyP50 => "latency_p50_us",
            Self::LatencyP99 => "latency_p99_us",
        }
    }

    /// True if more is better.
    const fn is_gain(self) -> bool {
        matches!(self, Self::TcpRate | Self::UdpRate)
    }

    /// Why some run gave no figure: what should have moved did not, or it did and this system does not
    /// tell the CPU time of it.
    fn reason(self, mut runs: impl Iterator<Item = Figures>) -> &'static str {
        let (rate, still) = match self {
            Self::TcpRate | Self::TcpCpu => (Self::TcpRate, "no byte arrived over TCP in some run"),
            Self::UdpRate | Self::UdpCpu => (
                Self::UdpRate,
                "no datagram came back over UDP in some run: a firewall may stop them",
            ),
            Self::LatencyP50 | Self::LatencyP99 => (self, "no request was answered in some run"),
        };
        let moved = |figures: Figures| figures[rate as usize].is_some();
        if runs.all(moved) { cpu::UNTOLD } else { still }
    }
}

/// What a run gave of each measure.
pub type Figures = [Option<f64>; MEASURES.len()];

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// What a run gave; nothing of what did not move.
#[must_use]
pub fn figures(loads: &Loads) -> Figures {
    let Loads { bytes: Bytes { bytes, seconds, cpu }, datagrams, answers } = loads;
    let (bytes, received) = (*bytes as f64, datagrams.received as f64);
    let microseconds =
        |share| (!answers.is_empty()).then(|| answers.value_at_quantile(share) as f64 / 1e3);
    let found = [
        Some(bytes / seconds),
        cpu.map(|cpu| cpu / (bytes / GIB)),
        Some(received / datagrams.seconds),
        datagrams.cpu.map(|cpu| cpu / (received / 1e6)),
        microseconds(0.5),
        microseconds(0.99),
    ];
    found.map(|figure| figure.filter(|figure| figure.is_finite() && *figure > 0.0))
}

/// Runs next to each other in time: the traced one and one without an agent beside the middle one,
/// which has none either.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// With an agent.
    pub traced: Figures,
    /// Without, between the others.
    pub baseline: Figures,
    /// Without once more.
    pub again: Figures,
}

/// Fewer rounds have no spread that could be told.
const LEAST: usize = 3;

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No difference beyond the noise was found.
    Undecided,
    /// Less of what should be much, or more of what should be little.
    Worse,
    /// The other way round.
    Better,
    /// There are no figures; `reason` says why.
    NotMeasured,
}

/// One comparison. Names are those of the JSON output.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "docs/features/bench.md names each")]
pub struct Row {
    pub name: &'static str,
    #[serde(skip)]
    pub measure: Measure,
    /// Medians.
    pub baseline: Option<f64>,
    pub traced: Option<f64>,
    /// The median of traced to baseline, round by round.
    pub ratio: Option<f64>,
    /// 95 % of the ratio; null with fewer rounds than show a spread.
    pub interval_low: Option<f64>,
    pub interval_high: Option<f64>,
    /// What equals differ by.
    pub noise_low: Option<f64>,
    pub noise_high: Option<f64>,
    pub verdict: Verdict,
    /// By how much it is worse (positive) or better; null if that is undecided.
    pub worse_percent: Option<f64>,
    pub reason: Option<String>,
}

/// One row for each measure.
#[must_use]
pub fn rows(rounds: &[Round]) -> Vec<Row> {
    MEASURES.iter().enumerate().map(|(at, measure)| row(*measure, at, rounds)).collect()
}

fn row(measure: Measure, at: usize, rounds: &[Round]) -> Row {
    let figures = |round: &Round| Some([round.traced[at]?, round.baseline[at]?, round.again[at]?]);
    let Some(figures) = rounds.iter().map(figures).collect::<Option<Vec<[f64; 3]>>>() else {
        let runs = rounds.iter().flat_map(|round| [round.traced, round.baseline, round.again]);
        return without(measure, measure.reason(runs));
    };
    if figures.is_empty() {
        return without(measure, "no round was completed");
    }
    let each = |of: &dyn Fn(&[f64; 3]) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let ratios = each(&|[traced, baseline, _]| traced / baseline);
    let of_equals = each(&|[_, baseline, again]| again / baseline);
    let found = Comparison::of(&ratios, &of_equals);
    let (verdict, reason) = judged(measure, &found, figures.len());
    // One round or two have no spread, so that theirs would look like certainty.
    let spread = |interval: Interval| (figures.len() >= LEAST).then_some(interval);
    let (interval, noise) = (spread(found.interval), spread(found.noise));
    let worse = if measure.is_gain() { 1.0 - found.median } else { found.median - 1.0 };
    Row {
        name: measure.name(),
        measure,
        baseline: Some(median(&each(&|[_, baseline, _]| *baseline))),
        traced: Some(median(&each(&|[traced, ..]| *traced))),
        ratio: Some(found.median),
        interval_low: interval.map(|interval| interval.low),
        interval_high: interval.map(|interval| interval.high),
        noise_low: noise.map(|noise| noise.low),
        noise_high: noise.map(|noise| noise.high),
        verdict,
        worse_percent: matches!(verdict, Verdict::Worse | Verdict::Better).then_some(worse * 100.0),
        reason,
    }
}

fn judged(measure: Measure, found: &Comparison, rounds: usize) -> (Verdict, Option<String>) {
    if rounds < LEAST {
        let reason = format!("fewer than {LEAST} rounds show no spread");
        return (Verdict::Undecided, Some(reason));
    }
    if found.is_noise() {
        return (Verdict::Undecided, None);
    }
    if found.interval.holds(1.0) {
        return (Verdict::Undecided, Some("some rounds say more, some less".to_owned()));
    }
    let verdict =
        if (found.median < 1.0) == measure.is_gain() { Verdict::Worse } else { Verdict::Better };
    (verdict, None)
}

fn without(measure: Measure, reason: &str) -> Row {
    Row {
        name: measure.name(),
        measure,
        baseline: None,
        traced: None,
        ratio: None,
        interval_low: None,
        interval_high: None,
        noise_low: None,
        noise_high: None,
        verdict: Verdict::NotMeasured,
        worse_percent: None,
        reason: Some(reason.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    use super::*;
    use crate::bench::load::Datagrams;

    /// Rounds in which everything is so much with an agent and about 1 without.
    fn rounds(traced: &[f64], again: &[f64]) -> Vec<Round> {
        let all = |figure: f64| [Some(figure); MEASURES.len()];
        let pairs = traced.iter().zip(again);
        pairs
            .map(|(traced, again)| Round {
                traced: all(*traced),
                baseline: all(1.0),
                again: all(*again),
            })
            .collect()
    }

    fn verdicts(rounds: &[Round]) -> Vec<Verdict> {
        rows(rounds).iter().map(|row| row.verdict).collect()
    }

    const QUIET: [f64; 5] = [1.01, 0.99, 1.0, 1.005, 0.995];

    #[test]
    fn less_is_worse_for_rates_and_better_for_costs() {
        use Verdict::{Better, Worse};
        let less = rounds(&[0.9, 0.91, 0.89, 0.9, 0.9], &QUIET);
        assert_eq!(verdicts(&less), [Worse, Better, Worse, Better, Better, Better]);
        let worse: Vec<Option<f64>> = rows(&less).iter().map(|row| row.worse_percent).collect();
        assert!(worse[0].is_some_and(|percent| (percent - 10.0).abs() < 1e-9), "{worse:?}");
        assert!(worse[1].is_some_and(|percent| (percent + 10.0).abs() < 1e-9), "{worse:?}");
    }

    #[test]
    fn a_difference_within_the_noise_is_undecided_and_has_no_percentage() {
        let noisy = rounds(&[0.9, 0.91, 0.89, 0.9, 0.9], &[1.2, 0.8, 1.1, 0.9, 1.0]);
        assert_eq!(verdicts(&noisy), [Verdict::Undecided; 6]);
        assert!(rows(&noisy).iter().all(|row| row.worse_percent.is_none() && row.ratio.is_some()));
    }

    #[test]
    fn rounds_that_contradict_each_other_are_undecided() {
        let torn = rounds(&[0.5, 0.6, 0.9, 1.4, 1.5], &QUIET);
        assert_eq!(verdicts(&torn), [Verdict::Undecided; 6]);
        assert!(rows(&torn)[0].reason.as_ref().is_some_and(|reason| reason.contains("some less")));
    }

    #[test]
    fn two_rounds_decide_nothing_however_clear() {
        let few = rounds(&[0.1, 0.1], &[1.0, 1.0]);
        assert_eq!(verdicts(&few), [Verdict::Undecided; 6]);
        let row = &rows(&few)[0];
        assert!(row.reason.as_ref().is_some_and(|reason| reason.contains("3 rounds")), "{row:?}");
        assert_eq!((row.interval_low, row.noise_high), (None, None));
    }

    #[test]
    fn figures_are_of_what_moved_and_times_are_ranks_to_a_thousandth() {
        let bytes = Bytes { bytes: 4 << 30, seconds: 2.0, cpu: Some(1.0) };
        let (sent, received, late, seconds) = (3_000_000, 2_000_000, 9, 4.0);
        let datagrams = Datagrams { sent, received, late, seconds, cpu: None, ports: [1, 2] };
        let mut answers = Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap();
        let nothing = Loads { bytes, datagrams, answers: answers.clone() };
        let half = GIB * 2.0;
        assert_eq!(figures(&nothing), [Some(half), Some(0.25), Some(500_000.0), None, None, None]);
        for microseconds in (1..=1_000).rev() {
            answers.record(microseconds * 1_000).unwrap();
        }
        let [.., p50, p99] = figures(&Loads { bytes, datagrams, answers });
        for (found, wanted) in [(p50, 500.0), (p99, 990.0)] {
            let ratio = found.unwrap() / wanted;
            assert!((0.999..1.001).contains(&ratio), "{found:?}, not {wanted}");
        }
    }

    #[test]
    fn what_was_not_told_is_not_measured() {
        let mut some = rounds(&QUIET, &QUIET);
        some[2].again[1] = None;
        some[4].traced[4] = None;
        let rows = rows(&some);
        assert_eq!(rows[1].reason.as_deref(), Some(cpu::UNTOLD));
        assert_eq!(rows[4].reason.as_deref(), Some("no request was answered in some run"));
        let measured = rows.iter().filter(|row| row.verdict != Verdict::NotMeasured);
        assert_eq!(measured.count(), 4);
        assert_eq!(verdicts(&[]), [Verdict::NotMeasured; 6]);
    }

    #[test]
    fn cpu_of_datagrams_that_never_came_back_is_not_called_untold() {
        let mut some = rounds(&QUIET, &QUIET);
        (some[1].baseline[2], some[1].baseline[3]) = (None, None);
        for row in &rows(&some)[2..4] {
            let reason = row.reason.as_deref().unwrap_or_default();
            assert!(reason.starts_with("no datagram came back over UDP"), "{row:?}");
        }
        let places = MEASURES.map(|measure| measure as usize);
        assert_eq!(places, [0, 1, 2, 3, 4, 5], "figures lie in this order");
    }

    proptest! {
        // Each case draws some hundred thousand numbers.
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn equals_are_never_told_apart(
            samples in prop::collection::vec(0.5_f64..2.0, 3..8),
        ) {
            let found = rows(&rounds(&samples, &samples));
            for row in found {
                prop_assert_eq!(row.verdict, Verdict::Undecided, "{:?}", row);
            }
        }

        #[test]
        fn a_verdict_has_its_percentage_and_its_sign(
            traced in prop::collection::vec(0.1_f64..10.0, 3..8),
        ) {
            for row in rows(&rounds(&traced, &[1.0; 8])) {
                match row.verdict {
                    Verdict::Worse => prop_assert!(row.worse_percent > Some(0.0)),
                    Verdict::Better => prop_assert!(row.worse_percent < Some(0.0)),
                    Verdict::Undecided => prop_assert_eq!(row.worse_percent, None),
                    Verdict::NotMeasured => prop_assert!(false, "{row:?}"),
                }
            }
        }
    }
}
