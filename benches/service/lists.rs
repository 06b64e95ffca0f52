//! Lists of few and of many allocations, and the start of a replica on a large database.

use std::time::Instant;

use resource_allocator::proto::v1::ListAllocationsRequest;
use tonic::transport::Channel;

use crate::{
    ROUNDS, Result,
    load::{self, Client, median},
    place::{Database, Place, peak_memory_mib},
    report::{Report, Table},
    support::Replica,
};

/// How many pages are read for one figure.
const PAGES: u32 = 200;

pub fn lists_and_start(place: &Place, report: &mut Report) -> Result<()> {
    let (few, many) = (place.database()?, place.database()?);
    fill(place, &few, 2_000, 5_000)?;
    fill(place, &many, 100_000, 1_000_000)?;
    start(place, report, &many)?;
    lists(place, report, [&few, &many])?;
    place.drop(&few)?;
    place.drop(&many)
}

/// Two allocations for each project, in rows as the service writes them.
fn fill(place: &Place, database: &Database, servers: u32, projects: u32) -> Result<()> {
    let servers_rows = format!(
        "INSERT INTO servers (handle, address, capacity_cpu_millis, capacity_ram_mb, capacity_disk_mb)
         SELECT 'server-' || n, '192.0.2.1', 1000000, 10000000, 10000000 FROM generate_series(0, {servers} - 1) n"
    );
    let sums = format!(
        "UPDATE servers SET status = 'in_use', placement_count = {0}, reserved_ram_mb = {0} * 512, reserved_disk_mb = {0} * 1024",
        projects / servers
    );
    let projects_rows = format!(
        "INSERT INTO placements (project_id, server_handle, reserved_cpu_millis, reserved_ram_mb, reserved_disk_mb, revision)
         SELECT 'project-' || md5(n::text), 'server-' || n % {servers}, 0, 512, 1024, 0 FROM generate_series(0, {projects} - 1) n"
    );
    let ports_rows = format!(
        "INSERT INTO port_allocations (id, server_handle, protocol, port, project_id, module)
         SELECT gen_random_uuid(), 'server-' || n % {servers}, 'tcp', 8000 + 2 * (n / {servers}) + m, 'project-' || md5(n::text),
                CASE m WHEN 0 THEN 'backend' ELSE 'frontend' END
         FROM generate_series(0, {projects} - 1) n, generate_series(0, 1) m"
    );
    place.sql(
        database,
        &[&servers_rows, "SET session_replication_role = replica", &sums, &projects_rows, &ports_rows],
    )?;
    place.sql(database, &["VACUUM ANALYZE", "CHECKPOINT"])
}

/// The milliseconds for one page of a hundred, from the `skip`th page of a thousand on.
fn page_ms(place: &Place, channel: &Channel, filter: &ListAllocationsRequest, skip: u32) -> Result<f64> {
    place.runtime.block_on(async {
        let mut client = Client::new(channel.clone());
        let mut at = ListAllocationsRequest { page_size: 1000, ..filter.clone() };
        for _ in 0..skip {
            at.page_token = client.list_allocations(at.clone()).await?.into_inner().next_page_token;
        }
        // The token is of the same filters, whatever the page's size.
        at.page_size = 100;
        client.list_allocations(at.clone()).await?;
        let begin = Instant::now();
        for _ in 0..PAGES {
            let page = client.list_allocations(at.clone()).await?.into_inner();
            if page.allocations.len() != 100 {
                return Err(format!("a page of {}", page.allocations.len()).into());
            }
        }
        Ok(begin.elapsed().as_secs_f64() * 1000.0 / f64::from(PAGES))
    })
}

fn lists(place: &Place, report: &mut Report, databases: [&Database; 2]) -> Result<()> {
    let mut table =
        Table::new(&["ms for a page of 100", "10,000 allocations", "2,000,000 allocations", "times slower"]);
    let replicas: [Replica; 2] =
        [Replica::start(&databases[0].url, &[])?, Replica::start(&databases[1].url, &[])?];
    let channels = [
        load::connect(place, &[&replicas[0].endpoint], 1)?.remove(0),
        load::connect(place, &[&replicas[1].endpoint], 1)?.remove(0),
    ];
    let frontend = ListAllocationsRequest { module: Some("frontend".to_owned()), ..Default::default() };
    let cases = [
        ("everything, first page", ListAllocationsRequest::default(), [0, 0]),
        ("everything, deep page", ListAllocationsRequest::default(), [9, 900]),
        ("by module, first page", frontend.clone(), [0, 0]),
        ("by module, deep page", frontend, [4, 400]),
    ];
    for (name, filter, skips) in cases {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for ((channel, skip), figures) in channels.iter().zip(skips).zip(&mut figures) {
                figures.push(page_ms(place, channel, &filter, skip)?);
            }
        }
        let [few, many] = figures.map(median);
        table.row([name.to_owned(), format!("{few:.2}"), format!("{many:.2}"), format!("{:.2}", many / few)]);
    }
    report.table("lists", table);
    Ok(())
}

fn start(place: &Place, report: &mut Report, database: &Database) -> Result<()> {
    let mut table =
        Table::new(&["100,000 servers, 2,000,000 allocations", "s", "times COPY TO", "peak memory, MiB"]);
    let (mut copies, mut starts, mut memory) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        copy(place, database)?;
        copies.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        let replica = Replica::start(&database.url, &[])?;
        let channel = load::connect(place, &[&replica.endpoint], 1)?.remove(0);
        // The first decision needs the whole fleet.
        let request = resource_allocator::proto::v1::EnsureAllocationRequest {
            validate_only: true,
            ..load::request("start".to_owned())
        };
        place.runtime.block_on(async { Client::new(channel).ensure_allocation(request).await })?;
        starts.push(begin.elapsed().as_secs_f64());
        memory = memory.max(peak_memory_mib(&replica));
    }
    let (copy, start) = (median(copies), median(starts));
    table.row(["COPY … TO of the same rows".to_owned(), format!("{copy:.2}"), String::new(), String::new()]);
    table.row([
        "start of a replica, to its first decision".to_owned(),
        format!("{start:.2}"),
        format!("{:.1}", start / copy),
        memory.to_string(),
    ]);
    report.table("start", table);
    Ok(())
}

/// Reads the rows that a replica reads, as fast as Postgres hands them out.
fn copy(place: &Place, database: &Database) -> Result<()> {
    for table in ["servers", "placements", "port_allocations"] {
        let status = std::process::Command::new(place.program("psql"))
            .arg(&database.url)
            .args(["--quiet", "--no-psqlrc", "--command", &format!("COPY {table} TO STDOUT")])
            .stdout(std::process::Stdio::null())
            .status()?;
        if !status.success() {
            return Err("psql could not copy".into());
        }
    }
    Ok(())
}
