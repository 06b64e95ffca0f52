//! The harness proves itself: each check finds what is planted for it, and whole runs find out a database that acknowledges what it
//! may lose, and a service that takes a commit whose answer was lost for done.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::{Pid, Signal};
use tokio::time::sleep;

use super::{
    bed::{Bed, BedOptions, REPLICAS},
    faults::{Fault, Host},
    history::{Answer, Call, Micros, Operation, Slot, Slots, View},
    holdings,
    linearizable::{self, Found},
    proxy::{Cut, End, Step},
    storm::Storm,
};
use crate::support::process::signal;

/// A slot on this port, with an id of its own.
fn slot(id: &str, port: u32) -> Slot {
    Slot { id: id.to_owned(), port }
}

fn view(create_time: &str, slots: &[(&str, Slot)]) -> View {
    let slots: Slots = slots.iter().map(|(module, slot)| ((*module).to_owned(), slot.clone())).collect();
    View { server: "web-1".to_owned(), create_time: create_time.to_owned(), ram_mb: 512, slots }
}

fn ensure(modules: &[&str], ttl_s: Option<u32>) -> Call {
    Call::Ensure { modules: modules.iter().map(|name| (*name).to_owned()).collect(), ram_mb: None, ttl_s }
}

fn release() -> Call {
    Call::Release { modules: BTreeSet::new() }
}

fn released(slots: &[(&str, Slot)]) -> Answer {
    Answer::Released(view("", slots).slots, Some("web-1".to_owned()), !slots.is_empty())
}

fn unknown() -> Answer {
    Answer::Unknown("planted".to_owned())
}

/// A history of one project, from calls with their times in milliseconds.
fn history(calls: Vec<(Micros, Micros, Call, Answer)>) -> Vec<Operation> {
    let operation = |(number, (begun, ended, call, answer))| Operation {
        number,
        caller: number,
        replica: 0,
        project: "planted".to_owned(),
        call,
        begun: begun * 1000,
        ended: ended * 1000,
        answer,
    };
    calls.into_iter().enumerate().map(operation).collect()
}

fn created(view: View) -> Answer {
    Answer::Ensured("CREATED".to_owned(), view)
}

#[test]
fn an_order_is_found_where_calls_overlap() {
    let first = view("1", &[("backend", slot("a", 8000))]);
    let second = view("2", &[("backend", slot("b", 8001))]);
    // The read overlaps the release, and the second placement comes of a call whose answer was lost.
    let calls = history(vec![
        (0, 10, ensure(&[], None), created(first.clone())),
        (20, 60, release(), released(&[("backend", slot("a", 8000))])),
        (30, 40, Call::Get, Answer::Found(first)),
        (50, 70, ensure(&["backend"], None), unknown()),
        (80, 90, Call::Get, Answer::Found(second.clone())),
        (95, 99, ensure(&[], None), Answer::Ensured("UNCHANGED".to_owned(), second)),
    ]);
    assert_eq!(linearizable::search(&calls), Found::Order);
}

#[test]
fn an_allocation_that_is_lost_has_no_order_and_the_shortest_beginning_shows_it() {
    let placed = view("1", &[("backend", slot("a", 8000))]);
    let calls = history(vec![
        (0, 10, ensure(&[], None), created(placed.clone())),
        (20, 30, Call::Get, Answer::Absent),
        (40, 50, Call::Get, Answer::Found(placed)),
    ]);
    assert_eq!(linearizable::search(&calls), Found::NoOrder);
    assert_eq!(linearizable::shortest(&calls).len(), 2);
}

