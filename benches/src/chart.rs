//! Horizontal bars, as SVG.

use std::fmt::Write;

const BAR: f64 = 18.0;
const GAP: f64 = 10.0;
const WIDTH: f64 = 820.0;
const HEAD: f64 = 50.0;
const FOOT: f64 = 46.0;
/// About the width of a letter.
const LETTER: f64 = 6.7;

/// Colours for a light page or a dark one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    page: &'static str,
    text: &'static str,
    grid: &'static str,
    /// One shade for each figure of a group.
    ours: [&'static str; 3],
    theirs: [&'static str; 3],
}

impl Theme {
    pub(crate) const LIGHT: Self = Self {
        page: "#ffffff",
        text: "#1f2328",
        grid: "#d0d7de",
        ours: ["#1f6feb", "#6ea8fe", "#b6d4fe"],
        theirs: ["#8c959f", "#afb8c1", "#d0d7de"],
    };
    pub(crate) const DARK: Self = Self {
        page: "#0d1117",
        text: "#f0f6fc",
        grid: "#3d444d",
        ours: ["#4493f8", "#2f6bb8", "#1f4a80"],
        theirs: ["#9198a1", "#656c76", "#464c55"],
    };
}

/// Horizontal bars: one for each contender, or a group of them. Names in bold, as in the tables,
/// are ours, and in another colour.
#[derive(Clone, Debug)]
pub struct Chart {
    title: String,
    unit: String,
    series: Vec<String>,
    rows: Vec<(String, Vec<f64>)>,
}

impl Chart {
    /// One bar for each contender.
    pub fn bars<'a>(
        title: impl Into<String>,
        unit: impl Into<String>,
        rows: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Self {
        Self::groups(title, unit, &[""], rows.into_iter().map(|(name, value)| (name, vec![value])))
    }

    /// For each contender one bar in each series (such as `p50`), three at most.
    pub fn groups<'a>(
        title: impl Into<String>,
        unit: impl Into<String>,
        series: &[&str],
        rows: impl IntoIterator<Item = (&'a str, Vec<f64>)>,
    ) -> Self {
        assert!(
            (1..=Theme::LIGHT.ours.len()).contains(&series.len()),
            "1 to 3 series, not {}",
            series.len()
        );
        let rows: Vec<_> =
            rows.into_iter().map(|(name, values)| (name.to_owned(), values)).collect();
        for (name, values) in &rows {
            let known = values.iter().all(|value| value.is_finite() && *value >= 0.0);
            assert!(known && values.len() == series.len(), "figures for bars: {name} {values:?}");
        }
        let series = series.iter().map(ToString::to_string).collect();
        Self { title: title.into(), unit: unit.into(), series, rows }
    }

    /// The title.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// All of it as SVG, on the theme's own colour, so that it can be read on any page.
    pub(crate) fn svg(&self, theme: Theme) -> String {
        let Theme { page, text, grid, .. } = theme;
        let longest = self.rows.iter().map(|(name, _)| plain(name).chars().count()).max();
        let left = longest.unwrap_or(0) as f64 * LETTER + 24.0;
        let group = BAR * self.series.len() as f64 + GAP;
        let bottom = HEAD + group * self.rows.len() as f64;
        let height = bottom + FOOT;
        let largest = self.rows.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
        let ticks = ticks(largest);
        let end = largest.max(ticks.last().copied().unwrap_or(0.0)).max(f64::MIN_POSITIVE);
        let labels = self.rows.iter().flat_map(|(_, values)| values.iter().zip(&self.series));
        let longest = labels.map(|(value, series)| label(*value, series).chars().count()).max();
        // At the right of its bar.
        let room = longest.unwrap_or(0) as f64 * LETTER + 24.0;
        let x = |value: f64| left + value / end * (WIDTH - left - room);

        let mut svg = Svg(String::new());
        svg.line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{text}">"#,
        ));
        let title = escaped(&plain(&self.title));
        svg.line(format_args!("<title>{title}</title>"));
        svg.line(format_args!(r#"<rect width="100%" height="100%" rx="6" fill="{page}"/>"#));
        svg.line(format_args!(
            r#"<text x="16" y="28" font-size="15" font-weight="bold">{title}</text>"#
        ));
        for tick in ticks {
            let (x, below) = (x(tick), bottom + 16.0);
            svg.line(format_args!(
                r#"<path d="M{x:.1} {HEAD}V{bottom}" stroke="{grid}"/><text x="{x:.1}" y="{below}" text-anchor="middle" font-size="11">{}</text>"#,
                grouped(&tick.to_string()),
            ));
        }
        let (middle, below) = (f64::midpoint(left, WIDTH - room), bottom + 34.0);
        svg.line(format_args!(
            r#"<text x="{middle:.1}" y="{below}" text-anchor="middle" font-size="11">{}</text>"#,
            escaped(&plain(&self.unit)),
        ));
        for (row, (name, values)) in self.rows.iter().enumerate() {
            let top = HEAD + group * row as f64 + GAP / 2.0;
            let is_ours = name.contains("**");
            let (colours, weight) =
                if is_ours { (theme.ours, "bold") } else { (theme.theirs, "normal") };
            let baseline = top + BAR * self.series.len() as f64 / 2.0 + 4.5;
            svg.line(format_args!(
                r#"<text x="{:.1}" y="{baseline}" text-anchor="end" font-weight="{weight}">{}</text>"#,
                left - 8.0,
                escaped(&plain(name)),
            ));
            for (number, (value, series)) in values.iter().zip(&self.series).enumerate() {
                let (top, width) = (top + BAR * number as f64, x(*value) - left);
                svg.line(format_args!(
                    r#"<rect x="{left:.1}" y="{top}" width="{width:.1}" height="{}" fill="{}"/>"#,
                    BAR - 2.0,
                    colours[number],
                ));
                svg.line(format_args!(
                    r#"<text x="{:.1}" y="{}" font-weight="{weight}" font-size="12" stroke="{page}" stroke-width="3" paint-order="stroke">{}</text>"#,
                    left + width + 6.0,
                    top + BAR / 2.0 + 3.5,
                    escaped(&label(*value, series)),
                ));
            }
        }
        svg.line(format_args!("</svg>"));
        svg.0
    }
}

struct Svg(String);

impl Svg {
    fn line(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{element}").expect("a string has room");
    }
}

/// A value of a series, which may have no name.
fn label(value: f64, series: &str) -> String {
    format!("{} {series}", figure(value)).trim_end().to_owned()
}

/// A figure with about three digits that say something, or all of a large one.
fn figure(value: f64) -> String {
    let decimals = match value {
        0.0 => 0,
        value if value < 1.0 => 3,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    grouped(&format!("{value:.decimals$}"))
}

/// A number with spaces between its thousands, from 10 000 on.
pub(crate) fn grouped(number: &str) -> String {
    let whole = number.find('.').unwrap_or(number.len());
    let mut grouped = number.to_owned();
    if whole > 4 {
        (1..whole)
            .rev()
            .filter(|at| (whole - at).is_multiple_of(3))
            .for_each(|at| grouped.insert(at, ' '));
    }
    grouped
}

/// Round numbers from 0 up to `end`, seven of them at most.
fn ticks(end: f64) -> Vec<f64> {
    if end <= 0.0 {
        return vec![0.0];
    }
    let magnitude = 10_f64.powf((end / 6.0).log10().floor());
    let mut steps = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * magnitude);
    let step = steps.find(|step| step * 6.0 >= end).unwrap_or(end);
    let count = (0..).map(f64::from).take_while(|count| count * step <= end * 1.000_001);
    // Rounded, since 3 times 0.1 is not 0.3.
    count.map(|count| ((count * step) * 1e9).round() / 1e9).collect()
}

/// Text without the markdown of bold and code.
fn plain(markdown: &str) -> String {
    markdown.replace("**", "").replace('`', "")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(437.0), [0.0, 100.0, 200.0, 300.0, 400.0]);
        assert_eq!(ticks(1.2), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]);
        assert_eq!(ticks(0.61), [0.0, 0.2, 0.4, 0.6]);
        assert_eq!(ticks(0.0), [0.0]);
        for end in 1..5000 {
            let ticks = ticks(f64::from(end) / 7.0);
            assert!((3..=7).contains(&ticks.len()), "{end} / 7: {ticks:?}");
        }
    }

    #[test]
    fn figures_are_short_and_can_be_read() {
        let figures = [0.0, 0.0312, 0.5, 1.234, 12.34, 123.4, 1234.5, 131_072.0, 1e6];
        let shown = ["0", "0.031", "0.500", "1.23", "12.3", "123", "1234", "131 072", "1 000 000"];
        assert_eq!(figures.map(figure), shown);
        assert_eq!(grouped("12345.25"), "12 345.25");
    }

    #[test]
    fn names_are_plain_and_escaped() {
        let svg = Chart::bars("a < b", "ns", [("**ours** & `Vec<T>`", 1.0)]).svg(Theme::LIGHT);
        assert!(svg.contains(">ours &amp; Vec&lt;T&gt;</text>"), "{svg}");
        assert!(svg.contains("<title>a &lt; b</title>"), "{svg}");
        assert!(!svg.contains('`') && !svg.contains("**"), "{svg}");
    }

    #[test]
    fn ours_has_a_colour() {
        let chart = Chart::bars("", "ns", [("**ours**", 1.0), ("theirs", 2.0)]);
        for theme in [Theme::LIGHT, Theme::DARK] {
            let svg = chart.svg(theme);
            let bars = [theme.ours[0], theme.theirs[0]].map(|colour| svg.matches(colour).count());
            assert_eq!(bars, [1, 1]);
        }
    }

    #[test]
    fn a_group_names_its_figures() {
        let rows = [("**ours**", vec![1.0, 20.0]), ("theirs", vec![1.5, 300.0])];
        let svg = Chart::groups("", "ms", &["p50", "p99"], rows).svg(Theme::LIGHT);
        for label in ["1.00 p50", "20.0 p99", "1.50 p50", "300 p99"] {
            assert!(svg.contains(&format!(">{label}</text>")), "{label} in {svg}");
        }
    }

    #[test]
    fn the_longest_label_has_room_beside_the_longest_bar() {
        for series in ["", "p99", "beside jobs that compute"] {
            let chart = Chart::groups("", "µs", &[series], [("theirs", vec![510_854.0])]);
            let svg = chart.svg(Theme::LIGHT);
            let text = label(510_854.0, series);
            let line = svg.lines().find(|line| line.ends_with(&format!(">{text}</text>")));
            let x = line.and_then(|line| line.split('"').nth(1)).expect("a label");
            let x: f64 = x.parse().expect("where it begins");
            assert!(x + text.chars().count() as f64 * LETTER < WIDTH, "{series}: {x}");
        }
    }

    #[test]
    #[should_panic(expected = "figures for bars: theirs [NaN]")]
    fn a_bar_has_a_length() {
        Chart::bars("", "ns", [("theirs", f64::NAN)]);
    }
}
