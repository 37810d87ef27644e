// Charts from data, as SVG, each with the table behind it.

const NARROW = 280;

// {kind, title, note, ...} -> a <figure>, drawn anew when its width changes.
const figure = (spec) => {
  const { draw, table } = FIGURES[spec.kind];
  const canvas = html("div", { class: "canvas" });
  const hidden = new Set();
  const redraw = () => {
    if (draw && canvas.clientWidth) canvas.replaceChildren(draw(spec, Math.max(NARROW, canvas.clientWidth), hidden));
  };
  if (draw) new ResizeObserver(redraw).observe(canvas);
  const caption = html(
    "figcaption",
    {},
    html("strong", { text: spec.title }),
    spec.note ? html("span", { text: ` ${spec.note}` }) : "",
  );
  const legend = spec.kind === "lines" && spec.series.length > 1 ? legendOf(spec, hidden, redraw) : "";
  const contents = () => [tableOf(table(spec), spec.title), copyButton("Copy as CSV", () => csv(table(spec)))];
  const behind = draw ? drawer("Table", contents) : html("div", {}, ...contents());
  return html("figure", { class: `figure ${spec.kind}` }, caption, draw ? canvas : "", legend, behind);
};

// Filled when it is first opened: most tables are never looked at.
const drawer = (title, contents) => {
  const box = html("details", {}, html("summary", { text: title }));
  box.addEventListener("toggle", () => box.append(...contents()), { once: true });
  return box;
};

const legendOf = (spec, hidden, redraw) =>
  html(
    "ul",
    { class: "legend", "aria-label": "Series, to be shown or hidden" },
    ...spec.series.map((series, i) =>
      html(
        "li",
        {},
        html(
          "button",
          {
            type: "button",
            "aria-pressed": "true",
            click: (event) => {
              const shown = !hidden.delete(i);
              if (shown) hidden.add(i);
              event.currentTarget.setAttribute("aria-pressed", String(!shown));
              redraw();
            },
          },
          svg(
            "svg",
            { width: 24, height: 10, "aria-hidden": "true" },
            svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, ...stroke(i) }),
          ),
          html("span", { text: series.name }),
        ),
      ),
    ),
  );

// After Okabe and Ito, for colour-blind readers; then the same dashed.
const COLOURS = 5;
const stroke = (i) => ({
  class: `series c${i % COLOURS}`,
  "stroke-dasharray": ["", "6 3", "2 3", "10 3 2 3"][Math.floor(i / COLOURS) % 4] || null,
});

const ticks = (low, high, count) => {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    found.push(+(i * step).toPrecision(12));
  return found;
};

const extent = (values) => {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) {
    if (v === null || v === undefined) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
};

