//! The line's rule, by example and in random histories.

mod changes;
mod nearest;
mod replicas;
mod steps;

use std::collections::BTreeMap;

use proptest::{
    collection,
    prelude::{Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest},
    sample,
};

use super::{
    LeaveCause, LeftLine, Operation, ProjectId, Reason, Reasons, Step, Waiter, WaitingAsk, may_wait,
    refresh_kept,
};
use crate::domain::{
    Fleet, Resources,
    placement::{Context, Decision, decide},
    request::EnsureRequest,
    server::Observation,
    testing::{
        Ledger, NOW, TestServer, a_server, an_ensure,
        arbitrary::{HANDLES, arbitrary_ensure, arbitrary_report, arbitrary_server},
        cases, handle,
        ledger::Committed,
        project,
        queue::{Ended, Waited},
        read_again,
    },
};

fn served(name: &str) -> Ended {
    Ended::Served(project(name))
}

fn left(name: &str) -> Ended {
    Ended::Left(project(name))
}

fn settle(ledger: &mut Ledger) -> Vec<Ended> {
    ledger.settle(|_, _| {})
}

/// Has a project stand in line for an amount of RAM, for ten minutes.
fn stand(ledger: &mut Ledger, name: &str, ram_mb: i64) {
    let request = an_ensure(name).ram(ram_mb).disk(0);
    assert!(matches!(ledger.wait(&request, 600), Waited::Waits), "{name} stands in line");
    assert_eq!(settle(ledger), []);
}

fn places(ledger: &Ledger) -> Vec<&str> {
    ledger.fleet.line().waiters().map(|waiter| waiter.project_id.as_str()).collect()
}

/// Two servers that are full with projects of 1024 MB each: `a-0` to `a-3` on `a`, `b-0` to `b-3` on `b`.
fn full() -> Ledger {
    let servers = [a_server("a").ram(4096), a_server("b").ram(4096)];
    let mut ledger = Ledger::of(&servers);
    for server in ["a", "b"] {
        for n in 0..4 {
            let request = an_ensure(&format!("{server}-{n}")).ram(1024).disk(0).on(server);
            ledger.ensure(&request).unwrap();
        }
    }
    ledger
}

#[test]
fn who_came_first_is_served_first() {
    let mut ledger = full();
    for name in ["first", "second", "third"] {
        stand(&mut ledger, name, 1024);
    }
    assert_eq!(places(&ledger), ["first", "second", "third"]);
    assert_eq!(ledger.fleet.line().place(&project("second")), 2);
    ledger.release("b-2", &[]);
    assert_eq!(settle(&mut ledger), [served("first")]);
    ledger.release("a-0", &[]);
    ledger.release("a-1", &[]);
    assert_eq!(settle(&mut ledger), [served("second"), served("third")]);
    assert!(ledger.fleet.line().is_empty());
}

#[test]
fn a_small_request_passes_a_large_one_only_where_that_one_has_no_use_for_the_room() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    stand(&mut ledger, "small", 1024);
    // Both servers are as far from having room; the tie falls to the handle.
    assert_eq!(ledger.fleet.line().kept_for(), Some((&project("large"), &handle("a"))));
    ledger.release("a-0", &[]);
    assert_eq!(settle(&mut ledger), [], "what is free on `a` is kept for the large one");
    ledger.release("b-0", &[]);
    assert_eq!(settle(&mut ledger), [served("small")], "the large one has no use for what is free on `b`");
    for n in 1..4 {
        ledger.release(&format!("a-{n}"), &[]);
    }
    assert_eq!(settle(&mut ledger), [served("large")]);
    assert_eq!(ledger.reserved_on("a").ram_mb, 4096);
}

#[test]
fn small_requests_do_not_keep_a_large_one_waiting_for_ever() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    // A new small one for each that goes, whether it waits in line or not.
    for n in 0..4 {
        ledger.release(&format!("a-{n}"), &[]);
        let came = settle(&mut ledger);
        if n == 3 {
            assert_eq!(came, [served("large")]);
        } else {
            assert_eq!(came, []);
            let direct = ledger.ensure(&an_ensure(&format!("direct-{n}")).ram(1024).disk(0));
            assert_eq!(direct.unwrap_err().reason, Reason::InsufficientCapacity);
            stand(&mut ledger, &format!("small-{n}"), 1024);
        }
    }
}

