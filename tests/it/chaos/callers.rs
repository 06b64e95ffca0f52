//! Concurrent callers that ensure, release and read the same few projects at random, at any replica, and write down each call with
//! its answer. A lost answer stays in the history as what it is, and a repeat is a call of its own.

use std::{
    collections::BTreeSet,
    error::Error as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use resource_allocator::proto::v1::{self, resource_allocator_client::ResourceAllocatorClient};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::history::{self, Answer, Call, Micros, Operation};
use crate::support::{process::PATIENCE, requests::seconds};

/// How many call for the same few projects at once.
const CALLERS: usize = 16;
/// How many bring projects of their own, and take them away again: a batch of new projects alone is written another way.
const NEWCOMERS: usize = 8;
/// How many projects are called for at a time: few calls of one project overlap, and so a history can be searched.
const PROJECTS: usize = 10;
/// So many calls of a project, then another takes its place.
const CALLS: usize = 40;
/// How long a caller waits for an answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// What projects are made of.
const MODULES: [&str; 3] = ["backend", "frontend", "worker"];
/// The reasons of refusals for want of room.
const NO_ROOM: [&str; 2] = ["INSUFFICIENT_CAPACITY", "PORTS_EXHAUSTED"];
/// The reasons that a call may be answered under faults whose outcome nobody knows.
const NOBODY_KNOWS: [&str; 5] =
    ["", "DATABASE_UNAVAILABLE", "SHUTTING_DOWN", "DEADLINE_PASSED", "OVERLOADED"];

/// How often a call is made that is answered UNAVAILABLE, where callers repeat: as the service config has it that the documents
/// give.
const ATTEMPTS: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// Whether callers repeat what is answered UNAVAILABLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// They do not.
    No,
    /// They do, at the next replica, after a delay that grows.
    Yes,
}

/// A project that is called for.
struct Live {
    id: String,
    calls: usize,
}

/// What the callers share.
pub struct Callers {
    run: String,
    begin: Instant,
    endpoints: Vec<String>,
    repeats: Repeats,
    /// What failed for good where callers repeat.
    failed: Mutex<Vec<String>>,
    operations: Mutex<Vec<Operation>>,
    live: Mutex<Vec<Live>>,
    /// Projects that hold what they hold until someone needs the room.
    retired: Mutex<Vec<String>>,
    named: Mutex<usize>,
    numbers: std::sync::atomic::AtomicUsize,
    stop: AtomicBool,
}

impl Callers {
    /// Callers that have not begun.
    pub fn new(run: &str, endpoints: &[String], repeats: Repeats) -> Arc<Self> {
        let callers = Self {
            run: run.to_owned(),
            begin: Instant::now(),
            endpoints: endpoints.to_vec(),
            repeats,
            failed: Mutex::default(),
            operations: Mutex::default(),
            live: Mutex::default(),
            retired: Mutex::default(),
            named: Mutex::default(),
            numbers: std::sync::atomic::AtomicUsize::default(),
            stop: AtomicBool::default(),
        };
        for _ in 0..PROJECTS {
            let live = callers.name();
            callers.live.lock().unwrap().push(live);
        }
        Arc::new(callers)
    }

    fn name(&self) -> Live {
        let mut named = self.named.lock().unwrap();
        *named += 1;
        Live { id: format!("project-{named}"), calls: 0 }
    }

    /// The request id of a call.
    pub fn request_id(&self, number: usize) -> String {
        format!("{}-{number}", self.run)
    }

    /// When it is, for the history.
    fn now(&self) -> Micros {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap()
    }

    /// Sets them to work.
    pub fn start(self: &Arc<Self>, seed: u64) -> Vec<tokio::task::JoinHandle<()>> {
        (0..CALLERS + NEWCOMERS)
            .map(|number| {
                let draw = StdRng::seed_from_u64(seed.wrapping_mul(1_000) + number as u64);
                if number < CALLERS {
                    tokio::spawn(Arc::clone(self).work(number, draw))
                } else {
                    tokio::spawn(Arc::clone(self).come_and_go(number, draw))
                }
            })
            .collect()
    }

    /// How many calls were answered so far.
    pub fn answered(&self) -> usize {
        self.operations.lock().unwrap().iter().filter(|operation| operation.is_known()).count()
    }