// Axes do not leave what the quantity can be: a share lies within 0 and 1.
const within = ([low, high], bounds) => [
  Math.max(low, bounds?.[0] ?? -Infinity),
  Math.min(high, bounds?.[1] ?? Infinity),
];
const clamp = (v, [low, high]) => Math.max(low, Math.min(high, v));
const scale = (from, to) => (v) => to[0] + ((v - from[0]) / (from[1] - from[0])) * (to[1] - to[0]);
const text = (x, y, said, attributes = {}) => svg("text", { x, y, ...attributes, text: said });
// Broken where a point has no y.
const path = (points) => {
  let pen = "M";
  const drawn = points.map(([x, y]) => {
    if (!known(y)) {
      pen = "M";
      return "";
    }
    const step = `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
    return step;
  });
  return drawn.join("");
};

// Of many points to a pixel only the lowest and the highest are seen.
const thinned = (points, width) => {
  const size = Math.ceil(points.length / width);
  if (size < 4) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += size) {
    const bucket = points.slice(i, i + size);
    const values = bucket.filter((p) => known(p[1]));
    const ends = values.length ? [0, values.length - 1] : [];
    const [low, high] = extent(values.map((p) => p[1]));
    kept.push(...values.filter((p, at) => ends.includes(at) || p[1] === low || p[1] === high));
    if (values.length < bucket.length) kept.push([bucket.at(-1)[0], null]);
  }
  return kept;
};

const canvasOf = (spec, width, height) =>
  svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    role: "img",
    "aria-label": `${spec.title}. The table below has the numbers.`,
  });

const drawLines = (spec, width, hidden) => {
  const height = spec.height ?? 230;
  const shown = spec.series.filter((_, i) => !hidden.has(i));
  const [x0, x1] = extent(shown.flatMap((s) => s.points.map((p) => p[0])));
  const [y0, y1] = within(extent(shown.flatMap((s) => s.points.flatMap((p) => p.slice(1)))), spec.bounds);
  const [xs, ys] = [ticks(x0, x1, Math.max(2, width / 110)), ticks(y0, y1, 4)];
  const left = Math.max(40, 12 + widest(ys.map((tick) => number(tick))), 4 + widest(xs.map((t) => number(t))) / 2);
  const right = width - Math.max(12, 4 + widest(xs.map((tick) => number(tick))) / 2);
  const x = scale([x0, x1], [left, right]);
  const y = scale([y0, y1], [height - 34, spec.marks?.length ? 32 : 10]);
  const chart = canvasOf(spec, width, height);
  for (const tick of ys) {
    chart.append(
      svg("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      text(left - 6, y(tick) + 4, number(tick), { "text-anchor": "end" }),
    );
  }
  for (const tick of xs) chart.append(text(x(tick), height - 18, number(tick), { "text-anchor": "middle" }));
  chart.append(centred((left + right) / 2, height - 3, spec.x, width));
  appendMarks(chart, spec.marks ?? [], x, width, height);
  const yOf = (v) => y(clamp(v, [y0, y1]));
  spec.series.forEach((series, i) => {
    if (hidden.has(i) || !series.points.length) return;
    const banded = series.points.filter((p) => p.length > 2 && p[2] !== null);
    if (banded.length > 1) {
      const outline = [...banded.map((p) => [x(p[0]), yOf(p[2])]), ...banded.toReversed().map((p) => [x(p[0]), yOf(p[3])])];
      chart.append(svg("path", { class: `band c${i % COLOURS}`, d: `${path(outline)}Z` }));
    }
    chart.append(
      svg(
        "path",
        { ...stroke(i), d: path(thinned(series.points, width).map((p) => [x(p[0]), known(p[1]) ? y(p[1]) : null])) },
        svg("title", { text: series.name }),
      ),
    );
  });
  return chart;
};

// A line at each mark, and its name beside it where there is room; names that would meet stand above one another.
const appendMarks = (chart, marks, x, width, height) => {
  const ends = [-Infinity, -Infinity];
  for (const mark of marks.toSorted((a, b) => a.at - b.at)) {
    const [at, long] = [x(mark.at), widthOf(mark.name)];
    const before = at + 3 + long > width;
    const start = before ? at - 3 - long : at + 3;
    const row = start > ends[0] ? 0 : 1;
    ends[row] = start + long + 4;
    chart.append(
      svg(
        "line",
        { class: `mark ${mark.kind}`, x1: at, x2: at, y1: 4, y2: height - 34 },
        svg("title", { text: mark.name }),
      ),
      text(start, 12 + 13 * row, mark.name, { class: "marked" }),
    );
  }
};

const drawIntervals = (spec, width) => {
  const names = spec.rows.map((row) => wrapped(row.name, width * 0.42 - 12));
  const left = 12 + widest(names.flat());
  const tops = [4];
  for (const lines of names) tops.push(tops.at(-1) + Math.max(20, 6 + LINE * lines.length));
  const height = tops.at(-1) + 30;
  const range = within(extent([spec.reference, ...spec.rows.flatMap((r) => [r.value, r.low, r.high])]), spec.bounds);
  const found = ticks(...range, Math.max(2, (width - left) / 80));
  const x = scale(range, [left + 16, width - Math.max(14, 4 + widest(found.map((tick) => number(tick))) / 2)]);
  const chart = canvasOf(spec, width, height);
  for (const tick of found) {
    chart.append(
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 4, y2: height - 30 }),
      text(x(tick), height - 14, number(tick), { "text-anchor": "middle" }),
    );
  }
  if (known(spec.reference)) {
    chart.append(
      svg("line", { class: "reference", x1: x(spec.reference), x2: x(spec.reference), y1: 4, y2: height - 30 }),
    );
  }
  spec.rows.forEach((row, i) => {
    const middle = (tops[i] + tops[i + 1]) / 2;
    const group = svg(
      "g",
      { class: row.muted ? "muted" : null },
      svg("title", { text: `${row.name}: ${withInterval(row)}` }),
      ...linesAt(left, middle, names[i]),
    );
    if (known(row.low)) {
      const [x1, x2] = [row.low, row.high].map((v) => x(clamp(v, range)));
      group.append(svg("line", { class: "series c0", x1, x2, y1: middle, y2: middle }));
    }
    if (row.value !== null)
      group.append(
        svg("circle", { class: row.filled === false ? "dot hollow" : "dot", cx: x(row.value), cy: middle, r: 4.5 }),
      );
    chart.append(group);
  });
  return chart;
};

const withInterval = (row) =>
  `${number(row.value)}${row.low === null || row.low === undefined ? "" : ` [${number(row.low)}, ${number(row.high)}]`}`;

const FIGURES = {
  lines: {
    draw: drawLines,
    table: (spec) => {
      const banded = spec.series.some((s) => s.points.some((p) => p.length > 2));
      return {
        columns: ["series", spec.x, spec.y, ...(banded ? ["low", "high"] : [])],
        rows: spec.series.flatMap((s) =>
          s.points.map((p) => [s.name, ...p, ...(banded && p.length < 3 ? [null, null] : [])]),
        ),
      };
    },
  },
  intervals: {
    draw: drawIntervals,
    table: (spec) => ({
      columns: ["name", spec.x, "low", "high"],
      rows: spec.rows.map((r) => [r.name, r.value, r.low ?? null, r.high ?? null]),
    }),
  },
  matrix: {
    draw: drawMatrix,
    table: (spec) => ({
      columns: ["", ...spec.columns.map(String)],
      rows: spec.rows.map((name, i) => [String(name), ...spec.values[i]]),
    }),
  },
  table: { draw: null, table: (spec) => spec },
};
