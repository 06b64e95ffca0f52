//! A page of a list.

/// A page of what was asked for, and the number of the newest event that it includes.
#[derive(Debug)]
pub struct Listed<T> {
    /// The page.
    pub items: Vec<T>,
    /// Whether there is more after it.
    pub more: bool,
    /// The number of the newest event that the page includes.
    pub sequence: i64,
}

impl<T> Listed<T> {
    /// The page of what was read with one item more than it holds.
    pub(super) fn of(mut items: Vec<T>, page_size: i64, sequence: i64) -> Self {
        let page_size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let more = items.len() > page_size;
        items.truncate(page_size);
        Self { items, more, sequence }
    }
}