#[test]
fn what_is_kept_is_what_the_first_asks_for_and_no_more() {
    let mut ledger = Ledger::of(&[a_server("a").ram(4096).disk(8000)]);
    ledger.ensure(&an_ensure("there").ram(3072).disk(1000)).unwrap();
    // Short of RAM; 1024 MB of it and 2000 MB of disk are kept.
    assert!(matches!(ledger.wait(&an_ensure("first").ram(2048).disk(2000), 600), Waited::Waits));
    settle(&mut ledger);
    let of_disk = |disk| an_ensure("other").ram(0).disk(disk);
    assert_eq!(ledger.ensure(&of_disk(5001)).unwrap_err().reason, Reason::InsufficientCapacity);
    ledger.ensure(&of_disk(5000)).unwrap();
}

#[test]
fn a_project_that_is_placed_waits_to_grow_where_it_is() {
    let mut ledger = full();
    let grown = an_ensure("a-0").ram(2048);
    assert!(matches!(ledger.wait(&grown, 600), Waited::Waits));
    settle(&mut ledger);
    assert_eq!(ledger.fleet.line().kept_for(), Some((&project("a-0"), &handle("a"))));
    ledger.release("b-0", &[]);
    assert_eq!(settle(&mut ledger), [], "it stays where it is");
    ledger.release("a-3", &[]);
    assert_eq!(settle(&mut ledger), [served("a-0")]);
    assert_eq!(ledger.held_by("a-0").placement.unwrap().reserved.ram_mb, 2048);
}

#[test]
fn a_project_waits_to_grow_as_long_as_its_server_could_hold_the_whole_of_it() {
    let mut ledger = full();
    assert!(matches!(ledger.wait(&an_ensure("a-0").ram(3072), 600), Waited::Waits));
    settle(&mut ledger);
    ledger.put_server(a_server("a").ram(3072).server);
    assert_eq!(settle(&mut ledger), [], "empty it could");
    ledger.put_server(a_server("a").ram(3071).server);
    assert_eq!(settle(&mut ledger), [left("a-0")], "though it asks for 2048 more");
}

#[test]
fn whoever_hung_up_keeps_the_place_for_a_while_and_is_not_served() {
    let mut ledger = full();
    stand(&mut ledger, "first", 1024);
    stand(&mut ledger, "second", 1024);
    ledger.leave(&project("first"));
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(places(&ledger), ["second"]);
    // It comes back in time, and is before the second again.
    ledger.clock += 29;
    stand(&mut ledger, "first", 1024);
    assert_eq!(places(&ledger), ["first", "second"]);
    ledger.leave(&project("first"));
    ledger.release("a-0", &[]);
    assert_eq!(settle(&mut ledger), [served("second")]);
    // Too late.
    stand(&mut ledger, "third", 1024);
    ledger.clock += 31;
    settle(&mut ledger);
    stand(&mut ledger, "first", 1024);
    assert_eq!(places(&ledger), ["third", "first"]);
}

#[test]
fn whoever_asks_for_something_else_takes_the_place_at_the_end() {
    let mut ledger = full();
    stand(&mut ledger, "first", 1024);
    stand(&mut ledger, "second", 1024);
    stand(&mut ledger, "first", 1024);
    assert_eq!(places(&ledger), ["first", "second"], "the same is no other");
    stand(&mut ledger, "first", 1025);
    assert_eq!(places(&ledger), ["second", "first"]);
}

#[test]
fn a_place_ends_with_its_time() {
    let mut ledger = full();
    stand(&mut ledger, "first", 1024);
    ledger.clock += 300;
    stand(&mut ledger, "second", 1024);
    ledger.clock += 299;
    assert_eq!(settle(&mut ledger), []);
    ledger.clock += 1;
    ledger.release("a-0", &[]);
    assert_eq!(settle(&mut ledger), [left("first"), served("second")], "its time is over first");
    let Some(Committed::Entry(entry)) = ledger.log.iter().rev().nth(1) else { panic!("{:?}", ledger.log) };
    let Operation::LeftLine(LeftLine { cause: LeaveCause::Refused(refused), .. }) = &entry.operation else {
        panic!("{entry:?}")
    };
    assert_eq!((refused.reason, refused.metadata["waited_s"].as_str()), (Reason::WaitTimedOut, "600"));
}

