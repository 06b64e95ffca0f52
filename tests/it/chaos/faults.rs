//! The faults, and the order in which a seed has them made.

use std::{collections::BTreeMap, fmt, time::Duration};

use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{
    backends::{self, STEPS},
    bed::{Bed, REPLICAS},
    host::{Clock, Disk},
    proxy::{Cut, End, Step},
};

/// How long a cut that was ordered may take to come about.
const CUT_LIMIT: Duration = Duration::from_secs(2);
/// How often is tried to stop a replica in the moment in which it holds the lock.
const FREEZES: u32 = 60;

/// A fault, healed when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a replica, which is started again after a while.
    KillReplica(usize, Duration),
    /// SIGSTOP of the replica that holds the lock, and SIGCONT after a while.
    FreezeHolder(Duration),
    /// `kill -9` of Postgres.
    KillPostgres,
    /// `pg_ctl stop -m immediate` of Postgres.
    StopPostgres,
    /// `pg_terminate_backend` of one that is at this step.
    Terminate(backends::Step),
    /// A connection of a replica that is cut at this step.
    Cut(usize, Cut),
    /// A replica whose connections delay what they carry, for a while.
    Delay(usize, Duration, Duration),
    /// A replica whose connections carry so many bytes a second, for a while.
    Throttle(usize, u32, Duration),
    /// A replica whose connections carry nothing for a while. Then what was sent arrives late, or the connections break.
    BlackHole(usize, Duration, bool),
    /// A replica whose connections carry nothing ever again, where new ones do, so long before the next fault.
    Vanish(usize, Duration),
    /// The database's disk is full for a while.
    FillDisk(Duration),
    /// The replicas' wall clocks are set by so many seconds, for a while.
    StepClock(i64, Duration),
}

/// What the machine lets be done beside.
#[derive(Default)]
pub struct Host {
    /// The database's disk, where it is one of its own.
    pub disk: Option<Disk>,
    /// The replicas' clock, where it can be set.
    pub clock: Option<Clock>,
}

/// Every kind of fault once, in an order and with the parameters that the draw has.
pub fn deck(draw: &mut StdRng, host: &Host) -> Vec<Fault> {
    let millis = |draw: &mut StdRng, from, to| Duration::from_millis(draw.random_range(from..to));
    let mut faults = vec![Fault::KillPostgres, Fault::StopPostgres];
    faults.extend(STEPS.map(Fault::Terminate));
    for (end, is_late) in [(End::Before, false), (End::After, true)] {
        let round = Step::Round(draw.random_range(0..8));
        for step in [Step::Commit, Step::Round(0), Step::Round(1), Step::Round(2), round] {
            faults.push(Fault::Cut(draw.random_range(0..REPLICAS), Cut { step, end }));
        }
        let hole = millis(draw, 500, 4000);
        faults.push(Fault::BlackHole(draw.random_range(0..REPLICAS), hole, is_late));
        faults.push(Fault::KillReplica(draw.random_range(0..REPLICAS), millis(draw, 0, 1000)));
    }
    faults.push(Fault::Vanish(draw.random_range(0..REPLICAS), millis(draw, 1000, 4000)));
    let step = Step::Round(draw.random_range(0..3));
    faults.push(Fault::Cut(draw.random_range(0..REPLICAS), Cut { step, end: End::Never }));
    faults.push(Fault::FreezeHolder(millis(draw, 300, 2000)));
    // Longer than the transaction's own limits allow: the lock must be taken from the frozen one.
    faults.push(Fault::FreezeHolder(millis(draw, 5500, 6500)));
    faults.push(Fault::Delay(
        draw.random_range(0..REPLICAS),
        millis(draw, 20, 200),
        millis(draw, 1000, 2000),
    ));
    let rate = draw.random_range(2_000..20_000);
    faults.push(Fault::Throttle(draw.random_range(0..REPLICAS), rate, millis(draw, 1000, 2000)));
    if host.disk.is_some() {
        faults.push(Fault::FillDisk(millis(draw, 1500, 3000)));
    }
    if host.clock.is_some() {
        faults.push(Fault::StepClock(draw.random_range(60..7200), millis(draw, 2000, 3000)));
        faults.push(Fault::StepClock(-draw.random_range(60..7200), millis(draw, 2000, 3000)));
    }
    faults.shuffle(draw);
    faults
}

