pub mod allocator;
pub mod api;
pub mod cli;
pub mod domain;
pub mod events;
pub mod inventory_file;
pub mod proto;
pub mod store;