#[test]
fn who_can_never_be_placed_any_more_is_refused_when_the_fleet_shrinks() {
    let mut ledger = full();
    stand(&mut ledger, "small", 1024);
    stand(&mut ledger, "large", 4096);
    ledger.put_server(a_server("a").ram(2048).server);
    assert_eq!(settle(&mut ledger), [], "`b` may still hold it");
    ledger.put_server(a_server("b").ram(2048).server);
    assert_eq!(settle(&mut ledger), [left("large")]);
    let Some(Committed::Entry(entry)) = ledger.log.last() else { panic!("{:?}", ledger.log) };
    let Operation::LeftLine(LeftLine { cause: LeaveCause::Refused(refused), .. }) = &entry.operation else {
        panic!("{entry:?}")
    };
    assert_eq!(refused.reason, Reason::RequestExceedsFleet);
    // A server that is registered is no reason to let it wait: it is not there any more.
    ledger.put_server(a_server("c").ram(1024).server);
    assert_eq!(settle(&mut ledger), [served("small")]);
}

#[test]
fn the_reason_is_the_one_of_now_and_what_is_kept_hides_no_other() {
    let mut ledger = Ledger::of(&[a_server("a").ram(4096).port_range(8000, 8001)]);
    for name in ["here", "there"] {
        ledger.ensure(&an_ensure(name).ram(2048).disk(0)).unwrap();
    }
    stand(&mut ledger, "first", 1024);
    stand(&mut ledger, "second", 1024);
    let told = |ledger: &Ledger| [reason_now(ledger, "first"), reason_now(ledger, "second")];
    assert_eq!(told(&ledger), [Reason::InsufficientCapacity; 2]);
    // Room, and still no port. All of it is kept for the first, which is not what either waits for.
    ledger.put_server(a_server("a").ram(6144).port_range(8000, 8001).server);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(ledger.fleet.get(&handle("a")).unwrap().free().ram_mb, 0);
    assert_eq!(told(&ledger), [Reason::PortsExhausted; 2]);
    // What the second asks for is free, and kept: it is those ahead that it waits for.
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    stand(&mut ledger, "small", 1024);
    ledger.release("a-0", &[]);
    assert_eq!(settle(&mut ledger), []);
    assert_eq!(reason_now(&ledger, "small"), Reason::InsufficientCapacity);
}

/// Something that happens to a pool with a line.
#[derive(Debug, Clone)]
enum Event {
    Put(Box<TestServer>),
    Remove(&'static str),
    Ensure(EnsureRequest),
    Wait(EnsureRequest, i64),
    Leave(ProjectId),
    Release(ProjectId),
    Usage(&'static str, Observation),
    Pass(i64),
}

/// More projects than arbitrary requests are of, for a line of some length.
fn an_arbitrary_request() -> impl Strategy<Value = EnsureRequest> {
    (arbitrary_ensure(), 0..12u32).prop_map(|(request, number)| EnsureRequest {
        project_id: project(&format!("{}-{}", request.project_id, number % 3)),
        ..request
    })
}

fn an_arbitrary_project() -> impl Strategy<Value = ProjectId> {
    (sample::select(vec!["blog", "bot", "shop", "wiki"]), 0..3u32)
        .prop_map(|(name, number)| project(&format!("{name}-{number}")))
}

fn an_arbitrary_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => arbitrary_server().prop_map(|server| Event::Put(Box::new(server))),
        1 => sample::select(HANDLES.to_vec()).prop_map(Event::Remove),
        4 => an_arbitrary_request().prop_map(Event::Ensure),
        12 => (an_arbitrary_request(), sample::select(vec![5, 60, 600])).prop_map(|(r, s)| Event::Wait(r, s)),
        2 => an_arbitrary_project().prop_map(Event::Leave),
        8 => an_arbitrary_project().prop_map(Event::Release),
        2 => (sample::select(HANDLES.to_vec()), arbitrary_report()).prop_map(|(name, report)| Event::Usage(name, report)),
        3 => sample::select(vec![1, 10, 31, 100]).prop_map(Event::Pass),
    ]
}

/// Some small servers that admit, and what then happens.
fn an_arbitrary_history() -> impl Strategy<Value = Vec<Event>> {
    let ready = collection::vec(arbitrary_server(), 1..4).prop_map(|mut servers| {
        for server in &mut servers {
            server.server.status = crate::domain::ServerStatus::Ready;
            server.server.managed = true;
            server.observed = None;
        }
        servers.into_iter().map(|server| Event::Put(Box::new(server))).collect::<Vec<_>>()
    });
    (ready, collection::vec(an_arbitrary_event(), 10..60)).prop_map(|(mut events, then)| {
        events.extend(then);
        events
    })
}

