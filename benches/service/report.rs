//! What a run tells: tables and plots by name, for the eye and for `docs/benchmarks.md`.

use std::{fs, path::Path, process::Command};

use crate::{Result, plot::Plot};

const PAGE: &str = "docs/benchmarks.md";
const PLOTS: &str = "docs/plots";

/// A table.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        eprintln!("   {}", row.join(" | "));
        self.rows.push(row);
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = self.head.iter().map(|_| "---".to_owned()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}{}{rows}", line(&self.head), line(&rule))
    }
}

/// What is told.
pub struct Report {
    tables: Vec<(String, Table)>,
    plots: Vec<(String, String)>,
}

impl Report {
    pub fn new() -> Self {
        Self { tables: Vec::new(), plots: Vec::new() }
    }

    pub fn table(&mut self, name: &str, table: Table) {
        self.tables.push((name.to_owned(), table));
    }

    pub fn plot(&mut self, name: &str, plot: &Plot) {
        self.plots.push((name.to_owned(), plot.svg()));
    }

    pub fn print(&self) {
        for (name, table) in &self.tables {
            println!("\n## {name}\n\n{}", table.markdown());
        }
    }

    /// Puts each table between its marks in the page, with what it was measured on, and each plot beside it.
    pub fn write(&self) -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut page = fs::read_to_string(root.join(PAGE))?;
        for (name, table) in &self.tables {
            put(&mut page, name, &table.markdown())?;
        }
        if !self.tables.is_empty() {
            put(&mut page, "machine", &machine())?;
        }
        fs::write(root.join(PAGE), page)?;
        fs::create_dir_all(root.join(PLOTS))?;
        for (name, svg) in &self.plots {
            fs::write(root.join(PLOTS).join(format!("{name}.svg")), svg)?;
        }
        Ok(())
    }
}

fn put(page: &mut String, name: &str, text: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let from = page.find(&begin).ok_or_else(|| format!("{PAGE} has no `{begin}`"))? + begin.len();
    let to = page[from..].find(&end).ok_or_else(|| format!("{PAGE} has no `{end}`"))? + from;
    page.replace_range(from..to, text);
    Ok(())
}

/// What the figures were taken on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
        })
        .unwrap_or_else(|| "an unnamed processor".to_owned());
    let said = |program: &str, flags: &[&str]| {
        Command::new(program)
            .args(flags)
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    format!(
        "{cpus} CPUs ({model}), which service, callers and Postgres share; {}; {}; {}.\n",
        said("uname", &["-s"]),
        said("postgres", &["--version"]),
        said("date", &["-u", "+%Y-%m-%d"]),
    )
}

/// A number with its thousands apart.
#[expect(clippy::cast_possible_truncation, reason = "rates and counts")]
pub fn thousands(figure: f64) -> String {
    let digits = (figure.round() as i64).to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number as an axis names it.
pub fn thousands_or_small(figure: f64) -> String {
    if figure > 0.0 && figure < 10.0 && figure.fract() != 0.0 {
        format!("{figure:.1}")
    } else {
        thousands(figure)
    }
}
