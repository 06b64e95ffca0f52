pub mod allocator;
pub mod cli;
pub mod domain;
pub mod inventory_file;
pub mod proto;
pub mod store;