/// The fleet with nothing kept.
fn unkept(fleet: &Fleet) -> Fleet {
    let mut fleet = fleet.clone();
    let handles: Vec<_> = fleet.iter().map(|state| state.server.handle.clone()).collect();
    for handle in handles {
        fleet.keep(&handle, None);
    }
    fleet
}

/// Whether someone in line could be placed now; the first could also have what is kept.
fn could_be_placed(ledger: &Ledger, waiter: &Waiter, is_first: bool) -> bool {
    let fleet = if is_first { unkept(&ledger.fleet) } else { ledger.fleet.clone() };
    let project = ledger.project(&waiter.project_id);
    match decide(&fleet, &project, &waiter.ensure_request(), &ledger.context()) {
        Ok(Decision::Unchanged) => panic!("{waiter:?} has what it waits for"),
        Ok(_) => true,
        Err(refusal) => {
            let ports = refusal.reason == Reason::PortTaken;
            assert!(may_wait(&refusal) || ports, "{} waits in vain: {refusal:?}", waiter.project_id);
            false
        }
    }
}

fn asks_for_a_port(waiter: &Waiter) -> bool {
    waiter.request.requested.modules.iter().any(|module| module.port.is_some())
}

/// How far the first in line is from its place, by a look at every server.
fn distance(ledger: &Ledger) -> Option<(ProjectId, i128)> {
    let first = ledger.fleet.line().waiters().next()?;
    // An explicit port is nobody's before it is given.
    if asks_for_a_port(first) {
        return None;
    }
    let fleet = unkept(&ledger.fleet);
    let ask = WaitingAsk::of(&ledger.project(&first.project_id), &first.ensure_request());
    Some((first.project_id.clone(), ask.nearest_of_all(&fleet, &ledger.context())?.0))
}

/// Why a project waits, told anew for everyone in line.
fn reason_now(ledger: &Ledger, name: &str) -> Reason {
    let waiter = ledger.fleet.line().get(&project(name)).unwrap();
    Reasons::of(&ledger.fleet, &ledger.context()).find(&ledger.held_by(name), waiter)
}

/// What everyone in line is told is what the request meets where nothing is kept, and else what it meets.
fn assert_reasons(ledger: &Ledger) {
    let (context, unkept) = (ledger.context(), unkept(&ledger.fleet));
    let reasons = Reasons::of(&ledger.fleet, &context);
    for waiter in ledger.fleet.line().waiters() {
        let (project, request) = (ledger.project(&waiter.project_id), waiter.ensure_request());
        let met = [&unkept, &ledger.fleet].map(|fleet| decide(fleet, &project, &request, &context).err());
        let expected =
            met.into_iter().flatten().find(may_wait).map_or(waiter.reason, |refusal| refusal.reason);
        assert_eq!(reasons.find(&project, waiter), expected, "{waiter:?}");
    }
}

/// Nobody who waits could be placed, the first in line keeps what it should, and nothing else is kept.
fn assert_settled(ledger: &Ledger) {
    assert_reasons(ledger);
    for (index, waiter) in ledger.fleet.line().waiters().enumerate() {
        assert!(!could_be_placed(ledger, waiter, index == 0), "{} is passed over", waiter.project_id);
    }
    let kept: BTreeMap<_, Resources> =
        ledger.fleet.iter().filter_map(|state| Some((state.server.handle.clone(), state.kept?))).collect();
    let expected = ledger.fleet.line().waiters().next().and_then(|first| {
        let ask = WaitingAsk::of(&ledger.project(&first.project_id), &first.ensure_request());
        let fleet = unkept(&ledger.fleet);
        let (_, state) = ask.nearest_of_all(&fleet, &ledger.context())?;
        Some((state.server.handle.clone(), ask.to_keep(state, &ledger.context())))
    });
    assert_eq!(kept, expected.into_iter().collect());
}

/// Whoever is served passes only those who could not be placed themselves.
fn assert_fair(ledger: &Ledger, step: &Step) {
    let Step::Serve(served) = step else { return };
    for (index, older) in ledger.fleet.line().waiters().enumerate() {
        if older.arrival < served.arrival {
            let passed = could_be_placed(ledger, older, index == 0);
            assert!(!passed, "{} passes {}", served.project_id, older.project_id);
        }
    }
}

