//! The registry against a cluster of which the truth is known: whatever happens, and however late
//! it is told, an address names the pod that really had it, or nobody.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const MILLI: u64 = 1_000_000;
const ADDRESSES: usize = 2;

/// What a kubelet takes at least from a pod's creation to its address, and from the end of its
/// containers to the release of the address.
const SETUP: u64 = 200 * MILLI;

/// A watch that runs tells at most this late.
const LAG: u64 = 50 * MILLI;

#[derive(Clone, Debug)]
enum Op {
    Create,
    /// A pod without an address gets a free one; the API tells of it with the next `Show`.
    Take(usize),
    Show(usize),
    Terminate(usize),
    /// Its containers end.
    End(usize),
    /// The sandbox goes and the address is free; the object goes or is Succeeded.
    Release(usize, bool),
    /// Deleted with grace period 0 while its containers run.
    Force(usize),
    Cut,
    /// The watch goes on, or all is listed anew.
    Resume(bool),
    Look(usize),
    Wait(u64),
    /// So long that what has ended is forgotten.
    Age,
}

fn op() -> impl Strategy<Value = Op> {
    let nth = || 0_usize..4;
    prop_oneof![
        2 => Just(Op::Create),
        3 => nth().prop_map(Op::Take),
        3 => nth().prop_map(Op::Show),
        1 => nth().prop_map(Op::Terminate),
        2 => nth().prop_map(Op::End),
        3 => (nth(), any::<bool>()).prop_map(|(pod, gone)| Op::Release(pod, gone)),
        1 => nth().prop_map(Op::Force),
        1 => Just(Op::Cut),
        2 => any::<bool>().prop_map(Op::Resume),
        6 => (0..ADDRESSES).prop_map(Op::Look),
        4 => (1_u64..1500).prop_map(|ms| Op::Wait(ms * MILLI)),
        1 => Just(Op::Age),
    ]
}

#[derive(Clone, Debug)]
struct Real {
    object: Value,
    created: u64,
    address: Option<usize>,
    shown: bool,
    ended: Option<u64>,
    forced: bool,
    released: bool,
}

/// A stretch of time in which a pod really had an address.
#[derive(Debug)]
struct Stretch {
    pod: usize,
    address: usize,
    from: u64,
    until: u64,
}

struct World {
    registry: Arc<Registry>,
    now: u64,
    pods: Vec<Real>,
    stretches: Vec<Stretch>,
    /// Told by the API and not received yet.
    unheard: VecDeque<(bool, Value)>,
    is_cut: bool,
    heard: u64,
    looks: Vec<(usize, u64)>,
    named: usize,
}

impl World {
    fn new() -> Self {
        Self {
            registry: listed(),
            now: 10 * SECOND,
            pods: vec![],
            stretches: vec![],
            unheard: VecDeque::new(),
            is_cut: false,
            heard: 10 * SECOND,
            looks: vec![],
            named: 0,
        }
    }

    fn tell(&mut self, pod: usize, gone: bool) {
        let object = self.pods[pod].object.clone();
        if self.is_cut {
            self.unheard.push_back((gone, object));
            return;
        }
        self.now += LAG / 2;
        self.heard = self.now;
        self.hear(gone, &object, at(self.now));
    }

    fn hear(&self, gone: bool, object: &Value, seen: Seen) {
        if gone {
            self.registry.delete_pod(&meta(object), seen);
        } else {
            self.registry.apply_pod(&pod(object), seen);
        }
    }

    fn resume(&mut self, relist: bool) {
        if !self.is_cut {
            return;
        }
        self.is_cut = false;
        let seen = Seen::late(self.now, self.heard, ZERO_UNIX_NS);
        let unheard = std::mem::take(&mut self.unheard);
        if relist {
            self.registry.begin_list(Resource::Pods);
            for real in self.pods.iter().filter(|real| real.is_in_api()) {
                self.registry.apply_pod(&pod(&real.object), seen);
            }
            self.registry.end_list(Resource::Pods, seen);
        } else {
            for (gone, object) in unheard {
                self.hear(gone, &object, seen);
            }
        }
        self.heard = self.now;
    }

