//! Requests, from the wire to the domain. Every bad field of a request is named at once, by its path.
//!
//! [`Fields`] gathers what is wrong. `fields` reads what several requests have; each service's requests have a file of their own.

mod allocations;
mod fields;
mod fleet;
mod inventory;

use std::fmt::Display;

pub use self::{
    allocations::{ensure, find, page_size, port_in_use, release, relocate},
    fields::{etag, handle, is_hidden, is_legible, project_id, source, told},
    fleet::{drain, policy},
    inventory::{register, status_filter, sync, update, usage},
};

/// The most bad fields that are noted of one request.
pub const MAX_VIOLATIONS: usize = 50;

/// A field that is malformed, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path, such as `modules[3].port`.
    pub field: String,
    /// What it must be.
    pub description: String,
}

/// What is wrong with a request.
#[derive(Debug, Default)]
pub struct Fields {
    violations: Vec<FieldViolation>,
}

impl Fields {
    /// Notes a bad field.
    pub fn refuse(&mut self, field: impl Into<String>, description: impl Display) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations
                .push(FieldViolation { field: field.into(), description: description.to_string() });
        }
    }

    /// The value, or `None` with the field noted as bad.
    pub fn take<T, E: Display>(&mut self, field: impl Into<String>, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.refuse(field, error)).ok()
    }

    /// The request, if nothing is wrong with it.
    ///
    /// # Errors
    /// Every bad field.
    pub fn finish<T>(self, request: Option<T>) -> Result<T, Vec<FieldViolation>> {
        match request {
            Some(request) if self.violations.is_empty() => Ok(request),
            _ => Err(self.violations),
        }
    }
}
