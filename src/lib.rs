pub mod allocator;
pub mod domain;
pub mod proto;
pub mod store;
