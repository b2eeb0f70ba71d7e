use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, ValueFormatter},
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::figures::Spread;

/// What a chart shows.
#[derive(Clone, Debug)]
pub(super) enum Chart {
    /// A bar for each target, as long as the median, with a whisker from the least to the most.
    Bars { title: String, bars: Vec<Bar> },
    /// A line for each target.
    Lines { title: String, x: &'static str, y: &'static str, lines: Vec<Line>, scale: Scale, y_max: Option<f64> },
}

/// How x is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    FromZero,
    /// Each doubling is as wide as any other.
    Doublings,
}

#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) spread: Spread,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

const WIDTH: u32 = 760;
const LINES_HEIGHT: u32 = 420;
const BAR_HEIGHT: u32 = 46;
/// With more, a line needs no dots.
const POINTS_SHOWN: usize = 16;
const FONT: &str = "system-ui, sans-serif";
const INK: RGBColor = RGBColor(38, 42, 48);
const PALE: RGBColor = RGBColor(224, 228, 233);
const MUTED: RGBColor = RGBColor(104, 112, 122);
/// Told apart by people who see few colours, too (after Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// The chart as an SVG document.
///
/// # Errors
/// When it cannot be drawn.
pub(super) fn svg(chart: &Chart) -> std::io::Result<String> {
    let mut text = String::new();
    let size = match chart {
        Chart::Bars { bars, .. } => (WIDTH, 64 + BAR_HEIGHT * u32::try_from(bars.len()).unwrap_or(1)),
        Chart::Lines { .. } => (WIDTH, LINES_HEIGHT),
    };
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let drawn = match chart {
            Chart::Bars { title, bars } => draw_bars(&area, title, bars),
            Chart::Lines { .. } => draw_lines(&area, chart),
        };
        let drawn = drawn.and_then(|()| Ok(area.present()?));
        drawn.map_err(|error| std::io::Error::other(error.to_string()))?;
    }
    Ok(text)
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

fn text_style(size: u32, colour: &'static RGBColor, h: HPos) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(colour).pos(Pos::new(h, VPos::Center))
}

fn draw_bars(area: &Area<'_>, title: &str, bars: &[Bar]) -> Drawn {
    const LEFT: i32 = 190;
    const RIGHT: i32 = 190;
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (20, 26), text_style(19, &INK, HPos::Left)))?;
    let most = bars.iter().map(|bar| bar.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let wide = f64::from(i32::try_from(WIDTH)? - LEFT - RIGHT);
    let x = |value: f64| LEFT + (value / most * wide) as i32;
    for (index, Bar { name, spread }) in bars.iter().enumerate() {
        let top = 52 + i32::try_from(index)? * i32::try_from(BAR_HEIGHT)?;
        let (bottom, middle) = (top + 28, top + 14);
        area.draw(&Text::new(shortened(name), (LEFT - 12, middle), text_style(15, &INK, HPos::Right)))?;
        area.draw(&Rectangle::new([(LEFT, top), (x(spread.median), bottom)], colour(index).filled()))?;
        let whisker = INK.stroke_width(2);
        let (from, to) = (x(spread.min), x(spread.max));
        area.draw(&PathElement::new([(from, middle), (to, middle)], whisker))?;
        for end in [from, to] {
            area.draw(&PathElement::new([(end, middle - 6), (end, middle + 6)], whisker))?;
        }
        let figure = format!("{}  ({} to {})", shown(spread.median), shown(spread.min), shown(spread.max));
        area.draw(&Text::new(figure, (to.max(x(spread.median)) + 10, middle), text_style(14, &MUTED, HPos::Left)))?;
    }
    Ok(())
}

