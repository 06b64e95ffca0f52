//! ListAllocations: order, pages, filters, tokens.

use resource_allocator::proto::v1::{self, ListAllocationsRequest, watch_allocations_response::Payload};
use tonic::Code;

use crate::support::{
    Client, TestDatabase, TestService, error_info,
    requests::{module, request},
    server, violations,
};

/// Everything, in pages of `page_size`; checks that every page but the last one is full.
async fn pages(client: &mut Client, page_size: i32) -> Vec<v1::ListAllocationsResponse> {
    let mut pages: Vec<v1::ListAllocationsResponse> = Vec::new();
    loop {
        let page_token = pages.last().map(|page| page.next_page_token.clone()).unwrap_or_default();
        let page = client
            .list(ListAllocationsRequest { page_size, page_token, ..Default::default() })
            .await
            .unwrap();
        let last = page.next_page_token.is_empty();
        assert!(last || page.allocations.len() == usize::try_from(page_size).unwrap());
        pages.push(page);
        if last {
            return pages;
        }
    }
}

fn keys(allocations: &[v1::Allocation]) -> Vec<(&str, &str)> {
    allocations
        .iter()
        .map(|allocation| (allocation.project_id.as_str(), allocation.module.as_str()))
        .collect()
}

/// Three projects of three modules on two servers.
async fn filled() -> TestService {
    filled_on(TestDatabase::create().await).await
}

async fn filled_on(database: TestDatabase) -> TestService {
    let mut service = TestService::builder().start_on(database).await;
    for name in ["web-1", "web-2"] {
        service.client.register(server(name)).await;
    }
    for project in ["b", "B", "a"] {
        service.client.ensure(project, &["y", "x", "X"]).await.unwrap();
    }
    service
}

const ORDER: [(&str, &str); 9] = [
    ("B", "X"),
    ("B", "x"),
    ("B", "y"),
    ("a", "X"),
    ("a", "x"),
    ("a", "y"),
    ("b", "X"),
    ("b", "x"),
    ("b", "y"),
];

