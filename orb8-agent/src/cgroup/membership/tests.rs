//! Tests of questions, answers and the bell between them.

use super::*;
use crate::cgroup::no_pods;

fn answer(process: Option<Process>, checked_ns: u64) -> Answer {
    Answer { cgroup: None, process, checked_ns }
}

fn asking(wake: OwnedFd) -> (Memberships, Receiver<Arc<Membership>>, Arc<Bell>) {
    let (line, questions, bell) = Line::new(wake);
    (Memberships::asking(Cgroups::default(), line), questions, bell)
}

fn eventfd() -> OwnedFd {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags).unwrap()
}

fn is_readable(bell: &Bell) -> bool {
    let mut ready = [rustix::event::PollFd::new(&bell.wake, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut ready, Some(&now)).unwrap() == 1
}

#[test]
fn a_process_is_only_credited_with_flows_it_can_have_sent() {
    let process = |started_ns| Process { pid: 7, comm: "curl".into(), started_ns };
    let membership = Membership::answered(1, answer(Some(process(1_000)), 5_000));
    assert!(membership.process_at(999).is_none(), "began before the process did");
    assert!(membership.process_at(1_000).is_some());
    assert!(membership.process_at(5_001).is_none(), "began after the look");
    let membership = Membership::answered(1, answer(Some(process(0)), FRESH_NS + 11));
    assert!(membership.process_at(10).is_none(), "looked too late");
    assert!(membership.process_at(11).is_some());
}

#[test]
fn a_flow_that_began_after_the_last_look_asks_again() {
    let (mut asking, questions, _bell) = asking(eventfd());
    let first = asking.find(9, 100).unwrap();
    let second = asking.find(9, 120).unwrap();
    assert!(Arc::ptr_eq(&first, &second), "still unanswered, so shared");
    first.set(answer(None, 150));
    assert!(Arc::ptr_eq(&first, &asking.find(9, 150).unwrap()));
    assert!(!Arc::ptr_eq(&first, &asking.find(9, 151).unwrap()));
    assert_eq!(questions.try_iter().count(), 2);
}

#[test]
fn a_question_that_found_the_queue_full_is_asked_again() {
    let (mut asking, questions, _bell) = asking(eventfd());
    for id in 0..=QUEUE as u64 {
        asking.find(id, 0);
    }
    assert_eq!(questions.try_iter().count(), QUEUE);
    for id in 0..=QUEUE as u64 {
        asking.find(id, 0);
    }
    let again: Vec<_> = questions.try_iter().map(|asked| asked.id).collect();
    assert_eq!(again, [QUEUE as u64]);
}

#[test]
fn the_bell_is_rung_once_for_all_questions_until_it_is_rearmed() {
    let (mut asking, _questions, bell) = asking(eventfd());
    assert!(!is_readable(&bell));
    for id in 0..3 {
        asking.find(id, 0);
    }
    let mut counter = [0; 8];
    rustix::io::read(&bell.wake, &mut counter).unwrap();
    assert_eq!(u64::from_ne_bytes(counter), 1, "one system call");
    bell.rearm();
    asking.find(7, 0);
    assert!(is_readable(&bell));
}

#[test]
fn dropping_the_asking_side_closes_the_queue_and_wakes() {
    let (asking, questions, bell) = asking(eventfd());
    drop(asking);
    assert!(is_readable(&bell));
    assert!(
        questions.try_recv().is_err_and(|it| it == std::sync::mpsc::TryRecvError::Disconnected)
    );
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut asking = Memberships::unanswered(Cgroups::default());
    for id in 0..(MAX_REMEMBERED as u64 + 50) {
        asking.find(id, 0);
    }
    assert_eq!(asking.remembered.len(), MAX_REMEMBERED);
}

#[test]
fn a_cgroup_of_the_index_is_known_at_once_and_one_that_is_not_when_answered() {
    let cgroups = Cgroups::default();
    cgroups.insert(Arc::new(Cgroup::new(5, "/system.slice/sshd.service", &no_pods())));
    let mut asking = Memberships::unanswered(cgroups);
    let known = asking.find(5, 0).unwrap();
    assert_eq!(known.path(), Some("/system.slice/sshd.service"));
    assert!(!known.is_gone());
    let asked = asking.find(6, 0).unwrap();
    assert_eq!((asked.path(), asked.is_gone()), (None, false), "not looked for yet");
    asked.set(answer(None, 1));
    assert_eq!((asked.path(), asked.is_gone()), (None, true));
    let found = Membership::asked(8);
    let cgroup = Some(Arc::new(Cgroup::new(8, "/a", &no_pods())));
    found.set(Answer { cgroup, process: None, checked_ns: 1 });
    assert_eq!((found.path(), found.is_gone()), (Some("/a"), false));
}

#[test]
fn a_cgroup_that_the_index_learns_of_later_is_known_to_the_next_flow_at_once() {
    let (mut asking, _questions, _bell) = asking(eventfd());
    let first = asking.find(5, 0).unwrap();
    assert_eq!(first.path(), None);
    asking.cgroups().insert(Arc::new(Cgroup::new(5, "/a", &no_pods())));
    let second = asking.find(5, 0).unwrap();
    assert_eq!(second.path(), Some("/a"));
    assert!(Arc::ptr_eq(&second, &asking.find(5, 0).unwrap()), "and shared from then on");
}
