//! What the tests share: one real Postgres for the run, a database of its own for each test, and real services with generated
//! clients. Nothing is mocked, and no Postgres is a failure.

pub mod certificates;
mod cluster;
pub mod credentials;
mod database;
pub mod exporter;
pub mod figures;
pub mod inventory;
pub mod malformed;
pub mod process;
mod replicas;
pub mod requests;
mod service;
mod tables;
pub mod watching;

pub use self::{
    cluster::{OwnPostgres, start_cluster},
    database::TestDatabase,
    replicas::Replicas,
    service::{Client, TestService, TestServiceBuilder, error_info, server, violations},
};
