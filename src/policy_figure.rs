//! A figure of the fleet's policy as people write it, for the flags of `serve` and for `servers policy`: `ram=5%`, `cpu=4`.

use crate::domain::{
    policy::{MAX_OVERCOMMIT_PERCENT, MIN_OVERCOMMIT_PERCENT, PolicyPatch},
    resources::{MAX_CPU_MILLIS, MAX_MB, Resource},
};

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyFigure {
    /// The least headroom, in the resource's unit.
    Headroom(Resource, i64),
    /// The least headroom, in percent of the capacity.
    HeadroomPercent(Resource, i64),
    /// The over-commit, in percent.
    OvercommitPercent(Resource, i64),
}

impl PolicyFigure {
    /// Adds the figure to a change.
    pub fn apply(self, patch: &mut PolicyPatch) {
        match self {
            Self::Headroom(resource, amount) => *patch.headroom.get_mut(resource) = Some(amount),
            Self::HeadroomPercent(resource, percent) => {
                *patch.headroom_percent.get_mut(resource) = Some(percent);
            }
            Self::OvercommitPercent(resource, percent) => {
                *patch.overcommit_percent.get_mut(resource) = Some(percent);
            }
        }
    }
}

/// Reads a headroom: `ram=512` in MB, `disk=5%` of the capacity, `cpu=500` in thousandths of a core.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn headroom(text: &str) -> Result<PolicyFigure, String> {
    let (resource, amount) = split(text)?;
    if let Some(percent) = amount.strip_suffix('%') {
        return match percent.parse() {
            Ok(percent @ 0..=100) => Ok(PolicyFigure::HeadroomPercent(resource, percent)),
            _ => Err(format!("`{amount}` is no share from 0% to 100%")),
        };
    }
    let most = match resource {
        Resource::Cpu => i64::from(MAX_CPU_MILLIS),
        Resource::Ram | Resource::Disk => i64::try_from(MAX_MB).unwrap_or(i64::MAX),
    };
    match amount.parse() {
        Ok(amount) if (0..=most).contains(&amount) => Ok(PolicyFigure::Headroom(resource, amount)),
        _ => Err(format!("`{amount}` is neither a whole number from 0 to {most} nor a share such as 5%")),
    }
}

/// Reads an over-commit as a ratio with up to two decimals: `cpu=4`, `ram=1.25`.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn overcommit(text: &str) -> Result<PolicyFigure, String> {
    let (resource, ratio) = split(text)?;
    let (whole, decimals) = ratio.split_once('.').unwrap_or((ratio, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let percent =
        if digits(whole) && digits(decimals) && (1..=3).contains(&whole.len()) && decimals.len() <= 2 {
            format!("{whole}{decimals:0<2}").parse().ok()
        } else {
            None
        };
    match percent {
        Some(percent) if (MIN_OVERCOMMIT_PERCENT..=MAX_OVERCOMMIT_PERCENT).contains(&percent) => {
            Ok(PolicyFigure::OvercommitPercent(resource, percent))
        }
        _ => Err(format!(
            "`{ratio}` is no ratio from {} to {} with at most two decimals",
            MIN_OVERCOMMIT_PERCENT / 100,
            MAX_OVERCOMMIT_PERCENT / 100
        )),
    }
}

fn split(text: &str) -> Result<(Resource, &str), String> {
    let Some((name, amount)) = text.split_once('=') else {
        return Err("a figure is written RESOURCE=AMOUNT, where the resource is cpu, ram or disk".to_owned());
    };
    let resource = Resource::ALL.into_iter().find(|resource| resource.name() == name);
    let resource = resource.ok_or_else(|| format!("`{name}` is no resource; there are cpu, ram and disk"))?;
    Ok((resource, amount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headroom_is_an_amount_or_a_share() {
        assert_eq!(headroom("ram=512"), Ok(PolicyFigure::Headroom(Resource::Ram, 512)));
        assert_eq!(headroom("disk=5%"), Ok(PolicyFigure::HeadroomPercent(Resource::Disk, 5)));
        assert_eq!(headroom("cpu=0"), Ok(PolicyFigure::Headroom(Resource::Cpu, 0)));
        assert_eq!(headroom("cpu=100%"), Ok(PolicyFigure::HeadroomPercent(Resource::Cpu, 100)));
    }

    #[test]
    fn an_over_commit_is_a_ratio() {
        assert_eq!(overcommit("cpu=4"), Ok(PolicyFigure::OvercommitPercent(Resource::Cpu, 400)));
        assert_eq!(overcommit("ram=1.5"), Ok(PolicyFigure::OvercommitPercent(Resource::Ram, 150)));
        assert_eq!(overcommit("ram=1.25"), Ok(PolicyFigure::OvercommitPercent(Resource::Ram, 125)));
        assert_eq!(overcommit("disk=100"), Ok(PolicyFigure::OvercommitPercent(Resource::Disk, 10_000)));
    }

    #[test]
    fn what_is_neither_says_what_is_wrong() {
        for (text, problem) in [
            ("ram", "RESOURCE=AMOUNT"),
            ("gpu=1", "`gpu` is no resource"),
            ("ram=-1", "neither a whole number"),
            ("ram=1.5", "neither a whole number"),
            ("ram=101%", "no share"),
            ("ram=%", "no share"),
            ("cpu=1000000001", "neither a whole number"),
        ] {
            let error = headroom(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        for text in
            ["cpu=0.99", "cpu=", "cpu=x", "cpu=1.255", "cpu=101", "cpu=-2", "cpu=1e3", "cpu=+1", "cpu=.5"]
        {
            let error = overcommit(text).unwrap_err();
            assert!(error.contains("no ratio from 1 to 100"), "{text}: {error}");
        }
    }
}
