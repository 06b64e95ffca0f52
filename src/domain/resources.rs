//! Amounts of CPU, RAM and disk. Signed, because what is free can be negative: a capacity may be lowered below what is reserved.

use std::{
    fmt,
    ops::{Add, AddAssign, Sub, SubAssign},
};

use serde::{Deserialize, Serialize};

/// The greatest CPU amount that is taken, in thousandths of a core.
pub const MAX_CPU_MILLIS: u32 = 1_000_000_000;
/// The greatest RAM or disk amount that is taken, in megabytes.
pub const MAX_MB: u64 = 1_000_000_000_000;

/// The resources, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Memory, in megabytes.
    Ram,
    /// Disk, in megabytes.
    Disk,
    /// Processor time, in thousandths of a core.
    Cpu,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 3] = [Self::Ram, Self::Disk, Self::Cpu];

    /// The resource's field name in requests, which is also its key in metadata.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Ram => "ram_mb",
            Self::Disk => "disk_mb",
            Self::Cpu => "cpu_millis",
        }
    }

    /// The resource's name where a figure of it is not an amount, such as a percentage.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Disk => "disk",
            Self::Cpu => "cpu",
        }
    }

    /// An amount of it in words, with its unit.
    #[must_use]
    pub fn describe(self, amount: i64) -> String {
        match self {
            Self::Ram => format!("{amount} MB RAM"),
            Self::Disk => format!("{amount} MB disk"),
            Self::Cpu => format!("{amount} thousandths of a CPU"),
        }
    }
}

/// An amount of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time, in thousandths of a core.
    pub cpu_millis: i64,
    /// Memory, in megabytes.
    pub ram_mb: i64,
    /// Disk, in megabytes.
    pub disk_mb: i64,
}

impl Resources {
    /// Nothing of anything.
    pub const ZERO: Self = Self { cpu_millis: 0, ram_mb: 0, disk_mb: 0 };

    /// The amount of one resource.
    #[must_use]
    pub fn get(&self, resource: Resource) -> i64 {
        match resource {
            Resource::Ram => self.ram_mb,
            Resource::Disk => self.disk_mb,
            Resource::Cpu => self.cpu_millis,
        }
    }

    /// Combines two amounts, resource by resource.
    #[must_use]
    pub fn zip(self, other: Self, combine: impl Fn(i64, i64) -> i64) -> Self {
        Self {
            cpu_millis: combine(self.cpu_millis, other.cpu_millis),
            ram_mb: combine(self.ram_mb, other.ram_mb),
            disk_mb: combine(self.disk_mb, other.disk_mb),
        }
    }

    /// The greater of the two, resource by resource.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, i64::max)
    }

    /// How much of this is missing from `available`, 0 where it suffices.
    #[must_use]
    pub fn short_of(self, available: Self) -> Self {
        self.zip(available, |asked, free| (asked - free).max(0))
    }

    /// Whether every amount is 0.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// In words, such as `512 MB RAM, 1024 MB disk, 0 thousandths of a CPU`.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = Resource::ALL.into_iter().map(|r| r.describe(self.get(r))).collect();
        f.write_str(&words.join(", "))
    }
}

impl Add for Resources {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Resources {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl AddAssign for Resources {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Resources {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// A figure for each resource that is no amount of it, such as a share in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerResource<T> {
    /// Of processor time.
    pub cpu: T,
    /// Of memory.
    pub ram: T,
    /// Of disk.
    pub disk: T,
}

impl<T: Copy> PerResource<T> {
    /// The same figure for each.
    #[must_use]
    pub const fn all(figure: T) -> Self {
        Self { cpu: figure, ram: figure, disk: figure }
    }

    /// The figure of one resource.
    #[must_use]
    pub fn get(&self, resource: Resource) -> T {
        match resource {
            Resource::Ram => self.ram,
            Resource::Disk => self.disk,
            Resource::Cpu => self.cpu,
        }
    }

