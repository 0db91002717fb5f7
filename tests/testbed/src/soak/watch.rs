//! Looks at an agent all the time that something else happens: how it answers, and what memory it
//! takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orb8_proto::v1::{GetStatusRequest, QueryFlowsRequest};

use super::bed::{Bed, Client, connect, runtime};
use super::cost::{Beside, Look, cost};
use super::figures::{Answers, Cost, Memory};
use crate::fdinfo;

/// An answer that does not come within this is none.
const GIVEN_UP: Duration = Duration::from_secs(10);
/// Time between two pairs of questions.
const PAUSE: Duration = Duration::from_millis(50);
/// Time between two looks at memory and programs.
const MEMORY_EVERY: Duration = Duration::from_millis(200);
/// The slowest that an answer may be.
const ANSWER_LIMIT_MS: f64 = 1_000.0;

/// What was seen meanwhile.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// In milliseconds.
    times: Vec<f64>,
    failed: Vec<String>,
    /// When, and how many bytes.
    memory: Vec<(Instant, u64)>,
    looks: Vec<Look>,
}

impl Watched {
    pub(super) fn answers(mut self) -> Answers {
        self.times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = self.times.len().saturating_sub(1) as f64;
            // A share of a count, which is small.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a place in a list"
            )]
            let at = (last * share).ceil() as usize;
            self.times.get(at).copied().unwrap_or(0.0)
        };
        Answers {
            asked: (self.times.len() + self.failed.len()) as u64,
            max_ms: at(1.0),
            p99_ms: at(0.99),
            limit_ms: ANSWER_LIMIT_MS,
            failed: self.failed,
        }
    }

    /// What the programs cost over a time that began and ended then.
    pub(super) fn cost(&self, from: Instant, to: Instant) -> Cost {
        cost(&self.looks, from, to)
    }

    /// Memory over a time that began and ended then; the most is that of all times.
    pub(super) fn memory(&self, from: Instant, to: Instant) -> Memory {
        let span = to.duration_since(from);
        let quarter = |number: u32| {
            let (from, to) = (from + span * number / 4, from + span * (number + 1) / 4);
            let within = self.memory.iter().filter(|(at, _)| (from..to).contains(at));
            let mut bytes: Vec<u64> = within.map(|(_, bytes)| *bytes).collect();
            bytes.sort_unstable();
            bytes.get(bytes.len() / 2).copied().unwrap_or(0)
        };
        Memory {
            max: self.memory.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0),
            early: quarter(1),
            late: quarter(3),
            ..Memory::default()
        }
    }
}

/// Does `work` and looks at the agent until it is done. Of the memory of an agent that is not built for
/// users, pages of files do not count: it has ten times as much code, and its maps are counted as maps.
pub(super) fn watch<T>(
    bed: &Bed,
    with_files: bool,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Watched)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking =
            scope.spawn(|| bed.link.near.netns.enter(|| look(bed.pid(), with_files, &stop)));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let watched = looking.join().map_err(|_told| anyhow::anyhow!("the watcher panicked"))?;
        match done {
            Ok(done) => Ok((done?, watched?)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn look(pid: u32, with_files: bool, stop: &AtomicBool) -> anyhow::Result<Watched> {
    let mut beside = Beside::start()?;
    runtime()?.block_on(async {
        let mut client = connect().await?;
        let mut watched = Watched::default();
        let mut maps = 0;
        while !stop.load(Ordering::Relaxed) {
            maps = ask(&mut client, &mut watched).await.unwrap_or(maps);
            let due = watched.memory.last().is_none_or(|(at, _)| at.elapsed() >= MEMORY_EVERY);
            if due {
                let bytes = resident(pid, with_files)? + fdinfo::map_bytes(pid)?.max(maps);
                watched.memory.push((Instant::now(), bytes));
                watched.looks.push(beside.look(pid)?);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(watched)
    })
}

/// Asks for the status and the first ten flows; the bytes of maps that the status tells.
async fn ask(client: &mut Client, watched: &mut Watched) -> Option<u64> {
    let status = timed(watched, "status", client.get_status(GetStatusRequest {})).await;
    let request = QueryFlowsRequest { limit: 10, ..Default::default() };
    timed(watched, "the first ten flows", client.query_flows(request)).await;
    Some(status?.into_inner().memory?.map_bytes)
}

/// The time from the question to the answer, less that for which this very thread waited for a CPU.
async fn timed<T>(
    watched: &mut Watched,
    what: &str,
    question: impl Future<Output = Result<T, tonic::Status>>,
) -> Option<T> {
    let (start, waited) = (Instant::now(), own_wait());
    let answer = tokio::time::timeout(GIVEN_UP, question).await;
    let own = own_wait().saturating_sub(waited);
    watched.times.push(start.elapsed().saturating_sub(own).as_secs_f64() * 1e3);
    let told = match answer {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(status)) => format!("{what}: {status}"),
        Err(_late) => format!("{what}: none within {} s", GIVEN_UP.as_secs()),
    };
    watched.times.pop();
    watched.failed.push(told);
    None
}

/// For how long the calling thread has stood in a CPU's queue.
fn own_wait() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = text.split(' ').nth(1).and_then(|ns| ns.parse().ok());
    Duration::from_nanos(waited.unwrap_or(0))
}

fn resident(pid: u32, with_files: bool) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a field")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    };
    if with_files { bytes("VmRSS:") } else { Ok(bytes("RssAnon:")? + bytes("RssShmem:")?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_answers_are_found_among_many() {
        let times = (1..=1_000).rev().map(f64::from).collect();
        let answers = Watched { times, ..Watched::default() }.answers();
        assert_eq!((answers.asked, answers.max_ms, answers.p99_ms), (1_000, 1_000.0, 991.0));
        assert_eq!(Watched::default().answers().max_ms, 0.0);
    }

    #[test]
    fn an_answer_that_never_came_is_no_fast_one() {
        let failed = vec!["gone".to_owned()];
        let answers = Watched { times: vec![3.0], failed, ..Watched::default() }.answers();
        assert_eq!((answers.asked, answers.max_ms, answers.failed.len()), (2, 3.0, 1));
    }

    #[test]
    fn memory_is_compared_between_quarters_of_the_load_and_bounded_over_all() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        // A peak before the load, growth within it, and the most after it.
        let seen = [(1, 90), (20, 10), (26, 40), (28, 50), (29, 60), (36, 70), (38, 80), (45, 99)];
        let memory = seen.map(|(second, bytes)| (at(second), bytes)).to_vec();
        let memory = Watched { memory, ..Watched::default() }.memory(at(20), at(40));
        assert_eq!((memory.max, memory.early, memory.late), (99, 50, 80));
    }

    #[test]
    fn own_waiting_and_own_memory_can_be_read() {
        let own = |with_files| resident(std::process::id(), with_files).expect("our own");
        assert!(own(true) > own(false) && own(false) > 10_000);
        let before = own_wait();
        std::thread::yield_now();
        assert!(own_wait() >= before);
    }
}
