//! The figure: nodes against MB/s for each node, a line for each candidate, as SVG.

use std::fmt::{self, Display, Formatter, Write};

/// A candidate's line.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    /// Nodes, and MB/s for each of them.
    pub(super) points: Vec<(u32, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 540.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 360.0;
/// MB/s between two lines of the grid.
const GRID_STEP: f64 = 2.5;
/// Told apart by people who do not see all colours (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
];

/// Draws `lines` with their legend; `link_mbit` is how high the figure is.
pub(super) fn draw(lines: &[Line], link_mbit: u32) -> String {
    let axes = Axes::of(lines, f64::from(link_mbit) / 8.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    axes.draw(&mut svg);
    let mut order: Vec<&Line> = lines.iter().collect();
    order.sort_by(|a, b| last(b).total_cmp(&last(a)));
    for (number, line) in order.into_iter().enumerate() {
        let pen = Pen::of(number);
        let y = TOP + 10.0 + 24.0 * number as f64;
        entry(&mut svg, &line.name, pen, y);
        curve(&mut svg, &axes, &line.points, pen);
    }
    svg.push_str("</svg>\n");
    svg
}

/// How a line is drawn.
#[derive(Clone, Copy)]
struct Pen {
    colour: &'static str,
    dashes: &'static str,
}

impl Pen {
    /// Every second one has gaps: what lies below it is seen.
    fn of(number: usize) -> Self {
        Self {
            colour: COLOURS[number % COLOURS.len()],
            dashes: if number.is_multiple_of(2) {
                "none"
            } else {
                "7 5"
            },
        }
    }
}

impl Display for Pen {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Self { colour, dashes } = self;
        write!(
            to,
            "stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\""
        )
    }
}

/// Where numbers are on the page: nodes by their logarithm.
struct Axes {
    counts: Vec<u32>,
    rate_max: f64,
}

impl Axes {
    fn of(lines: &[Line], rate: f64) -> Self {
        let points = lines.iter().flat_map(|line| &line.points);
        let mut counts: Vec<u32> = points.map(|(count, _)| *count).collect();
        counts.sort_unstable();
        counts.dedup();
        let rate_max = (rate / GRID_STEP).ceil() * GRID_STEP;
        Self { counts, rate_max }
    }

    fn x(&self, count: u32) -> f64 {
        let log = |count: u32| f64::from(count.max(1)).log2();
        let first = self.counts.first().map_or(0.0, |first| log(*first));
        let last = self.counts.last().map_or(0.0, |last| log(*last));
        let width = if last > first { last - first } else { 1.0 };
        LEFT + (log(count) - first) / width * (RIGHT - LEFT)
    }

    fn y(&self, rate: f64) -> f64 {
        BOTTOM - rate / self.rate_max * (BOTTOM - TOP)
    }

    fn draw(&self, svg: &mut String) {
        let mut rate = 0.0;
        while rate <= self.rate_max {
            let y = self.y(rate);
            add(
                svg,
                format_args!(
                    "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#ddd\"/>\
                     <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{rate:.1}</text>",
                    LEFT - 8.0,
                    y + 4.5
                ),
            );
            rate += GRID_STEP;
        }
        for count in &self.counts {
            let x = self.x(*count);
            add(
                svg,
                format_args!(
                    "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#ddd\"/>\
                     <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{count}</text>",
                    BOTTOM + 20.0
                ),
            );
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        add(
            svg,
            format_args!(
                "<text x=\"{middle:.0}\" y=\"{:.0}\" text-anchor=\"middle\">nodes that fetch at once</text>\
                 <text x=\"{:.0}\" y=\"{:.0}\">MB/s for each node, until the last has all</text>",
                BOTTOM + 44.0,
                LEFT - 40.0,
                TOP - 16.0
            ),
        );
    }
}

/// By what a line ends at the legend is ordered as the lines are.
fn last(line: &Line) -> f64 {
    line.points.last().map_or(0.0, |(_, rate)| *rate)
}

fn entry(svg: &mut String, name: &str, pen: Pen, y: f64) {
    let (from, to) = (RIGHT + 20.0, RIGHT + 44.0);
    add(
        svg,
        format_args!(
            "<path d=\"M{from} {y}H{to}\" {pen}/>\
             <text x=\"{:.0}\" y=\"{:.1}\">{name}</text>",
            to + 8.0,
            y + 4.5
        ),
    );
}

fn curve(svg: &mut String, axes: &Axes, points: &[(u32, f64)], pen: Pen) {
    let places: Vec<(f64, f64)> = points
        .iter()
        .map(|(count, rate)| (axes.x(*count), axes.y(*rate)))
        .collect();
    let joined: Vec<String> = places
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    add(
        svg,
        format_args!(
            "<polyline points=\"{}\" fill=\"none\" {pen}/>",
            joined.join(" ")
        ),
    );
    for (x, y) in places {
        add(
            svg,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"/>",
                pen.colour
            ),
        );
    }
}

fn add(svg: &mut String, element: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{element}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(u32, f64)]) -> Line {
        Line {
            name: name.to_owned(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn nodes_are_apart_by_their_logarithm_and_the_best_comes_first() {
        let lines = [
            line("slow", &[(2, 6.25), (4, 3.125), (32, 0.0)]),
            line("fast", &[(2, 12.5), (32, 12.5)]),
        ];
        let svg = draw(&lines, 100);
        // From 2 to 32 are four doublings of 120 each; 12.5 MB/s is at the top.
        assert!(
            svg.contains("points=\"60.0,200.0 180.0,280.0 540.0,360.0\""),
            "{svg}"
        );
        assert!(svg.contains("points=\"60.0,40.0 540.0,40.0\""), "{svg}");
        assert!(svg.find(">fast<") < svg.find(">slow<"));
        assert!(svg.contains("text-anchor=\"middle\">32</text>"));
    }

    #[test]
    fn one_number_of_nodes_is_a_figure_too() {
        let svg = draw(&[line("only", &[(8, 5.0)])], 100);
        assert!(svg.contains("points=\"60.0,232.0\""), "{svg}");
        assert!(!draw(&[], 100).contains("NaN"));
    }
}