    /// While nobody runs on that the API has forgotten: for this long none does.
    fn age(&mut self) {
        if self.pods.iter().all(|real| !real.forced || real.released) {
            self.now += super::super::KEPT_NS + SECOND;
        }
    }

    fn pick(&self, nth: usize, fits: impl Fn(&Real) -> bool) -> Option<usize> {
        let fitting: Vec<usize> =
            (0..self.pods.len()).filter(|pod| fits(&self.pods[*pod])).collect();
        (!fitting.is_empty()).then(|| fitting[nth % fitting.len()])
    }

    fn create(&mut self) {
        let uid = format!("pod{}", self.pods.len());
        let mut object = running(&uid, "", self.now);
        object["status"] = json!({ "phase": "Pending" });
        self.pods.push(Real {
            object,
            created: self.now,
            address: None,
            shown: false,
            ended: None,
            forced: false,
            released: false,
        });
        self.tell(self.pods.len() - 1, false);
    }

    fn take(&mut self, nth: usize) {
        let taken = |address| self.pods.iter().any(|real| real.has(address));
        let Some(free) = (0..ADDRESSES).find(|address| !taken(*address)) else { return };
        let ready = |real: &Real| {
            real.address.is_none() && real.is_in_api() && self.now >= real.created + SETUP
        };
        let Some(chosen) = self.pick(nth, ready) else { return };
        self.pods[chosen].address = Some(free);
        self.stretches.push(Stretch {
            pod: chosen,
            address: free,
            from: self.now,
            until: u64::MAX,
        });
    }

    fn show(&mut self, nth: usize) {
        let hidden = |real: &Real| {
            real.address.is_some() && !real.shown && real.ended.is_none() && real.is_in_api()
        };
        let Some(chosen) = self.pick(nth, hidden) else { return };
        let real = &mut self.pods[chosen];
        let uid = real.object["metadata"]["uid"].as_str().expect("it has one").to_owned();
        let address = address(real.address.expect("it was picked so"));
        let metadata = real.object["metadata"].clone();
        real.object = running(&uid, &address, real.created);
        real.object["metadata"] = metadata;
        real.object["status"]["containerStatuses"][0]["state"] =
            json!({ "running": { "startedAt": created(self.now) } });
        real.shown = true;
        self.tell(chosen, false);
    }

    fn end(&mut self, nth: usize) {
        let has = |real: &Real| real.address.is_some() && real.ended.is_none();
        let Some(chosen) = self.pick(nth, has) else { return };
        let real = &mut self.pods[chosen];
        if !real.shown {
            // Too short for the kubelet to tell of it while it ran.
            real.ended = Some(self.now);
            return;
        }
        let was_in_api = real.is_in_api();
        real.ended = Some(self.now);
        real.object["spec"]["restartPolicy"] = json!("Never");
        real.object["status"]["containerStatuses"][0]["state"] =
            json!({ "terminated": { "exitCode": 0 } });
        if was_in_api {
            self.tell(chosen, false);
        }
    }

    fn release(&mut self, nth: usize, gone: bool) {
        let now = self.now;
        let over =
            |real: &Real| !real.released && real.ended.is_some_and(|ended| now >= ended + SETUP);
        let Some(chosen) = self.pick(nth, over) else { return };
        self.free(chosen);
        let real = &mut self.pods[chosen];
        if real.forced {
            return;
        }
        real.forced = gone;
        real.object["status"]["phase"] = json!("Succeeded");
        real.object["status"]["podIP"] = json!(address(real.address.expect("it was picked so")));
        self.tell(chosen, false);
        if gone {
            self.tell(chosen, true);
        }
    }

