//! README.md's table of the flags of `serve`: each with its environment variable and its default, and no other.

use std::collections::BTreeMap;

use clap::Args as _;
use resource_allocator::cli::serve::ServeArgs;

/// What stands in backticks in a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_flag_of_serve_stands_in_the_readme() {
    let readme = include_str!("../../README.md");
    let (_, table) =
        readme.split_once("| flag of `serve` | variable | default |\n| --- | --- | --- |\n").unwrap();
    let mut written = BTreeMap::new();
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let [flags, variables, defaults] = row.trim_matches('|').split('|').collect::<Vec<_>>()[..] else {
            panic!("not three cells: {row}");
        };
        let (flags, variables) = (quoted(flags), quoted(variables));
        assert_eq!(flags.len(), variables.len(), "{row}");
        for (flag, variable) in flags.into_iter().zip(variables) {
            assert!(
                written.insert(flag, (variable, quoted(defaults))).is_none(),
                "{flag} stands there twice"
            );
        }
    }

    let mut missing = Vec::new();
    let serve = ServeArgs::augment_args(clap::Command::new("serve"));
    for flag in serve.get_arguments() {
        let name = format!("--{}", flag.get_long().unwrap());
        let variable = flag.get_env().and_then(|name| name.to_str()).unwrap();
        let Some((told, defaults)) = written.remove(&*name) else {
            missing.push(format!("{name} ({variable})"));
            continue;
        };
        // The second of a row may be cut short.
        let fits = told.strip_prefix('…').map_or(told == variable, |end| variable.ends_with(end));
        assert!(fits, "{name} is {variable}, not {told}");
        for default in flag.get_default_values().iter().filter_map(|value| value.to_str()) {
            // A switch that is off is told in words.
            assert!(
                default == "false" || defaults.contains(&default),
                "{name} is {default}, not {defaults:?}"
            );
        }
    }
    assert!(missing.is_empty(), "README.md's table has no {}", missing.join(", "));
    assert!(written.is_empty(), "no flag of serve: {written:?}");
}
