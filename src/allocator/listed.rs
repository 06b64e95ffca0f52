//! A page of a list.

use uuid::Uuid;

use crate::store::pools::PoolState;

/// A page of what was asked for, and the point of the log that it is as of.
#[derive(Debug)]
pub struct Listed<T> {
    /// The page.
    pub items: Vec<T>,
    /// Whether there is more after it.
    pub more: bool,
    /// The history that the log was of in the moment of the page.
    pub epoch: Uuid,
    /// The number of the newest event that the page includes.
    pub sequence: i64,
}

impl<T> Listed<T> {
    /// The page of what was read with one item more than it holds.
    pub(super) fn of(mut items: Vec<T>, page_size: i64, pool: &PoolState) -> Self {
        let page_size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let more = items.len() > page_size;
        items.truncate(page_size);
        Self { items, more, epoch: pool.epoch, sequence: pool.last_sequence }
    }
}