    /// Has them end after the call that each is in.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// All that was asked and told so far.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap().clone()
    }

    fn clients(&self) -> Vec<ResourceAllocatorClient<Channel>> {
        let endpoints = self.endpoints.iter().map(|endpoint| {
            Endpoint::from_shared(endpoint.clone()).unwrap().connect_timeout(Duration::from_secs(1))
        });
        endpoints.map(|endpoint| ResourceAllocatorClient::new(endpoint.connect_lazy())).collect()
    }

    async fn work(self: Arc<Self>, caller: usize, mut draw: StdRng) {
        let mut clients = self.clients();
        while !self.stop.load(Ordering::Relaxed) {
            let replica = draw.random_range(0..clients.len());
            let (project, call) = self.draw(&mut draw);
            let answer = self.call_and_repeat(caller, replica, &mut clients, &project, &call).await;
            let pause = match answer {
                // As a client does that repeats.
                Answer::Unknown(_) => draw.random_range(50..300),
                Answer::Refused(_) => {
                    self.make_room(caller, replica, &mut clients[replica], &mut draw).await;
                    draw.random_range(5..30)
                }
                _ => draw.random_range(2..30),
            };
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Brings a project, asks for it again, and gives it back.
    async fn come_and_go(self: Arc<Self>, caller: usize, mut draw: StdRng) {
        let mut clients = self.clients();
        while !self.stop.load(Ordering::Relaxed) {
            let project = self.name().id;
            let count = draw.random_range(0..=2);
            let modules = draw_modules(&mut draw, count);
            let ensure = Call::Ensure { modules, ram_mb: None, ttl_s: None };
            let mut calls = vec![ensure.clone(), Call::Release { modules: BTreeSet::new() }];
            if draw.random_bool(0.3) {
                calls.insert(1, if draw.random_bool(0.5) { Call::Get } else { ensure });
            }
            for call in calls {
                let replica = draw.random_range(0..clients.len());
                let answer = self.call_and_repeat(caller, replica, &mut clients, &project, &call).await;
                if matches!(answer, Answer::Refused(_)) {
                    self.make_room(caller, replica, &mut clients[replica], &mut draw).await;
                }
                sleep(Duration::from_millis(draw.random_range(10..60))).await;
            }
        }
    }

    /// Makes a call, and repeats it where callers do.
    async fn call_and_repeat(
        &self,
        caller: usize,
        first: usize,
        clients: &mut [ResourceAllocatorClient<Channel>],
        project: &str,
        call: &Call,
    ) -> Answer {
        let mut attempt = 0;
        loop {
            let replica = (first + attempt as usize) % clients.len();
            let answer =
                self.call(caller, replica, &mut clients[replica], project.to_owned(), call.clone()).await;
            attempt += 1;
            let Answer::Unknown(what) = &answer else { return answer };
            if self.repeats == Repeats::No {
                return answer;
            }
            if attempt == ATTEMPTS || !what.starts_with("Unavailable") {
                let failed = format!("{call:?} of {project} failed, attempt {attempt}: {what}");
                self.failed.lock().unwrap().push(failed);
                return answer;
            }
            sleep(FIRST_BACKOFF * 2_u32.pow(attempt - 1)).await;
        }
    }

    /// What failed for good though it was repeated.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }

    /// The next call, of a project that has not had its share.
    fn draw(&self, draw: &mut StdRng) -> (String, Call) {
        let mut live = self.live.lock().unwrap();
        let place = draw.random_range(0..live.len());
        live[place].calls += 1;
        if live[place].calls < CALLS {
            return (live[place].id.clone(), draw_call(draw));
        }
        let next = self.name();
        let last = std::mem::replace(&mut live[place], next);
        // Most are given back at the end, some stay.
        if draw.random_bool(0.2) {
            self.retired.lock().unwrap().push(last.id.clone());
            return (last.id, Call::Get);
        }
        (last.id, Call::Release { modules: BTreeSet::new() })
    }

    /// Gives back what one of the projects holds that stayed.
    async fn make_room(
        &self,
        caller: usize,
        replica: usize,
        client: &mut ResourceAllocatorClient<Channel>,
        draw: &mut StdRng,
    ) {
        let retired = {
            let mut retired = self.retired.lock().unwrap();
            if retired.is_empty() {
                return;
            }
            let place = draw.random_range(0..retired.len());
            retired.swap_remove(place)
        };
        self.call(caller, replica, client, retired, Call::Release { modules: BTreeSet::new() }).await;
    }

    /// Reads every project at every replica: the last answers of the history, and there must be some.
    pub async fn read_all(&self, projects: &[String]) {
        let mut clients = self.clients();
        let reader = CALLERS;
        for project in projects {
            for (replica, client) in clients.iter_mut().enumerate() {
                let begin = Instant::now();
                while let Answer::Unknown(what) =
                    self.call(reader, replica, client, project.clone(), Call::Get).await
                {
                    assert!(
                        begin.elapsed() < PATIENCE,
                        "{project} cannot be read at replica {replica}: {what}"
                    );
                }
            }
        }
    }

    /// Makes a call and writes it down.
    async fn call(
        &self,
        caller: usize,
        replica: usize,
        client: &mut ResourceAllocatorClient<Channel>,
        project: String,
        call: Call,
    ) -> Answer {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let request_id = self.request_id(number);
        let begun = self.now();
        let asked = ask(client, &project, &call, &request_id);
        // The service ends it at the deadline; one that does not answer at all is given up a little later.
        let answer = match timeout(DEADLINE + Duration::from_millis(500), asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => refusal(&status),
            Err(_) => Answer::Unknown("no answer".to_owned()),
        };
        let ended = self.now();
        if let (Call::Release { .. }, Answer::Unknown(_)) = (&call, &answer) {
            // It may hold what it holds, and nobody else asks for it.
            self.retired.lock().unwrap().push(project.clone());
        }
        let told = answer.clone();
        let operation = Operation { number, caller, replica, project, call, begun, ended, answer };
        self.operations.lock().unwrap().push(operation);
        told
    }
}

fn draw_call(draw: &mut StdRng) -> Call {
    match draw.random_range(0..100) {
        0..50 => {
            let count = draw.random_range(0..=2);
            Call::Ensure {
                modules: draw_modules(draw, count),
                ram_mb: [None, Some(512), Some(768)].choose(draw).copied().flatten(),
                // The shortest lease ends while the project is still called for.
                ttl_s: [None, None, None, Some(5), Some(6), Some(0)].choose(draw).copied().flatten(),
            }
        }
        50..70 => {
            let count = draw.random_range(0..=1);
            Call::Release { modules: draw_modules(draw, count) }
        }
        _ => Call::Get,
    }
}

fn draw_modules(draw: &mut StdRng, count: usize) -> BTreeSet<String> {
    MODULES.choose_multiple(draw, count).map(|name| (*name).to_owned()).collect()
}

async fn ask(
    client: &mut ResourceAllocatorClient<Channel>,
    project: &str,
    call: &Call,
    request_id: &str,
) -> Result<Answer, Status> {
    let project_id = project.to_owned();
    Ok(match call {
        Call::Ensure { modules, ram_mb, ttl_s } => {
            let module = |name: &String| v1::ModuleSpec { name: name.clone(), ..Default::default() };
            let message = v1::EnsureAllocationRequest {
                project_id,
                modules: modules.iter().map(module).collect(),
                resources: Some(v1::Resources { ram_mb: *ram_mb, ..Default::default() }),
                ttl: ttl_s.map(|ttl_s| seconds(ttl_s.into())),
                ..Default::default()
            };
            let answer = client.ensure_allocation(request(message, request_id)).await?.into_inner();
            let view = history::view(answer.placement.as_ref().unwrap(), &answer.allocations);
            Answer::Ensured(history::outcome(answer.outcome()), view)
        }
        Call::Release { modules } => {
            let modules = modules.iter().cloned().collect();
            let message = v1::ReleaseAllocationRequest { project_id, modules };
            let answer = client.release_allocation(request(message, request_id)).await?.into_inner();
            let server = answer.released.first().map(|held| held.server_handle.clone());
            Answer::Released(history::slots(&answer.released), server, answer.placement_removed)
        }
        Call::Get => {
            let message = v1::GetPlacementRequest { project_id };
            let answer =
                client.get_placement(request(message, request_id)).await.map(Response::into_inner)?;
            Answer::Found(history::view(answer.placement.as_ref().unwrap(), &answer.allocations))
        }
    })
}

fn request<T>(message: T, request_id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request.metadata_mut().insert("x-request-id", request_id.parse().unwrap());
    request
}

fn refusal(status: &Status) -> Answer {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    match reason.as_str() {
        "PROJECT_NOT_FOUND" => Answer::Absent,
        reason if NO_ROOM.contains(&reason) => Answer::Refused(reason.to_owned()),
        // What the client itself says of its connection: tonic tells a call that a replica which stops did not take as INTERNAL or
        // UNKNOWN, where other clients repeat it by themselves or say UNAVAILABLE.
        "" if status
            .source()
            .and_then(|source| source.downcast_ref::<tonic::transport::Error>())
            .is_some() =>
        {
            Answer::Unknown(format!("Unavailable, {status:?}"))
        }
        reason => Answer::Unknown(format!("{:?} `{reason}`", status.code())),
    }
}

/// Answers that no fault excuses.
pub fn strange(operations: &[Operation]) -> Vec<String> {
    let is_strange = |operation: &&Operation| match &operation.answer {
        Answer::Unknown(what) => {
            let reason = what.split('`').nth(1).unwrap_or_default();
            !NOBODY_KNOWS.contains(&reason)
        }
        _ => false,
    };
    operations.iter().filter(is_strange).map(|operation| format!("a strange answer: {operation}")).collect()
}
