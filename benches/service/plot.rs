//! Line plots as SVG, readable on light and dark pages.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 80.0;
const COLOURS: [&str; 6] = ["#3b82c4", "#d9822b", "#3a9d5d", "#c0504d", "#8064a2", "#7f7f7f"];

/// A line.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A plot.
pub struct Plot<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub logarithmic_x: bool,
    pub series: Vec<Series>,
}

impl Plot<'_> {
    fn place_x(&self, x: f64) -> f64 {
        if self.logarithmic_x { x.max(1.0).log10() } else { x }
    }

    /// The picture. The y axis begins at 0, so that heights compare.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let least_x = points().map(|(x, _)| self.place_x(*x)).fold(f64::INFINITY, f64::min);
        let most_x = points().map(|(x, _)| self.place_x(*x)).fold(f64::NEG_INFINITY, f64::max);
        let most_y = nice(points().map(|(_, y)| *y).fold(0.0, f64::max));
        let across = (most_x - least_x).max(1e-9);
        let at_x = |x: f64| LEFT + (self.place_x(x) - least_x) / across * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - y / most_y * (HEIGHT - TOP - BOTTOM);

        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" fill=\"#222\">{}</text>\n",
            self.title
        );
        for step in 0..=4 {
            let y = most_y * f64::from(step) / 4.0;
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\" fill=\"#444\">{4}</text>\n",
                WIDTH - RIGHT,
                at_y(y),
                LEFT - 8.0,
                at_y(y) + 4.0,
                crate::report::thousands_or_small(y),
            );
        }
        for x in self.marks_x() {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
                at_x(x),
                HEIGHT - BOTTOM + 18.0,
                crate::report::thousands_or_small(x),
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"middle\" fill=\"#222\">{2}</text>\n\
             <text x=\"16\" y=\"{3:.1}\" transform=\"rotate(-90 16 {3:.1})\" text-anchor=\"middle\" fill=\"#222\">{4}</text>\n",
            f64::midpoint(LEFT, WIDTH - RIGHT),
            HEIGHT - BOTTOM + 36.0,
            self.x,
            f64::midpoint(TOP, HEIGHT - BOTTOM),
            self.y,
        );
        let mut legend_x = LEFT;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let line: Vec<String> =
                series.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
                 <rect x=\"{legend_x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222\">{}</text>\n",
                line.join(" "),
                HEIGHT - 28.0,
                legend_x + 14.0,
                HEIGHT - 19.0,
                series.name,
            );
            let letters = u32::try_from(series.name.chars().count()).unwrap_or(0);
            legend_x += 34.0 + 6.6 * f64::from(letters);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn marks_x(&self) -> Vec<f64> {
        let mut marks: Vec<f64> =
            self.series.iter().flat_map(|series| &series.points).map(|(x, _)| *x).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        if marks.len() > 8 {
            let last = marks.last().copied().unwrap_or(0.0);
            marks = (0..=4).map(|step| (last * f64::from(step) / 4.0).round()).collect();
        }
        marks
    }
}

/// A round number that is not less.
fn nice(most: f64) -> f64 {
    let scale = 10_f64.powf(most.max(1e-9).log10().floor());
    [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * scale)
        .find(|step| *step >= most)
        .unwrap_or(10.0 * scale)
}
