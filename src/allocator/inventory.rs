//! Writes of the inventory within a transaction. They are few, so each is written as it comes, and read back for its answer.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::{
    Error,
    command::{Answer, Job, Request},
    journal::Journal,
    replica::Replica,
};
use crate::{
    domain::{
        Refusal, Server, ServerHandle,
        event::{Operation, PolicyChanged, ServerChange, ServerChanged},
        inventory::{
            SyncAction, SyncPlan, SyncRequest, check_etag, check_external_id, check_removable, plan_sync,
            sync_seeds,
        },
        placement::{Context, filter::Exclusion, filter::admits, server_not_found},
        policy::{FleetPolicy, PolicyPatch},
        server::Observation,
    },
    store::{
        StoreError,
        pools::{self, PoolState},
        servers::{self, ServerRecord},
        usage,
    },
};

/// Who is named in the log where nobody asked.
const BY_HAND: &str = "edited-by-hand";
const BY_CLOCK: &str = "clock";
/// How many servers the log is told of at once.
const STALE_STEP: usize = 500;

/// Tells the log of servers and of a policy that were changed by hand.
pub fn tell_unlogged(journal: &mut Journal, replica: &mut Replica) {
    if let Some(policy) = replica.take_unlogged_policy() {
        record_policy(journal, replica, BY_HAND, policy);
    }
    for changed in replica.take_unlogged() {
        record(journal, replica, BY_HAND, changed);
    }
}

fn record(journal: &mut Journal, replica: &mut Replica, request_id: &str, changed: ServerChanged) {
    let handle = changed.server.handle.clone();
    journal.record(replica.fleet_mut(), None, Some(handle), request_id, Operation::ServerChanged(changed));
}

fn record_policy(journal: &mut Journal, replica: &mut Replica, request_id: &str, policy: FleetPolicy) {
    let operation = Operation::PolicyChanged(PolicyChanged { policy });
    journal.record(replica.fleet_mut(), None, None, request_id, operation);
}

/// Takes the batch's usage reports, the last of each server.
pub async fn take_usage(
    conn: &mut PgConnection,
    replica: &mut Replica,
    pool: &PoolState,
    batch: &[Job],
    answers: &mut [Option<Result<Answer, Error>>],
) -> Result<(), StoreError> {
    let mut reports = BTreeMap::new();
    for (job, slot) in batch.iter().zip(answers.iter_mut()) {
        let Request::ReportUsage { handle, observation } = &job.request else { continue };
        if replica.fleet().get(handle).is_none() {
            *slot = Some(Err(server_not_found(handle).into()));
            continue;
        }
        let mut observation = observation.clone();
        observation.observe_time = pool.now;
        replica.fleet_mut().observe(handle, observation.clone());
        reports.insert(handle.clone(), observation);
    }
    if reports.is_empty() {
        return Ok(());
    }
    usage::update(conn, &reports).await?;
    let written: BTreeMap<_, _> = read_back(conn, replica).await?;
    for (job, slot) in batch.iter().zip(answers.iter_mut()) {
        if let Request::ReportUsage { handle, .. } = &job.request
            && slot.is_none()
        {
            *slot = written.get(handle).map(|record| Ok(Answer::Server(Box::new(record.clone()))));
        }
    }
    Ok(())
}

/// Reads what was just written: the schema sets generation, revision and times.
async fn read_back(
    conn: &mut PgConnection,
    replica: &mut Replica,
) -> Result<BTreeMap<ServerHandle, ServerRecord>, StoreError> {
    let records = replica.read_changed_servers(conn, i64::MAX).await?;
    Ok(records.into_iter().map(|record| (record.row.state.server.handle.clone(), record)).collect())
}

/// Takes a write of the inventory; none for a request that is none.
pub async fn write(
    conn: &mut PgConnection,
    journal: &mut Journal,
    replica: &mut Replica,
    job: &Job,
    context: &Context,
) -> Result<Option<Result<Answer, Error>>, StoreError> {
    let request_id = &job.request_id;
    let checked = match &job.request {
        Request::RegisterServer { spec, etag } => {
            let standing = replica.fleet().get(&spec.handle);
            check_etag(etag.as_deref(), standing, &spec.handle).and_then(|()| {
                let server = spec.as_ref().clone().onto(standing.map(|state| &state.server));
                check_external_id(replica.fleet(), &server).map(|()| server)
            })
        }
        Request::UpdateServer { handle, patch, etag } => match replica.fleet().get(handle) {
            None => Err(server_not_found(handle)),
            Some(state) => check_etag(etag.as_deref(), Some(state), handle).and_then(|()| {
                let server = patch.as_ref().clone().onto(&state.server);
                check_external_id(replica.fleet(), &server).map(|()| server)
            }),
        },
        Request::DeleteServer { handle, etag } => {
            return delete(conn, journal, replica, request_id, handle, etag.as_deref()).await.map(Some);
        }
        Request::SyncServers(request) => {
            return sync(conn, journal, replica, request_id, request, context).await.map(Some);
        }
        Request::UpdatePolicy(patch) => {
            return update_policy(conn, journal, replica, request_id, patch).await.map(Some);
        }
        Request::Housekeep => {
            tell_stale(conn, journal, replica, context).await?;
            return Ok(None);
        }
        Request::Ensure(_)
        | Request::Wait(_)
        | Request::Leave { .. }
        | Request::Release(_)
        | Request::Relocate(_)
        | Request::ReportPortInUse(_)
        | Request::ReportUsage { .. } => return Ok(None),
    };
    let server = match checked {
        Ok(server) => server,
        Err(refusal) => return Ok(Some(Err(refusal.into()))),
    };
    let handle = server.handle.clone();
    put(conn, journal, replica, request_id, vec![server]).await?;
    let record = servers::find(conn, replica.fleet().policy(), &handle).await?.ok_or_else(|| {
        StoreError::Inconsistent {
            table: "servers",
            row: handle.to_string(),
            problem: "it is gone right after it was written".to_owned(),
        }
    })?;
    read_back(conn, replica).await?;
    Ok(Some(Ok(Answer::Server(Box::new(record)))))
}

