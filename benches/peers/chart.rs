//! A chart of two panels, one for each direction, as SVG text. Owns: its look, in light and in dark. May not:
//! know what is charted. Read next: `table.rs`, where the points come from.

use std::fmt::Write;

/// Lines over named points of the x axis; lowest, median and highest of each point, where it was measured.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) series: Vec<(&'static str, Vec<Option<[f64; 3]>>)>,
}

/// What the panels share.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) points: Vec<String>,
    pub(crate) panels: [Panel; 2],
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
/// Of a panel, and where the panels begin.
const PLOT: (f64, f64) = (390.0, 260.0);
const LEFT: [f64; 2] = [70.0, 540.0];
const TOP: f64 = 90.0;
/// What a median is drawn as, around (0, 0): as many as there are colours.
const MARKS: [&str; 5] = [
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-4-4h8v8h-8z",
    "M0-5l5 9h-10z",
    "M0-5l5 5l-5 5l-5-5z",
    "M-5-3h10l-5 8z",
];
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-size:16px;font-weight:600}.paper{fill:#fff}
.grid{stroke:#d8dee4}.axis{stroke:#57606a}.line{fill:none;stroke-width:2}.ours{stroke-width:3}
.s0{stroke:#0969da}.s1{stroke:#bc4c00}.s2{stroke:#1a7f37}.s3{stroke:#a93f9b}.s4{stroke:#6e7781}
.m0{fill:#0969da}.m1{fill:#bc4c00}.m2{fill:#1a7f37}.m3{fill:#a93f9b}.m4{fill:#6e7781}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}.grid{stroke:#30363d}.axis{stroke:#9198a1}
.s0{stroke:#58a6ff}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.s3{stroke:#e5a6dd}.s4{stroke:#9198a1}
.m0{fill:#58a6ff}.m1{fill:#f0883e}.m2{fill:#3fb950}.m3{fill:#e5a6dd}.m4{fill:#9198a1}}";

impl Chart {
    /// The whole file.
    pub(crate) fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{0}</title>\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
             <text class=\"title\" x=\"{1}\" y=\"26\">{0}</text>\n",
            self.title, LEFT[0]
        );
        for (number, (name, _)) in self.panels[0].series.iter().enumerate() {
            let (x, kind) = (LEFT[0] + 120.0 * number as f64, number % MARKS.len());
            let _ = writeln!(
                svg,
                "<path class=\"line s{kind}\" d=\"M{x} 48h26\"/>{}<text x=\"{}\" y=\"52\">{name}</text>",
                mark(kind, x + 13.0, 48.0),
                x + 34.0
            );
        }
        let (top, step) = self.scale();
        for (panel, left) in self.panels.iter().zip(LEFT) {
            self.axes(&mut svg, panel, left, top, step);
            for (number, (_, values)) in panel.series.iter().enumerate() {
                self.line(&mut svg, number, values, left, top);
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The y axis's end, the same for both panels, and the distance of its lines.
    fn scale(&self) -> (f64, f64) {
        let series = self.panels.iter().flat_map(|panel| &panel.series);
        let highest = series.flat_map(|(_, values)| values.iter().flatten()).map(|value| value[2]);
        let highest = highest.fold(f64::MIN_POSITIVE, f64::max);
        let power = 10_f64.powf((highest / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|part| part * power);
        let step = step.into_iter().find(|step| step * 5.0 >= highest).unwrap_or(highest);
        ((highest / step).ceil() * step, step)
    }

    fn x(&self, point: usize, left: f64) -> f64 {
        left + PLOT.0 * (point as f64 + 0.5) / self.points.len() as f64
    }

    fn axes(&self, svg: &mut String, panel: &Panel, left: f64, top: f64, step: f64) {
        let (right, bottom) = (left + PLOT.0, TOP + PLOT.1);
        for line in 0..=(top / step).round() as usize {
            let value = line as f64 * step;
            let (y, class) = (height(value, top), if line == 0 { "axis" } else { "grid" });
            let _ = writeln!(
                svg,
                "<path class=\"{class}\" d=\"M{left} {y:.1}H{right}\"/>\
                 <text text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                left - 8.0,
                y + 4.0,
                (value * 1e6).round() / 1e6
            );
        }
        for (point, name) in self.points.iter().enumerate() {
            let x = self.x(point, left);
            let _ = writeln!(
                svg,
                "<path class=\"axis\" d=\"M{x:.1} {bottom}v4\"/>\
                 <text text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{name}</text>",
                bottom + 20.0
            );
        }
        let middle = left + PLOT.0 / 2.0;
        let _ = writeln!(
            svg,
            "<text text-anchor=\"middle\" x=\"{middle}\" y=\"{}\">{}</text>\n\
             <text text-anchor=\"middle\" x=\"{middle}\" y=\"{}\">{}</text>\n<text text-anchor=\"end\" x=\"{}\" y=\"{}\">{}</text>",
            TOP - 12.0,
            panel.title,
            bottom + 44.0,
            self.x,
            left - 8.0,
            TOP - 12.0,
            self.y
        );
    }

    /// Medians joined by a line, each on a bar from the lowest to the highest.
    fn line(&self, svg: &mut String, number: usize, values: &[Option<[f64; 3]>], left: f64, top: f64) {
        let kind = number % MARKS.len();
        let (mut path, mut marks) = (String::new(), String::new());
        for (point, [low, median, high]) in
            values.iter().enumerate().filter_map(|(point, value)| Some((point, (*value)?)))
        {
            let (x, y) = (self.x(point, left), height(median, top));
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            let (low, high) = (height(low, top), height(high, top));
            let _ = write!(
                marks,
                "<path class=\"s{kind}\" d=\"M{x:.1} {low:.1}V{high:.1}\"/>{}",
                mark(kind, x, y)
            );
        }
        let class = if number == 0 { "line ours" } else { "line" };
        let _ = writeln!(svg, "<path class=\"{class} s{kind}\" d=\"{path}\"/>{marks}");
    }
}

fn height(value: f64, top: f64) -> f64 {
    TOP + PLOT.1 * (1.0 - value / top)
}

fn mark(kind: usize, x: f64, y: f64) -> String {
    format!("<path class=\"m{kind}\" transform=\"translate({x:.1} {y:.1})\" d=\"{}\"/>", MARKS[kind])
}
