pub mod cli;
pub mod inventory_file;
pub mod proto;