    fn free(&mut self, pod: usize) {
        self.pods[pod].released = true;
        let now = self.now;
        let stretch = self.stretches.iter_mut().find(|of| of.pod == pod && of.until == u64::MAX);
        if let Some(stretch) = stretch {
            stretch.until = now;
        }
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        self.now += MILLI;
        match op {
            Op::Create if self.pods.len() < 30 => self.create(),
            Op::Create => {}
            Op::Take(nth) => self.take(*nth),
            Op::Show(nth) => self.show(*nth),
            Op::End(nth) => self.end(*nth),
            Op::Release(nth, gone) => self.release(*nth, *gone),
            Op::Terminate(nth) => {
                if let Some(chosen) = self.pick(*nth, |real| real.is_in_api() && !real.released) {
                    let now = created(self.now);
                    self.pods[chosen].object["metadata"]["deletionTimestamp"] = json!(now);
                    self.tell(chosen, false);
                }
            }
            Op::Force(nth) => {
                // Nobody can know of a pod that came and was forgotten during one cut, and ran on.
                let unheard = |real: &Real| {
                    let is_of = |(_, object): &(bool, Value)| {
                        object["metadata"]["uid"] == real.object["metadata"]["uid"]
                            && object["status"]["phase"] == "Pending"
                    };
                    self.unheard.iter().any(is_of)
                };
                let runs = |real: &Real| {
                    real.is_in_api() && real.shown && real.ended.is_none() && !unheard(real)
                };
                if let Some(chosen) = self.pick(*nth, runs) {
                    self.pods[chosen].forced = true;
                    self.tell(chosen, true);
                }
            }
            Op::Cut => self.is_cut = true,
            Op::Resume(relist) => self.resume(*relist),
            Op::Wait(span) => self.now += span,
            Op::Age => self.age(),
            Op::Look(address) => {
                self.looks.push((*address, self.now));
                // During a cut nobody can know better than what was told before it.
                if !self.is_cut {
                    self.check(*address, self.now)?;
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, wanted: usize, at_ns: u64) -> Result<(), TestCaseError> {
        let view = self.registry.read();
        let Holder::Pod { pod, .. } = view.holder(ip(&address(wanted)), at_ns) else {
            return Ok(());
        };
        let name = pod.identity().map(|identity| identity.name.to_string()).unwrap_or_default();
        let really = self.stretches.iter().find(|stretch| {
            stretch.address == wanted && (stretch.from..=stretch.until).contains(&at_ns)
        });
        // At a time at which nobody had it there was no packet to be named.
        if let Some(really) = really {
            prop_assert_eq!(
                name,
                format!("pod{}", really.pod),
                "at {} of {:#?}",
                at_ns,
                self.stretches
            );
            self.named += 1;
        }
        Ok(())
    }
}

impl Real {
    fn is_in_api(&self) -> bool {
        !self.forced
    }

    fn has(&self, address: usize) -> bool {
        self.address == Some(address) && !self.released
    }
}

fn address(number: usize) -> String {
    format!("10.0.0.{}", number + 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_address_never_names_another_pod(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op)?;
        }
        world.now += SECOND;
        world.resume(true);
        for (address, at_ns) in world.looks.clone() {
            world.check(address, at_ns)?;
        }
    }
}

#[test]
fn an_undisturbed_life_is_named_from_its_first_packet_to_its_last() {
    let mut world = World::new();
    let life =
        [Op::Create, Op::Wait(SETUP), Op::Take(0), Op::Look(0), Op::Wait(SETUP), Op::Show(0)];
    let death = [Op::Look(0), Op::End(0), Op::Look(0), Op::Wait(SETUP), Op::Release(0, true)];
    for _generation in 0..5 {
        for op in life.iter().chain(&death) {
            world.step(op).expect("the truth is told");
        }
        world.now += SECOND;
    }
    for (address, at_ns) in world.looks.clone() {
        world.named = 0;
        world.check(address, at_ns).expect("the truth is told");
        assert_eq!(world.named, 1, "at {at_ns} of {:#?}", world.stretches);
    }
}
