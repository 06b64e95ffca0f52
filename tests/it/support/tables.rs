//! What the tables hold, to tell whether something was written.

use std::collections::BTreeMap;

use super::TestDatabase;

/// The tables' rows as text, by the table's name.
pub type Tables = BTreeMap<String, String>;

impl TestDatabase {
    /// Every row of every table. Two reads are equal when nothing was written between them.
    pub async fn tables(&self) -> Tables {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public' ORDER BY table_name",
        )
        .fetch_all(&self.sql)
        .await
        .unwrap();
        assert!(names.iter().any(|name| name == "port_allocations"), "{names:?}");
        let mut tables = Tables::new();
        for name in names {
            let statement = format!(
                "SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM \"{name}\" t"
            );
            let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.sql).await.unwrap();
            tables.insert(name, rows);
        }
        tables
    }

    /// The same of all but the log and its counter.
    pub async fn tables_but_log(&self) -> Tables {
        let mut tables = self.tables().await;
        tables.retain(|name, _| name != "allocation_events" && name != "pools");
        tables
    }

    /// The operations in the log of a project, each with how many events it has.
    pub async fn operations(&self, project_id: &str) -> Vec<(String, i64)> {
        sqlx::query_as(
            "SELECT kind::text, last_sequence - first_sequence + 1 FROM allocation_events
             WHERE project_id = $1 ORDER BY first_sequence",
        )
        .bind(project_id)
        .fetch_all(&self.sql)
        .await
        .unwrap()
    }

    /// How many rows a statement finds.
    pub async fn count(&self, statement: &'static str) -> i64 {
        sqlx::query_scalar(statement).fetch_one(&self.sql).await.unwrap()
    }
}