/// Writes servers, each named once, where they changed.
async fn put(
    conn: &mut PgConnection,
    journal: &mut Journal,
    replica: &mut Replica,
    request_id: &str,
    mut servers: Vec<Server>,
) -> Result<(), StoreError> {
    servers.retain(|server| {
        let standing = replica.fleet().get(&server.handle).map(|state| &state.server);
        let changed = ServerChanged::between(standing, server);
        let is_another = changed.is_some();
        if let Some(changed) = changed {
            record(journal, replica, request_id, changed);
        }
        is_another
    });
    servers::insert_or_update(conn, &servers).await
}

async fn delete(
    conn: &mut PgConnection,
    journal: &mut Journal,
    replica: &mut Replica,
    request_id: &str,
    handle: &ServerHandle,
    etag: Option<&str>,
) -> Result<Result<Answer, Error>, StoreError> {
    let checked = match replica.fleet().get(handle) {
        None => Err(server_not_found(handle)),
        Some(state) => check_etag(etag, Some(state), handle)
            .and_then(|()| check_removable(state))
            .map(|()| state.server.clone()),
    };
    let server = match checked {
        Ok(server) => server,
        Err(refusal) => return Ok(Err(refusal.into())),
    };
    servers::delete(conn, handle).await?;
    record(journal, replica, request_id, ServerChanged { changes: vec![ServerChange::Removed], server });
    Ok(Ok(Answer::Done))
}

async fn sync(
    conn: &mut PgConnection,
    journal: &mut Journal,
    replica: &mut Replica,
    request_id: &str,
    request: &SyncRequest,
    context: &Context,
) -> Result<Result<Answer, Error>, StoreError> {
    let plan: Result<SyncPlan, Refusal> = plan_sync(replica.fleet(), request);
    let plan = match plan {
        Ok(plan) => plan,
        Err(refusal) => return Ok(Err(refusal.into())),
    };
    let servers = plan.values().filter_map(|action| match action {
        SyncAction::Created(server) | SyncAction::Updated(server, _) | SyncAction::MarkedMissing(server) => {
            Some(server.clone())
        }
        SyncAction::Unchanged | SyncAction::Rejected(_) => None,
    });
    put(conn, journal, replica, request_id, servers.collect()).await?;
    let mut seeds: BTreeMap<ServerHandle, Observation> = sync_seeds(replica.fleet(), request, &plan);
    if !seeds.is_empty() {
        for (handle, seed) in &mut seeds {
            seed.observe_time = context.now;
            replica.fleet_mut().observe(handle, seed.clone());
        }
        usage::update(conn, &seeds).await?;
    }
    read_back(conn, replica).await?;
    Ok(Ok(Answer::Synced(plan)))
}

async fn update_policy(
    conn: &mut PgConnection,
    journal: &mut Journal,
    replica: &mut Replica,
    request_id: &str,
    patch: &PolicyPatch,
) -> Result<Result<Answer, Error>, StoreError> {
    let policy = patch.onto(*replica.fleet().policy());
    if policy != *replica.fleet().policy() {
        record_policy(journal, replica, request_id, policy);
        pools::update_policy(conn, &policy).await?;
        read_back(conn, replica).await?;
    }
    Ok(Ok(Answer::Policy(policy)))
}

/// Tells the log, once, of servers whose usage reports are too old by now.
async fn tell_stale(
    conn: &mut PgConnection,
    journal: &mut Journal,
    replica: &mut Replica,
    context: &Context,
) -> Result<(), StoreError> {
    let mut stale: Vec<Server> = replica
        .fleet()
        .iter()
        .filter(|state| !state.usage_stale && is_stale(state, context))
        .map(|state| state.server.clone())
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    stale.sort_by(|a, b| a.handle.cmp(&b.handle));
    // A fleet whose reports stop all at once is told of step by step: every other request waits meanwhile.
    stale.truncate(STALE_STEP);
    let handles: Vec<String> = stale.iter().map(|server| server.handle.to_string()).collect();
    usage::update_stale(conn, &handles).await?;
    for server in stale {
        record(journal, replica, BY_CLOCK, ServerChanged { changes: vec![ServerChange::UsageStale], server });
    }
    read_back(conn, replica).await?;
    Ok(())
}

/// Whether a server's usage report is too old.
#[must_use]
pub fn is_stale(state: &crate::domain::fleet::ServerState, context: &Context) -> bool {
    matches!(
        admits(true, crate::domain::ServerStatus::Ready, state.host_report_time(), context),
        Err(Exclusion::UsageStale { age: Some(_), .. })
    )
}