fn draw_lines(area: &Area<'_>, chart: &Chart) -> Drawn {
    let Chart::Lines { title, x, y, lines, scale, y_max } = chart else { return Ok(()) };
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.clone(), (20, 26), text_style(19, &INK, HPos::Left)))?;
    if lines.iter().all(|line| line.points.is_empty()) {
        return Ok(());
    }
    let points = || lines.iter().flat_map(|line| &line.points).copied();
    let top = y_max.unwrap_or_else(|| points().map(|(_, y)| y).fold(0.0, f64::max) * 1.08).max(f64::MIN_POSITIVE);
    let least = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min).max(1e-3);
    let most = points().map(|(x, _)| x).fold(least, f64::max);
    let legend_width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0).min(24) * 9 + 60;
    let (plot, legend) = area.split_horizontally(i32::try_from(WIDTH)? - i32::try_from(legend_width)?);
    let mut builder = ChartBuilder::on(&plot);
    builder
        .margin_top(48)
        .margin_left(14)
        .margin_right(12)
        .margin_bottom(10)
        .x_label_area_size(44)
        .y_label_area_size(64);
    match scale {
        Scale::FromZero => draw_axes(&mut builder, 0.0..most * 1.04, top, (x, y), lines)?,
        Scale::Doublings => {
            // A little room on both sides, so that no point lies on an edge.
            let range = (least / 1.06)..(most * 1.06).max(least * 1.2);
            draw_axes(&mut builder, range.log_scale().base(2.0), top, (x, y), lines)?;
        }
    }
    for (index, line) in lines.iter().enumerate() {
        let middle = 62 + i32::try_from(index)? * 24;
        legend.draw(&PathElement::new([(4, middle), (28, middle)], colour(index).stroke_width(4)))?;
        legend.draw(&Text::new(shortened(&line.name), (36, middle), text_style(14, &INK, HPos::Left)))?;
    }
    Ok(())
}

/// The lines, over pale ones behind them, and what the axes are.
fn draw_axes<X>(
    builder: &mut ChartBuilder<'_, '_, SVGBackend<'_>>,
    range: X,
    top: f64,
    (x, y): (&str, &str),
    lines: &[Line],
) -> Drawn
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let mut drawn = builder.build_cartesian_2d(range, 0.0..top)?;
    drawn
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(PALE)
        .x_label_style(text_style(13, &MUTED, HPos::Center))
        .y_label_style(text_style(13, &MUTED, HPos::Right))
        .x_label_formatter(&|value| shown(*value))
        .y_label_formatter(&|value| shown(*value))
        .axis_desc_style(text_style(14, &INK, HPos::Center))
        .x_desc(x)
        .y_desc(y)
        .draw()?;
    for (index, line) in lines.iter().enumerate() {
        drawn.draw_series(LineSeries::new(line.points.iter().copied(), colour(index).stroke_width(3)))?;
        if line.points.len() <= POINTS_SHOWN {
            drawn.draw_series(line.points.iter().map(|point| Circle::new(*point, 4, colour(index).filled())))?;
        }
    }
    Ok(())
}

/// With as many digits as tell something.
fn shown(value: f64) -> String {
    match value {
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= 24 {
        return name.to_owned();
    }
    name.chars().take(23).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_its_targets_and_escapes_them() {
        let spread = Spread { min: 90.0, median: 100.0, max: 130.0 };
        let bars = vec![Bar { name: "a<b".to_owned(), spread }, Bar { name: "demo:candle".to_owned(), spread }];
        let text = svg(&Chart::Bars { title: "Throughput".to_owned(), bars }).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
        assert!(text.contains("a&lt;b") && text.contains("demo:candle") && text.contains("(90 to 130)"), "{text}");
    }

    #[test]
    fn lines_of_one_point_and_of_none_are_drawn_too() {
        let points = [vec![(8.0, 100.0)], Vec::new(), vec![(1.0, 50.0), (2.0, 90.0), (4.0, 95.0)]];
        for (points, scale) in points.into_iter().flat_map(|p| [(p.clone(), Scale::FromZero), (p, Scale::Doublings)]) {
            let lines = vec![Line { name: "demo".to_owned(), points }];
            let chart = Chart::Lines { title: "Sweep".to_owned(), x: "x", y: "y", lines, scale, y_max: None };
            assert!(svg(&chart).unwrap().trim_end().ends_with("</svg>"));
        }
    }
}
