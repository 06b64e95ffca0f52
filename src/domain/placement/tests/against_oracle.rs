//! The decision against the oracle, over fleets in any state.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::domain::{
    Project, Resources,
    placement::decide,
    testing::{
        arbitrary::*,
        oracle::{self, Verdict},
        *,
    },
};

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_new_project_gets_what_the_oracle_says(servers in arbitrary_servers(), request in arbitrary_ensure()) {
        let project = Project::unplaced(request.project_id.clone());
        let expected = oracle::verdict(&servers, &project, &request, &context());
        let decided = decide(&a_fleet(&servers), &project, &request, &context());
        if let Err(refusal) = &decided {
            let mut counts = BTreeMap::new();
            for stop in oracle::stops(&servers, &request, &context()).into_iter().flatten().filter_map(Result::err) {
                *counts.entry(format!("rejected.{}", stop.name())).or_insert(0) += 1;
            }
            for (stage, count) in &counts {
                prop_assert_eq!(refusal.figure(stage), count.to_string());
            }
            let told = refusal.metadata.keys().filter(|key| key.starts_with("rejected.")).count();
            prop_assert_eq!(told, counts.len());
        }
        let verdict = decided.map_or_else(|refusal| Verdict::Refused(refusal.reason), Verdict::from);
        prop_assert_eq!(verdict, expected);
    }

    #[test]
    fn a_placed_project_gets_what_the_oracle_says(
        mut servers in arbitrary_servers(), first in arbitrary_ensure(), then in arbitrary_ensure(),
        after in arbitrary_server(),
    ) {
        // Placed on servers that admit, so that it mostly is; then one of them turns into anything.
        for server in &mut servers {
            server.server.managed = true;
            server.server.status = crate::domain::ServerStatus::Ready;
            server.reserved = Resources::ZERO;
            (server.held, server.resting) = Default::default();
        }
        let mut ledger = Ledger::of(&servers);
        let mut first = first;
        first.modules.retain(|module| module.port.is_none());
        let _ = ledger.ensure(&first);
        ledger.put(&after);
        if let Some(placement) = ledger.project(&first.project_id).placement {
            let mut server = ledger.fleet.get(&placement.server_handle).unwrap().server.clone();
            server.status = after.server.status;
            server.managed = after.server.managed;
            server.capacity = after.server.capacity;
            ledger.put_server(server);
        }
        let mut then = then;
        then.project_id = first.project_id;
        let project = ledger.project(&then.project_id);
        let expected = oracle::verdict(&ledger.servers(), &project, &then, &ledger.context());
        let verdict = ledger.ensure(&then).map_or_else(|refusal| Verdict::Refused(refusal.reason), Verdict::from);
        prop_assert_eq!(verdict, expected);
    }
}