/// Takes an event as a transaction does; returns whose stay in line ended by it.
fn take(ledger: &mut Ledger, event: &Event) -> Vec<Ended> {
    let before = distance(ledger);
    let mut outside = true;
    match event {
        Event::Put(server) => ledger.put(server),
        Event::Remove(name) => {
            let _ = ledger.remove(&handle(name));
        }
        Event::Usage(name, report) if ledger.fleet.get(&handle(name)).is_some() => {
            let observe_time = ledger.now() + (report.observe_time - NOW);
            ledger.observe(&handle(name), Observation { observe_time, ..report.clone() });
        }
        Event::Pass(seconds) => ledger.clock += seconds,
        Event::Leave(id) => ledger.leave(id),
        Event::Release(id) => {
            outside = ledger.fleet.line().get(id).is_some();
            ledger.release_modules(id, &[]);
        }
        Event::Usage(..) | Event::Ensure(_) | Event::Wait(..) => {}
    }
    let mut ended = ledger.settle(assert_fair);
    assert_settled(ledger);
    match event {
        Event::Ensure(request) => {
            outside = ledger.fleet.line().get(&request.project_id).is_some();
            let _ = ledger.ensure(request);
        }
        Event::Wait(request, seconds) => {
            outside = ledger.fleet.line().get(&request.project_id).is_some();
            if matches!(ledger.wait(request, *seconds), Waited::Placed) && outside {
                ended.push(Ended::Served(request.project_id.clone()));
            }
        }
        _ => {}
    }
    ended.extend(ledger.settle(assert_fair));
    assert_settled(ledger);
    // By no decision of ours does the first get further from its place.
    if let (false, Some((first, before)), Some((then, after))) = (outside, before, distance(ledger))
        && first == then
    {
        assert!(after <= before, "{first} was {before} from its place, and is {after} now");
    }
    ended
}

/// The fold of another replica.
fn replayed(log: &[Committed]) -> Fleet {
    let mut fleet = Fleet::default();
    for committed in log {
        match committed {
            Committed::Entry(entry) => fleet.follow(&read_again(entry)),
            Committed::Usage(handle, observation) => fleet.observe(handle, observation.clone()),
        }
    }
    fleet
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn in_no_history_is_anyone_passed_over_or_moved_away_from_its_place(history in an_arbitrary_history()) {
        let mut ledger = Ledger::default();
        for event in &history {
            take(&mut ledger, event);
        }
        // None stays for ever.
        ledger.clock += 601 + 31;
        take(&mut ledger, &Event::Pass(0));
        prop_assert!(ledger.fleet.line().is_empty());
        prop_assert_eq!(ledger.fleet.line().next_end(), None);
    }

    #[test]
    fn replicas_that_fold_the_same_log_know_the_same_line_and_keep_the_same(history in an_arbitrary_history()) {
        let mut ledger = Ledger::default();
        for event in &history {
            take(&mut ledger, event);
            let mut replica = replayed(&ledger.log);
            let known = |id: &ProjectId| Some(ledger.project(id));
            prop_assert_eq!(refresh_kept(&mut replica, &known, &ledger.context()), None);
            let line = |fleet: &Fleet| fleet.line().waiters().cloned().collect::<Vec<_>>();
            prop_assert_eq!(line(&replica), line(&ledger.fleet));
            prop_assert_eq!(replica.line().kept_for(), ledger.fleet.line().kept_for());
            // And has nothing to do that the other has not done, but that it looks at everyone anew: an explicit port may have
            // been taken meanwhile.
            let with_ports: Vec<_> = replica.line().waiters().filter(|waiter| asks_for_a_port(waiter)).cloned().collect();
            let mut other = Ledger { fleet: replica, projects: ledger.projects.clone(), clock: ledger.clock, ..Ledger::default() };
            let mut ended = other.settle(|_, _| {});
            ended.retain(|ended| !with_ports.iter().any(|waiter| *ended == Ended::Left(waiter.project_id.clone())));
            prop_assert_eq!(ended, vec![]);
        }
    }
}

#[test]
fn what_is_free_is_told_without_what_is_kept() {
    let mut ledger = full();
    stand(&mut ledger, "large", 4096);
    ledger.release("a-0", &[]);
    settle(&mut ledger);
    let state = ledger.fleet.get(&handle("a")).unwrap();
    assert_eq!((state.free().ram_mb, state.kept.unwrap().ram_mb), (0, 4096));
    let context: Context = ledger.context();
    let request = an_ensure("other").ram(1);
    let refusal = decide(&ledger.fleet, &ledger.held_by("other"), &request, &context).unwrap_err();
    assert_eq!(refusal.reason, Reason::InsufficientCapacity);
}