#[tokio::test(flavor = "multi_thread")]
async fn l32_the_order_is_by_project_and_module_and_no_page_size_changes_it() {
    let mut service = filled().await;
    let before = service.database.tables().await;
    let all = service.client.list(ListAllocationsRequest::default()).await.unwrap();
    assert_eq!(keys(&all.allocations), ORDER);
    assert_eq!(all.next_page_token, "");
    for page_size in [1, 2, 3, 4, 8, 9, 10, 1000] {
        let pages = pages(&mut service.client, page_size).await;
        let listed: Vec<_> = pages.iter().flat_map(|page| page.allocations.clone()).collect();
        assert_eq!(listed, all.allocations, "{page_size}");
        assert!(pages.iter().all(|page| page.resume_token == all.resume_token));
        // No empty page at the end.
        assert!(!pages.last().unwrap().allocations.is_empty());
    }
    // The same allocations as the project itself tells of.
    let read = service.client.placement("a").await.unwrap();
    assert_eq!(all.allocations[3..6], read.allocations);
    assert_eq!(service.database.tables().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_registry_is_an_empty_page() {
    let mut service = TestService::start().await;
    let page = service.client.list(ListAllocationsRequest::default()).await.unwrap();
    assert_eq!((page.allocations.len(), page.next_page_token.as_str()), (0, ""));
    assert!(!page.resume_token.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_holds_100_unless_told_otherwise_and_never_more_than_1000() {
    let mut service = TestService::start().await;
    service.client.register(server("web-1")).await;
    for project in 0..16 {
        let modules = (0..64).map(|number| module(&format!("module-{number}"))).collect();
        let wanted = v1::EnsureAllocationRequest { modules, ..request(&format!("project-{project}")) };
        service.client.place(wanted).await.unwrap();
    }
    for (page_size, expected) in [(0, 100), (999, 999), (1000, 1000), (1001, 1000), (i32::MAX, 1000)] {
        let page =
            service.client.list(ListAllocationsRequest { page_size, ..Default::default() }).await.unwrap();
        assert_eq!(page.allocations.len(), expected);
        let page_token = page.next_page_token;
        let next = service
            .client
            .list(ListAllocationsRequest { page_size, page_token, ..Default::default() })
            .await
            .unwrap();
        assert_eq!(next.allocations.len(), expected.min(1024 - expected));
        assert_eq!(next.next_page_token.is_empty(), expected >= 999);
    }
    for page_size in [-1, i32::MIN] {
        let request = ListAllocationsRequest { page_size, ..Default::default() };
        let refused = service.client.list(request).await.unwrap_err();
        assert_eq!(violations(&refused), ["page_size"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_on_where_they_were_whatever_happens_meanwhile() {
    let mut service = filled().await;
    let client = &mut service.client;
    let page = |page_token: &str| ListAllocationsRequest {
        page_size: 4,
        page_token: page_token.to_owned(),
        ..Default::default()
    };
    let first = client.list(page("")).await.unwrap();
    assert_eq!(keys(&first.allocations), ORDER[..4]);
    // Behind the pages and ahead of them; and the very last item of the page goes.
    client.ensure("A", &["x"]).await.unwrap();
    client.ensure("aa", &["x"]).await.unwrap();
    client.release("a", &["X"]).await;
    client.release("b", &["X"]).await;
    let second = client.list(page(&first.next_page_token)).await.unwrap();
    assert_eq!(keys(&second.allocations), [("a", "x"), ("a", "y"), ("aa", "x"), ("b", "x")]);
    let third = client.list(page(&second.next_page_token)).await.unwrap();
    assert_eq!(keys(&third.allocations), [("b", "y")]);
    assert_eq!(third.next_page_token, "");
    // A page that was read once can be read again.
    assert_eq!(client.list(page(&first.next_page_token)).await.unwrap(), second);

    // List, then watch: all that the pages may have missed is in the stream.
    assert_eq!((&second.resume_token, &third.resume_token), (&first.resume_token, &first.resume_token));
    let watch = v1::WatchAllocationsRequest { resume_token: third.resume_token, ..Default::default() };
    let mut stream = client.allocator.watch_allocations(watch).await.unwrap().into_inner();
    let mut projects = Vec::new();
    while projects.len() < 10 {
        if let Some(Payload::Event(event)) = stream.message().await.unwrap().unwrap().payload {
            projects.push(event.project_id);
        }
    }
    assert_eq!(projects, ["A", "A", "A", "A", "aa", "aa", "aa", "aa", "a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn l31_a_filter_that_is_there_filters() {
    let mut service = filled().await;
    let servers: Vec<_> = {
        let all = service.client.list(ListAllocationsRequest::default()).await.unwrap();
        all.allocations
            .into_iter()
            .map(|allocation| (allocation.project_id, allocation.server_handle))
            .collect()
    };
    let on = |handle: &str| -> Vec<_> {
        let here = servers.iter().zip(ORDER).filter(|((_, server), _)| server == handle);
        here.map(|(_, key)| key).collect()
    };
    assert_eq!(on("web-1").len() + on("web-2").len(), 9);
    let some = |text: &str| Some(text.to_owned());
    let all = ListAllocationsRequest::default();
    for (filter, expected) in [
        (ListAllocationsRequest { project_id: some("a"), ..all.clone() }, ORDER[3..6].to_vec()),
        (
            ListAllocationsRequest { module: some("x"), ..all.clone() },
            vec![("B", "x"), ("a", "x"), ("b", "x")],
        ),
        (ListAllocationsRequest { server_handle: some("web-1"), ..all.clone() }, on("web-1")),
        (ListAllocationsRequest { server_handle: some("web-2"), ..all.clone() }, on("web-2")),
        (
            ListAllocationsRequest { project_id: some("a"), module: some("y"), ..all.clone() },
            vec![("a", "y")],
        ),
        (ListAllocationsRequest { project_id: some("A"), ..all.clone() }, vec![]),
        (ListAllocationsRequest { project_id: some("0"), ..all.clone() }, vec![]),
        (ListAllocationsRequest { module: some("0"), ..all.clone() }, vec![]),
        (ListAllocationsRequest { server_handle: some("web"), ..all.clone() }, vec![]),
        (ListAllocationsRequest { server_handle: some("0"), project_id: some("a"), ..all.clone() }, vec![]),
    ] {
        let listed = service.client.list(filter.clone()).await.unwrap();
        assert_eq!(keys(&listed.allocations), expected, "{filter:?}");
        assert!(!listed.resume_token.is_empty());
    }
    // Present and empty is no filter that could match, and not the absence of one.
    let empty = || Some(String::new());
    for (filter, paths) in [
        (ListAllocationsRequest { project_id: empty(), ..all.clone() }, vec!["project_id"]),
        (ListAllocationsRequest { server_handle: empty(), ..all.clone() }, vec!["server_handle"]),
        (ListAllocationsRequest { module: empty(), ..all.clone() }, vec!["module"]),
        (
            ListAllocationsRequest { project_id: empty(), server_handle: empty(), module: empty(), ..all },
            vec!["project_id", "server_handle", "module"],
        ),
    ] {
        let refused = service.client.list(filter).await.unwrap_err();
        assert_eq!(
            (refused.code(), error_info(&refused).0.as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST")
        );
        assert_eq!(violations(&refused), paths);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_is_good_for_its_own_list_alone() {
    let mut service = filled().await;
    // A database that was made by itself has a key of its own; those of the tests are clones of one.
    let database = TestDatabase::create().await;
    let key = "UPDATE pools SET token_key = sha256('of another service')";
    sqlx::query(key).execute(&database.sql).await.unwrap();
    let mut other = filled_on(database).await;
    let client = &mut service.client;
    let first = ListAllocationsRequest { page_size: 1, ..Default::default() };
    let page = client.list(first.clone()).await.unwrap();
    let token = page.next_page_token;

    let servers = v1::ListServersRequest { page_size: 1, ..Default::default() };
    let of_servers = client.inventory.list_servers(servers).await.unwrap().into_inner().next_page_token;
    let of_another_service = other.client.list(first.clone()).await.unwrap().next_page_token;
    for foreign in [of_servers, of_another_service, page.resume_token] {
        assert!(!foreign.is_empty());
        let refused =
            client.list(ListAllocationsRequest { page_token: foreign, ..first.clone() }).await.unwrap_err();
        assert_eq!(violations(&refused), ["page_token"]);
    }
    let some = |text: &str| Some(text.to_owned());
    for filtered in [
        ListAllocationsRequest { project_id: some("a"), ..first.clone() },
        ListAllocationsRequest { server_handle: some("web-1"), ..first.clone() },
        ListAllocationsRequest { module: some("x"), ..first.clone() },
    ] {
        // A token of no filters with filters, and the other way around.
        let with = ListAllocationsRequest { page_token: token.clone(), ..filtered.clone() };
        let refused = client.list(with).await.unwrap_err();
        assert_eq!(
            (refused.code(), violations(&refused)),
            (Code::InvalidArgument, vec!["page_token".to_owned()])
        );
        assert!(refused.message().contains("other filters"), "{refused:?}");
        let page_token = client.list(filtered.clone()).await.unwrap().next_page_token;
        assert!(!page_token.is_empty());
        let refused =
            client.list(ListAllocationsRequest { page_token: page_token.clone(), ..first.clone() }).await;
        assert_eq!(violations(&refused.unwrap_err()), ["page_token"]);
        // With its own filters, and any page size, it goes on.
        let next = ListAllocationsRequest { page_token, page_size: 5, ..filtered };
        assert!(!client.list(next).await.unwrap().allocations.is_empty());
    }
    assert_eq!(
        keys(&client.list(ListAllocationsRequest { page_token: token, ..first }).await.unwrap().allocations),
        ORDER[1..2]
    );
}