    /// The figure of one resource, to change it.
    pub fn get_mut(&mut self, resource: Resource) -> &mut T {
        match resource {
            Resource::Ram => &mut self.ram,
            Resource::Disk => &mut self.disk,
            Resource::Cpu => &mut self.cpu,
        }
    }
}

impl PerResource<Option<i64>> {
    /// The figures, with `default` where there is none.
    #[must_use]
    pub fn or(self, default: PerResource<i64>) -> PerResource<i64> {
        PerResource {
            cpu: self.cpu.unwrap_or(default.cpu),
            ram: self.ram.unwrap_or(default.ram),
            disk: self.disk.unwrap_or(default.disk),
        }
    }

    /// Whether there is none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a request asks for; `None` where it leaves the amount to its reader. Absent and zero differ (L31).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRequest {
    /// Processor time, in thousandths of a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<i64>,
    /// Memory, in megabytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_mb: Option<i64>,
    /// Disk, in megabytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<i64>,
}

impl ResourceRequest {
    /// All of the amounts.
    #[must_use]
    pub fn of(amounts: Resources) -> Self {
        Self {
            cpu_millis: Some(amounts.cpu_millis),
            ram_mb: Some(amounts.ram_mb),
            disk_mb: Some(amounts.disk_mb),
        }
    }

    /// One of the amounts, to change it.
    pub fn get_mut(&mut self, resource: Resource) -> &mut Option<i64> {
        match resource {
            Resource::Ram => &mut self.ram_mb,
            Resource::Disk => &mut self.disk_mb,
            Resource::Cpu => &mut self.cpu_millis,
        }
    }

    /// The amounts asked for, with `default` where none is.
    #[must_use]
    pub fn or(self, default: Resources) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis.unwrap_or(default.cpu_millis),
            ram_mb: self.ram_mb.unwrap_or(default.ram_mb),
            disk_mb: self.disk_mb.unwrap_or(default.disk_mb),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_changed_for_the_resource_that_it_is_of() {
        let mut figures = PerResource::all(Some(0));
        let mut amounts = ResourceRequest::default();
        for (index, resource) in (1..).zip(Resource::ALL) {
            *figures.get_mut(resource) = Some(index);
            *amounts.get_mut(resource) = Some(index);
        }
        assert_eq!(figures, PerResource { ram: Some(1), disk: Some(2), cpu: Some(3) });
        assert_eq!(amounts, ResourceRequest { ram_mb: Some(1), disk_mb: Some(2), cpu_millis: Some(3) });
        assert_eq!(Resource::ALL.map(|resource| figures.get(resource)), [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn figures_are_empty_where_there_is_none_at_all() {
        assert!(PerResource::all(None).is_empty());
        for resource in Resource::ALL {
            let mut figures = PerResource::default();
            *figures.get_mut(resource) = Some(0);
            assert!(!figures.is_empty(), "zero is a figure");
        }
    }

    #[test]
    fn a_resource_is_named_as_callers_name_it() {
        assert_eq!(Resource::ALL.map(Resource::name), ["ram", "disk", "cpu"]);
        assert_eq!(Resource::ALL.map(Resource::field), ["ram_mb", "disk_mb", "cpu_millis"]);
    }

    #[test]
    fn amounts_are_told_with_their_units() {
        let amounts = Resources { cpu_millis: 0, ram_mb: 512, disk_mb: 1024 };
        assert_eq!(amounts.to_string(), "512 MB RAM, 1024 MB disk, 0 thousandths of a CPU");
    }

    #[test]
    fn amounts_are_added_and_taken_away_resource_by_resource() {
        let (some, more) = (
            Resources { cpu_millis: 3, ram_mb: 5, disk_mb: 7 },
            Resources { cpu_millis: 10, ram_mb: 4, disk_mb: 7 },
        );
        let mut sum = some;
        sum += more;
        assert_eq!(sum, Resources { cpu_millis: 13, ram_mb: 9, disk_mb: 14 });
        assert_eq!(sum, some + more);
        sum -= more;
        assert_eq!(sum, some);
        assert_eq!(some - more, Resources { cpu_millis: -7, ram_mb: 1, disk_mb: 0 });
        assert_eq!(more.short_of(some), Resources { cpu_millis: 7, ram_mb: 0, disk_mb: 0 });
        assert!(!more.short_of(some).is_zero());
        assert!(some.short_of(some).is_zero());
    }
}
