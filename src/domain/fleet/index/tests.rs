//! What the indexes keep, and for how long.

use time::Duration;

use super::*;
use crate::domain::{
    Fleet, Project, Reason,
    fleet::Verdict,
    placement::{Decision, decide},
    testing::{
        NOW, TestServer, a_fleet, a_server, an_ensure, context, context_at, decide_new, handle, project, ram,
        refused,
    },
};

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Those among which the servers with these labels are: a few by their slots, or how many a view has.
fn among(fleet: &Fleet, selector: &[(&str, &str)]) -> Result<usize, Vec<u32>> {
    match fleet.read_index(&labels(selector), None, &context(), View::count) {
        Among::View(count) => Ok(count),
        Among::Few(slots) => Err(slots),
    }
}

fn views(fleet: &mut Fleet) -> &mut Vec<Kept> {
    &mut fleet.index.views.get_mut().unwrap().kept
}

/// The handles of the servers that admit work and their ranks, by these.
fn by_rank(fleet: &Fleet) -> Vec<(i64, &str)> {
    let read = |view: &View| view.rooms.least(usize::MAX, |room| Some(room.rank), |_| Verdict::Take);
    let Among::View(Some(found)) = fleet.read_index(&BTreeMap::new(), None, &context(), read) else {
        panic!("a view of every server")
    };
    found.iter().map(|(rank, slot)| (*rank, fleet.at(*slot).unwrap().server.handle.as_str())).collect()
}

#[test]
fn servers_are_ranked_by_handle_also_where_there_was_no_room_between_two() {
    // Each between the one before and its neighbour: `b`, which is of rank 0, above it or below it.
    let upwards: Vec<_> = (100..200).map(|number| format!("a-{number}")).collect();
    let downwards: Vec<_> = (100..200).rev().map(|number| format!("m-{number}")).collect();
    for names in [upwards, downwards] {
        let mut fleet = a_fleet(&["b", "a", "z"].map(a_server));
        for (count, name) in (4..).zip(&names) {
            fleet.upsert(a_server(name).server);
            let ranked = by_rank(&fleet);
            assert!(ranked.is_sorted_by(|(a, here), (b, there)| a < b && here < there), "{ranked:?}");
            assert_eq!((ranked.len(), ranked[0].1), (count, "a"));
        }
    }
}

#[test]
fn a_server_for_which_there_is_room_leaves_the_views_as_they_are() {
    let mut fleet = a_fleet(&["a", "c"].map(a_server));
    assert_eq!(among(&fleet, &[]), Ok(2));
    for name in ["b", "0", "d"] {
        fleet.upsert(a_server(name).server);
        assert_eq!(views(&mut fleet).len(), 1, "{name}");
    }
    assert_eq!(among(&fleet, &[]), Ok(5));
}

#[test]
fn the_servers_with_some_labels_are_among_those_with_the_rarest() {
    let fleet = a_fleet(&[
        a_server("a").label("disk", "ssd").label("region", "eu"),
        a_server("b").label("region", "eu").label("zone", "1"),
        a_server("c").label("region", "eu"),
    ]);
    assert_eq!(among(&fleet, &[]), Ok(3));
    assert_eq!(among(&fleet, &[("region", "eu")]), Ok(3));
    assert_eq!(among(&fleet, &[("disk", "ssd")]), Err(vec![0]));
    assert_eq!(among(&fleet, &[("disk", "ssd"), ("region", "eu")]), Err(vec![0]));
    assert_eq!(among(&fleet, &[("region", "eu"), ("zone", "1")]), Err(vec![1]));
    assert_eq!(among(&fleet, &[("disk", "ssd"), ("zone", "1")]), Err(vec![]), "no server carries both");
    assert_eq!(among(&fleet, &[("region", "us")]), Err(vec![]));
}

#[test]
fn a_label_that_no_server_carries_any_more_is_forgotten() {
    let mut fleet = a_fleet(&["a", "b"].map(|name| a_server(name).label("disk", name)));
    fleet.upsert(a_server("a").label("disk", "new").server);
    fleet.remove(&handle("b"));
    assert_eq!(among(&fleet, &[("disk", "new")]), Err(vec![0]));
    let known: Vec<_> = fleet.index.by_label.keys().map(|(_, value)| value.as_str()).collect();
    assert_eq!(known, ["new"]);
}

#[test]
fn the_view_that_was_not_looked_at_for_longest_goes_first() {
    let servers: Vec<TestServer> = ["a", "b"]
        .map(|name| (0..6).fold(a_server(name), |server, n| server.label(&format!("l-{n}"), "x")))
        .into();
    let mut fleet = a_fleet(&servers);
    for (looked_at, kept) in
        [(0, "0"), (1, "01"), (2, "012"), (3, "0123"), (0, "0123"), (4, "0234"), (2, "0234"), (5, "0245")]
    {
        assert_eq!(among(&fleet, &[(&format!("l-{looked_at}"), "x")]), Ok(2));
        let mut found: Vec<_> = views(&mut fleet).iter().flat_map(|kept| kept.selector.keys()).collect();
        found.sort_unstable();
        let found: String = found.iter().map(|key| key.trim_start_matches("l-")).collect();
        assert_eq!(found, kept);
    }
}

#[test]
fn a_view_that_is_not_looked_at_notes_no_more_changes_than_it_need() {
    let mut fleet = a_fleet(&["a", "b", "c"].map(a_server));
    assert_eq!(among(&fleet, &[]), Ok(3));
    let mut change = |name: &str| {
        fleet.keep(&handle(name), None);
        views(&mut fleet)[0].changed.len()
    };
    assert_eq!((change("a"), change("a")), (1, 1), "once in a row");
    // Twice the servers and 1024 are the most before what is noted twice is left out.
    for count in 2..=1030 {
        assert_eq!(change(if count % 2 == 0 { "b" } else { "a" }), count);
    }
    assert_eq!(change("a"), 3);
    fleet.keep(&handle("c"), Some(ram(i64::MAX / 4)));
    assert_eq!(by_rank(&fleet).len(), 3);
    assert!(views(&mut fleet)[0].changed.is_empty());
}

#[test]
fn a_report_grows_too_old_by_the_clock_alone_and_is_young_again_where_that_is_set_back() {
    let fleet = a_fleet(&[a_server("a").reported(0, ram(0), &[]), a_server("b").reported(100, ram(0), &[])]);
    let told = |seconds: i64| {
        let context = context_at(NOW + Duration::seconds(seconds));
        match decide(&fleet, &Project::unplaced(project("shop")), &an_ensure("shop"), &context) {
            Ok(Decision::Place { server_handle, .. }) => Ok(server_handle.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.reason),
        }
    };
    for (seconds, expected) in [
        (0, Ok("a")),
        (300, Ok("a")),
        (301, Err(Reason::UsageStale)),
        (300, Ok("a")),
        (1000, Err(Reason::UsageStale)),
        (0, Ok("a")),
    ] {
        assert_eq!(told(seconds), expected.map(str::to_owned), "{seconds}");
    }
}

#[test]
fn whether_reports_are_required_may_change_from_one_look_to_the_next() {
    let fleet = a_fleet(&[a_server("a")]);
    let required = Context { usage_required: true, ..context() };
    let request = an_ensure("shop");
    for _ in 0..2 {
        assert!(decide_new(&fleet, &request).is_ok());
        let refusal = decide(&fleet, &Project::unplaced(project("shop")), &request, &required).unwrap_err();
        assert_eq!(refusal.reason, Reason::UsageStale);
    }
    assert_eq!(refused(&fleet, &request.ram(99_999)).reason, Reason::RequestExceedsFleet);
}