#[test]
fn other_faults_of_one_project_have_no_order() {
    let one = view("1", &[("backend", slot("a", 8000))]);
    let moved = view("1", &[("backend", slot("b", 8001))]);
    let both = view("1", &[("backend", slot("a", 8000)), ("worker", slot("b", 8001))]);
    let repeated = |view: &View| Answer::Ensured("UNCHANGED".to_owned(), view.clone());
    let wrong: Vec<(&str, Vec<_>)> = vec![
        (
            "a repeat that gets another port",
            vec![
                (0, 10, ensure(&[], None), created(one.clone())),
                (20, 30, ensure(&[], None), repeated(&moved)),
            ],
        ),
        (
            "two that both created it",
            vec![
                (0, 30, ensure(&[], None), created(one.clone())),
                (10, 40, ensure(&[], None), created(moved.clone())),
            ],
        ),
        (
            "a read of what was given back before",
            vec![
                (0, 10, ensure(&[], None), created(one.clone())),
                (20, 30, release(), released(&[("backend", slot("a", 8000))])),
                (40, 50, Call::Get, Answer::Found(one.clone())),
            ],
        ),
        ("a module that nobody asked for", vec![(0, 10, ensure(&["backend"], None), created(both.clone()))]),
        (
            "a release that gives back half of it",
            vec![
                (0, 10, ensure(&["backend", "worker"], None), created(both)),
                (20, 30, release(), released(&[("backend", slot("a", 8000))])),
            ],
        ),
        (
            "a call of unknown outcome that was done twice",
            vec![
                (0, 10, ensure(&[], None), unknown()),
                (20, 30, Call::Get, Answer::Found(one.clone())),
                (40, 50, release(), released(&[("backend", slot("a", 8000))])),
                (60, 70, Call::Get, Answer::Found(moved)),
            ],
        ),
        (
            "a lease that ends too early",
            vec![
                (0, 10, ensure(&[], Some(5)), created(one.clone())),
                (4000, 4900, Call::Get, Answer::Absent),
            ],
        ),
        (
            "a call that the log does not have, and that was done",
            vec![
                (0, 10, ensure(&[], None), Answer::Unlogged("planted".to_owned())),
                (20, 30, Call::Get, Answer::Found(one.clone())),
            ],
        ),
        (
            "a lease that was made by what the log does not have",
            vec![
                (0, 10, ensure(&[], Some(5)), Answer::Unlogged("planted".to_owned())),
                (20, 30, Call::Get, Answer::Found(one.clone())),
            ],
        ),
        (
            "a refusal of what is there",
            vec![
                (0, 10, ensure(&[], None), created(one)),
                (20, 30, ensure(&[], None), Answer::Refused("INSUFFICIENT_CAPACITY".to_owned())),
            ],
        ),
    ];
    for (what, calls) in wrong {
        assert_eq!(linearizable::search(&history(calls)), Found::NoOrder, "{what}");
    }
}

#[test]
fn a_lease_may_end_by_itself_once_it_is_over() {
    let first = view("1", &[("backend", slot("a", 8000))]);
    let second = view("2", &[("backend", slot("b", 8001))]);
    let calls = history(vec![
        (0, 10, ensure(&[], Some(5)), created(first.clone())),
        // It is over, and not ended yet.
        (5500, 5600, Call::Get, Answer::Found(first)),
        (6000, 6100, Call::Get, Answer::Absent),
        (6200, 6300, ensure(&[], None), created(second.clone())),
        (60_000, 60_100, Call::Get, Answer::Found(second)),
    ]);
    assert_eq!(linearizable::search(&calls), Found::Order);
}

#[test]
fn what_the_log_does_not_have_may_have_made_a_lease_and_makes_no_search_long() {
    let unlogged = || Answer::Unlogged("planted".to_owned());
    let mut calls = vec![
        (0, 10, ensure(&[], None), created(view("1", &[("backend", slot("a", 8000))]))),
        (20, 30, ensure(&[], Some(5)), unlogged()),
        (20_000, 20_010, Call::Get, Answer::Absent),
    ];
    for number in 0..100 {
        let call = if number % 2 == 0 { release() } else { ensure(&["worker"], None) };
        calls.push((40 + number, 3000, call, unlogged()));
    }
    assert_eq!(linearizable::search(&history(calls.clone())), Found::Order);
    calls.remove(1);
    assert_eq!(linearizable::search(&history(calls)), Found::NoOrder);
}