impl Fault {
    /// What it is called where faults are counted.
    pub fn kind(&self) -> String {
        match self {
            Self::KillReplica(..) => "kill -9 of a replica".to_owned(),
            Self::FreezeHolder(..) => "SIGSTOP of the one that holds the lock".to_owned(),
            Self::KillPostgres => "kill -9 of Postgres".to_owned(),
            Self::StopPostgres => "pg_ctl stop -m immediate".to_owned(),
            Self::Terminate(step) => format!("pg_terminate_backend: {step:?}"),
            Self::Cut(_, Cut { end: End::Never, .. }) => {
                "a replica's host that is gone without a word".to_owned()
            }
            Self::Cut(_, Cut { step, end }) => {
                let step = if *step == Step::Commit { "COMMIT" } else { "a round trip of the writer" };
                format!("cut {} {step}", if *end == End::After { "after" } else { "before" })
            }
            Self::Delay(..) => "delay".to_owned(),
            Self::Throttle(..) => "throttle".to_owned(),
            Self::BlackHole(_, _, is_late) => {
                format!("black hole, {}", if *is_late { "then late delivery" } else { "then a cut" })
            }
            Self::Vanish(..) => "a database host that is gone without a word".to_owned(),
            Self::FillDisk(_) => "disk full".to_owned(),
            Self::StepClock(..) => "wall clock step".to_owned(),
        }
    }

    /// Makes it and heals it. False where what it was to hit did not come by.
    pub async fn make(self, bed: &Bed, host: &Host) -> bool {
        match self {
            Self::KillReplica(replica, down) => bed.kill(replica, down).await,
            Self::FreezeHolder(frozen) => return freeze_holder(bed, frozen).await,
            Self::KillPostgres => bed.kill_postgres().await,
            Self::StopPostgres => bed.stop_postgres_immediately().await,
            Self::Terminate(step) => return backends::terminate(&mut bed.connect().await, step).await,
            Self::Cut(replica, cut) => return self::cut(bed, replica, cut).await,
            Self::Delay(replica, delay, lasts) => weather(bed, replica, lasts, (delay, 0, false)).await,
            Self::Throttle(replica, rate, lasts) => {
                weather(bed, replica, lasts, (Duration::ZERO, rate, false)).await;
            }
            Self::BlackHole(replica, lasts, is_late) => {
                bed.proxy(replica).set(Duration::ZERO, 0, true);
                sleep(lasts).await;
                if !is_late {
                    bed.proxy(replica).sever();
                }
                bed.proxy(replica).heal();
            }
            Self::Vanish(replica, lasts) => {
                bed.proxy(replica).vanish();
                sleep(lasts).await;
            }
            Self::FillDisk(lasts) => {
                let Some(disk) = &host.disk else { return false };
                let conn = &mut bed.connect().await;
                disk.fill();
                let is_full = backends::meets_full_disk(conn).await;
                sleep(lasts).await;
                disk.free();
                drop(bed.connect().await);
                return is_full;
            }
            Self::StepClock(seconds, lasts) => {
                let Some(clock) = &host.clock else { return false };
                clock.step(seconds);
                sleep(lasts).await;
                clock.step(0);
            }
        }
        true
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Stops the replica that holds the lock. One that has let go of it by then is let on, and another is tried.
async fn freeze_holder(bed: &Bed, frozen: Duration) -> bool {
    let conn = &mut bed.connect().await;
    for _ in 0..FREEZES {
        let Some(replica) = backends::find_writer(conn).await else { return false };
        bed.signal(replica, Signal::STOP).await;
        // What it sent before it was stopped is done by then.
        sleep(Duration::from_millis(20)).await;
        let holds = backends::holds_lock(conn, replica).await;
        if holds {
            sleep(frozen).await;
        }
        bed.signal(replica, Signal::CONT).await;
        if holds {
            return true;
        }
    }
    false
}

async fn cut(bed: &Bed, replica: usize, cut: Cut) -> bool {
    let proxy = bed.proxy(replica);
    proxy.order(cut);
    let begin = Instant::now();
    while proxy.is_ordered() && begin.elapsed() < CUT_LIMIT {
        sleep(Duration::from_millis(5)).await;
    }
    let was_made = !proxy.is_ordered();
    proxy.heal();
    was_made
}

async fn weather(bed: &Bed, replica: usize, lasts: Duration, weather: (Duration, u32, bool)) {
    let (delay, rate, is_hole) = weather;
    bed.proxy(replica).set(delay, rate, is_hole);
    sleep(lasts).await;
    bed.proxy(replica).heal();
}

/// How often each kind of fault was made, and how often what it was to hit did not come by.
#[derive(Default)]
pub struct Made(BTreeMap<String, (u32, u32)>);

impl Made {
    /// Counts a fault.
    pub fn count(&mut self, fault: &Fault, was_made: bool) {
        let (made, missed) = self.0.entry(fault.kind()).or_default();
        *(if was_made { made } else { missed }) += 1;
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, (made, missed)) in &self.0 {
            write!(f, "\n  {kind}: {made}")?;
            if *missed > 0 {
                write!(f, " ({missed} times nothing to hit came by)")?;
            }
        }
        Ok(())
    }
}