#[test]
fn what_is_held_twice_at_one_time_is_found() {
    let of = |project: &str, mut operations: Vec<Operation>| {
        for operation in &mut operations {
            operation.project = project.to_owned();
        }
        operations
    };
    let held = |id: &str, from: Micros, until: Micros| {
        let view = view(&format!("of {id}"), &[("backend", slot(id, 8000))]);
        vec![
            (from - 1, from, ensure(&[], None), created(view.clone())),
            (until, until + 1, Call::Get, Answer::Found(view)),
        ]
    };
    let both = |first: (Micros, Micros), second: (Micros, Micros)| {
        let mut operations = of("one", history(held("a", first.0, first.1)));
        operations.extend(of("two", history(held("b", second.0, second.1))));
        operations
    };
    assert_eq!(holdings::check(&both((10, 20), (30, 40)), 512), Vec::<String>::new());
    let wrong = holdings::check(&both((10, 30), (20, 40)), 512);
    assert!(wrong.iter().any(|wrong| wrong.contains("port 8000 of web-1 was held twice")), "{wrong:?}");
    assert!(wrong.iter().any(|wrong| wrong.contains("1024 MB of web-1 were held")), "{wrong:?}");
    // The same project on two placements at once.
    let twice = of("one", both((10, 30), (20, 40)));
    let wrong = holdings::check(&twice, 4096);
    assert!(wrong.iter().any(|wrong| wrong.contains("placement of one was held twice")), "{wrong:?}");
}

/// The guard that is taken out is the database's: it answers a commit before it is durable, and then crashes.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_loses_what_it_acknowledged_is_found_out() {
    let settings = [
        ("synchronous_commit", "off"),
        // Nobody else writes its log out.
        ("wal_writer_delay", "10s"),
        ("bgwriter_lru_maxpages", "0"),
        ("autovacuum", "off"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let bed = Bed::make(BedOptions { settings, ..BedOptions::default() }).await;
    let storm = Storm::begin(&bed, "proof", 1, 0).await;
    storm.wait_for_answers(50).await;
    let walwriter: i32 =
        sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
            .fetch_one(&mut bed.connect().await)
            .await
            .unwrap();
    let walwriter = Pid::from_raw(walwriter).unwrap();
    signal(walwriter, Signal::STOP);
    storm.wait_for_answers(200).await;
    // Postgres takes the end of one of its processes for a crash, and begins anew from what is on the disk.
    signal(walwriter, Signal::KILL);
    sleep(Duration::from_secs(2)).await;
    drop(bed.connect().await);
    let (wrong, operations, summary) = storm.end(&bed).await;
    assert!(!operations.is_empty(), "{summary}");
    for check in ["the log does not have", "explains the answers"] {
        assert!(wrong.iter().any(|wrong| wrong.contains(check)), "no `{check}` in {wrong:#?}: {summary}");
    }
}

/// The guard that is taken out is the service's: see the feature `without-guards`.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(feature = "without-guards"),
    ignore = "needs the feature `without-guards`: `make chaos` has it"
)]
async fn a_service_that_takes_a_lost_commit_for_done_is_found_out() {
    let bed = Bed::make(BedOptions::default()).await;
    let storm = Storm::begin(&bed, "proof", 1, 0).await;
    let cut = Cut { step: Step::Commit, end: End::Before };
    let mut cuts = 0;
    for replica in (0..REPLICAS).cycle().take(6 * REPLICAS) {
        storm.wait_for_answers(10).await;
        if Fault::Cut(replica, cut).make(&bed, &Host::default()).await {
            cuts += 1;
        }
    }
    assert!(cuts > 0, "no commit was cut off");
    let (wrong, _, summary) = storm.end(&bed).await;
    let is_found = wrong.iter().any(|wrong| wrong.contains("the log does not have"));
    assert!(is_found, "{cuts} commits were cut off, and nothing was found but {wrong:#?}: {summary}");
}
